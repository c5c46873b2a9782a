"""python-socketio with its Redis manager on uvicorn and uvloop, as documented: one node of it.

`python -m loadtest.peers.python_socketio PORT REDIS_URL`, by the interpreter of `.venv/peers`. What a user would write:
a room per conversation, a message goes to its room, and the sender is told that it went.

Of redis-py two defaults are set aside that break it under load: a hundred connections at most, and a listener that
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
