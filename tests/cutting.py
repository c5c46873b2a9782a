"""A proxy in front of routers that cuts the connections of uploads.

After each cut, connections go to the next of the routers. A connection that carries a PATCH, or a POST of a file, is
cut as the next entry of the plan says. A request that is refused before its cut leaves the entry to the next one.

a number   after so many bytes that the client has sent
ANSWER     when the answer comes: it is lost, and what was sent has arrived
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

ANSWER: Final = -1
CHUNK: Final = 1 << 16


class Cutting:
    """`async with Cutting(urls, plan) as proxy`. `done` has the cuts that were made."""

    def __init__(self, urls: list[str], plan: list[int]) -> None:
        self._upstreams = [(str(urlsplit(url).hostname), urlsplit(url).port) for url in urls]
        self.plan = plan
        self.done: list[int] = []
        self.ways: list[int] = []  # ports of the routers of the connections that carried bytes of a file
        self.requests: list[str] = []  # the first lines of all requests
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Cutting:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()  # the tasks end by themselves: a reader's own task must not be cancelled
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._forward(reader, writer)
        except OSError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._upstreams[len(self.done) % len(self._upstreams)]
        up_reader, up_writer = await asyncio.open_connection(host, port)
        cut: int | None = None  # of the request that is sent now
        sent = 0

        async def forth() -> None:
            nonlocal cut, sent
            while data := await reader.read(CHUNK):
                if data[:8].partition(b" ")[0].isupper() and b" HTTP/1.1\r\n" in data[:500]:
                    self.requests.append(data.partition(b"\r\n")[0].decode())
                if data.startswith((b"PATCH ", b"POST /v1/uploads?")):
                    cut, sent = (self.plan.pop(0) if self.plan else None), 0
                    self.ways.append(port or 0)
                room = len(data) if cut is None or cut == ANSWER else cut - sent
                sent += len(data)
                up_writer.write(data[:room])
                await up_writer.drain()
                if cut is not None and room < len(data):
                    self.done.append(cut)
                    cut = None
                    return

        async def back() -> None:
            nonlocal cut
            while data := await up_reader.read(CHUNK):
                if cut == ANSWER and data.startswith(b"HTTP/1.1 2"):
                    self.done.append(cut)
                    cut = None
                    return
                if cut is not None:
                    self.plan.insert(0, cut)
                    cut = None
                writer.write(data)
                await writer.drain()

        ways = [asyncio.ensure_future(forth()), asyncio.ensure_future(back())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            if cut is not None:
                self.plan.insert(0, cut)
            with suppress(OSError):
                up_writer.close()  # what was written is sent first: the router has it
            writer.transport.abort()
