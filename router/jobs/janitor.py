"""Removes the lease rows of gateways that died long ago, restores the deployment's hash if it was lost, and erases the
copies of messages in reports that were closed long ago.

After a gateway has died and its lease has run out, its row still contains the time at which its users were last online
(`presence.state`). After KEEP_S the row is removed, and "last seen" is then the time at which each session began.

Other data needs no cleaning here. The finisher trims logs: a quiet conversation stays marked for the day on which its
oldest event is too old (`store/dirty.py`). Idempotency keys have a TTL. Function libraries of other versions are kept,
because they are in use during a rolling deploy, and afterwards take some kilobytes.

Every router does this, and repetition is harmless: a gateway whose row was removed while it was stalled for a day
writes it again with its next renewal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from router.contract import metrics
from router.contract.errors import Unavailable
from router.jobs.rounds import every
from router.process.isolate import fault
from router.store.presence import Presence

EVERY_S: Final = 10.0
ERASE_EVERY_S: Final = 600.0
KEEP_S: Final = 86_400


class Janitor:
    def __init__(
        self, presence: Presence, restore: Callable[[], Awaitable[None]], erase: Callable[[], Awaitable[object]]
    ) -> None:
        """`restore` restores the fields of the deployment's hash that the database has lost; `erase` erases copies in
        reports."""
        self._presence = presence
        self._erase = erase
        self._restore = restore

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(
            every(stop, EVERY_S, self.clean),
            every(stop, EVERY_S, self._restore),
            every(stop, ERASE_EVERY_S, self._erased),
        )

    async def _erased(self) -> None:
        await self._erase()

    async def clean(self, now_ms: int | None = None) -> None:
        """Count the live gateways, and remove the rows of those that died long ago."""
        now_ms = await self._presence.clock_ms() if now_ms is None else now_ms
        gateways = await self._presence.gateways()
        metrics.GATEWAYS_ALIVE.set(sum(gateway.alive(now_ms) for gateway in gateways.values()))
        for node, gateway in gateways.items():
            if gateway.lease_until + KEEP_S * 1000 < now_ms:
                try:
                    await self._presence.remove(node)
                except Unavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - after any error the other rows must be removed
                    fault("janitor", error)
