"""An endpoint that sends every message back: what the conformance suite and the protocol's tests talk to.

`python -m tests.gateway.websocket.echo PORT` serves it alone.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from gateway.delivery.shared_frames import BINARY, COMPRESS_FROM_BYTES, TEXT
from gateway.websocket.connection import WebSocketConnection
from gateway.websocket.deflate import deflated_frame
from gateway.websocket.frames import frame

MAX_MESSAGE_BYTES = 16 * 1024 * 1024


def say(connection: WebSocketConnection, payload: bytes, text: bool) -> None:
    """One message, deflated where that was agreed on and pays."""
    build = deflated_frame if connection.deflate and len(payload) >= COMPRESS_FROM_BYTES else frame
    connection.write(build(payload, TEXT if text else BINARY))


class Echo:
    """A session that answers each message with itself and reads no faster than its peer does."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    def message_received(self, data: bytes, text: bool) -> None:
        say(self._connection, data, text)

    def writing_paused(self) -> None:
        self._connection.pause_reading()

    def writing_resumed(self) -> None:
        self._connection.resume_reading()

    def connection_closed(self, code: int, reason: str) -> None:
        pass


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    connection: WebSocketConnection = websocket.scope["extensions"]["linnet"]["connection"]
    connection.attach(Echo(connection))


app = Starlette(routes=[WebSocketRoute("/", echo)])

if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        ws=WebSocketConnection,
        ws_max_size=MAX_MESSAGE_BYTES,
        log_level="warning",
    )
