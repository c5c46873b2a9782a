"""The users that sessions here watch, and the presence that was last sent to those sessions.

A hint that a user's presence changed only leads to a read of the user's device rows. Whether the user is online is
decided here, from those rows and the leases (`router.store.presence.state`). Hints are joined over `COALESCE_S`. Every
watched user is read again once per heartbeat round, so a lost hint costs one round at most. Presence is decided again
each time the leases are read, so the death of a gateway needs no hint.

A user may be hidden from some of the watching users, by a block of either or by showing presence to contacts only. That
is asked at the command, and again when a signal says that it changed, or if signals were lost; never in a round.

Bound: `MAX_WATCHES` users per session; a user that no session watches is dropped. `USERS_PER_READ` users are read at a
time, so that commands find room among the calls, and decided about in one turn of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final

from gateway.delivery.session import Session
from gateway.delivery.subscriptions import Subscriptions
from gateway.presence.lease import Lease
from gateway.presence.redis_clock import RedisClock
from router.contract import metrics, wire
from router.contract.errors import Internal, LinnetError, TooLarge, Unavailable
from router.process.isolate import attempt, each, fault
from router.store.people import People
from router.store.presence import HIDDEN, UNKNOWN, Device, Presence, state

MAX_WATCHES: Final = 1000
COALESCE_S: Final = 0.2
USERS_PER_READ: Final = 500
RETRY_S: Final = 1.0


class Watch:
    """One watched user: the sessions that watch, the device rows as last read (an error if they never were), and the
    presence as last sent.

    `sessions`: whether this user is hidden from the session's user, or whether that is not known yet; then the session
    is sent no change. `untold`: the sessions whose answer had `online: null`, and whether that was because it was not
    known if the user is hidden from them; they are sent the presence once it is known.
    """

    __slots__ = ("devices", "sent", "sessions", "untold")

    def __init__(self) -> None:
        self.sessions: dict[Session, bool] = {}
        self.devices: list[Device] | LinnetError = Unavailable()
        self.sent: wire.PresenceState | None = None
        self.untold: dict[Session, bool] = {}


class Watches:
    def __init__(
        self,
        presence: Presence,
        people: People,
        subscriptions: Subscriptions,
        lease: Lease,
        clock: RedisClock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._presence = presence
        self._people = people
        self._subscriptions = subscriptions
        self._lease = lease
        self._clock = clock
        self._soon: Callable[..., Any] = loop.call_soon
        self._later: Callable[..., Any] = loop.call_later
        self.users: dict[str, Watch] = {}
        self._touched: dict[str, None] = {}
        self._reading = False  # device rows are being read, or a read is due
        # The users for whom `_look` is repeated, because it was not answered, with its `tell`. Each has one timer.
        self._unknown: dict[str, bool] = {}

    # -- the command

    def presence(self, session: Session, command: wire.Presence) -> None:
        """Answer with the presence of the users; if asked to watch, send their changes from then on."""
        users = list(dict.fromkeys(command.users))
        if command.watch:
            self._add(session, users)
        if not users:
            self._answer(session, command, users, {}, [])
            return
        _Hidden(self._people, users, session.user, partial(self._ask_devices, session, command, users))

    def _ask_devices(
        self, session: Session, command: wire.Presence, users: list[str], hidden: dict[str, bool | LinnetError]
    ) -> None:
        self._presence.devices(users, partial(self._answer, session, command, users, hidden))

    def _answer(
        self,
        session: Session,
        command: wire.Presence,
        users: list[str],
        hidden: dict[str, bool | LinnetError],
        found: list[list[Device] | LinnetError] | LinnetError,
    ) -> None:
        if isinstance(found, LinnetError):
            if command.watch:
                for user in users:
                    self._look_later(user)
            session.refuse(command, found)
            return
        try:
            states = self._states(zip(users, found, strict=True))
            shown = {user: _shown(hidden[user], one) for user, one in states.items()}
            if command.watch:
                for user, devices in zip(users, found, strict=True):
                    if (watch := self.users.get(user)) is not None:
                        if not isinstance(devices, LinnetError):
                            watch.devices = devices
                        if session in watch.sessions:
                            watch.sessions[session] = bool(hidden[user])
                            watch.untold.pop(session, None)  # this answer says it
                    if isinstance(hidden[user], LinnetError):
                        self._look_later(user)
                self._send_changes(users)  # else this answer would differ from the state that changes are compared with
                for user, one in shown.items():
                    if one is UNKNOWN and (watch := self.users.get(user)) is not None and session in watch.sessions:
                        watch.untold[session] = isinstance(hidden[user], LinnetError)
            session.answer(wire.PresenceEvent(id=command.id, users=shown))
        except Exception as error:  # noqa: BLE001 - a bug: the client must get an answer, and the log has the trace
            fault("watches", error)
            session.refuse(command, Internal())

    def _add(self, session: Session, users: list[str]) -> None:
        watched = session.watches if session.watches is not None else set()
        if len(watched.union(users)) > MAX_WATCHES:
            raise TooLarge(f"too many watched users: a session may watch {MAX_WATCHES}")
        session.watches = watched
        for user in users:
            watch = self.users.get(user)
            if watch is None:
                watch = self.users[user] = Watch()
                # Changes from before the confirmation of the subscription are read after it.
                self._subscriptions.watch(user, partial(self._subscribed, user))
            watch.sessions.setdefault(session, True)
            watched.add(user)
        metrics.PRESENCE_WATCHES.set(len(self.users))

    def _subscribed(self, user: str, _: bool) -> None:
        self.touched(user)
        self.look_who_sees(user)

    def drop(self, session: Session) -> None:
        """Drop the watches of a session that has ended."""
        for user in session.watches or ():
            watch = self.users[user]
            watch.sessions.pop(session, None)
            watch.untold.pop(session, None)
            if not watch.sessions:
                del self.users[user]
                self._subscriptions.unwatch(user)
        session.watches = None
        metrics.PRESENCE_WATCHES.set(len(self.users))

    # -- from whom a watched user is hidden

    def look_who_sees(self, user: str) -> None:
        """Ask again from which of the watching users this one is hidden, and correct what they were sent."""
        self._look(user, tell=False)

    def bus_lost(self) -> None:
        """Read every watched user again, and who sees them: signals may have been lost."""
        self.touch_all()
        for user in list(self.users):
            self.look_who_sees(user)

    def profile_changed(self, user: str) -> None:
        """Notify the watching users that the profile changed, if they may see the user's presence, which the change may
        have decided."""
        self._look(user, tell=True)

    def _look(self, user: str, tell: bool) -> None:
        watch = self.users.get(user)
        if watch is not None:
            viewers = list(dict.fromkeys(session.user for session in watch.sessions))
            self._people.hidden_from(user, viewers, partial(self._looked, user, viewers, tell))

    def _looked(self, user: str, viewers: list[str], tell: bool, hidden: frozenset[str] | LinnetError) -> None:
        watch = self.users.get(user)
        if watch is None:
            return
        if isinstance(hidden, LinnetError):
            self._look_later(user, tell)
            return
        asked, event = frozenset(viewers), wire.ProfileEvent(user=user)
        for session, was in list(watch.sessions.items()):
            if session.user not in asked or session not in watch.sessions:
                continue
            is_hidden = watch.sessions[session] = session.user in hidden
            if session in watch.untold:
                watch.untold[session] = False
                self._tell_untold(user, watch, session)
            elif is_hidden != was and watch.sent is not None and watch.sent.online:
                self._send((session, {user: HIDDEN if is_hidden else watch.sent}))
            if tell and not is_hidden:
                session.answer(event)

    def _look_later(self, user: str, tell: bool = False) -> None:
        """Ask again in a while. However many questions were not answered, there is one timer for the user."""
        if user not in self._unknown:
            self._later(RETRY_S, self._look_again, user)
        self._unknown[user] = tell or self._unknown.get(user, False)

    def _look_again(self, user: str) -> None:
        self._look(user, self._unknown.pop(user))

    # -- changes

    def touched(self, *users: str) -> None:
        """Read these users again soon: their presence may have changed."""
        self._touched.update(dict.fromkeys(users))
        if self._touched and not self._reading:
            self._reading = True
            self._later(COALESCE_S, self._read)

    def touch_all(self) -> None:
        """Read every watched user again: a hint may have been lost."""
        self.touched(*self.users)

    def _read(self) -> None:
        touched, self._touched = self._touched, {}
        self._read_on(iter(touched))

    def _read_on(self, touched: Iterator[str]) -> None:
        users = list(islice((user for user in touched if user in self.users), USERS_PER_READ))
        if users:
            if not attempt("watches", lambda: self._presence.devices(users, partial(self._apply, touched, users))):
                self._soon(self._read_on, touched)  # no answer comes for these; the next round reads them again
        else:
            self._reading = False
            self.touched()  # users that were touched meanwhile

    def _apply(
        self, touched: Iterator[str], users: list[str], found: list[list[Device] | LinnetError] | LinnetError
    ) -> None:
        if not isinstance(found, LinnetError):  # else the next round reads them again
            read = [
                (user, watch, devices)
                for user, devices in zip(users, found, strict=True)
                if (watch := self.users.get(user)) is not None and not isinstance(devices, LinnetError)
            ]
            for _, watch, devices in read:
                watch.devices = devices
            attempt("watches", lambda: self._send_changes(users))
            for user, watch, _ in read:
                each("watches", partial(self._tell_untold, user, watch), list(watch.untold))
        self._read_on(touched)

    def decide_all(self) -> None:
        """Decide the presence of every watched user again: the leases were read, and a gateway may have died."""
        self._decide_on(iter(list(self.users)))

    def _decide_on(self, users: Iterator[str]) -> None:
        some = list(islice(users, USERS_PER_READ))
        if some:
            attempt("watches", lambda: self._send_changes(some))
            self._soon(self._decide_on, users)

    def _send_changes(self, users: list[str]) -> None:
        """Send each session one event with the changes among these users."""
        watched = {user: self.users[user] for user in users if user in self.users}
        states = self._states((user, watch.devices) for user, watch in watched.items())
        changes: dict[Session, dict[str, wire.PresenceState]] = {}
        for user, watch in watched.items():
            if watch.sent is not None and watch.sent.online != states[user].online:
                for session, is_hidden in watch.sessions.items():
                    if not is_hidden:
                        watch.untold.pop(session, None)
                        changes.setdefault(session, {})[user] = states[user]
            watch.sent = states[user]
        each("watches", self._send, changes.items())

    def _tell_untold(self, user: str, watch: Watch, session: Session) -> None:
        """Send a session the presence that its answer lacked, if it is known now."""
        if watch.sent is None or watch.sent.online is None or watch.untold.get(session, True):
            return
        del watch.untold[session]
        self._send((session, {user: HIDDEN if watch.sessions[session] else watch.sent}))

    @staticmethod
    def _send(change: tuple[Session, dict[str, wire.PresenceState]]) -> None:
        session, states = change
        metrics.PRESENCE_CHANGES.inc(len(states))
        session.answer(wire.PresenceEvent(users=states))

    def _states(self, users: Iterable[tuple[str, list[Device] | LinnetError]]) -> dict[str, wire.PresenceState]:
        gateways, now = self._lease.alive(), self._clock.now_ms()
        return {user: state(devices, gateways, now) for user, devices in users}


def _shown(hidden: bool | LinnetError, state: wire.PresenceState) -> wire.PresenceState:
    """The state as a viewer sees it; unknown if it is not known whether the user is hidden from them."""
    if isinstance(hidden, LinnetError):
        return UNKNOWN
    return HIDDEN if hidden else state


class _Hidden:
    """Which of some users are hidden from one viewer: one question per user, and one reply. A question that was not
    answered has its error."""

    __slots__ = ("_found", "_left", "_reply")

    def __init__(
        self, people: People, users: list[str], viewer: str, reply: Callable[[dict[str, bool | LinnetError]], None]
    ) -> None:
        self._found: dict[str, bool | LinnetError] = {}
        self._left = len(users)
        self._reply = reply
        for user in users:
            people.hidden_from(user, [viewer], partial(self._received, user))

    def _received(self, user: str, hidden: frozenset[str] | LinnetError) -> None:
        self._found[user] = hidden if isinstance(hidden, LinnetError) else bool(hidden)
        self._left -= 1
        if not self._left:
            self._reply(self._found)
