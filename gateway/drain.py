"""A paced shutdown, which clients do not notice.

On SIGTERM: not ready at once → go on accepting for `drain_accept_s`, because load balancers need a while to see it →
stop accepting → send `drain {retry_after}` to every session and close it with 1012, in random order, spread evenly over
`drain_window_s`, so that the other gateways get no storm of connects → finish the commands under way → exit 0.

The events of those last commands reach their recipients, but their acks have no connection left; the client resends
them to another gateway, which acks them as duplicates. The lease stays until it runs out, so users whose devices are
between two gateways do not flicker offline. A connection that has reached its maximum age ends in the same way.
"""

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

PACE_S: Final = 0.1
FINISH_S: Final = 3.0


class Drain:
    """The shutdown of one node. `busy` returns whether commands are still under way."""

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
        """Close everything now, without further waiting."""
        self._hurried.set()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)

    async def run(self, stop_accepting: Callable[[], None]) -> None:
        """Empty this gateway; return once no command is under way."""
        self.draining = True
        metrics.DRAINING.set(1)
        self._lease.drain()
        await self._wait(self._accept_s)
        stop_accepting()
        await self._close_all()
        self._lease.drained()
        for _ in range(round(FINISH_S / PACE_S)):
            if not self._busy():
                break
            await asyncio.sleep(PACE_S)

    async def _close_all(self) -> None:
        sessions = list(self._sessions.all)
        shuffle(sessions)
        began, closed = self._time(), 0
        while closed < len(sessions) and not self._hurried.is_set():
            passed = (self._time() - began + PACE_S) / max(self._window_s, PACE_S)
            due = min(len(sessions), int(len(sessions) * passed) + 1)
            each("drain", _restart, sessions[closed:due])
            closed = due
            await self._wait(PACE_S)
        each("drain", _restart, list(self._sessions.all))


def _restart(session: Session) -> None:
    session.rotate(errors.CLOSE_RESTART)
