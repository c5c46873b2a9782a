"""The next deadline of every session: no `hello` in time, token expired, connection too old. No session has a timer.

Bound: each session is in the bucket of one second, until it closes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import uniform
from typing import Final

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract import errors
from router.process.isolate import each

HELLO_S: Final = 10.0


class Deadlines:
    """The deadlines. `moments_ms` returns the times by which tokens are judged: one, or two if this node's clock and
    Redis's clock do not agree."""

    def __init__(self, max_age_s: float, moments_ms: Callable[[], tuple[int, ...]], time: Callable[[], float]) -> None:
        self._max_age_s = max_age_s
        self._moments_ms = moments_ms
        self._time = time
        self._due: dict[int, dict[Session, None]] = {}  # by the second of the deadline
        self._looked_at = int(time())

    def add(self, session: Session) -> None:
        now = self._time()
        session.age_deadline = now + self._max_age_s * uniform(0.75, 1)
        self._at(session, now + HELLO_S)

    def remove(self, session: Session) -> None:
        self._due.get(session.deadline, {}).pop(session, None)

    def ready(self, session: Session) -> None:
        """Set the deadline of a session that is ready, or has a new token: the token's or the connection's age."""
        expires_in = (session.expires_at - max(self._moments_ms())) / 1000
        self._at(session, min(session.age_deadline, self._time() + expires_in))

    def _at(self, session: Session, when: float) -> None:
        self.remove(session)
        session.deadline = max(int(when) + 1, self._looked_at + 1)
        self._due.setdefault(session.deadline, {})[session] = None

    def turn(self, now: float) -> None:
        """Check the sessions whose deadline has passed."""
        while self._looked_at < int(now):
            self._looked_at += 1
            each("deadlines", lambda session: self._reached(session, now), self._due.pop(self._looked_at, ()))

    def _reached(self, session: Session, now: float) -> None:
        if session.state is State.HELLO:
            session.close(errors.CLOSE_SLOW_HANDSHAKE, errors.retry_reason(uniform(0.5, 2)))
        elif session.state is not State.READY:
            session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(uniform(1, 5)))
        elif session.expires_at <= min(moments := self._moments_ms()):
            session.close(errors.CLOSE_TOKEN_EXPIRED, "token expired")
        elif session.expires_at <= max(moments):  # expired by only one of two clocks that do not agree
            session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(uniform(1, 5)))
        elif session.age_deadline <= now:
            session.rotate(errors.CLOSE_MAX_AGE)
        else:
            self.ready(session)
