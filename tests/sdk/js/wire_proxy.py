"""A proxy between clients and a gateway that can lose, double or hold back frames, and refuse connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

Frame = dict[str, Any]
SUBPROTOCOL = Subprotocol("linnet.v1.json")


class WireProxy:
    """`commands` are the frames of clients, as they came.

    `pass_event` says how often an event is passed on to the client, `pass_command` whether a command is to the gateway.
    """

    def __init__(self, port: int, upstream: str) -> None:
        self._port = port
        self._upstream = upstream
        self.commands: list[Frame] = []
        self.pass_event: Callable[[Frame], int] = lambda _event: 1
        self.pass_command: Callable[[Frame], bool] = lambda _command: True
        self._open: set[ServerConnection] = set()

    async def __aenter__(self) -> WireProxy:
        self._server = await serve(self._serve, "127.0.0.1", self._port, subprotocols=[SUBPROTOCOL], max_size=None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """End all connections."""
        await asyncio.gather(*(connection.close(1012) for connection in self._open))

    async def inject(self, event: Frame) -> None:
        """Send all clients an event that the gateway did not send."""
        await asyncio.gather(*(connection.send(json.dumps(event)) for connection in self._open))

    def count(self, kind: str) -> int:
        return sum(command["type"] == kind for command in self.commands)

    async def _serve(self, client: ServerConnection) -> None:
        self._open.add(client)
        try:
            async with connect(
                self._upstream, subprotocols=[SUBPROTOCOL], compression=None, proxy=None, max_size=None
            ) as server:
                ends = [asyncio.create_task(self._up(client, server)), asyncio.create_task(self._down(server, client))]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                await client.close(server.close_code or 1012, server.close_reason or "")
                await server.close()
                await asyncio.gather(*ends)
        except (OSError, InvalidHandshake):
            await client.close(1012)
        finally:
            self._open.discard(client)

    async def _up(self, client: ServerConnection, server: Any) -> None:
        try:
            async for frame in client:
                command = json.loads(frame)
                self.commands.append(command)
                if self.pass_command(command):
                    await server.send(frame)
        except ConnectionClosed:
            return

    async def _down(self, server: Any, client: ServerConnection) -> None:
        try:
            async for frame in server:
                for _ in range(self.pass_event(json.loads(frame))):
                    await client.send(frame)
        except ConnectionClosed:
            return
