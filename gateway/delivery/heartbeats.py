"""Heartbeats: quiet connections are pinged, silent ones closed. One wheel turns once per heartbeat; no session has a
timer.

Bound: each session is in one bucket of the wheel, until it closes.
"""

from __future__ import annotations

from typing import Final

from gateway.delivery.feed import FULL, State
from gateway.delivery.session import Session
from router.contract import errors
from router.process.isolate import each

LOST_AFTER_HEARTBEATS: Final = 2.0
# A stalled client may be alive although it is silent, because the gateway stops reading from it. Its cost is bounded.
STALLED_FOR_HEARTBEATS: Final = 10.0


class Heartbeats:
    """The wheel. `turn_s` is the time between two turns: a second, or less if heartbeats are that short."""

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self.turn_s = min(1.0, heartbeat_s / 2)
        self._wheel: list[dict[Session, None]] = [{} for _ in range(max(2, round(heartbeat_s / self.turn_s)))]
        self._bucket_of: dict[Session, int] = {}
        self._hand = 0

    def add(self, session: Session) -> None:
        bucket = len(self._bucket_of) % len(self._wheel)
        self._bucket_of[session] = bucket
        self._wheel[bucket][session] = None

    def remove(self, session: Session) -> None:
        self._wheel[self._bucket_of.pop(session)].pop(session, None)

    def turn(self, now: float) -> list[Session]:
        """Ping or close the sessions of the next bucket; return those that are to be audited."""
        self._hand = (self._hand + 1) % len(self._wheel)
        audited: list[Session] = []

        def beat(session: Session) -> None:
            quiet = now - session.connection.last_received
            stalled = session.feed in FULL
            if quiet > self._heartbeat_s * (STALLED_FOR_HEARTBEATS if stalled else LOST_AFTER_HEARTBEATS):
                session.close(errors.CLOSE_HEARTBEAT_LOST, errors.retry_reason(0.1))
                return
            if quiet > self._heartbeat_s / 2 and not stalled:
                session.connection.ping()
            if session.state is State.READY:
                audited.append(session)

        each("heartbeats", beat, list(self._wheel[self._hand]))
        return audited

    @property
    def round_begins(self) -> bool:
        """Whether the wheel has made a whole round."""
        return self._hand == 0
