"""A paced shutdown, which clients do not notice.

On SIGTERM: not ready at once → go on accepting for `drain_accept_s`, because load balancers need a while to see it →
stop accepting → every session is told `drain {retry_after}` and closed with 1012, spread evenly over `drain_window_s`
in random order, so that the other gateways never get a storm → commands under way are finished: what they append
reaches everybody, but there is no connection left for their acks; the client resends elsewhere, and the resend is acked
as a duplicate → exit 0. The lease stays until it runs out: users whose devices are between two gateways do not flicker
offline. A connection that has reached its maximum age leaves the same way, by itself: for a client a drain is normal
rotation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from random import shuffle
from typing import Final

from gateway.delivery.open_sessions import OpenSessions
from gateway.delivery.session import Session
from gateway.presence.lease import Lease
from router.contract import errors, metrics
from router.process.isolate import each

STEP_S: Final = 0.1
FINISH_S: Final = 3.0


class Drain:
    """`busy`: whether commands are still under way."""

    def __init__(
        self,
        accept_s: float,
        window_s: float,
        sessions: OpenSessions,
        lease: Lease,
        busy: Callable[[], bool],
        time: Callable[[], float],
    ) -> None:
        self._accept_s = accept_s
        self._window_s = window_s
        self._sessions = sessions
        self._lease = lease
        self._busy = busy
        self._time = time
        self._hurried = asyncio.Event()
        self.draining = False

    def hurry(self) -> None:
        """No more waiting: close everything now."""
        self._hurried.set()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)

    async def run(self, stop_accepting: Callable[[], None]) -> None:
        """Empty this gateway; return when nothing is left that could be lost."""
        self.draining = True
        metrics.DRAINING.set(1)
        self._lease.drain()
        await self._wait(self._accept_s)
        stop_accepting()
        await self._close_all()
        self._lease.drained()
        for _ in range(round(FINISH_S / STEP_S)):
            if not self._busy():
                break
            await asyncio.sleep(STEP_S)

    async def _close_all(self) -> None:
        sessions = list(self._sessions.all)
        shuffle(sessions)
        began, closed = self._time(), 0
        while closed < len(sessions) and not self._hurried.is_set():
            passed = (self._time() - began + STEP_S) / max(self._window_s, STEP_S)
            due = min(len(sessions), int(len(sessions) * passed) + 1)
            each("drain", _restart, sessions[closed:due])
            closed = due
            await self._wait(STEP_S)
        each("drain", _restart, list(self._sessions.all))


def _restart(session: Session) -> None:
    session.rotate(errors.CLOSE_RESTART)
