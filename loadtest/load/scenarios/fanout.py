"""One group, one sender, every member reads; in the same rounds, a floor that only writes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.scenarios.room import FloorRoom, Room
from loadtest.load.worker import Worker

HEADER = 4  # bytes of the frame header of an event


class Options(msgspec.Struct, frozen=True, kw_only=True):
    members: Annotated[int, Meta(description="members of the group, all connected")] = 1000
    outstanding: Annotated[tuple[int, ...], Meta(description="messages outstanding, one phase each")] = (1, 16)
    rate: Annotated[float, Meta(description="messages per second at an even rate instead (0: none)")] = 0
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 1.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5
    gateways: Annotated[int, Meta(description="number of targets that the members are spread over")] = 1


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"fan-{number}" for number in range(options.members)]
    return users, {"users": users, "conversation": api.group(users)}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    clients = [worker.client(user) for user in worker.mine(prepared["users"])]
    room = Room(worker, clients, prepared["conversation"], options.body)
    await room.connect(worker.urls[: options.gateways])
    await room.outstanding("warm-up", 4, 0.5)
    floor = None
    if prepared["floor"]:
        floor = FloorRoom(worker, worker.mine(prepared["users"]), clients[0].event_bytes + HEADER)
        await floor.connect(prepared["floor"])
        await floor.outstanding("warm-up", 4, 0.5)
    for _ in range(options.rounds):
        if options.rate:
            await room.paced(f"fan-out {options.members}, {options.rate:g}/s", options.rate, options.seconds)
            continue
        for width in options.outstanding:
            await room.outstanding(f"fan-out {options.members}, W={width}", width, options.seconds)
            if floor is not None:
                await floor.outstanding(f"floor {options.members}, W={width}", width, options.seconds)
