"""The main function of a load process: it runs one scenario with one worker, and reports its end to the conductor."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import uvloop

from loadtest.load.scenarios.table import SCENARIOS
from loadtest.load.worker import Plan, Worker


async def _run(plan: Plan, pipe: Connection) -> None:
    worker = Worker(plan, pipe)
    scenario = SCENARIOS[plan.scenario]
    await scenario.run(worker, msgspec.convert(plan.options, scenario.Options), plan.prepared)
    await worker.leave()
    complaint = next((chat.error for chat in worker.clients if chat.error), "") if worker.faults else ""
    await worker.share((worker.faults, worker.notes, complaint), "finished")


def main(plan: Plan, pipe: Connection) -> None:
    """Run one load process from its plan to its end."""
    reported(_run(plan, pipe), pipe)


def reported(work: Coroutine[Any, Any, None], pipe: Connection) -> None:
    """Run the work, and report every way in which it can fail to the conductor, which waits for this process."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BaseException as error:  # noqa: BLE001 - the conductor must not wait for ever, whatever the error is
        pipe.send(("failed", "".join(traceback.format_exception(error))))
        raise SystemExit(1) from None
