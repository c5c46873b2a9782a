"""router/process/bounded.py: deadlines in fractions of a second; `tests/flow/test_hostile.py` uses the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.server import ServerState

from router.contract import metrics
from router.process import bounded, serving
from tests import support
from tests.support import DEADLINE_S, eventually

LARGE = 32 << 20
Endpoint = Callable[[Request], Awaitable[Response]]


async def large(_: Request) -> Response:
    return Response(bytes(LARGE))


@asynccontextmanager
async def served(answer: Endpoint = large, **options: Any) -> AsyncIterator[tuple[int, ServerState]]:
    """A server with one large answer: its port, and its connections."""
    config, state = serving.config(Starlette(routes=[Route("/", answer)]), **options), ServerState()
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: bounded.BoundedHttp(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1], state


async def test_unread_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that requests much and reads nothing occupies it for ANSWER_S, however often it sends a request."""
    monkeypatch.setattr(bounded, "ANSWER_S", 1.0)
    monkeypatch.setattr(bounded, "HEAD_S", 0.7 * support.PATIENCE)
    async with served() as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        await eventually(lambda: len(state.connections) == 1)
        await eventually(lambda: not state.connections)
        with pytest.raises(ConnectionResetError):  # the kernel does not keep the answer
            await reader.read()
        writer.close()


async def test_answer_that_is_read_slowly_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next head is not due while the previous answer is being read."""
    monkeypatch.setattr(bounded, "HEAD_S", 0.7 * support.PATIENCE)
    async with served() as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        loop, read = asyncio.get_running_loop(), 0
        until = loop.time() + support.PATIENCE
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


async def test_connection_with_many_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer starts the time of the next head, so a connection may be used for longer than HEAD_S."""
    monkeypatch.setattr(bounded, "HEAD_S", 0.7 * support.PATIENCE)
    async with served() as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.7 * support.PATIENCE
        while loop.time() < until:
            writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nNot Found")
        writer.close()
        await eventually(lambda: not state.connections)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ASK_UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class HandedOn(asyncio.Protocol):
    """The protocol of the upgraded connection; like the gateway's, it clears its predecessor."""

    made: ClassVar[list[HandedOn]] = []

    def __init__(self, **_: Any) -> None:
        self.made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        predecessor = transport.get_protocol()
        asyncio.get_running_loop().call_soon(vars(predecessor).clear)


async def small(_: Request) -> Response:
    return Response(b"ok")


async def test_upgrade_behind_an_open_request_leaves_the_deadlines_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GET and upgrade in one segment: the GET is answered, the upgrade is ignored, and the connection ends. A silent
    connection made after it still ends in time.
    """
    monkeypatch.setattr(bounded, "HEAD_S", 0.7 * support.PATIENCE)
    async with served(small, ws=HandedOn) as (port, state):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + ASK_UPGRADE)
        async with asyncio.timeout(DEADLINE_S):
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200") == 1
        assert answer.endswith(b"ok")
        writer.close()
        silent, other = await asyncio.open_connection("127.0.0.1", port)
        await eventually(lambda: len(state.connections) == 1)
        async with asyncio.timeout(DEADLINE_S):
            assert await silent.read() == b""
        other.close()


async def test_upgraded_connection_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """It upgrades while the previous answer still fills the write buffer: the sweep does not touch it."""
    monkeypatch.setattr(bounded, "ANSWER_S", 0.5)
    before = metrics.ROUND_ERRORS.labels("deadlines")._value.get()
    async with served(ws=HandedOn) as (port, state):
        HandedOn.made.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\n")
        connection: Any = next(iter(state.connections))
        _, answers = bounded._deadlines()
        await eventually(lambda: bool(connection.cycle.response_complete))
        assert connection in answers
        writer.write(ASK_UPGRADE)
        await eventually(lambda: HandedOn.made)
        assert connection not in answers
        writer.transport.abort()
    assert metrics.ROUND_ERRORS.labels("deadlines")._value.get() == before


async def test_entry_that_raises_does_not_end_a_deadline() -> None:
    """The others of the same sweep are still late, and so is a connection that starts after it."""
    late: list[Any] = []

    def act(connection: Any) -> None:
        if connection == "broken":
            raise RuntimeError("this one is broken")
        late.append(connection)

    deadline: Any = bounded.Deadline(0.05, act)
    for connection in ("first", "broken", "second"):
        deadline.start(connection)
    await eventually(lambda: late == ["first", "second"])
    deadline.start("third")
    await eventually(lambda: late == ["first", "second", "third"])


async def test_connection_header_is_read_from_all_its_lines() -> None:
    """A proxy may add a `Connection` line of its own before or behind the client's."""
    for lines in (
        b"Connection: Upgrade\r\nConnection: keep-alive\r\n",
        b"Connection: keep-alive\r\nConnection: x, Upgrade\r\n",
    ):
        async with served(small, ws=HandedOn) as (port, _):
            HandedOn.made.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"Upgrade: websocket\r\n\r\n")
            await eventually(lambda: HandedOn.made)
            writer.transport.abort()


@pytest.mark.parametrize(("limit", "kept"), [(100, True), (2, False)])
async def test_idle_connection_is_kept_unless_the_process_is_crowded(
    monkeypatch: pytest.MonkeyPatch, limit: int, kept: bool
) -> None:
    """Longer than a head may take, because balancers keep theirs; but not while half of the connections are in use."""
    monkeypatch.setattr(bounded, "HEAD_S", 0.6 * support.PATIENCE)
    monkeypatch.setattr(bounded, "CROWDED_KEEP_ALIVE_S", 0.2)
    async with served(small, timeout_keep_alive=60, limit_concurrency=limit) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await reader.readuntil(b"ok")
        ended = asyncio.ensure_future(reader.read())
        await asyncio.wait([ended], timeout=support.PATIENCE if kept else DEADLINE_S)
        assert ended.done() is not kept
        if kept:
            writer.write(b"GET / HT")  # the first byte of a head starts its deadline
            async with asyncio.timeout(DEADLINE_S):
                assert await ended == b""
        writer.close()
