"""The load process: the clients of every side, and round by round every phase on each side in turn.

The phases are those of the scenarios `direct` and `fanout` and run by their code; only the clients differ. These
clients stay connected throughout, but only one side is loaded at a time. In each round, new users connect twice.
Phases are named `SIDE: PHASE`.

Invariant: the process ends. After `ROUNDS_S` no further round begins, and at `LIMIT_S` the run fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any, Final, Literal

import msgspec

from loadtest.load.client import Client, Failures
from loadtest.load.process import reported
from loadtest.load.scenarios import fanout
from loadtest.load.scenarios.direct import Pair, Pairs
from loadtest.load.scenarios.room import Room
from loadtest.load.worker import Plan, Worker
from loadtest.peers.clients import CLIENTS, FloorMember

LINNET: Final = "Linnet"
FLOOR: Final = "floor"
NODES: Final = "nodes"
ROUNDS_S: Final = 300.0
LIMIT_S: Final = 450.0
ROOM: Final = "all"
WARM_UP_S: Final = 0.5


class Options(msgspec.Struct, frozen=True):
    """The options of the load, the same for all sides."""

    pairs: int = 200
    rates: tuple[float, ...] = (500.0, 2000.0)
    outstanding: int = 200
    members: int = 1000
    widths: tuple[int, ...] = (1, 16)
    visitors: int = 200
    body: int = 128
    seconds: float = 0.75
    rounds: int = 6


class Urls(msgspec.Struct, frozen=True):
    """The addresses of a peer's nodes."""

    name: str
    urls: list[str]


class Phase(msgspec.Struct, frozen=True):
    """What one phase of a round does: send at an even rate, send with a number outstanding, or connect."""

    kind: Literal["direct", "group", "connect"]
    rate: float = 0.0
    outstanding: int = 0


def phases(options: Options) -> dict[str, Phase]:
    """Return the phases of a round by name."""
    return {
        **{f"direct, {rate:g}/s": Phase("direct", rate=rate) for rate in options.rates},
        f"direct, {options.outstanding} outstanding": Phase("direct", outstanding=options.outstanding),
        **{
            f"group of {options.members}, {width} outstanding": Phase("group", outstanding=width)
            for width in options.widths
        },
        "first connect": Phase("connect"),
        "connect again": Phase("connect"),
    }


def visitors(options: Options, number: int) -> list[str]:
    """Return the users who connect in this round and in no other."""
    return [f"visitor-{number}-{index}" for index in range(options.visitors)]


class Side:
    """One of the compared systems."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        failures: Failures,
        pairs: list[Pair],
        room: Room,
        urls: Sequence[str],
        visitor: Callable[[str], Client],
    ) -> None:
        self.name = name
        self.failures = failures
        self.room = room
        self._worker = worker
        self._pairs = Pairs(worker, pairs)
        self._urls = urls
        self._visitor = visitor

    async def phase(self, name: str, phase: Phase, seconds: float, users: Sequence[str]) -> None:
        self._worker.failures = self.failures
        named = f"{self.name}: {name}"
        if phase.kind == "connect":
            await self._visit(named, users)
        elif phase.kind == "group":
            await self.room.outstanding(named, phase.outstanding, seconds)
        else:
            await self._pairs.phase(named, phase.rate, phase.outstanding, seconds)

    async def _visit(self, name: str, users: Sequence[str]) -> None:
        """Connect these users to all nodes in turn, and disconnect them when the phase has ended."""
        clients = [self._visitor(user) for user in users]
        places = dict(zip(clients, cycle(self._urls), strict=False))
        async with self._worker.measured(name, "connect") as counting:
            await self._worker.connect(clients, places.__getitem__)
            counting.units = len(clients)
        for chat in clients:
            chat.abort()

    async def warm_up(self, options: Options) -> None:
        self._worker.failures = self.failures
        await self._pairs.phase("warm-up", 0, options.pairs, WARM_UP_S)
        await self.room.outstanding("warm-up", 4, WARM_UP_S)


async def linnet(worker: Worker, options: Options, prepared: dict[str, Any]) -> Side:
    worker.failures = Failures()
    pairs = [Pair(worker.client(ann), worker.client(bob), options.body) for ann, bob in prepared["pairs"]]
    members = [worker.client(user) for user in prepared["users"]]
    room = Room(worker, members, prepared["conversation"], options.body)
    await connect(worker, pairs, room, worker.urls)
    failures = worker.failures
    return Side(LINNET, worker, failures, pairs, room, worker.urls, lambda user: Client(user, failures, n=0))


async def peer(worker: Worker, options: Options, prepared: dict[str, Any], where: Urls) -> Side:
    failures, client = Failures(), CLIENTS[where.name]

    def member(user: str, room: str) -> Client:
        return client(user, failures, room)

    pairs, room = together(worker, prepared, member)
    for number, pair in enumerate(pairs):
        pair.route = client.route(pair_room(number), options.body)
    room.route = client.route(ROOM, options.body)
    await connect(worker, pairs, room, where.urls)
    return Side(where.name, worker, failures, pairs, room, where.urls, lambda user: member(user, user))


async def floor(worker: Worker, prepared: dict[str, Any], frame_bytes: int) -> Side:
    """Connect a floor whose frames are as long as Linnet's."""
    failures, urls = Failures(), [prepared["floor"]]

    def member(user: str, room: str) -> Client:
        return FloorMember(user, failures, room, frame_bytes)

    pairs, room = together(worker, prepared, member)
    await connect(worker, pairs, room, urls)
    return Side(FLOOR, worker, failures, pairs, room, urls, lambda user: member(user, user))


def together(worker: Worker, prepared: dict[str, Any], client: Callable[[str, str], Client]) -> tuple[list[Pair], Room]:
    """Create the same pairs and members as Linnet's, each in the room of its conversation."""
    pairs = [
        Pair(client(ann, pair_room(number)), client(bob, pair_room(number)), 0)
        for number, (ann, bob) in enumerate(prepared["pairs"])
    ]
    room = Room(worker, [client(user, ROOM) for user in prepared["users"]], ROOM, 0)
    worker.clients += [chat for pair in pairs for chat in (pair.ann, pair.bob)]
    worker.clients += room.readers
    return pairs, room


def pair_room(number: int) -> str:
    return f"pair-{number}"


async def connect(worker: Worker, pairs: list[Pair], room: Room, urls: list[str]) -> None:
    """Connect the users of a pair to different nodes, and spread the group over both."""
    await worker.connect([pair.ann for pair in pairs], lambda _: urls[0])
    await worker.connect([pair.bob for pair in pairs], lambda _: urls[-1])
    await room.connect(urls)


async def run(plan: Plan, pipe: Connection) -> None:
    worker = Worker(plan, pipe)
    options = msgspec.convert(plan.options, Options)
    async with asyncio.timeout(LIMIT_S):
        sides = await connect_all(worker, options, plan.prepared)
        rounds = await all_rounds(sides, options)
    ours = Failures()
    worker.notes["rounds"] = rounds
    for side in sides:
        if side.name in (LINNET, FLOOR):
            ours += side.failures
        for kind, count in msgspec.structs.asdict(side.failures).items():
            if count:
                worker.notes[f"{side.name}: {kind}"] = count
    complaint = next((chat.error for chat in worker.clients if chat.error), "")
    await worker.share((ours, worker.notes, complaint), "finished")
    for chat in worker.clients:
        chat.closing = True


async def connect_all(worker: Worker, options: Options, prepared: dict[str, Any]) -> list[Side]:
    """Connect and warm up all sides."""
    first = await linnet(worker, options, prepared)
    sides = [first, *[await peer(worker, options, prepared, where) for where in prepared[NODES]]]
    await first.warm_up(options)
    sides.append(await floor(worker, prepared, first.room.readers[0].event_bytes + fanout.HEADER))
    for side in sides[1:]:
        await side.warm_up(options)
    return sides


async def all_rounds(sides: list[Side], options: Options) -> int:
    """Run the rounds that there is time for, and return how many."""
    until = time.monotonic() + ROUNDS_S
    for number in range(options.rounds):
        if time.monotonic() > until:
            return number
        users = visitors(options, number)
        for name, phase in phases(options).items():
            for side in sides:
                await side.phase(name, phase, options.seconds, users)
    return options.rounds


def main(plan: Plan, pipe: Connection) -> None:
    reported(run(plan, pipe), pipe)
