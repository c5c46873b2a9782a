"""A real uvicorn on loopback whose endpoint attaches a recording session."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from gateway.websocket.connection import WebSocketConnection
from tests.gateway.websocket.client import UPGRADE, RawClient
from tests.support import eventually

LIMIT = 1 << 20


Endpoint = Callable[[WebSocket], Awaitable[None]]


App = Callable[[Any, Any, Any], Awaitable[None]]


class Recorder:
    """A session that records its calls."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self.heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    def message_received(self, data: bytes, text: bool) -> None:
        self.heard.put_nowait(("text" if text else "binary", data))

    def writing_paused(self) -> None:
        self.heard.put_nowait(("paused",))

    def writing_resumed(self) -> None:
        self.heard.put_nowait(("resumed",))

    def connection_closed(self, code: int, reason: str) -> None:
        self.heard.put_nowait(("closed", code, reason))


class Served:
    """A running server; its endpoint attaches a Recorder, unless the test brought its own application."""

    def __init__(self) -> None:
        self.attached: asyncio.Queue[Recorder] = asyncio.Queue()
        self.make: Callable[[WebSocketConnection], Recorder] = Recorder
        self.server: uvicorn.Server
        self.port = 0
        self._clients: list[RawClient] = []

    async def endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.attach(websocket)

    def attach(self, websocket: WebSocket) -> Recorder:
        connection: WebSocketConnection = websocket.scope["extensions"]["linnet"]["connection"]
        session = self.make(connection)
        connection.attach(session)
        self.attached.put_nowait(session)
        return session

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    async def raw(self, receive_bytes: int | None = None) -> RawClient:
        self._clients.append(await RawClient.connect(self.port, receive_bytes))
        return self._clients[-1]

    async def client(
        self, receive_bytes: int | None = None, headers: dict[str, str] = UPGRADE
    ) -> tuple[RawClient, Recorder]:
        client = await self.raw(receive_bytes)
        assert (await client.request(UPGRADE | headers))[0] == 101
        return client, await self.attached.get()

    def abandon_clients(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()


@asynccontextmanager
async def serving(endpoint: Endpoint | None = None, app: App | None = None, **options: Any) -> AsyncIterator[Served]:
    served = Served()
    app = app or Starlette(routes=[WebSocketRoute("/", endpoint or served.endpoint)])
    options = {"ws_max_size": LIMIT, "lifespan": "off", "log_level": "critical", "loop": "none", **options}
    server = served.server = uvicorn.Server(uvicorn.Config(app, port=0, ws=WebSocketConnection, **options))
    running = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    served.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.should_exit = True
        server.force_exit = True
        served.abandon_clients()
        await running
