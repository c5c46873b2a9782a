"""router/process/bounded.py: deadlines in fractions of a second; `tests/flow/test_hostile.py` has the real figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from router.process import bounded, serving
from tests.support import eventually

LARGE = 32 << 20


async def large(_: Request) -> Response:
    return Response(bytes(LARGE))


@asynccontextmanager
async def served() -> AsyncIterator[tuple[int, ServerState]]:
    """A server of one large answer: its port, and who is connected."""
    config, state = serving.config(Starlette(routes=[Route("/", large)])), ServerState()
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: bounded.BoundedHttp(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1], state


async def test_an_answer_that_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that asks for much and reads nothing holds it for ANSWER_S, however often it asks again."""
    monkeypatch.setattr(bounded, "ANSWER_S", 1.0)
    monkeypatch.setattr(bounded, "HEAD_S", 0.5)
    async with served() as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await eventually(lambda: len(state.connections) == 1)
        await eventually(lambda: not state.connections)
        with pytest.raises(ConnectionResetError):  # the kernel does not go on offering it
            await reader.read()
        writer.close()


async def test_an_answer_that_is_read_is_given_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next head is not due while the answer before it is still being read."""
    monkeypatch.setattr(bounded, "HEAD_S", 0.5)
    async with served() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        loop, read = asyncio.get_running_loop(), 0
        until = loop.time() + 1.5
        while loop.time() < until:
            read += len(await reader.read(4096))
            late = loop.create_future()
            loop.call_later(0.01, late.set_result, None)
            await late
        while read < LARGE:
            piece = await reader.read(1 << 20)
            assert piece, f"dropped after {read} bytes"
            read += len(piece)
        writer.close()


async def test_a_connection_that_goes_on_asking_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer gives the next head its own time; one connection may ask for longer than HEAD_S."""
    monkeypatch.setattr(bounded, "HEAD_S", 1.0)
    async with served() as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        until = loop.time() + 2.5
        while loop.time() < until:
            writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nNot Found")
        writer.close()
        await eventually(lambda: not state.connections)
