"""The lag of the event loop and the use of a core: the figures that show whether this process is overloaded.

A timer wakes up every PERIOD_S and observes its delay, for the whole life of the process.
"""

from __future__ import annotations

import asyncio
from time import monotonic, process_time
from typing import Final, NoReturn

from router.contract.load import Load
from router.contract.metrics import LOOP_LAG_SECONDS

PERIOD_S: Final = 0.5


class Meter:
    """The load of this process since it was last asked for."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._at, self._used_s = monotonic(), process_time()

    def late(self, seconds: float) -> None:
        """Note by how much a timer of the loop was late."""
        LOOP_LAG_SECONDS.observe(seconds)
        self._worst_s = max(self._worst_s, seconds)

    def load(self) -> Load:
        """The greatest lag, and the share of a core, since the last call."""
        now, used_s, worst_s = monotonic(), process_time(), self._worst_s
        share = (used_s - self._used_s) / max(now - self._at, 1e-3)
        self._at, self._used_s, self._worst_s = now, used_s, 0.0
        return Load(round(worst_s * 1000), round(share * 100))


async def probe(meter: Meter) -> NoReturn:
    """Observe the lag until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        meter.late(max(0.0, loop.time() - due))
