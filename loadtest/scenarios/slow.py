"""Some readers of a group stop reading for a while: the others must not notice, and nobody may lose anything."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.scenarios.room import Room
from loadtest.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    members: Annotated[int, Meta(description="members of the group, all connected")] = 200
    one_in: Annotated[int, Meta(description="one reader in so many stalls")] = 10
    rate: Annotated[float, Meta(description="messages a second")] = 50
    body: Annotated[int, Meta(description="bytes of a body")] = 4096
    seconds: Annotated[float, Meta(description="how long they stall; and the phase before, to compare with")] = 20


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"reader-{number}" for number in range(options.members)]
    return users, {"users": users, "conversation": api.group(users)}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    clients = [worker.client(user) for user in worker.mine(prepared["users"])]
    stalled = clients[1 :: options.one_in]
    awake = [chat for chat in clients if chat not in stalled]
    everybody = Room(worker, clients, prepared["conversation"], options.body)
    others = Room(worker, awake, prepared["conversation"], options.body)
    await everybody.connect(worker.urls[0])
    await everybody.paced("warm-up", options.rate, 2)
    await everybody.paced("all read", options.rate, options.seconds)
    for chat in clients:
        chat.received = 0
    for chat in stalled:
        chat.transport.pause_reading()
    await others.paced("one in ten stalls" if options.one_in == 10 else "some stall", options.rate, options.seconds)
    total = max(await worker.share(max(chat.received for chat in awake)))
    async with worker.measured("they catch up", "delivery") as counting:
        for chat in stalled:
            chat.transport.resume_reading()
        await worker.until(lambda: all(chat.received >= total for chat in stalled))
        counting.units = sum(chat.received for chat in stalled)
    for chat in stalled:
        worker.faults.lost += max(0, total - chat.received)
        worker.faults.again += max(0, chat.received - total)
    await asyncio.sleep(0)
