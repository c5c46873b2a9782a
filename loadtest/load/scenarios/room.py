"""A group with all its readers, and two ways to send to it: with a number of messages outstanding, or at a rate.

With `outstanding`, the next message leaves when the message `width` before it has reached every reader of this process.
Several messages that become due at once leave in one write, as those of a client would.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from loadtest.load.client import Client, FloorReader, Route, now_us
from loadtest.load.worker import Worker

WATCH_EVERY = 16  # every n-th reader records latency: for all, it would cost more than reading


class Pump:
    """Keep `width` messages outstanding for some seconds, and notice when the last one has arrived everywhere."""

    def __init__(self, readers: Sequence[Client], width: int, seconds: float, send: Callable[[int], None]) -> None:
        self.sent = 0
        self.finished = asyncio.get_running_loop().create_future()
        self._readers = len(readers)
        self._width = width
        self._until = time.monotonic() + seconds
        self._send = send
        self._reached: list[int] = []  # how many readers received the i-th message
        self._complete = 0
        for reader in readers:
            reader.on_read = self._read
        self._refill()

    def _read(self, _: Client, before: int, after: int) -> None:
        reached, complete = self._reached, self._complete
        for index in range(before, min(after, self.sent)):
            reached[index] += 1
            if reached[index] == self._readers:
                complete = index + 1
        if complete > self._complete:
            self._complete = complete
            self._refill()

    def _refill(self) -> None:
        if time.monotonic() < self._until:
            count = self._width - (self.sent - self._complete)
            self.sent += count
            self._reached += [0] * count
            self._send(count)
        elif self._complete == self.sent and not self.finished.done():
            self.finished.set_result(None)


class Room:
    """The readers of one group in this process; the first reader of the leading process sends."""

    def __init__(self, worker: Worker, readers: Sequence[Client], conversation: str, body_bytes: int) -> None:
        self.worker = worker
        self.readers = readers
        self.route = Route(conversation, body_bytes)

    async def connect(self, url: str | Sequence[str]) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        places = {chat: urls[number % len(urls)] for number, chat in enumerate(self.readers)}
        await self.worker.connect(self.readers, lambda chat: places[chat])

    def send(self, count: int) -> None:
        sender, stamp = self.readers[0], now_us()
        sender.transport.write(b"".join([sender.message(self.route, stamp) for _ in range(count)]))

    async def outstanding(self, name: str, width: int, seconds: float) -> None:
        """Run a measured phase, counted in deliveries."""
        await together(self.worker, [self], name, width, seconds)

    async def paced(self, name: str, rate: float, seconds: float) -> None:
        """Run the same at an even rate."""
        await _phase(self.worker, [self], name, lambda room: room.open(name, rate, seconds))

    async def closed(self, width: int, seconds: float) -> int:
        """Send, and return how many were sent after all of them have arrived or have been given up."""
        pump = Pump(self.readers, width, seconds, self.send)
        try:
            async with asyncio.timeout(seconds + 20):
                await pump.finished
        except TimeoutError:
            pass  # missing messages are counted as lost
        return pump.sent

    async def open(self, name: str, rate: float, seconds: float) -> int:
        """Send at a rate, and return how many were sent."""
        sender = self.readers[0]
        return await self.worker.paced(rate, seconds, lambda _, due: sender.send(self.route, due), name)

    def begin(self) -> None:
        for reader in self.readers:
            reader.received = 0
            reader.on_read = None
        if not isinstance(self.readers[0], FloorReader):
            self.worker.watch(self.readers, WATCH_EVERY)
            self.worker.watch_acks(self.readers[:1])

    def end(self, total: int) -> None:
        for reader in self.readers:
            reader.sink = reader.acks = None
            self.worker.failures.lost += max(0, total - reader.received)
            self.worker.failures.duplicates += max(0, reader.received - total)


class FloorRoom(Room):
    """As many readers of a floor, with frames as long as Linnet's."""

    def __init__(self, worker: Worker, users: Sequence[str], frame_bytes: int) -> None:
        readers = [FloorReader(user, worker.failures) for user in users]
        for reader in readers:
            reader.frame_bytes = frame_bytes
        worker.clients += readers
        super().__init__(worker, readers, "", 0)

    def send(self, count: int) -> None:
        asker = self.readers[0]
        assert isinstance(asker, FloorReader)
        asker.ask(count)


async def together(worker: Worker, rooms: Sequence[Room], name: str, width: int, seconds: float) -> None:
    """Run a measured phase of several rooms at once, each with `width` messages outstanding."""
    await _phase(worker, rooms, name, lambda room: room.closed(width, seconds))


async def _phase(
    worker: Worker, rooms: Sequence[Room], name: str, send: Callable[[Room], Coroutine[Any, Any, int]]
) -> None:
    for room in rooms:
        room.begin()
    async with worker.measured(name, "delivery") as counting:
        sent = await asyncio.gather(*(send(room) for room in rooms)) if worker.leads else [0] * len(rooms)
        totals = [sum(each) for each in zip(*await worker.share(sent), strict=True)]
        await worker.until(lambda: all(map(_complete, rooms, totals)))
        counting.units = sum(reader.received for room in rooms for reader in room.readers)
    for room, total in zip(rooms, totals, strict=True):
        room.end(total)


def _complete(room: Room, total: int) -> bool:
    return all(reader.received >= total for reader in room.readers)
