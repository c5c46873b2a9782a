"""What uploads of hostile pictures cost the messages of others: `python -m loadtest upload-latency`.

Pairs of users write to each other at an even rate while nobody uploads, and in turns with that while some users upload
as much as their limits allow, and while a process of low priority computes: so much costs any other work on the same
cores. The result is the 99th percentile of the time from a send to the arrival of its message,
and its ratio to the phases before and after.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.bench import in_turns, report
from loadtest.load import local
from loadtest.load.conductor import Target, run
from loadtest.load.process import Scenario
from loadtest.load.results import Result
from loadtest.load.scenarios.direct import Pair, Pairs
from loadtest.load.worker import Worker
from loadtest.ports import free_ports

CALM: Final = "nobody uploads"
COMPUTES: Final = "a process computes"
READY_S: Final = 30.0
EXPECTED: Final = {"201", "413", "415", "422", "429", "503"}  # what an upload may be answered


class Options(msgspec.Struct, frozen=True, kw_only=True):
    pairs: Annotated[int, Meta(description="pairs of users")] = 50
    rate: Annotated[float, Meta(description="messages per second")] = 400
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 5.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 7
    users: Annotated[tuple[int, ...], Meta(description="users who upload, one phase each")] = (1, 10)
    control: Annotated[int, Meta(description="port that sets how many users upload")] = 0


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    pairs = [(f"ann-{number}", f"bob-{number}") for number in range(options.pairs)]
    return [user for pair in pairs for user in pair], {"pairs": pairs}


async def run_phases(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    pairs = [Pair(worker.client(ann), worker.client(bob), 64) for ann, bob in prepared["pairs"]]
    await worker.connect([pair.ann for pair in pairs], lambda _: worker.urls[0])
    await worker.connect([pair.bob for pair in pairs], lambda _: worker.urls[1])
    room = Pairs(worker, pairs)
    await room.phase(report.WARM_UP, 0, options.pairs, 0.2)
    await _change(options.control, 1)  # starts the router's worker
    await room.phase(report.WARM_UP, options.rate, 0, 2.0)
    await _change(options.control)
    await room.phase(CALM, options.rate, 0, options.seconds)
    beside = {**{f"uploads of {users}": (users, 0) for users in options.users}, COMPUTES: (0, 1)}
    for _ in range(options.rounds):
        for name, work in beside.items():
            await _change(options.control, *work)
            await room.phase(name, options.rate, 0, options.seconds)
            for status, times in (await _change(options.control)).items():
                note = f"{name}: answered {status}"
                worker.notes[note] = worker.notes.get(note, 0) + times
                worker.failures.errors += 0 if status in EXPECTED else times
            await room.phase(CALM, options.rate, 0, options.seconds)


SCENARIO: Final = Scenario(
    "upload-latency", Options, prepare, run_phases, "messages beside uploads of hostile pictures, in turns"
)


def measure(options: Options) -> Result:
    """Measure on a deployment that stores files, which is started for it."""
    with _deployment() as (target, control):
        return run(SCENARIO, msgspec.structs.replace(options, control=control), target)


def table(result: Result) -> str:
    return in_turns.table(result, "time from a send to its arrival", CALM, lambda one: one.delivery_us)


@contextmanager
def _deployment() -> Iterator[tuple[Target, int]]:
    (control,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="linnet-uploads-") as folder:
        (Path(folder) / "store").mkdir()
        env: dict[str, Any] = {"LINNET_MEDIA_URL": f"file://{folder}/store", "LINNET_MEDIA_SPOOL": folder}
        with local.deployment(**env) as target:
            secret = {"LINNET_JWT_SECRET": target.jwt_secret}
            command = ["-m", "loadtest.bench.upload_process", target.api, str(control)]
            uploaders = local.start(command, {**os.environ, **secret}, folder)
            try:
                yield target, control
            finally:
                uploaders.kill()
                uploaders.wait()


async def _change(control: int, users: int = 0, processes: int = 0) -> dict[str, int]:
    """Change what is beside the messages; return how often the uploads before were answered with which status."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", control)
                break
            except OSError:  # the process makes its pictures first
                await asyncio.sleep(0.1)
    writer.write(f"{users} {processes}\n".encode())
    answer = (await reader.readline()).decode().split()
    writer.close()
    return {status: int(times) for status, _, times in (one.partition("=") for one in answer)}
