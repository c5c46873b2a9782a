"""A device reconnects to what it missed in many conversations: how soon has it the first event, and all of them?"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.client import Client, Route, now_us
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    events: Annotated[int, Meta(description="events that each reader missed")] = 10_000
    conversations: Annotated[int, Meta(description="direct conversations they are spread over")] = 50
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    readers: Annotated[int, Meta(description="readers, which reconnect one after the other")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    readers = [f"late-{number}" for number in range(options.readers)]
    writers = [f"early-{number}" for number in range(options.conversations)]
    return readers + writers, {"readers": readers, "writers": writers}


BATCH = 20  # unanswered sends of one writer; a device may have 32 in a conversation


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    """Measure the readers one by one, all in one process."""
    if not worker.leads:
        for _ in prepared["readers"]:
            async with worker.measured("drain", "event"):
                pass
        return
    readers = [worker.client(user) for user in prepared["readers"]]
    writers = [worker.client(user) for user in prepared["writers"]]
    await worker.connect([*readers, *writers], lambda _: worker.urls[0])
    await _write(worker, writers, readers, options, 1)
    await worker.until(lambda: all(reader.received == len(writers) for reader in readers))
    for reader in readers:
        reader.ack_all()
        await reader.disconnect()
    each = options.events // options.conversations
    await _write(worker, writers, readers, options, each)
    for reader in readers:
        await _come_back(worker, reader, each * len(writers))


async def _write(worker: Worker, writers: list[Client], readers: list[Client], options: Options, count: int) -> None:
    for reader in readers:
        routes = [Route(f"@{reader.user}", options.body) for _ in writers]
        for first in range(0, count, BATCH):
            for writer, route in zip(writers, routes, strict=True):
                stamp = now_us()
                batch = [writer.message(route, stamp) for _ in range(min(BATCH, count - first))]
                writer.transport.write(b"".join(batch))
            await worker.until(partial(_answered, routes))


def _answered(routes: list[Route]) -> bool:
    return not any(route.pending for route in routes)


async def _come_back(worker: Worker, reader: Client, missed: int) -> None:
    reader.received, first_at = 0, 0.0

    def read(_chat: Client, before: int, _after: int) -> None:
        nonlocal first_at
        first_at = first_at or time.monotonic()

    reader.on_read = read
    async with worker.measured("drain", "event") as counting:
        began = time.monotonic()
        await worker.connect([reader], lambda _: worker.urls[0])
        await worker.until(lambda: reader.received >= missed)
        counting.units = reader.received
    worker.failures.lost += max(0, missed - reader.received)
    worker.failures.duplicates += max(0, reader.received - missed)
    first_ms = (first_at - began) * 1000
    worker.notes["first event, ms (worst)"] = max(worker.notes.get("first event, ms (worst)", 0.0), first_ms)
