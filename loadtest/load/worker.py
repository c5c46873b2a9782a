"""A load process: its clients, their pace, and the barriers at which it meets the others and whoever reads the meters.

A scenario runs the same `run(worker, plan)` in every process, each with its share of the users. `share` brings all to
the same point and tells each what the others said; `measured` is such a point before and after, with the meters read
in between by the conductor (conductor.py). Clients ack once a second, as clients do.

Open loop: `paced` gives each send the time at which it is due by the schedule, whenever it really leaves, and never
waits for an answer; so a server that stalls is charged for everything that should have come meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final, TypeVar

import msgspec

from loadtest.load.client import Client, Failures, now_us
from loadtest.load.results import Sample, encoded
from loadtest.load.ticks import ticks

T = TypeVar("T")

ARRIVAL_S: Final = 20.0
LEAVE_S: Final = 20.0
ACK_SLICES: Final = 20
PROGRESS_S: Final = 0.5
CONNECTING: Final = 64


class Plan(msgspec.Struct, frozen=True):
    """What a load process is told."""

    scenario: str
    options: dict[str, Any]
    prepared: dict[str, Any]  # what the scenario's `prepare` made: users, conversations
    tokens: dict[str, str]
    urls: list[str]
    index: int
    workers: int


class Worker:
    """One load process' view of a run."""

    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self.plan = plan
        self.urls = plan.urls
        self.index = plan.index
        self.failures = Failures()
        self.clients: list[Client] = []
        self.notes: dict[str, float] = {}
        self._pipe = pipe
        self._deliveries: array[int] = array("q")
        self._acks: array[int] = array("q")
        self._ack_slice = 0
        self._reported = 0.0
        asyncio.get_running_loop().call_later(1 / ACK_SLICES, self._ack_some)

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process' share."""
        return list(items[self.index :: self.plan.workers])

    @property
    def leads(self) -> bool:
        return self.index == 0

    # -- clients

    def client(self, user: str, **options: Any) -> Client:
        chat = Client(user, self.failures, n=time.time_ns() // 1000, **options)
        self.clients.append(chat)
        return chat

    async def connect(
        self, clients: Iterable[Client], url_of: Callable[[Client], str], at_once: int = CONNECTING
    ) -> None:
        """All of them, some at once."""
        gate = asyncio.Semaphore(at_once)

        async def one(chat: Client) -> None:
            async with gate:
                await chat.connect(url_of(chat), self.plan.tokens[chat.user])

        await asyncio.gather(*(one(chat) for chat in clients))

    async def leave(self) -> None:
        """Everybody acks what came and says goodbye, so that the next run on this deployment is not sent it again."""
        for chat in self.clients:
            chat.ack_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(chat.disconnect() for chat in self.clients))

    def watch(self, clients: Iterable[Client], every: int = 1) -> None:
        """Measure the latency of what these receive (of each `every`-th: it costs the client something)."""
        for number, chat in enumerate(clients):
            chat.sink = self._deliveries if number % every == 0 else None

    def watch_acks(self, clients: Iterable[Client]) -> None:
        for chat in clients:
            chat.acks = self._acks

    def _ack_some(self) -> None:
        """A twentieth of the clients, twenty times a second."""
        asyncio.get_running_loop().call_later(1 / ACK_SLICES, self._ack_some)
        self._ack_slice = (self._ack_slice + 1) % ACK_SLICES
        for chat in self.clients[self._ack_slice :: ACK_SLICES]:
            chat.ack_all()

    # -- meeting the others

    async def share(self, value: Any = None, kind: str = "share") -> list[Any]:
        """Wait for all; what each said, by index."""
        self._pipe.send((kind, value))
        answer: list[Any] = await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)
        return answer

    def progress(self, what: str, fraction: float) -> None:
        now = time.monotonic()
        if self.leads and now > self._reported + PROGRESS_S:
            self._reported = now
            self._pipe.send(("progress", (what, fraction)))

    @asynccontextmanager
    async def measured(self, name: str, unit: str = "message") -> AsyncIterator[Counting]:
        """A phase; the body says in `counting.units` what it got done. All of it is done when the body ends."""
        await self.share(name, "begin")
        del self._deliveries[:], self._acks[:]
        counting = Counting(name)
        wall, cpu = time.monotonic(), time.process_time()
        yield counting
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        await self.share(None, "stop")  # the meters are read here, before histograms are made
        sample = Sample(counting.units, wall, cpu, encoded(self._deliveries), encoded(self._acks))
        await self.share((name, unit, sample), "end")

    # -- waiting and pacing

    async def until(self, reached: Callable[[], bool], deadline_s: float = ARRIVAL_S) -> bool:
        """Whether it came true in time."""
        until = time.monotonic() + deadline_s
        while not reached():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        return True

    async def paced(self, rate: float, seconds: float, send: Callable[[int, int], None], name: str) -> int:
        """Call `send(number, due)` at an even rate; how often it was called. `due` is in µs, for the stamp."""
        sent, total = 0, round(rate * seconds)
        with ticks(1 / rate) as tick:
            start = now_us()
            while sent < total:
                now = now_us()
                while sent < total and (due := start + round(sent * 1e6 / rate)) <= now:
                    send(sent, due)
                    sent += 1
                self.progress(name, sent / total)
                await tick.wait()
                tick.clear()
        return sent


class Counting:
    """What a measured phase got done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.units = 0
