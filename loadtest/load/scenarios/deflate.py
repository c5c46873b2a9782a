"""The same fan-out with and without permessage-deflate, in turns."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.scenarios.room import Room
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    members: Annotated[int, Meta(description="members of each of the two groups")] = 1000
    outstanding: Annotated[tuple[int, ...], Meta(description="messages outstanding, one phase each")] = (1, 16)
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 1.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    sides = {side: [f"{side}-{number}" for number in range(options.members)] for side in ("plain", "deflated")}
    groups = {side: api.group(users) for side, users in sides.items()}
    return [user for users in sides.values() for user in users], {"sides": sides, "groups": groups}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    rooms = []
    for side, users in prepared["sides"].items():
        clients = [worker.client(user, inflate=side == "deflated") for user in worker.mine(users)]
        room = Room(worker, clients, prepared["groups"][side], options.body)
        await room.connect(worker.urls[0])
        await room.outstanding("warm-up", 4, 0.3)
        rooms.append((side, room))
    for _ in range(options.rounds):
        for width in options.outstanding:
            for side, room in rooms:
                await room.outstanding(f"{side}, W={width}", width, options.seconds)
