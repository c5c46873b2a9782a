"""Links that break in every way that the proxy offers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from loadtest.chaos.proxy import Proxy
from tests.support import eventually, free_ports


class Link:
    """A connection through a proxy to an echo server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy, self.reader, self.writer = proxy, reader, writer

    async def echo(self, data: bytes = b"hello") -> bool:
        self.writer.write(data)
        return await self.reader.readexactly(len(data)) == data

    async def stays_silent(self, turns: int = 50) -> bool:
        """Whether nothing arrives in some turns of the loop."""
        waiting = asyncio.ensure_future(self.reader.read(1))
        for _ in range(turns):
            await asyncio.sleep(0)
        came = waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return not came


class Echo(asyncio.Protocol):
    """The echo server; `open` holds its connections."""

    open: set[Echo]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.open.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]  # it is a stream's

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, set[Echo], Callable[[], Awaitable[Link]]]]:
    """Yield a link, the connections of the server behind it, and a function that opens another link."""
    opened: set[Echo] = set()
    server = type("Server", (Echo,), {"open": opened})
    port, proxied = free_ports(2)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port)
    proxy = Proxy(proxied, port)
    await proxy.start()
    writers: list[asyncio.StreamWriter] = []

    async def another() -> Link:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxied)
        writers.append(writer)
        return Link(proxy, reader, writer)

    try:
        yield await another(), opened, another
    finally:
        for writer in writers:
            writer.transport.abort()
        await proxy.close()
        listening.close()


async def test_link_passes_everything_on() -> None:
    """Without a fault, bytes and the end of a connection pass in order."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        assert await link.echo(random.Random(1).randbytes(3_000_000))
        link.writer.close()
        await eventually(lambda: not opened)


async def test_cut_link_refuses_until_it_is_healed() -> None:
    """Connections end, new ones end at once; after the heal everything works again."""
    async with linked() as (link, opened, another):
        assert await link.echo()
        link.proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await link.reader.readexactly(1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await (await another()).echo()
        await eventually(lambda: not opened)
        link.proxy.heal()
        assert await (await another()).echo()


async def test_held_link_loses_nothing() -> None:
    """While it is held nothing passes and no end notices; then everything passes."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        link.proxy.hold()
        link.writer.write(b"later")
        assert await link.stays_silent()
        assert len(opened) == 1
        link.proxy.heal()
        assert await link.reader.readexactly(5) == b"later"


async def test_held_link_hides_a_closed_client() -> None:
    """The server notices when the link is healed."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        link.proxy.hold()
        link.writer.transport.abort()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(opened) == 1
        link.proxy.heal()
        await eventually(lambda: not opened)


async def test_delayed_link_keeps_the_order() -> None:
    """Everything arrives later and in order."""
    async with linked() as (link, _, _another):
        link.proxy.delay(0.02)
        began = asyncio.get_running_loop().time()
        data = bytes(range(256)) * 200
        for start in range(0, len(data), 1000):
            link.writer.write(data[start : start + 1000])
        assert await link.reader.readexactly(len(data)) == data
        assert asyncio.get_running_loop().time() - began >= 0.039  # the loop knows milliseconds only


async def test_vanished_client_stays_open_for_the_server() -> None:
    """The client's end is closed, the server's is not."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        assert link.proxy.vanish() == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await link.reader.readexactly(1)
        assert len(opened) == 1


async def test_client_is_closed_if_no_server_listens() -> None:
    """The proxy closes a client if no server listens behind it."""
    proxied, unused = free_ports(2)
    proxy = Proxy(proxied, unused)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.transport.abort()
    await proxy.close()
