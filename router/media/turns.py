"""A bounded number of jobs at once, and a bounded number of callers who wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from prometheus_client import Gauge

from router.contract.errors import Unavailable

WAITING: Final = 64
RETRY_S: Final = 5.0


class Turns:
    """`async with turns.turn():` runs among `count` at once; `Unavailable` if `waiting` callers wait already."""

    def __init__(self, count: int, gauge: Gauge, waiting: int = WAITING) -> None:
        self._free = asyncio.Semaphore(count)
        self._gauge = gauge
        self._bound = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        if self._free.locked() and self._waiting >= self._bound:
            raise Unavailable("too many uploads are being checked now: try again", RETRY_S)
        self._waiting += 1
        self._gauge.inc()
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
            self._gauge.dec()
        try:
            yield
        finally:
            self._free.release()
