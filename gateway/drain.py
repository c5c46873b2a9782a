"""Leaving without being noticed.

On SIGTERM: not ready at once → go on accepting for `drain_accept_s`, because load balancers need a while to see it →
stop accepting → every session is told `drain {retry_after}` and closed with 1012, spread evenly over
`drain_window_s` in random order, so that the others never get a storm → commands under way are finished: what they
append reaches everybody, but their acks have nobody to go to any more; the client sends again elsewhere, and that is
acked as the duplicate it is → exit 0. The lease stays until it runs out: users whose devices are between two gateways
do not flicker offline.
A connection that has reached its maximum age leaves the same way, by itself: for a client a drain is normal rotation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import shuffle, uniform
from typing import TYPE_CHECKING, Final

from gateway.delivery.session import Session, State
from router.contract import errors, metrics, wire
from router.process.isolate import each

if TYPE_CHECKING:
    from gateway.node import Node

STEP_S: Final = 0.1
RETRY_S: Final = 1.0
FINISH_S: Final = 3.0


class Drain:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._hurried = asyncio.Event()

    def hurry(self) -> None:
        """No more waiting: close everything now."""
        self._hurried.set()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)

    def rotate(self, session: Session, code: int) -> None:
        """Tells the client to come back, after a wait of its own, and closes."""
        retry_after = round(uniform(0.05, RETRY_S), 3)
        if session.state is State.READY:
            session.answer(wire.DrainEvent(retry_after=retry_after))
        session.close(code, errors.retry_reason(retry_after))

    async def run(self, stop_accepting: Callable[[], None]) -> None:
        """Empties this gateway; returns when nothing is left that could be lost."""
        node = self._node
        node.draining = True
        metrics.DRAINING.set(1)
        node.lease.renew()
        await self._wait(node.settings.drain_accept_s)
        stop_accepting()
        await self._close_all(node.settings.drain_window_s)
        node.lease.renew(drained=True)  # a gateway that starts now need not wait for this one's lease to run out
        for _ in range(round(FINISH_S / STEP_S)):
            if not (node.sends.in_flight or node.client.busy):
                break
            await asyncio.sleep(STEP_S)

    async def _close_all(self, window: float) -> None:
        node = self._node
        sessions = list(node.sessions)
        shuffle(sessions)
        restart = partial(self.rotate, code=errors.CLOSE_RESTART)
        began, closed = node.loop.time(), 0
        while closed < len(sessions) and not self._hurried.is_set():
            passed = (node.loop.time() - began + STEP_S) / max(window, STEP_S)
            due = min(len(sessions), int(len(sessions) * passed) + 1)
            each("drain", restart, sessions[closed:due])
            closed = due
            await self._wait(STEP_S)
        each("drain", restart, list(node.sessions))
