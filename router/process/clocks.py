"""Compares this node's clock with Redis's every few seconds, and logs when they begin and cease to differ."""

from __future__ import annotations

import asyncio
import logging
from time import time_ns
from typing import Final

from router.contract import metrics
from router.contract.clocks import AGREE_MS, Clocks
from router.contract.errors import LinnetError
from router.process.isolate import fault
from router.store.redis.client import Client

EVERY_S: Final = 5.0

log = logging.getLogger("linnet.clocks")


class ClockWatch:
    """Compares the clocks: `compare` once before the work begins, then `run` beside it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._clocks: Clocks = client.clocks
        self._agree = True

    async def compare(self) -> None:
        asked = self._clocks.now()
        redis_ms = await self._client.clock_ms()
        self._clocks.received(redis_ms, asked, self._clocks.now())
        self.show()

    def show(self) -> None:
        """Set the metric to the present offset, and log if the clocks begin or cease to differ."""
        offset_ms = self._clocks.offset_ms(time_ns() // 1_000_000)
        metrics.CLOCK_OFFSET_SECONDS.set(offset_ms / 1000)
        agree = abs(offset_ms) <= AGREE_MS
        if agree and not self._agree:
            log.info("the clocks of this node and of Redis agree again")
        elif not agree and self._agree:
            log.error(
                "this node's clock is %.1f s %s Redis's: one of them is wrong, and a token that is valid by only one of"
                " them is answered with `unavailable`",
                abs(offset_ms) / 1000,
                "ahead of" if offset_ms > 0 else "behind",
            )
        self._agree = agree

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.compare()
            except LinnetError:  # Redis does not answer now: its time is computed from the last reading
                self.show()
            except Exception as error:  # noqa: BLE001 - one answer that cannot be read must not end the comparison
                fault("clocks", error)
