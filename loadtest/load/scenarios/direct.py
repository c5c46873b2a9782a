"""Pairs that write to each other, on different gateways: at an even rate, and with a number of messages outstanding.

A message is outstanding until its sender has received the ack and its reader the message. Both users of a pair live in
one process. The sender's own copy is counted, too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.client import Client, Route, now_us
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    pairs: Annotated[int, Meta(description="pairs of users")] = 200
    rate: Annotated[float, Meta(description="messages per second of all pairs together (0: none)")] = 2000
    outstanding: Annotated[tuple[int, ...], Meta(description="messages outstanding, one phase each")] = (200,)
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 2.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    pairs = [(f"ann-{number}", f"bob-{number}") for number in range(options.pairs)]
    return [user for pair in pairs for user in pair], {"pairs": pairs}


class Pair:
    """Two users: Ann writes, Bob reads."""

    __slots__ = ("ann", "asked", "bob", "route", "until", "window")

    def __init__(self, ann: Client, bob: Client, body_bytes: int) -> None:
        self.ann = ann
        self.bob = bob
        self.route = Route(f"@{bob.user}", body_bytes)
        self.asked = 0
        self.window = 0
        self.until = 0.0

    def send(self, due: int) -> None:
        self.asked += 1
        self.ann.send(self.route, due)

    def refill(self, *_: object) -> None:
        """Send again if a message that was outstanding has both its ack and its reader."""
        while time.monotonic() < self.until:
            through = min(self.asked - len(self.route.pending), self.bob.received)
            if self.asked - through >= self.window:
                return
            self.send(now_us())

    def begin(self) -> None:
        self.asked = 0
        for chat in (self.ann, self.bob):
            chat.received, chat.on_read, chat.on_ack = 0, None, None

    def keep(self, window: int, until: float) -> None:
        """Keep `window` messages outstanding until the given time."""
        self.window, self.until = window, until
        self.bob.on_read = self.ann.on_ack = self.refill
        self.refill()

    @property
    def waiting(self) -> int:
        """Return how many messages lack their ack or their reader."""
        return self.asked - min(self.asked - len(self.route.pending), self.bob.received)

    @property
    def through(self) -> bool:
        return not self.route.pending and self.ann.received == self.bob.received == self.asked


class Pairs:
    """The pairs of this process."""

    def __init__(self, worker: Worker, pairs: list[Pair]) -> None:
        self._worker = worker
        self._pairs = pairs

    async def phase(self, name: str, rate: float, outstanding: int, seconds: float) -> None:
        pairs, worker = self._pairs, self._worker
        for pair in pairs:
            pair.begin()
        worker.watch(pair.bob for pair in pairs)
        worker.watch_acks(pair.ann for pair in pairs)
        async with worker.measured(name) as counting:
            if rate:
                await worker.paced(rate / worker.plan.workers, seconds, self._send, name)
            else:
                await self._keep(outstanding // worker.plan.workers, seconds)
            await worker.until(lambda: all(pair.through for pair in pairs))
            counting.units = sum(pair.asked for pair in pairs)
        for pair in pairs:
            for received in (pair.ann.received, pair.bob.received, pair.asked - len(pair.route.pending)):
                worker.failures.lost += max(0, pair.asked - received)
                worker.failures.duplicates += max(0, received - pair.asked)

    def _send(self, number: int, due: int) -> None:
        self._pairs[number % len(self._pairs)].send(due)

    async def _keep(self, outstanding: int, seconds: float) -> None:
        """Distribute outstanding messages evenly over the pairs."""
        busy = self._pairs[: max(1, outstanding)]
        for pair in busy:
            pair.keep(max(1, outstanding // len(busy)), time.monotonic() + seconds)
        await asyncio.sleep(seconds)


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    pairs = [Pair(worker.client(ann), worker.client(bob), options.body) for ann, bob in worker.mine(prepared["pairs"])]
    await worker.connect([pair.ann for pair in pairs], lambda _: worker.urls[0])
    await worker.connect([pair.bob for pair in pairs], lambda _: worker.urls[-1])
    room = Pairs(worker, pairs)
    await room.phase("warm-up", 0, options.pairs, 0.1)  # the first message of each pair creates its conversation
    await room.phase("warm-up", options.rate, options.pairs, 0.5)
    for _ in range(options.rounds):
        if options.rate:
            await room.phase(f"direct, {options.rate:g}/s", options.rate, 0, options.seconds)
        for outstanding in options.outstanding:
            await room.phase(f"direct, {outstanding} outstanding", 0, outstanding, options.seconds)
