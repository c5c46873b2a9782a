"""The sessions of this node, from the upgrade to the end of their connections, and the writes of one turn of the loop.

Invariant: a session is in `all` from `opened` to its end; once it is removed, no hub holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from gateway.delivery.feed import Feed
from gateway.delivery.session import Session
from gateway.delivery.subscriptions import Subscriptions
from router.contract import metrics
from router.process.isolate import each, fault


class OpenSessions:
    """The open sessions. `began` and `ended` are called for every session; `node.py` sets them once."""

    began: Sequence[Callable[[Session], None]] = ()
    ended: Sequence[Callable[[Session], None]] = ()

    def __init__(self, subscriptions: Subscriptions, soon: Callable[..., Any]) -> None:
        self._subscriptions = subscriptions
        self._soon = soon
        self._to_flush: list[Session] = []
        self.all: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self.all)

    def opened(self, session: Session) -> None:
        """Add a session whose upgrade was accepted."""
        self.all[session] = None
        metrics.CONNECTIONS.set(len(self.all))
        for began in self.began:
            began(session)

    def closed(self, session: Session, code: int) -> None:
        """Remove a session whose connection has ended from everything on this node; once."""
        if session not in self.all:
            return
        del self.all[session]
        metrics.CONNECTIONS.set(len(self.all))
        metrics.CLOSES.labels(str(code) if code in KNOWN_CODES else "other").inc()
        for hub in session.hubs:
            hub.remove_member(session)
            self._subscriptions.release(hub)
        session.hubs = []
        if session.user_hub is not None:
            (metrics.SESSIONS_LIVE if session.backlog is None else metrics.SESSIONS_BEHIND).dec()
            if session in session.user_hub.sessions:
                session.user_hub.sessions.remove(session)
            self._subscriptions.release_user(session.user_hub)
        each("sessions", lambda ended: ended(session), self.ended)
        session.backlog, session.feed = None, Feed.LIVE

    # -- the turn of the event loop

    def flush_later(self, session: Session) -> None:
        """Flush a session at the end of this turn of the event loop, so that its frames are one write."""
        if not self._to_flush:
            self._soon(self._flush)
        self._to_flush.append(session)

    def _flush(self) -> None:
        sessions, self._to_flush = self._to_flush, []
        for session in sessions:
            try:
                session.flush()
            except Exception as error:  # noqa: BLE001 - one session that raises must not keep the others' frames
                fault("flush", error)


KNOWN_CODES: Final = frozenset(
    (*range(1000, 1004), *range(1005, 1013), *range(4000, 4004), 4008, 4409, *range(4500, 4505))
)
