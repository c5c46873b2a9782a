"""The lag of the event loop: the figure that shows whether this process is overloaded.

A timer wakes up every PERIOD_S and observes its delay, for the whole life of the process.
"""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from router.contract.metrics import LOOP_LAG_SECONDS

PERIOD_S: Final = 0.5


async def probe() -> NoReturn:
    """Observe the lag until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due))
