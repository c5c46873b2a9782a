"""Fixtures for tests of the store.

All of them run with a library that checks the functions' keys. For tests of connections: both event loops, a small
function library, a proxy that fails on demand.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from router.store.redis import client
from router.store.redis.connection import Address, address
from router.store.redis.functions import Library
from tests.store.checked_library import checked_library


@pytest.fixture(autouse=True)
def checked_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a call of a function that uses a key which is not among its KEYS."""
    monkeypatch.setattr(client, "build", checked_library)


@pytest.fixture(params=["uvloop", "asyncio"])
def either_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test once on uvloop, which production uses, and once on asyncio's own loop."""
    if request.param == "asyncio":
        monkeypatch.setattr(uvloop, "new_event_loop", asyncio.new_event_loop)


LIBRARY = Library(
    "00000000",
    b"""#!lua name=linnet_00000000
local function register(name, callback)
  redis.register_function{function_name = name .. '_00000000', callback = callback}
end
register('echo', function(keys, args) return args end)
register('push', function(keys, args) return redis.call('RPUSH', keys[1], args[1]) end)
register('refuse', function(keys, args) return redis.error_reply(args[1]) end)
register('nested', function(keys, args) return {1, {err = 'RATE 12'}, 'after'} end)
register('broken', function(keys, args) error('boom') end)
""",
)


class Proxy:
    """Stands between a link and its server; what the server says can be swallowed."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self.url = ""
        self.accepted = 0
        self.swallow = False
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Future[None]] = set()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.tasks.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        there = self.server
        try:
            if there.path:
                there_reader, there_writer = await asyncio.open_unix_connection(there.path)
            else:
                there_reader, there_writer = await asyncio.open_connection(there.host, there.port)
        except OSError:
            writer.close()
            return
        self.writers.add(there_writer)
        await asyncio.gather(self._pass(reader, there_writer, False), self._pass(there_reader, writer, True))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (reply and self.swallow):
                    writer.write(data)
        writer.close()


@asynccontextmanager
async def proxied(url: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(address(url))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        server.close()
        for writer in proxy.writers:
            writer.close()
        await asyncio.gather(*proxy.tasks)
