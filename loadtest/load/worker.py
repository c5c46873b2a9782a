"""What a scenario uses in a load process: clients, pacing, measured phases, and barriers shared with other processes.

A scenario runs the same `run(worker, …)` in every process, each with its share of the users. `share` is a barrier: it
waits for all processes and returns the value that each of them gave. `measured` is a barrier before and after a phase,
at which the conductor reads the meters. Clients acknowledge once a second, as clients do.

Open loop: `paced` gives each send the time at which it is due by the schedule, even if it leaves later, and never waits
for an answer. So a server that stalls is charged for everything that was due meanwhile.
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
    """The arguments of a load process."""

    scenario: str
    options: dict[str, Any]
    prepared: dict[str, Any]  # the result of the scenario's `prepare`: users, conversations
    tokens: dict[str, str]
    urls: list[str]
    index: int
    workers: int


class Worker:
    """The view that one load process has of a run."""

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
        """Return this process's share of the items."""
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
        """Connect all clients, `at_once` at a time."""
        gate = asyncio.Semaphore(at_once)

        async def one(chat: Client) -> None:
            async with gate:
                await chat.connect(url_of(chat), self.plan.tokens[chat.user])

        await asyncio.gather(*(one(chat) for chat in clients))

    async def leave(self) -> None:
        """Acknowledge everything and disconnect, so that the next run on this deployment does not receive it again."""
        for chat in self.clients:
            chat.ack_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(chat.disconnect() for chat in self.clients))

    def watch(self, clients: Iterable[Client], every: int = 1) -> None:
        """Measure the latency of every `every`-th of these clients; measuring has a cost for the client."""
        for number, chat in enumerate(clients):
            chat.sink = self._deliveries if number % every == 0 else None

    def watch_acks(self, clients: Iterable[Client]) -> None:
        for chat in clients:
            chat.acks = self._acks

    def _ack_some(self) -> None:
        """Acknowledge for a twentieth of the clients, twenty times a second."""
        asyncio.get_running_loop().call_later(1 / ACK_SLICES, self._ack_some)
        self._ack_slice = (self._ack_slice + 1) % ACK_SLICES
        for chat in self.clients[self._ack_slice :: ACK_SLICES]:
            chat.ack_all()

    # -- barriers

    async def share(self, value: Any = None, kind: str = "share") -> list[Any]:
        """Wait for all processes, and return the value that each of them gave, by index."""
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
        """Measure a phase. The body stores its units of work in `counting.units` and ends when all of it is done."""
        await self.share(name, "begin")
        del self._deliveries[:], self._acks[:]
        counting = Counting(name)
        wall, cpu = time.monotonic(), time.process_time()
        yield counting
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        await self.share(None, "stop")  # the conductor reads the meters here, before histograms are made
        sample = Sample(counting.units, wall, cpu, encoded(self._deliveries), encoded(self._acks))
        await self.share((name, unit, sample), "end")

    # -- waiting and pacing

    async def until(self, reached: Callable[[], bool], deadline_s: float = ARRIVAL_S) -> bool:
        """Wait until the condition holds; return whether it held in time."""
        until = time.monotonic() + deadline_s
        while not reached():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.005)
        return True

    async def paced(self, rate: float, seconds: float, send: Callable[[int, int], None], name: str) -> int:
        """Call `send(number, due)` at an even rate and return how often; `due` is in µs, for the stamp."""
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
    """The units of work of a measured phase."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.units = 0
