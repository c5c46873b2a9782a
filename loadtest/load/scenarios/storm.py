"""All clients lose their connections at once and reconnect as fast as they are admitted, each with several groups."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    clients: Annotated[int, Meta(description="clients that reconnect")] = 1000
    groups: Annotated[int, Meta(description="groups of each client")] = 10
    members: Annotated[int, Meta(description="members of a group")] = 100
    at_once: Annotated[int, Meta(description="concurrent connects")] = 200
    rounds: Annotated[int, Meta(description="rounds of losing all connections")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"storm-{number}" for number in range(options.clients)]
    parts = [users[first : first + options.members] for first in range(0, options.clients, options.members)]
    api.groups(part for part in parts for _ in range(options.groups))
    return users, {"users": users, "groups": options.groups}


AWAY_S = 5.0  # the gateway has marked all users offline before the measured wave of connects


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    clients = [worker.client(user) for user in worker.mine(prepared["users"])]
    for number in range(options.rounds + 1):
        async with worker.measured("reconnect" if number else "first connect", "connect") as counting:
            await worker.connect(clients, lambda _: worker.urls[0], options.at_once)
            counting.units = len(clients)
        for chat in clients:
            chat.abort()
        await asyncio.sleep(AWAY_S)
