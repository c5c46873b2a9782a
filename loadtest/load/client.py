"""One device of one user, cheap enough that thousands of them in one process do not limit a test.

The client is a bare protocol. Its commands are prebuilt masked frames into which only `n`, `done` and the stamp are
written. Of an event it reads only the slots, the conversation and the stamp, at their fixed positions in the bytes. It
creates no task, queue or decoded map per message.

For every event of every conversation it checks that `prev` is the last seq it received. So a lost event, a duplicate
and an event out of order are each noticed at once; scenarios compare counts in addition, so that no loss is unseen. The
last 16 bytes of a message contain the time at which it was *due*. Its age on arrival is the latency, even if its sender
was late.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from collections.abc import Callable
from functools import lru_cache
from struct import Struct as Packing
from time import monotonic_ns
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from loadtest.frames import BINARY, CLOSE, DEFLATED, PING, PONG, frame

SUBPROTOCOL: Final = "linnet.v1.msgpack"
# Positions in an event's bytes: four slots, then `type`, its value, `conversation`, its value.
_SEQ_PREV: Final = Packing(">6xQ6xQ")
_TYPE_AT: Final = 60
_FIRST_SLOT: Final = 0xA3  # "seq": only events of a log begin with it
_MESSAGE: Final = 0xA7
STAMP_BYTES: Final = 16

_number = Packing(">Q").pack
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def now_us() -> int:
    """Return the time in µs by the one clock that all processes of this machine share."""
    return monotonic_ns() // 1000


def command(kind: str, **fields: Any) -> bytes:
    return frame(_encode({"type": kind, **fields}))


class Route:
    """The sends of one device into one conversation: a prebuilt frame, except for what changes."""

    __slots__ = ("_head", "_middle", "_tail", "pending")

    def __init__(self, to: str, body_bytes: int) -> None:
        body = b"x" * max(0, body_bytes - STAMP_BYTES)
        head = b"\x85" + _encode("type") + _encode("send") + _encode("to") + _encode(to) + _encode("n") + b"\xcf"
        middle = _encode("done") + b"\xcf"
        tail = _encode("body") + _encode("x" * max(STAMP_BYTES, body_bytes))[: -max(STAMP_BYTES, body_bytes)] + body
        whole = frame(head + bytes(8) + middle + bytes(8) + tail + bytes(STAMP_BYTES))
        self._head = whole[: -(len(tail) + STAMP_BYTES + 8 + len(middle) + 8)]
        self._middle = middle
        self._tail = tail
        self.pending: dict[int, int] = {}  # n -> stamp of each unanswered send, in the order of n

    def message(self, n: int, stamp: int) -> bytes:
        pending = self.pending
        done = next(iter(pending), n) - 1
        pending[n] = stamp
        return b"".join((self._head, _number(n), self._middle, _number(done), self._tail, b"%016d" % stamp))


class Failures(msgspec.Struct):
    """Counts of what must not happen; any count above zero fails the run."""

    holes: int = 0
    duplicates: int = 0
    gaps: int = 0
    errors: int = 0
    closes: int = 0
    lost: int = 0

    def __bool__(self) -> bool:
        return any(msgspec.structs.astuple(self))

    def __add__(self, other: Failures) -> Failures:
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        return Failures(*(one + another for one, another in pairs))


class Refused(Exception):
    """The server refused the connection; the text is its answer."""


OnRead = Callable[["Client", int, int], None]
OnAck = Callable[["Client", int], None]


class Client(asyncio.Protocol):
    """One connection, see the module. `received` counts messages; scenarios may reset it between two phases."""

    __slots__ = (
        "_greeting", "_rest", "_unacked", "_upgraded", "acks", "closed", "closing", "error", "event_bytes", "failures",
        "inflate", "last", "n", "on_ack", "on_other", "on_read", "received", "routes", "sink", "transport", "user",
        "welcomed",
    )  # fmt: skip

    def __init__(self, user: str, failures: Failures, n: int, *, inflate: bool = False) -> None:
        self.user = user
        self.failures = failures
        self.inflate = inflate
        self.n = n
        self.transport: asyncio.Transport
        self.received = 0
        self.event_bytes = 0
        self.last: dict[bytes, int] = {}
        self.routes: dict[int, Route] = {}  # n -> the route of each unanswered send
        self.sink: array[int] | None = None  # receives latencies while they are measured
        self.acks: array[int] | None = None
        self.on_read: OnRead | None = None
        self.on_ack: OnAck | None = None
        self.on_other: Callable[[dict[str, Any]], None] | None = None
        self.welcomed: asyncio.Future[dict[str, Any]] | None = None
        self.closed: asyncio.Future[None] | None = None
        self.closing = False
        self.error = ""
        self._greeting = b""
        self._rest = b""
        self._upgraded = False
        self._unacked: set[bytes] = set()

    # -- connecting

    async def connect(self, url: str, token: str) -> dict[str, Any]:
        """Upgrade, send `hello` with the cursors of this device, and return the welcome."""
        cursors = {key.decode(): seq for key, seq in self.last.items()}
        extensions = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if self.inflate else ""
        greeting = command("hello", token=token, device="load", cursors=cursors)
        return await self.open(url, greeting, f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{extensions}")

    async def open(self, url: str, greeting: bytes, headers: str = "") -> dict[str, Any]:
        """Upgrade, send the greeting, and return the result of `welcomed`."""
        loop = asyncio.get_running_loop()
        where = urlsplit(url)
        self.closing = self._upgraded = False
        self._rest = b""
        self.welcomed, self.closed = loop.create_future(), loop.create_future()
        self._greeting = greeting
        await loop.create_connection(
            lambda: self, where.hostname or "", where.port or 80, ssl=True if where.scheme == "wss" else None
        )
        path = (where.path or "/") + (f"?{where.query}" if where.query else "")
        self.transport.write(
            f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: bGlubmV0LWxvYWQtdGVzdA==\r\nSec-WebSocket-Version: 13\r\n"
            f"{headers}\r\n".encode()
        )
        try:
            return await self.welcomed
        except Refused:
            self.transport.abort()
            raise

    async def disconnect(self) -> None:
        """Send a close frame and wait until the connection has ended."""
        self.closing = True
        if self.closed is not None and not self.closed.done():
            self.transport.write(frame((1000).to_bytes(2, "big"), CLOSE))
            await self.closed

    def abort(self) -> None:
        """End the connection without a close frame, as a lost network does."""
        self.closing = True
        self.transport.abort()

    # -- sending

    def message(self, route: Route, stamp: int) -> bytes:
        """Return the frame of the next message; the caller writes it."""
        self.n += 1
        self.routes[self.n] = route
        return route.message(self.n, stamp)

    def send(self, route: Route, stamp: int) -> None:
        self.transport.write(self.message(route, stamp))

    def send_command(self, kind: str, **fields: Any) -> None:
        self.transport.write(command(kind, **fields))

    def ack_all(self) -> None:
        """Acknowledge all received events, as clients do about once a second."""
        if self._unacked and not self.closing:
            cursors = {key.decode(): self.last[key] for key in self._unacked}
            self._unacked.clear()
            self.send_command("ack", cursors=cursors)

    # -- calls of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closing:
            self.failures.closes += 1
            self.error = self.error or f"connection lost: {exc}"
        if self.welcomed is not None and not self.welcomed.done():
            self.welcomed.set_exception(Refused(self.error or "closed before welcome"))
        if self.closed is not None and not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not self._upgraded:
            data = self._upgrade(data)
        at, size, before = 0, len(data), self.received
        now = now_us() if self.sink is not None else 0
        while size - at >= 2:
            length, start = data[at + 1], at + 2
            if length > 125:
                start = at + (4 if length == 126 else 10)
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start], "big")
            end = start + length
            if end > size:
                break
            if data[at] == BINARY and length > _TYPE_AT and data[start + 1] == _FIRST_SLOT:
                self._event(data, start, end, now)
            else:
                self._other(data[at], data[start:end], now)
            at = end
        if at < size:
            self._rest = data[at:]
        if self.received != before and self.on_read is not None:
            self.on_read(self, before, self.received)

    def _event(self, data: bytes, start: int, end: int, now: int) -> None:
        """Check that an event of a log follows the last one, and record its age."""
        seq, prev = _SEQ_PREV.unpack_from(data, start)
        kind = data[start + _TYPE_AT]
        at = start + _TYPE_AT + 14 + (kind & 0x1F)
        first = data[at]
        key = data[at + 2 : at + 2 + data[at + 1]] if first == 0xD9 else data[at + 1 : at + 1 + (first & 0x1F)]
        last = self.last.get(key)
        if prev != last and last is not None:
            if seq <= last:
                self.failures.duplicates += 1
                return
            self.failures.holes += 1
        self.last[key] = seq
        self._unacked.add(key)
        if kind == _MESSAGE:
            self.received += 1
            self.event_bytes = end - start
            if now and self.sink is not None:
                self.sink.append(now - int(data[end - STAMP_BYTES : end]))

    def _other(self, first: int, payload: bytes, now: int) -> None:
        if first == PING:
            self.transport.write(frame(payload, PONG))
        elif first == DEFLATED:
            inflated = _inflated(payload)
            if inflated[1] == _FIRST_SLOT:
                self._event(inflated, 0, len(inflated), now)
            else:
                self._answer(_decode(inflated))
        elif first == BINARY:
            self._answer(_decode(payload))
        elif first == CLOSE:
            self.error = f"{int.from_bytes(payload[:2], 'big')} {payload[2:].decode(errors='replace')}"
            self.transport.write(frame(payload[:2], CLOSE))

    def _answer(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "ack":
                self._acked(event["n"])
            case "welcome":
                if self.welcomed is not None and not self.welcomed.done():
                    self.welcomed.set_result(event)
            case "gap":
                self.failures.gaps += 1
            case "error":
                self.failures.errors += 1
                self.error = f"{event['code']}: {event['message']}"
            case _:
                pass
        if self.on_other is not None:
            self.on_other(event)

    def _acked(self, n: int) -> None:
        route = self.routes.pop(n, None)
        if route is None:
            return
        stamp = route.pending.pop(n)
        if self.acks is not None:
            self.acks.append(now_us() - stamp)
        if self.on_ack is not None:
            self.on_ack(self, n)

    def _upgrade(self, data: bytes) -> bytes:
        """Read the answer to the upgrade request, then send the greeting."""
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            self._rest = data
            return b""
        if not head.startswith(b"HTTP/1.1 101"):
            self.error = head.partition(b"\r\n")[0].decode(errors="replace")
            if self.welcomed is not None and not self.welcomed.done():
                self.welcomed.set_exception(Refused(self.error))
            return b""
        self._upgraded = True
        if self._greeting:
            self.transport.write(self._greeting)
            self._greeting = b""
        return rest


@lru_cache(64)
def _inflated(payload: bytes) -> bytes:
    """Decompress a message. All clients of a process receive the same bytes, so one call serves them all."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff")


class FloorReader(Client):
    """A reader of a floor: no hello, no seqs; it counts frames of one length."""

    __slots__ = ("frame_bytes",)

    def __init__(self, user: str, failures: Failures) -> None:
        super().__init__(user, failures, n=0)
        self.frame_bytes = 0

    async def disconnect(self) -> None:
        self.abort()

    def ask(self, count: int) -> None:
        """Ask the floor for `count` frames to all connections."""
        self.transport.write(frame(b"%06d" % self.frame_bytes) * count)

    def data_received(self, data: bytes) -> None:
        if self.welcomed is not None and not self.welcomed.done():
            self._greeting = b""  # no hello: a floor sends only on request
            self._upgrade(data)
            self.welcomed.set_result({})
            return
        held = len(self._rest) + len(data)
        before = self.received
        self.received += held // self.frame_bytes
        self._rest = bytes(held % self.frame_bytes)
        if self.received != before and self.on_read is not None:
            self.on_read(self, before, self.received)
