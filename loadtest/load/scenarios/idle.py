"""Connect many, then let nothing happen: what a connection costs to make, to hold and to keep alive.

A process costs something with nobody connected, too (timers, its lease, the echo on the bus): the phase `empty` says
how much, so that what a session costs does not depend on how many share that. Sessions are pinged and audited once in
a heartbeat (30 s), so what they cost is told over a whole round of them, and after the last first audit.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    connections: Annotated[int, Meta(description="sessions, each of a user of its own")] = 2000
    seconds: Annotated[float, Meta(description="how long they idle: whole heartbeats")] = 30
    settle: Annotated[
        float, Meta(description="seconds before that; a gateway pings who was quiet for half a heartbeat")
    ] = 16
    steps: Annotated[int, Meta(description="in how many steps they connect, one phase each")] = 4


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"idle-{number}" for number in range(options.connections + WARM)]
    return users, {"users": users}


WARM = 200  # connect first, so that what a process needs once is not counted as a connection's
EMPTY_S = 8.0
SETTLE_S = 3.0  # the first audit has been, and what a handshake needed is let go


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    users = prepared["users"]
    async with worker.measured("empty", "ms") as counting:
        await asyncio.sleep(min(EMPTY_S, options.seconds))
        counting.units = round(min(EMPTY_S, options.seconds) * 1000) if worker.leads else 0
    await worker.connect([worker.client(user) for user in worker.mine(users[:WARM])], lambda _: worker.urls[0])
    await asyncio.sleep(SETTLE_S)
    step = -(-options.connections // options.steps)
    for first in range(WARM, len(users), step):
        clients = [worker.client(user) for user in worker.mine(users[first : first + step])]
        async with worker.measured(f"connect to {min(first + step, len(users)) - WARM}", "connect") as counting:
            await worker.connect(clients, lambda _: worker.urls[0])
            await asyncio.sleep(SETTLE_S)
            counting.units = len(clients)
    await asyncio.sleep(options.settle)
    async with worker.measured("idle", "session second") as counting:
        await asyncio.sleep(options.seconds)
        counting.units = round(len(worker.clients) * options.seconds)
