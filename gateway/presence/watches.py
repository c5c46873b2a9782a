"""The users that sessions here watch, and the presence that was last sent to those sessions.

A hint that a user's presence changed only leads to a read of the user's device rows. Whether the user is online is
decided here, from those rows and the leases (`router.store.presence.state`). Hints are joined over `COALESCE_S`. Every
watched user is read again once per heartbeat round, so a lost hint costs one round at most. Presence is decided again
each time the leases are read, so the death of a gateway needs no hint.

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
from router.contract.errors import Internal, LinnetError, TooLarge
from router.process.isolate import attempt, each, fault
from router.store.presence import Device, Presence, state

MAX_WATCHES: Final = 1000
COALESCE_S: Final = 0.2
USERS_PER_READ: Final = 500


class Watch:
    """One watched user: the sessions that watch, the device rows as last read, and the presence as last sent."""

    __slots__ = ("devices", "sent", "sessions")

    def __init__(self) -> None:
        self.sessions: dict[Session, None] = {}
        self.devices: list[Device] = []
        self.sent: wire.PresenceState | None = None


class Watches:
    def __init__(
        self,
        presence: Presence,
        subscriptions: Subscriptions,
        lease: Lease,
        clock: RedisClock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._presence = presence
        self._subscriptions = subscriptions
        self._lease = lease
        self._clock = clock
        self._soon: Callable[..., Any] = loop.call_soon
        self._later: Callable[..., Any] = loop.call_later
        self.users: dict[str, Watch] = {}
        self._touched: dict[str, None] = {}
        self._reading = False  # device rows are being read, or a read is due

    # -- the command

    def presence(self, session: Session, command: wire.Presence) -> None:
        """Answer with the presence of the users; if asked to watch, send their changes from then on."""
        users = list(dict.fromkeys(command.users))
        if command.watch:
            self._add(session, users)
        self._presence.devices(users, partial(self._answer, session, command, users))

    def _answer(
        self,
        session: Session,
        command: wire.Presence,
        users: list[str],
        found: list[list[Device] | LinnetError] | LinnetError,
    ) -> None:
        if isinstance(found, LinnetError):
            session.refuse(command, found)
            return
        try:
            states = self._states(zip(users, found, strict=True))
            if command.watch:
                for user, devices in zip(users, found, strict=True):
                    if (watch := self.users.get(user)) is not None and not isinstance(devices, LinnetError):
                        watch.devices = devices
                self._send_changes(users)  # else this answer would differ from the state that changes are compared with
            session.answer(wire.PresenceEvent(id=command.id, users=states))
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
            watch.sessions[session] = None
            watched.add(user)
        metrics.PRESENCE_WATCHES.set(len(self.users))

    def _subscribed(self, user: str, _: bool) -> None:
        self.touched(user)

    def drop(self, session: Session) -> None:
        """Drop the watches of a session that has ended."""
        for user in session.watches or ():
            watch = self.users[user]
            watch.sessions.pop(session, None)
            if not watch.sessions:
                del self.users[user]
                self._subscriptions.unwatch(user)
        session.watches = None
        metrics.PRESENCE_WATCHES.set(len(self.users))

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
            for user, devices in zip(users, found, strict=True):
                if user in self.users and not isinstance(devices, LinnetError):
                    self.users[user].devices = devices
            attempt("watches", lambda: self._send_changes(users))
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
                for session in watch.sessions:
                    changes.setdefault(session, {})[user] = states[user]
            watch.sent = states[user]
        each("watches", self._send, changes.items())

    @staticmethod
    def _send(change: tuple[Session, dict[str, wire.PresenceState]]) -> None:
        session, states = change
        metrics.PRESENCE_CHANGES.inc(len(states))
        session.answer(wire.PresenceEvent(users=states))

    def _states(self, users: Iterable[tuple[str, list[Device] | LinnetError]]) -> dict[str, wire.PresenceState]:
        gateways, now = self._lease.alive(), self._clock.now_ms()
        return {user: state(devices, gateways, now) for user, devices in users}
