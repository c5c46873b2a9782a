"""The load process: the clients of every side, and round by round every phase on each side in turn.

The phases are those of the scenarios `direct` and `fanout` and run by their code; only the clients differ. All clients
stay connected throughout, but only one side is loaded at a time. Phases are named `SIDE: PHASE`.

Invariant: the process ends. After `ROUNDS_S` no further round begins, and at `LIMIT_S` the run fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

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
    body: int = 128
    seconds: float = 0.75
    rounds: int = 6


class Urls(msgspec.Struct, frozen=True):
    """The addresses of a peer's nodes."""

    name: str
    urls: list[str]


class Phase(msgspec.Struct, frozen=True):
    """What one phase of a round sends: messages at an even rate, or with a number outstanding."""

    group: bool = False
    rate: float = 0.0
    outstanding: int = 0


def phases(options: Options) -> dict[str, Phase]:
    """Return the phases of a round by name."""
    return {
        **{f"direct, {rate:g}/s": Phase(rate=rate) for rate in options.rates},
        f"direct, {options.outstanding} outstanding": Phase(outstanding=options.outstanding),
        **{
            f"group of {options.members}, {width} outstanding": Phase(group=True, outstanding=width)
            for width in options.widths
        },
    }


class Side:
    """One of the compared systems."""

    def __init__(self, name: str, worker: Worker, failures: Failures, pairs: list[Pair], room: Room) -> None:
        self.name = name
        self.failures = failures
        self.room = room
        self._worker = worker
        self._pairs = Pairs(worker, pairs)

    async def phase(self, name: str, phase: Phase, seconds: float) -> None:
        self._worker.failures = self.failures
        named = f"{self.name}: {name}"
        if phase.group:
            await self.room.outstanding(named, phase.outstanding, seconds)
        else:
            await self._pairs.phase(named, phase.rate, phase.outstanding, seconds)

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
    return Side(LINNET, worker, worker.failures, pairs, room)


async def peer(worker: Worker, options: Options, prepared: dict[str, Any], where: Urls) -> Side:
    failures, client = Failures(), CLIENTS[where.name]
    pairs, room = together(worker, prepared, lambda user, room: client(user, failures, room))
    for number, pair in enumerate(pairs):
        pair.route = client.route(pair_room(number), options.body)
    room.route = client.route(ROOM, options.body)
    await connect(worker, pairs, room, where.urls)
    return Side(where.name, worker, failures, pairs, room)


async def floor(worker: Worker, prepared: dict[str, Any], frame_bytes: int) -> Side:
    """Connect a floor whose frames are as long as Linnet's."""
    failures = Failures()
    pairs, room = together(worker, prepared, lambda user, room: FloorMember(user, failures, room, frame_bytes))
    await connect(worker, pairs, room, [prepared["floor"]])
    return Side(FLOOR, worker, failures, pairs, room)


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
        for name, phase in phases(options).items():
            for side in sides:
                await side.phase(name, phase, options.seconds)
    return options.rounds


def main(plan: Plan, pipe: Connection) -> None:
    reported(run(plan, pipe), pipe)
