"""Users connect and disconnect while others watch their presence."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    watched: Annotated[int, Meta(description="users that connect and disconnect")] = 100
    watchers: Annotated[int, Meta(description="users that watch all of them, at most 200 each")] = 100
    rounds: Annotated[int, Meta(description="rounds of connecting and disconnecting")] = 3


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    watched = [f"flit-{number}" for number in range(options.watched)]
    watchers = [f"eye-{number}" for number in range(options.watchers)]
    return watched + watchers, {"watched": watched, "watchers": watchers}


GRACE_S = 20.0  # watchers learn of an offline user after a few seconds


class Watcher:
    """A watcher and the users that it was told are online."""

    def __init__(self) -> None:
        self.online: dict[str, bool] = {}
        self.told = 0

    def sees(self, online: bool) -> int:
        """Return how many users are online."""
        return sum(value is online for value in self.online.values())

    def on_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "presence":
            for user, state in event["users"].items():
                self.online[user] = state["online"]
                self.told += 1


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    flitting = [worker.client(user) for user in worker.mine(prepared["watched"])]
    clients = [worker.client(user) for user in worker.mine(prepared["watchers"])]
    await worker.connect(flitting, lambda _: worker.urls[-1])  # a user exists after the first connect
    await worker.connect(clients, lambda _: worker.urls[0])
    await worker.share()
    watchers = []
    for chat in clients:
        watcher = Watcher()
        chat.on_other = watcher.on_event
        chat.send_command("presence", users=prepared["watched"], watch=True)
        watchers.append(watcher)

    async def agreed(online: bool) -> None:
        await worker.share()
        right = await worker.until(lambda: all(w.sees(online) == options.watched for w in watchers), GRACE_S)
        worker.failures.lost += not right
        await worker.share()

    await agreed(True)
    for _ in range(options.rounds):
        for online in (False, True):
            before = sum(watcher.told for watcher in watchers)
            async with worker.measured("come" if online else "go", "change told") as counting:
                if online:
                    await worker.connect(flitting, lambda _: worker.urls[-1])
                else:
                    await asyncio.gather(*(chat.disconnect() for chat in flitting))
                await agreed(online)
                counting.units = sum(watcher.told for watcher in watchers) - before
