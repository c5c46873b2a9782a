"""Some readers of a group stop reading for a while: the others must not notice, and no message may be lost.

The other readers are compared with themselves at the same rate, before each stall and after the last one, so that a
machine that is busier at one time does not decide. Their p99 counts from the moment a message was due. A stalled reader
is fed from the log when it reads again; the note `missed` shows that it was behind and that no buffer held the events.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.client import Client
from loadtest.load.scenarios.room import Room
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    members: Annotated[int, Meta(description="members of the group, all connected")] = 200
    one_in: Annotated[int, Meta(ge=2, description="one in this many readers stalls")] = 10
    rate: Annotated[float, Meta(description="messages per second")] = 20
    body: Annotated[int, Meta(description="bytes of a body")] = 4096
    seconds: Annotated[float, Meta(description="seconds of a stall")] = 20
    calm: Annotated[float, Meta(description="seconds in which all read, before each stall and after the last")] = 20
    rounds: Annotated[int, Meta(description="number of stalls")] = 1


CALM = "all read"
STALL = "some stall"


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"reader-{number}" for number in range(options.members)]
    return users, {"users": users, "conversation": api.group(users)}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    clients = [worker.client(user) for user in worker.mine(prepared["users"])]
    stalled = clients[1 :: options.one_in]
    awake = [chat for number, chat in enumerate(clients) if number % options.one_in != 1]
    room = Room(worker, clients, prepared["conversation"], options.body)
    others = Room(worker, awake, prepared["conversation"], options.body)
    await room.connect(worker.urls[0])
    await room.paced("warm-up", options.rate, 2)
    for _ in range(options.rounds):
        await room.paced(CALM, options.rate, options.calm)
        for chat in stalled:
            chat.received = 0
            chat.transport.pause_reading()
        await others.paced(STALL, options.rate, options.seconds)
        total = max(await worker.share(awake[0].received))
        await _catch_up(worker, stalled, total)
        worker.notes["missed by each who stalled, MB"] = total * options.body / 1e6
    await room.paced(CALM, options.rate, options.calm)


async def _catch_up(worker: Worker, stalled: list[Client], total: int) -> None:
    async with worker.measured("they catch up", "delivery") as counting:
        before = sum(chat.received for chat in stalled)
        for chat in stalled:
            chat.transport.resume_reading()
        await worker.until(lambda: all(chat.received >= total for chat in stalled))
        counting.units = sum(chat.received for chat in stalled) - before
    for chat in stalled:
        worker.failures.lost += max(0, total - chat.received)
        worker.failures.duplicates += max(0, chat.received - total)
