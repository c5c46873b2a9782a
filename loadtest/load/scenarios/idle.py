"""Connect many clients, then do nothing: the cost of making, holding and keeping alive a connection.

A process without connections uses CPU, too (timers, its lease, the echo on the bus). The phase `empty` measures that,
so that the cost of a session does not depend on how many sessions share it. Sessions are pinged and audited once per
heartbeat (30 s), so their cost is measured over one whole heartbeat, after the last first audit.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    connections: Annotated[int, Meta(description="sessions, one user each")] = 2000
    seconds: Annotated[float, Meta(description="idle seconds, a multiple of the heartbeat")] = 30
    settle: Annotated[
        float,
        Meta(
            description="seconds before the idle phase; a gateway pings a session that was quiet for half a heartbeat"
        ),
    ] = 16
    steps: Annotated[int, Meta(description="steps in which they connect, one phase each")] = 4


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"idle-{number}" for number in range(options.connections + WARM)]
    return users, {"users": users}


WARM = 200  # clients that connect first, so that one-time costs are not counted
EMPTY_S = 8.0
SETTLE_S = 3.0  # the first audit is over, and memory of handshakes is freed


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
