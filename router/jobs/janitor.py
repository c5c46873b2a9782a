"""Clears away what nobody else does: the lease rows of gateways long dead.

A gateway that dies says nothing; its lease runs out, and for a while its row still tells when its users were last
here (`presence.state`). After KEEP_S the row goes, and "last seen" falls back to when each session began.

Little is left to do here, on purpose. Logs are trimmed where conversations are finished: one that is quiet stays
marked for the day on which its oldest event is too old (`store/dirty.py`). Idempotency keys have a TTL. Function
libraries of other versions stay: during a rolling deploy they are in use, and afterwards cost some kilobytes.

Every router does this, and twice is as good as once: a gateway whose row was removed while it lives (it was stalled
for a day) writes it again with its next renewal.
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
KEEP_S: Final = 86_400


class Janitor:
    def __init__(self, presence: Presence, restore: Callable[[], Awaitable[None]]) -> None:
        """`restore` stores what the database has lost of its deployment."""
        self._presence = presence
        self._restore = restore

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(every(stop, EVERY_S, self.look), every(stop, EVERY_S, self._restore))

    async def look(self, now_ms: int | None = None) -> None:
        """Count the gateways that live; remove the rows of those that are long dead."""
        now_ms = await self._presence.clock_ms() if now_ms is None else now_ms
        gateways = await self._presence.gateways()
        metrics.GATEWAYS_ALIVE.set(sum(gateway.alive(now_ms) for gateway in gateways.values()))
        for node, gateway in gateways.items():
            if gateway.lease_until + KEEP_S * 1000 < now_ms:
                try:
                    await self._presence.remove(node)
                except Unavailable:
                    raise
                except Exception as error:  # noqa: BLE001 - one row that cannot be removed must not keep the others
                    fault("janitor", error)
