"""The WebSocket connection of a client, with callbacks, for both subprotocols.

This module knows the upgrade, frames, pings and both codecs; it does not know what a command means. The server neither
fragments nor compresses messages for a client that did not ask for it, so a frame other than a whole text, binary,
ping, pong or close frame ends the connection as an error of the server.

Invariant: `on_close` is called exactly once, and no other callback after it.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from loadtest.frames import BINARY, CLOSE, PING, PONG, TEXT, frame

SUBPROTOCOLS: Final = {"json": "linnet.v1.json", "msgpack": "linnet.v1.msgpack"}
GONE: Final = 1006
SMALL_BUFFER: Final = 4096

_to_json = msgspec.json.Encoder().encode
_of_json = msgspec.json.Decoder().decode
_to_msgpack = msgspec.msgpack.Encoder().encode
_of_msgpack = msgspec.msgpack.Decoder().decode


def without_bytes(value: Any) -> Any:
    """Return a value that JSON can express: bytes become `{"$b64": …}`."""
    if isinstance(value, bytes):
        return {"$b64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: without_bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_bytes(item) for item in value]
    return value


def with_bytes(value: Any) -> Any:
    """Return the value that a JSON value stands for."""
    if isinstance(value, dict):
        if len(value) == 1 and "$b64" in value:
            return base64.b64decode(value["$b64"])
        return {key: with_bytes(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_bytes(item) for item in value]
    return value


class WebSocket(asyncio.Protocol):
    """One connection, opened by `connect`."""

    def __init__(
        self,
        codec: str,
        on_open: Callable[[], None],
        on_event: Callable[[dict[str, Any]], None],
        on_close: Callable[[int, str], None],
    ) -> None:
        self.text = codec == "json"
        self.heard_at = 0.0
        self._subprotocol = SUBPROTOCOLS[codec]
        self._on_open, self._on_event, self._on_close = on_open, on_event, on_close
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._upgraded = False
        self._closed = False
        self._close_frame = (GONE, "")
        self._loop = asyncio.get_running_loop()

    async def connect(self, url: str, *, small: bool = False) -> None:
        """Open the connection; `on_open` or `on_close` follows. `small`: use a very small receive buffer."""
        where = urlsplit(url)
        host, port = where.hostname or "127.0.0.1", where.port or (443 if where.scheme == "wss" else 80)
        if small:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            sock.setblocking(False)
            try:
                await self._loop.sock_connect(sock, (host, port))
            except BaseException:
                sock.close()
                raise
            await self._loop.create_connection(lambda: self, sock=sock)
        else:
            await self._loop.create_connection(lambda: self, host, port, ssl=True if where.scheme == "wss" else None)
        self._write(
            f"GET {where.path or '/'} HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: bGlubmV0LWxvYWQtdGVzdA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {self._subprotocol}\r\n\r\n".encode()
        )

    def send_command(self, kind: str, **fields: Any) -> None:
        """Send a command."""
        command = {"type": kind, **fields}
        if self.text:
            self._write(frame(_to_json(without_bytes(command)), TEXT))
        else:
            self._write(frame(_to_msgpack(command)))

    def close(self, code: int = 1000) -> None:
        """Send a close frame; the server's answer ends the connection."""
        self._write(frame(code.to_bytes(2, "big"), CLOSE))

    def abort(self) -> None:
        """End the connection without a close frame."""
        if self._transport is not None:
            self._transport.abort()

    def stop_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # -- calls of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(*self._close_frame)

    def _end(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            self._on_close(code, reason)
        self.abort()

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        data = self._rest + data if self._rest else data
        self._rest = b""
        if not self._upgraded:
            data = self._upgrade(data)
        at, size = 0, len(data)
        while size - at >= 2 and not self._closed:
            length, start = data[at + 1], at + 2
            if length > 125:
                start = at + (4 if length == 126 else 10)
                length = int.from_bytes(data[at + 2 : start], "big")
            end = start + length
            if end > size or start > size:
                break
            self._frame(data[at], data[start:end])
            at = end
        if at < size:
            self._rest = data[at:]

    def _upgrade(self, data: bytes) -> bytes:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            self._rest = data
            return b""
        if not head.startswith(b"HTTP/1.1 101"):
            self._end(GONE, head.partition(b"\r\n")[0].decode(errors="replace"))
            return b""
        self._upgraded = True
        self._on_open()
        return rest

    def _frame(self, first: int, payload: bytes) -> None:
        if first == (TEXT if self.text else BINARY):
            self._on_event(with_bytes(_of_json(payload)) if self.text else _of_msgpack(payload))
        elif first == PING:
            self._write(frame(payload, PONG))
        elif first == CLOSE:
            self._close_frame = (int.from_bytes(payload[:2], "big") or 1005, payload[2:].decode(errors="replace"))
            self._write(frame(payload[:2], CLOSE))
        elif first != PONG:
            self._end(1002, f"unexpected frame, first byte {first:#x}")
