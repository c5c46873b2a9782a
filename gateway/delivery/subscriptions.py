"""The pub/sub channels that this node is subscribed to, and the messages that arrive on them.

There is one hub per group or channel with a member here, and one user hub per user with a session here; direct
conversations need no pub/sub channel. A hub is *confirmed* when the server has confirmed its subscription and its head
was read after that, so no event is missed between the two.

Invariant: a channel is subscribed exactly while a local session needs it; `hubs` and `users` hold no others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

from gateway.delivery.catchup import Catchup
from gateway.delivery.hub import Hub, HubPorts
from gateway.delivery.session import Session, SessionHub, SessionUserHub
from gateway.delivery.shared_frames import control_frames
from gateway.delivery.user_hub import UserHub
from router.contract import metrics, signals, stamp, wire
from router.contract.errors import LinnetError
from router.process.isolate import each
from router.store.conversations import Conversations
from router.store.heads import Head

RETRY_S: Final = 1.0
DISCREET_VIEWERS: Final = 1000
LOG_S: Final = 60.0
UNREADABLE: Final = metrics.REDIS_ERRORS.labels("unreadable")

log = logging.getLogger("linnet.gateway")

Ready = Callable[[bool], None]


class ChannelNames(Protocol):
    """The names of the channels of this deployment."""

    def conversation(self, conversation: str) -> str: ...
    def user(self, user: str) -> str: ...
    def presence(self, user: str) -> str: ...


class Bus(Protocol):
    """Pub/sub. `confirmed` is called at every confirmation, also after the connection was lost and restored."""

    def subscribe(self, channels: Sequence[bytes], confirmed: Callable[[bool], None]) -> None: ...
    def unsubscribe(self, channels: Sequence[bytes]) -> None: ...
    def reaches(self, channel: bytes) -> bool: ...


class Subscriptions:
    """The hubs of this node and the bus that feeds them. `node.py` connects the attributes once."""

    bus: Bus
    presence_changed: Callable[[str], None]  # the presence of a watched user may have changed
    visibility_changed: Callable[[str], None]  # a watched user may be hidden from other viewers than before
    profile_changed: Callable[[str], None]  # the profile of a watched user has changed
    # Ask from which of some viewers a user is hidden.
    hidden_from: Callable[[str, list[str], Callable[[frozenset[str] | LinnetError], None]], None]

    def __init__(
        self,
        names: ChannelNames,
        hubs: dict[str, Hub],
        hub_ports: HubPorts,
        conversations: Conversations,
        catchup: Catchup,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._names = names
        self.hubs = hubs
        self.users: dict[str, UserHub] = {}
        self._hub_ports = hub_ports
        self._conversations = conversations
        self._catchup = catchup
        self._later: Callable[..., Any] = loop.call_later
        self._time = loop.time
        self._channels: dict[bytes, Hub | UserHub | None] = {}
        self._logged_at = -math.inf  # when the last unreadable message was logged

    # -- subscribing

    def hub(self, conversation: str, ready: Ready) -> Hub:
        """Return the hub of a group or channel; call `ready(True)` once it is confirmed, `ready(False)` if deleted."""
        hub = self.hubs.get(conversation)
        if hub is None:
            channel = self._names.conversation(conversation).encode()
            hub = self.hubs[conversation] = Hub(self._hub_ports, conversation, channel)
            self._channels[channel] = hub
            self.bus.subscribe([channel], partial(self._subscribed, hub))
        if hub.confirmed:
            ready(True)
        else:
            hub.waiting.append(ready)
        return hub

    def user(self, user: str, ready: Ready) -> UserHub:
        """Return the hub of a user; call `ready(True)` once its subscription is confirmed."""
        hub = self.users.get(user)
        if hub is None:
            channel = self._names.user(user).encode()
            hub = self.users[user] = UserHub(user, channel)
            self._channels[channel] = hub
            self.bus.subscribe([channel], partial(self.confirm_user, hub))
        if hub.confirmed:
            ready(True)
        else:
            hub.waiting = (*hub.waiting, ready)
        return hub

    def reaches(self, hub: Hub | UserHub) -> bool:
        """Whether the part of Redis with this hub's channel answers, as far as is known."""
        return self.bus.reaches(hub.channel) and not (isinstance(hub, Hub) and hub.failed)

    def reaches_part(self, tag: bytes) -> bool:
        """The same for the part of Redis with this hash tag."""
        return self.bus.reaches(tag)

    def reaches_conversation(self, conversation: str) -> bool:
        """The same for a conversation, whether there is a hub or not."""
        hub = self.hubs.get(conversation)
        return (
            self.reaches(hub) if hub is not None else self.bus.reaches(self._names.conversation(conversation).encode())
        )

    def give_up(self, hub: Hub | UserHub, ready: Ready) -> None:
        """Do not call `ready` any more."""
        if isinstance(hub, Hub):
            if ready in hub.waiting:
                hub.waiting.remove(ready)
            self.release(hub)
        else:
            hub.waiting = tuple(one for one in hub.waiting if one != ready)
            self.release_user(hub)

    def release(self, hub: SessionHub) -> None:
        """Drop a hub that has no members left."""
        held = self.hubs.get(hub.conversation)
        if held is hub and not held.members and not held.waiting:
            del self.hubs[held.conversation]
            self._drop(held.channel)

    def release_user(self, hub: SessionUserHub) -> None:
        """Drop a user's hub that has no sessions left."""
        held = self.users.get(hub.user)
        if held is hub and not held.sessions and not held.waiting:
            del self.users[held.user]
            self._drop(held.channel)

    def watch(self, user: str, ready: Ready) -> None:
        """Subscribe to the changes of a user's presence; call `ready(True)` once the subscription is confirmed."""
        channel = self._names.presence(user).encode()
        self._channels[channel] = None
        self.bus.subscribe([channel], ready)

    def unwatch(self, user: str) -> None:
        self._drop(self._names.presence(user).encode())

    def member_left(self, hub: Hub, user: str) -> None:
        """Remove the sessions of a user who is no longer a member from the hub, each at its position."""
        for session in [session for session in hub.members if session.user == user]:
            self.leave(session, hub)

    def leave(self, session: Session, hub: SessionHub) -> None:
        """Remove a session from a hub, and read the events up to the removal that the hub has not written yet."""
        backlog = self._catchup.fall_behind(session)
        hub.remove_member(session)
        session.hubs.remove(hub)
        self._catchup.read_left(session, backlog, hub.conversation)
        self.release(hub)

    def _drop(self, channel: bytes) -> None:
        del self._channels[channel]
        self.bus.unsubscribe([channel])

    def at(self, channel: bytes) -> Hub | UserHub | None:
        """Return the hub of a channel; None for a presence channel, or if this node is no longer subscribed."""
        return self._channels.get(channel)

    # -- messages

    def received(self, messages: list[tuple[bytes, bytes]]) -> None:
        """Take the messages of one read of the bus: hubs receive all of them first, then write them joined.

        A payload that cannot be read (it is neither an event nor a signal) is counted and skipped, so that the rest of
        its batch is not lost.
        """
        touched: dict[Hub, None] = {}
        rest = iter(messages)
        while True:
            try:
                self._receive(rest, touched)
                break
            except Exception as error:  # noqa: BLE001 - one payload that raises must not cost the payloads after it
                self._unreadable(error)
        for hub in touched:
            try:
                hub.flush()
            except Exception as error:  # noqa: BLE001 - one hub that raises must not cost the other hubs
                self._unreadable(error)

    def _receive(self, messages: Iterator[tuple[bytes, bytes]], touched: dict[Hub, None]) -> None:
        channels = self._channels
        for channel, payload in messages:
            hub = channels.get(channel)
            if hub.__class__ is Hub:
                if stamp.is_event(payload):
                    touched[hub] = None
                    hub.receive(payload)
                else:
                    self._whisper(hub, payload)
            elif hub is not None:
                hub.receive(payload)
            elif channel in channels:
                self._touched(payload)

    def _unreadable(self, error: Exception) -> None:
        UNREADABLE.inc()
        now = self._time()
        if now > self._logged_at + LOG_S:
            self._logged_at = now
            log.error("a message from Redis could not be processed; for a minute further ones are only counted",
                      exc_info=error)  # fmt: skip

    def _touched(self, payload: bytes) -> None:
        match signals.decode(payload):
            case signals.Touched(user):
                self.presence_changed(user)
            case signals.Hidden(user):
                self.visibility_changed(user)
            case signals.Profile(user):
                self.profile_changed(user)
            case _:
                pass

    def _whisper(self, hub: Hub, payload: bytes) -> None:
        event: wire.Event
        match signals.decode(payload):
            case signals.Typing(conversation, user):
                event = wire.TypingEvent(conversation=conversation, from_=user)
            case signals.Receipt(conversation, user, read):
                if not hub.note_mark(user, read):
                    return  # a receipt was written with the user's own message
                event = wire.ReceiptEvent(conversation=conversation, user=user, read=read)
            case signals.Discreet(conversation, user, read):
                viewers = list(dict.fromkeys(session.user for session in hub.members))
                if len(viewers) > DISCREET_VIEWERS:
                    return  # a signal may be lost, and the server would do nothing else for too long
                self.hidden_from(user, viewers, partial(self._whisper_discreetly, hub, user, read))
                return
            case _:
                return
        hub.whisper(control_frames(event), user)

    def _whisper_discreetly(self, hub: Hub, user: str, read: int, hidden: frozenset[str] | LinnetError) -> None:
        """Write typing or a receipt to the sessions of those from whom the user is not hidden."""
        if isinstance(hidden, LinnetError) or self.hubs.get(hub.conversation) is not hub:
            return  # a signal may be lost
        if not read:
            hub.whisper(control_frames(wire.TypingEvent(conversation=hub.conversation, from_=user)), user, hidden)
        elif hub.note_mark(user, read):
            receipt = wire.ReceiptEvent(conversation=hub.conversation, user=user, read=read)
            hub.whisper(control_frames(receipt), user, hidden)

    # -- the position of a new hub

    def _subscribed(self, hub: Hub, confirmed: bool) -> None:
        if confirmed and not hub.confirmed:
            self._conversations.heads([hub.conversation], partial(self.start_hub, hub))

    def start_hub(self, hub: Hub, heads: Sequence[Head | LinnetError | None] | LinnetError) -> None:
        """Set the position of a subscribed hub and call its `waiting`; drop the hub if its conversation is gone."""
        head = heads if isinstance(heads, LinnetError) else heads[0]
        if isinstance(head, LinnetError):
            hub.failed = not hub.confirmed  # another answer may have come before
            if self.hubs.get(hub.conversation) is hub:
                self._later(RETRY_S, self._subscribed, hub, True)
            return
        if head is not None and not hub.confirmed:
            hub.start_at(head)
        waiting, hub.waiting = hub.waiting, []
        each("subscriptions", lambda ready: ready(head is not None), waiting)
        self.release(hub)

    def confirm_user(self, hub: UserHub, confirmed: bool) -> None:
        """Confirm the subscription of a user's hub, and call its `waiting`."""
        if confirmed:
            hub.confirmed = True
            waiting, hub.waiting = hub.waiting, ()
            each("subscriptions", lambda ready: ready(True), waiting)
            self.release_user(hub)
