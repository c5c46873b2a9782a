"""One group, one sender, everybody gets everything; beside it a floor that only writes, in the same rounds."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.client import FloorReader
from loadtest.scenarios.room import Room
from loadtest.worker import Worker

HEADER = 4  # of a frame as long as events are


class Options(msgspec.Struct, frozen=True, kw_only=True):
    members: Annotated[int, Meta(description="members of the group, all connected")] = 1000
    outstanding: Annotated[tuple[int, ...], Meta(description="messages on their way, one phase each")] = (1, 16)
    rate: Annotated[float, Meta(description="messages a second at an even rate instead; 0: none")] = 0
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="of one phase")] = 1.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5
    gateways: Annotated[int, Meta(description="how many of the targets the members are spread over")] = 1


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"fan-{number}" for number in range(options.members)]
    return users, {"users": users, "conversation": api.group(users)}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    clients = [worker.client(user) for user in worker.mine(prepared["users"])]
    room = Room(worker, clients, prepared["conversation"], options.body)
    await room.connect(worker.urls[: options.gateways])
    await room.outstanding("warm-up", 4, 0.5)
    floor = await _floor(worker, prepared, clients[0].event_bytes) if prepared["floor"] else None
    for _ in range(options.rounds):
        if options.rate:
            await room.paced(f"fan-out {options.members}, {options.rate:g}/s", options.rate, options.seconds)
            continue
        for width in options.outstanding:
            await room.outstanding(f"fan-out {options.members}, W={width}", width, options.seconds)
            if floor is not None:
                await floor.outstanding(f"floor {options.members}, W={width}", width, options.seconds)


class _Floor(Room):
    def send(self, count: int) -> None:
        asker = self.readers[0]
        assert isinstance(asker, FloorReader)
        asker.ask(count)


async def _floor(worker: Worker, prepared: dict[str, Any], event_bytes: int) -> Room:
    """As many readers on the floor, of frames as long as ours."""
    readers = []
    for user in worker.mine(prepared["users"]):
        reader = FloorReader(user, worker.faults)
        reader.frame_bytes = event_bytes + HEADER
        worker.clients.append(reader)
        readers.append(reader)
    floor = _Floor(worker, readers, "", 16)
    await floor.connect(prepared["floor"])
    await floor.outstanding("warm-up", 4, 0.5)
    return floor
