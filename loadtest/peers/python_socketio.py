"""One node of python-socketio with its Redis manager, on uvicorn and uvloop, as documented.

`python -m loadtest.peers.python_socketio PORT REDIS_URL`, run by the interpreter of `.venv/peers`. It is what a user
would write: a room per conversation, a message is sent to its room, and its sender receives an ack.

Two defaults of redis-py that break it under load are changed: a limit of a hundred connections, and a listener that
gives up after five quiet seconds.
"""

from __future__ import annotations

import sys
from typing import Any

import socketio  # type: ignore[import-not-found] # of .venv/peers
import uvicorn

REDIS = {"max_connections": 10_000, "socket_timeout": None}


def serve(port: int, redis_url: str) -> None:
    manager = socketio.AsyncRedisManager(redis_url, redis_options=REDIS)
    server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, transports=["websocket"])

    async def join(sid: str, room: str) -> None:
        await server.enter_room(sid, room)

    async def message(_: str, said: dict[str, Any]) -> None:
        await server.emit("message", said, room=said["to"])

    server.on("join", join)
    server.on("message", message)
    uvicorn.run(socketio.ASGIApp(server), port=port, loop="uvloop", log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
