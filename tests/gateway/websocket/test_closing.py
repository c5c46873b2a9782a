"""Connections whose end has begun: each is dropped in time, whatever its peer does."""

import asyncio
from typing import Any

import pytest

from gateway.websocket import closing
from gateway.websocket.frames import BINARY, CLOSE, frame
from tests.gateway.websocket.client import client_frame
from tests.gateway.websocket.serving import serving
from tests.support import eventually


@pytest.mark.parametrize("reads", [True, False])
async def test_client_that_does_not_answer_a_close_is_dropped(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose buffers are full, so that it never receives the close frame, is dropped, too."""
    monkeypatch.setattr(closing, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        clients = [await served.client(receive_bytes=4096) for _ in range(3)]
        for _, session in clients:
            if not reads:
                session.connection.write(frame(bytes(4 << 20), BINARY))
                assert await session.heard.get() == ("paused",)
            session.connection.close(1001, "bye")
        for _, session in clients:
            assert await session.heard.get() == ("closed", 1001, "bye")
        await eventually(lambda: not served.server.server_state.connections)


async def test_client_that_closes_and_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its close frame has arrived, and the frames that it does not read are dropped."""
    monkeypatch.setattr(closing, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(4 << 20), BINARY))
        assert await session.heard.get() == ("paused",)
        client.send(client_frame((1000).to_bytes(2, "big"), CLOSE))
        assert await session.heard.get() == ("closed", 1000, "")
        await eventually(lambda: not served.server.server_state.connections)


async def test_client_that_half_closes_and_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-closed connection has ended, even if bytes for it are left."""
    monkeypatch.setattr(closing, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(4 << 20), BINARY))
        assert await session.heard.get() == ("paused",)
        client.writer.write_eof()
        assert await session.heard.get() == ("closed", 1006, "")
        await eventually(lambda: not served.server.server_state.connections)


async def test_connection_that_raises_while_dropped_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The later ones of the same sweep are dropped, and so are connections that close afterwards."""
    monkeypatch.setattr(closing, "CLOSE_WAIT_S", 0.05)

    class Broken:
        def abort(self) -> None:
            raise RuntimeError("broken")

    async with serving() as served:
        lingering = closing.closing_of(asyncio.get_running_loop())
        for _ in range(2):
            broken: Any = type("Connection", (), {"transport": Broken()})()
            lingering.add(broken)
            _, session = await served.client()
            session.connection.close(1001, "bye")
            await eventually(lambda: not served.server.server_state.connections)
