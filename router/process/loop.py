"""How late the event loop runs: the one number that says whether this process has too much to do.

A timer that asks to be woken every PERIOD_S and observes by how much it was late. It runs for as long as the process
and holds nothing.
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
