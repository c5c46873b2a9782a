"""The latency of direct messages at half of the highest sustained rate, and that rate.

The rate is doubled from `start` until it is not sustained, then narrowed between the last that was and the first that
was not. A rate is *sustained* if all messages were offered in time and, when the offering ended, no more messages were
under way than are due in `WAITING_S`. All load processes must agree. A load client that shares two cores with all the
servers uses a good part of them, so the rate found is that of the machine. The notes say how busy the client was at the
first rate that was too high: near one whole core, the client was the limit.

The loop is open throughout: latency is the age of a message when its reader receives it, counted from when it was due.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.scenarios import direct
from loadtest.load.scenarios.direct import Pair, Pairs
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    pairs: Annotated[int, Meta(description="pairs of users")] = 200
    start: Annotated[float, Meta(description="first rate, messages per second")] = 1000
    step: Annotated[float, Meta(description="seconds at each rate")] = 2.0
    narrow: Annotated[int, Meta(description="steps that narrow the rate down")] = 3
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds at half of the highest rate")] = 10.0


HALF = "half of the highest rate"
SLICE_S = 0.25
WAITING_S = 0.05  # seconds' worth of messages may be under way at a sustained rate
HOPELESS_S = 0.25  # the step is given up: more messages would only queue
LATE = 1.05  # × the step: the client could not send everything
TRIES = 2  # one stall of the machine does not decide
HIGHEST = 1_000_000.0


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    return direct.prepare(direct.Options(pairs=options.pairs), api)


class Search:
    """The search for the highest sustained rate."""

    def __init__(self, worker: Worker, pairs: list[Pair], options: Options) -> None:
        self._worker = worker
        self._pairs = pairs
        self._options = options
        self.client_load = 0.0  # at the last rate that was not sustained

    async def highest(self) -> float:
        """Return the rate, or 0 if every tried rate is too high."""
        low, high = 0.0, self._options.start
        while high < HIGHEST and await self._sustained(high):
            low, high = high, 2 * high
        for _ in range(self._options.narrow):
            middle = (low + high) / 2
            if await self._sustained(middle):
                low = middle
            else:
                high = middle
        return low

    async def _sustained(self, rate: float) -> bool:
        for _ in range(TRIES):
            if await self._step(rate):
                return True
        return False

    async def _step(self, rate: float) -> bool:
        """Return whether all load processes sustained the rate, after everything that was sent has arrived."""
        worker, pairs, step = self._worker, self._pairs, self._options.step
        for pair in pairs:
            pair.begin()
        worker.watch(pair.bob for pair in pairs)
        part = rate / worker.plan.workers
        async with worker.measured(f"tried {rate:,.0f}/s") as counting:
            began, cpu = time.monotonic(), time.process_time()
            offered, total = 0, round(part * step)
            while offered < total and self._waiting <= part * HOPELESS_S:
                seconds = min(max(SLICE_S, 1 / part), (total - offered) / part)
                offered += await worker.paced(part, seconds, self._send, counting.name)
            took, waiting = time.monotonic() - began, self._waiting
            load = (time.process_time() - cpu) / took
            await worker.until(lambda: all(pair.through for pair in pairs))
            counting.units = offered
        worker.failures.lost += sum(pair.waiting for pair in pairs)
        fine = offered >= total and took <= step * LATE and waiting <= max(1.0, part * WAITING_S)
        verdicts = await worker.share((fine, load))
        sustained = all(one for one, _ in verdicts)
        if not sustained:
            self.client_load = max(load for _, load in verdicts)
        return sustained

    @property
    def _waiting(self) -> int:
        return sum(pair.waiting for pair in self._pairs)

    def _send(self, number: int, due: int) -> None:
        self._pairs[number % len(self._pairs)].send(due)


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    pairs = [Pair(worker.client(ann), worker.client(bob), options.body) for ann, bob in worker.mine(prepared["pairs"])]
    await worker.connect([pair.ann for pair in pairs], lambda _: worker.urls[0])
    await worker.connect([pair.bob for pair in pairs], lambda _: worker.urls[-1])
    room = Pairs(worker, pairs)
    await room.phase("warm-up", 0, options.pairs, 0.1)
    await room.phase("warm-up", options.start, 0, 1.0)
    search = Search(worker, pairs, options)
    highest = await search.highest()
    if not highest:
        raise ValueError(f"{options.start:g} messages a second and less are not sustained; start lower")
    worker.notes["highest sustained, messages a second"] = highest
    worker.notes["load client, % of a core where it was not"] = search.client_load * 100
    await room.phase(HALF, highest / 2, 0, options.seconds)
