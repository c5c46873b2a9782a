"""The floor: a bare uvloop protocol that writes prebuilt frames to all its connections, one write for each.

It has no users, no log, no order and no acks, so it costs the kernel's work and one call per write. Every server that
delivers to each connection by itself costs at least this much. `python -m loadtest.load.floor PORT` serves it until the
process is killed. After the upgrade, every frame from a client contains the length, in ASCII digits, of the frame that
all connections of the same path receive; each path is a room, so one floor can have rooms of several sizes. A frame of
each length is made once.

A read of sixteen such frames costs sixteen writes per connection. A server can do better if it joins them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from functools import lru_cache, partial
from typing import cast

import uvloop

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@lru_cache(16)
def prebuilt(length: int) -> bytes:
    """Return a whole frame of this many bytes."""
    payload = length - (4 if length > 127 else 2)
    header = bytes((0x82, 126)) + payload.to_bytes(2, "big") if payload > 125 else bytes((0x82, payload))
    return header + bytes(payload)


class Floor(asyncio.Protocol):
    def __init__(self, rooms: dict[bytes, dict[asyncio.Transport, None]]) -> None:
        self.rooms = rooms
        self.connections: dict[asyncio.Transport, None] = {}  # of the same room
        self.upgraded = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.pop(self.transport, None)

    def data_received(self, data: bytes) -> None:
        if not self.upgraded:
            self.upgraded = True
            key = data.split(b"Sec-WebSocket-Key: ", 1)[1].split(b"\r\n", 1)[0]
            accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
            self.transport.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            self.connections = self.rooms.setdefault(data.split(b" ", 2)[1], {})
            self.connections[self.transport] = None
            return
        at = 0
        while at < len(data):
            end = at + 6 + (data[at + 1] & 0x7F)
            frame = prebuilt(int(data[at + 6 : end]))
            for transport in self.connections:
                transport.write(frame)
            at = end


async def serve(port: int) -> None:
    rooms: dict[bytes, dict[asyncio.Transport, None]] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Floor, rooms), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
