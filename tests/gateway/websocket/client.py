"""A WebSocket client without any checks of its own: frames as bytes, on a socket that tests stall, cut and reset."""

import asyncio
import socket
import struct

from gateway.websocket.frames import unmask

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def client_frame(
    payload: bytes, opcode: int, *, fin: bool = True, reserved: int = 0, mask: bytes | None = b"\x12\x34\x56\x78"
) -> bytes:
    """One frame as a client sends it; `reserved` is RSV1-3 as they stand in the first byte, no mask is a mistake."""
    first = (0x80 if fin else 0) | reserved | opcode
    flag = 0 if mask is None else 0x80
    if len(payload) < 126:
        header = bytes((first, flag | len(payload)))
    elif len(payload) < 65536:
        header = struct.pack("!BBH", first, flag | 126, len(payload))
    else:
        header = struct.pack("!BBQ", first, flag | 127, len(payload))
    return header + (payload if mask is None else mask + unmask(payload, mask))


class RawClient:
    """One TCP connection, upgraded or about to be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, receive_bytes: int | None = None) -> "RawClient":
        """`receive_bytes` bounds what the kernel takes for a client that does not read."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=1 << 16))

    async def request(
        self, headers: dict[str, str], *, method: str = "GET", target: str = "/"
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask; answer with status, headers and body."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.writer.write(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        status_line, *fields = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        answer = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        status = int(status_line.split(" ")[1])
        return status, answer, b"" if status == 101 else await self.reader.read()

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame of the server: first byte and payload."""
        first, length = await self.reader.readexactly(2)
        if length >= 126:
            length = int.from_bytes(await self.reader.readexactly(2 if length == 126 else 8), "big")
        return first, await self.reader.readexactly(length)

    async def close_frame(self) -> tuple[int, bytes]:
        """Code and reason of the close frame that must come next, and nothing after it."""
        first, payload = await self.frame()
        assert first == 0x88, f"expected a close frame, not {first:#x}"
        return int.from_bytes(payload[:2], "big"), payload[2:]

    async def eof(self) -> bytes:
        """Return the bytes that still come until the server ends the connection."""
        return await self.reader.read()

    def abort(self) -> None:
        """Reset: the peer is gone without a FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
