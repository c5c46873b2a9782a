"""Which channels this node listens to, and what comes from them.

One hub per group or channel with a member here, one user hub per user with a session here; direct conversations cost
no channel. A hub is *confirmed* when its subscription is confirmed by the server and its head was read after that, so
nothing can fall between. Holes and lost subscriptions are repaired from the log: `repair` reads (hub.seq, …] in pages
until a page is short, and an event that comes live meanwhile only moves the mark to read up to.

Invariant: a channel is subscribed while somebody here needs it; `hubs` and `users` hold nothing that nobody needs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from gateway.delivery.hub import Hub, UserHub
from gateway.delivery.session import Session
from gateway.delivery.shared_frames import VARIANTS, control_frame
from router.contract import metrics, signals, stamp, wire
from router.contract.errors import LinnetError
from router.contract.packing import MAX_INTEGER
from router.process.isolate import attempt, each
from router.store.conversations import Head, Page

if TYPE_CHECKING:
    from gateway.node import Node

REPAIR_EVENTS: Final = 256
RETRY_S: Final = 1.0
# How many hubs or sessions one turn of the loop asks for after a subscription was lost.
STEP: Final = 200
LOG_S: Final = 60.0
UNREADABLE: Final = metrics.REDIS_ERRORS.labels("unreadable")

log = logging.getLogger("linnet.gateway")

Ready = Callable[[bool], None]


class Subscriptions:
    """The hubs of this node and the bus that feeds them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._names = node.client.channels
        self.hubs: dict[str, Hub] = {}
        self.users: dict[str, UserHub] = {}
        self._channels: dict[bytes, Hub | UserHub | None] = {}
        self._logged_at = -math.inf  # when the last unreadable message was logged

    # -- who needs what

    def hub(self, conversation: str, ready: Ready) -> Hub:
        """The hub of a group or channel; `ready(True)` once it is confirmed, `ready(False)` if it is gone."""
        hub = self.hubs.get(conversation)
        if hub is None:
            channel = self._names.conversation(conversation)
            hub = self.hubs[conversation] = Hub(self._node, conversation, channel)
            self._channels[channel.encode()] = hub
            self._node.bus.subscribe([channel], partial(self._subscribed, hub))
        if hub.confirmed:
            ready(True)
        else:
            hub.waiting.append(ready)
        return hub

    def user(self, user: str, ready: Ready) -> UserHub:
        """The hub of a user; `ready(True)` once its subscription is confirmed."""
        hub = self.users.get(user)
        if hub is None:
            channel = self._names.user(user)
            hub = self.users[user] = UserHub(user, channel)
            self._channels[channel.encode()] = hub
            self._node.bus.subscribe([channel], partial(self._user_subscribed, hub))
        if hub.confirmed:
            ready(True)
        else:
            hub.waiting.append(ready)
        return hub

    def release(self, hub: Hub) -> None:
        """Drops a hub that has no members left."""
        if not hub.members and not hub.waiting and self.hubs.get(hub.conversation) is hub:
            del self.hubs[hub.conversation]
            self._drop(hub.channel)

    def release_user(self, hub: UserHub) -> None:
        if not hub.sessions and not hub.waiting and self.users.get(hub.user) is hub:
            del self.users[hub.user]
            self._drop(hub.channel)

    def watch(self, user: str, ready: Ready) -> None:
        """Listens for changes of a user's presence."""
        channel = self._names.presence(user)
        self._channels[channel.encode()] = None
        self._node.bus.subscribe([channel], ready)

    def unwatch(self, user: str) -> None:
        self._drop(self._names.presence(user))

    def member_left(self, hub: Hub, user: str) -> None:
        """A user is no member any more: the sessions here leave the hub where they stand."""
        for session in [session for session in hub.members if session.user == user]:
            self.leave(session, hub)

    def leave(self, session: Session, hub: Hub) -> None:
        """The session's user is out; what the hub has not written yet may still be the user's to have."""
        behind = self._node.catchup.start(session)
        hub.remove(session)
        session.hubs.remove(hub)
        self._node.catchup.left(session, behind, hub.conversation)
        self.release(hub)

    def _drop(self, channel: str) -> None:
        del self._channels[channel.encode()]
        self._node.bus.unsubscribe([channel])

    # -- what comes

    def received(self, messages: list[tuple[bytes, bytes]]) -> None:
        """All that one read of the bus brought: hubs first take everything, then write it joined.

        A payload that cannot be read (it is neither an event nor a signal) is counted and passed over, as the rest of
        its batch must not be lost with it.
        """
        touched: dict[Hub, None] = {}
        rest = iter(messages)
        while True:
            try:
                self._receive(rest, touched)
                break
            except Exception as error:  # noqa: BLE001 - what one payload raises must not cost the payloads behind it
                self._unreadable(error)
        for hub in touched:
            try:
                hub.flush()
            except Exception as error:  # noqa: BLE001 - the same, of one hub
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
        now = self._node.loop.time()
        if now > self._logged_at + LOG_S:
            self._logged_at = now
            log.error("a message from Redis could not be processed; others of the next minute are counted",
                      exc_info=error)  # fmt: skip

    def _touched(self, payload: bytes) -> None:
        signal = signals.decode(payload)
        if isinstance(signal, signals.Touched):
            self._node.watches.touched(signal.user)

    def _whisper(self, hub: Hub, payload: bytes) -> None:
        event: wire.Event
        match signals.decode(payload):
            case signals.Typing(conversation, user):
                event = wire.TypingEvent(conversation=conversation, from_=user)
            case signals.Receipt(conversation, user, read):
                if not hub.has_read(user, read):
                    return  # the user's own message has told it
                event = wire.ReceiptEvent(conversation=conversation, user=user, read=read)
            case _:
                return
        frames = [control_frame(event, wire.JSON if variant & 1 else wire.MSGPACK) for variant in VARIANTS]
        hub.whisper(frames, user)

    # -- coming to know where a hub stands

    def _subscribed(self, hub: Hub, confirmed: bool) -> None:
        if confirmed and not hub.confirmed:
            self._node.conversations.heads([hub.conversation], partial(self._placed, hub))

    def _placed(self, hub: Hub, heads: list[Head | None] | LinnetError) -> None:
        if isinstance(heads, LinnetError):
            self._node.later(RETRY_S, self._subscribed, hub, True)
            return
        head = heads[0]
        if head is not None and not hub.confirmed:
            hub.place(head)
        waiting, hub.waiting = hub.waiting, []
        for ready in waiting:
            ready(head is not None)
        self.release(hub)

    def _user_subscribed(self, hub: UserHub, confirmed: bool) -> None:
        if confirmed:
            hub.confirmed = True
            waiting, hub.waiting = hub.waiting, []
            for ready in waiting:
                ready(True)
            self.release_user(hub)

    # -- repairs

    def repair(self, hub: Hub, cause: str) -> None:
        """Reads the log from where the hub stands to its end."""
        if not hub.repairing:
            hub.repairing = True
            metrics.REPAIRS.labels(cause).inc()
            self._read(hub)

    def _read(self, hub: Hub) -> None:
        if self.hubs.get(hub.conversation) is hub:
            reply = partial(self._read_on, hub)
            self._node.conversations.range(hub.conversation, None, hub.seq, MAX_INTEGER, REPAIR_EVENTS, reply)

    def _read_on(self, hub: Hub, page: Page | LinnetError) -> None:
        if isinstance(page, LinnetError):
            self._node.later(RETRY_S, self._read, hub)
            return
        if page.floor > hub.seq:
            hub.expired(page.floor)
        for event in page.events:
            seq, prev, count, at = stamp.slots(event)
            if prev < hub.seq:
                hub.void(prev)
            hub.accept(event, seq, count, at)
        metrics.REPAIRED_EVENTS.inc(len(page.events))
        hub.flush()
        # An event that was seen live stands in the log; where a failover took it away again there is nothing to wait
        # for, so an empty page ends the repair whatever was seen.
        if page.more or (page.events and hub.seen > hub.seq):
            self._read(hub)
        else:
            hub.repairing = False

    # -- after the bus was lost

    def lost(self) -> None:
        """Nothing comes any more; sessions stay, and what they miss is looked for by `restored`."""
        metrics.REPAIRS.labels("bus_lost").inc()

    def restored(self) -> None:
        """Every channel is subscribed again: whatever was said meanwhile is looked for."""
        for user_hub in list(self.users.values()):
            self._user_subscribed(user_hub, True)
        self._compare_all(iter(list(self.hubs)))
        self._sync_all(iter([session for hub in self.users.values() for session in hub.sessions]))
        self._node.watches.touched(*self._node.watches.users)

    def channel_restored(self, channel: bytes) -> None:
        """One channel was lost and is subscribed again."""
        hub = self._channels.get(channel)
        if isinstance(hub, Hub):
            self.compare([hub.conversation], "resubscribe")
        elif isinstance(hub, UserHub):
            self._sync_all(iter(list(hub.sessions)))

    def _compare_all(self, conversations: Iterable[str]) -> None:
        step = list(islice(conversations, STEP))
        if step:
            attempt("resubscribe", lambda: self.compare(step, "resubscribe"))
            self._node.soon(partial(self._compare_all, conversations))

    def _sync_all(self, sessions: Iterable[Session]) -> None:
        step = list(islice(sessions, STEP))
        each("resubscribe", partial(self._node.audits.sync, cause="resubscribe"), step)
        if step:
            self._node.soon(partial(self._sync_all, sessions))

    def compare(self, conversations: list[str], cause: str) -> None:
        """Reads the heads of these hubs; one that stands behind its log is repaired."""
        self._node.conversations.heads(conversations, partial(self._compared, conversations, cause))

    def _compared(self, conversations: list[str], cause: str, heads: list[Head | None] | LinnetError) -> None:
        if isinstance(heads, LinnetError):
            if cause != "audit":  # the next round audits anyway
                self._node.later(RETRY_S, self.compare, conversations, cause)
            return
        each("compare", partial(self._compare_one, cause), zip(conversations, heads, strict=True))

    def _compare_one(self, cause: str, found: tuple[str, Head | None]) -> None:
        conversation, head = found
        hub = self.hubs.get(conversation)
        if hub is not None and not hub.confirmed:
            self._placed(hub, [head])
            return
        if hub is None or head is None:
            return
        hub.title = head.title
        if head.seq == hub.seq:
            hub.size, hub.deleted = head.size, head.deleted
        if head.seq > hub.seq:
            hub.seen = max(hub.seen, head.seq)
            self.repair(hub, cause)
        if head.version != hub.version:
            hub.version = head.version
            self._node.audits.members(hub)
