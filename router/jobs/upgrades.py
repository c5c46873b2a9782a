"""The router's own lease, and the move of a deployment to users' rows of format 2.

While the deployment has format `keys.READING`, each router looks at all leases. Once each process has said for
SETTLED_S that it reads format 2, it sets `keys.ROWS`, which all processes follow.

Invariants
- A process that reads only format 1 cannot start once `keys.READING` is set. One that started just before has written
  its lease long before SETTLED_S is over, and stops the move.
- If no lease can be read, nothing moves. If two routers move at once, the second changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Final

from router.contract import keys
from router.contract.load import Load
from router.jobs.rounds import every
from router.store.deployment import RowFormats
from router.store.presence import Presence

EVERY_S: Final = 3.0
SETTLED_S: Final = 30.0

log = logging.getLogger("linnet.router")


class Upgrades:
    def __init__(
        self,
        formats: RowFormats,
        presence: Presence,
        node: str,
        load: Callable[[], Load],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._formats = formats
        self._presence = presence
        self._node = node
        self._load = load
        self._clock = clock
        self._agreed_at: float | None = None  # since when every process has said that it reads format 2

    async def run(self, stop: asyncio.Event) -> None:
        await every(stop, EVERY_S, self.step)

    async def step(self) -> None:
        """Renew the lease, follow the deployment's format, and move it if every process is ready."""
        now_ms = await self._presence.clock_ms()
        await self._formats.renew_router(self._node, now_ms, self._load())
        layout = await self._formats.follow()
        if layout != keys.READING or not await self._all_read(now_ms):
            self._agreed_at = None
            return
        now = self._clock()
        if self._agreed_at is None:
            self._agreed_at = now
        if now - self._agreed_at >= SETTLED_S:
            await self._formats.write_newest()
            log.info("all gateways and routers read users' rows of format 2: they are written from now on")

    async def _all_read(self, now_ms: int) -> bool:
        gateways = await self._presence.gateways()
        routers = await self._formats.routers(now_ms)
        leases = [row.rows for row in gateways.values() if row.alive(now_ms)]
        leases += [row.rows for row in routers.values()]
        return all(rows >= keys.ROWS_2 for rows in leases)
