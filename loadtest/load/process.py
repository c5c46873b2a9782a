"""The main function of a load process: it runs one scenario with one worker, and reports its end to the conductor."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
import uvloop

from loadtest.api import Api
from loadtest.load.worker import Plan, Worker

Prepared = tuple[list[str], dict[str, Any]]


class Scenario(NamedTuple):
    """A scenario as the conductor and the load processes need it; each is a module of `scenarios/`."""

    name: str
    Options: type[Any]  # a struct; its fields are the options of the command line
    prepare: Callable[[Any, Api], Prepared]  # called once, in the conductor: makes users and conversations
    run: Callable[[Worker, Any, dict[str, Any]], Awaitable[None]]  # called in every load process
    about: str
    gateways: int = 2  # that are started if the command line names no target


async def _run(scenario: Scenario, plan: Plan, pipe: Connection) -> None:
    worker = Worker(plan, pipe)
    await scenario.run(worker, msgspec.convert(plan.options, scenario.Options), plan.prepared)
    await worker.leave()
    complaint = next((chat.error for chat in worker.clients if chat.error), "") if worker.failures else ""
    await worker.share((worker.failures, worker.notes, complaint), "finished")


def main(scenario: Scenario, plan: Plan, pipe: Connection) -> None:
    """Run one load process from its plan to its end."""
    reported(_run(scenario, plan, pipe), pipe)


def reported(work: Coroutine[Any, Any, None], pipe: Connection) -> None:
    """Run the work, and report every way in which it can fail to the conductor, which waits for this process."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BaseException as error:  # noqa: BLE001 - the conductor must not wait for ever, whatever the error is
        pipe.send(("failed", "".join(traceback.format_exception(error))))
        raise SystemExit(1) from None
