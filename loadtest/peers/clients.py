"""Connections to the peers that count and write as cheaply as Linnet's client, and can replace it in a scenario.

Only the protocols are defined here; frames, pace, latencies and counts are those of `load.client.Client`. Messages are
prebuilt text frames into which a number and a stamp are written. Of a received message only the stamp is read, which
is the end of the body: no JSON is parsed.

Where a peer has no seqs, the order is not checked; losses and duplicates show in the counts of every peer.
"""

from __future__ import annotations

from typing import Any, Final

from loadtest.frames import TEXT, frame
from loadtest.load.client import STAMP_BYTES, Client, Failures, FloorReader, Route

FIRST: Final = 1_000_000  # all numbers of messages have the same number of digits


class TextRoute(Route):
    """The sends of one client into one room: a frame except for its number and its stamp; `end` follows the stamp."""

    __slots__ = ("_end",)

    def __init__(self, before: str, after: str, body_bytes: int, end: str) -> None:
        body = "x" * (max(STAMP_BYTES, body_bytes) - STAMP_BYTES)
        whole = frame(f"{before}{FIRST}{after}{body}{0:0{STAMP_BYTES}}{end}".encode(), TEXT)
        self._end = end.encode()
        self._tail = (after + body).encode()
        self._head = whole[: -len(self._tail) - len(str(FIRST)) - STAMP_BYTES - len(self._end)]
        self.pending = {}

    def message(self, n: int, stamp: int) -> bytes:
        self.pending[n] = stamp
        return b"%b%d%b%016d%b" % (self._head, n, self._tail, stamp, self._end)


class Member(Client):
    """One client of a peer, in one room."""

    __slots__ = ("room",)
    path = "/"
    end = ""  # follows the stamp in a message

    def __init__(self, user: str, failures: Failures, room: str) -> None:
        super().__init__(user, failures, n=FIRST - 1)
        self.room = room

    async def connect(self, url: str, token: str) -> dict[str, Any]:
        return await self.open(url + self.path, self.greeting())

    def greeting(self) -> bytes:
        raise NotImplementedError

    @classmethod
    def route(cls, room: str, body_bytes: int) -> Route:
        raise NotImplementedError

    def text_received(self, payload: bytes, now: int) -> None:
        """Handle a whole text frame."""
        raise NotImplementedError

    def _other(self, first: int, payload: bytes, now: int) -> None:
        if first == TEXT:
            self.text_received(payload, now)
        else:
            super()._other(first, payload, now)

    def _joined(self) -> None:
        if self.welcomed is not None and not self.welcomed.done():
            self.welcomed.set_result({})

    def body_end(self, payload: bytes) -> int:
        """Return where the body of a received message ends."""
        return len(payload) - len(self.end)

    def _message(self, payload: bytes, now: int) -> None:
        self.received += 1
        if now and self.sink is not None:
            end = self.body_end(payload)
            self.sink.append(now - int(payload[end - STAMP_BYTES : end]))


class SocketIO(Member):
    """Engine.IO 4 with Socket.IO 5: `42[…]` is an event, `42n[…]` one with an ack, `43n[]` its ack, `2` a ping."""

    __slots__ = ()
    path = "/socket.io/?EIO=4&transport=websocket"
    end = '"}]'

    def greeting(self) -> bytes:
        return b""  # the server sends first

    @classmethod
    def route(cls, room: str, body_bytes: int) -> Route:
        return TextRoute("42", f'["message",{{"to":"{room}","body":"', body_bytes, cls.end)

    def text_received(self, payload: bytes, now: int) -> None:
        kind = payload[:2]
        if kind == b"42":
            self._message(payload, now)
        elif kind == b"43":
            n = int(payload[2 : payload.index(b"[")])
            if n:
                self._acked(n)
            else:
                self._joined()
        elif kind == b"2":
            self.transport.write(frame(b"3", TEXT))
        elif kind == b"40":
            self.transport.write(frame(b'420["join","%b"]' % self.room.encode(), TEXT))
        elif kind.startswith(b"0"):
            self.transport.write(frame(b"40", TEXT))
        else:  # a CONNECT_ERROR or a disconnect
            self.failures.errors += 1
            self.error = payload.decode(errors="replace")


class Channels(Member):
    """A client of django_channels.py. The sender's own copy is its only ack."""

    __slots__ = ()
    path = "/ws"
    end = '"}'
    head = b'{"type": "message", "n": '

    def greeting(self) -> bytes:
        return frame(b'{"type":"join","room":"%b"}' % self.room.encode(), TEXT)

    @classmethod
    def route(cls, room: str, body_bytes: int) -> Route:
        return TextRoute('{"type":"message","n":', f',"to":"{room}","body":"', body_bytes, cls.end)

    def text_received(self, payload: bytes, now: int) -> None:
        if payload.startswith(self.head):
            self._message(payload, now)
            if self.routes:
                self._acked(int(payload[len(self.head) : payload.index(b",", len(self.head))]))
        else:
            self._joined()


class Centrifugo(Member):
    """The JSON protocol of Centrifugo: a frame has one or more replies, a line each; `{}` is a ping and its answer.

    The channels of this namespace keep a history. A client that reconnects receives what it missed.
    """

    __slots__ = ()
    path = "/connection/websocket"
    end = '"}}}'
    namespace = "kept"
    body = b'"body":"'

    def greeting(self) -> bytes:
        return frame(b'{"id":1,"connect":{}}', TEXT)

    @classmethod
    def route(cls, room: str, body_bytes: int) -> Route:
        after = f',"publish":{{"channel":"{cls.namespace}:{room}","data":{{"body":"'
        return TextRoute('{"id":', after, body_bytes, cls.end)

    def body_end(self, payload: bytes) -> int:
        return payload.index(b'"', payload.index(self.body) + len(self.body))

    def text_received(self, payload: bytes, now: int) -> None:
        for line in payload.split(b"\n"):
            self._reply(line, now)

    def _reply(self, line: bytes, now: int) -> None:
        if line.startswith(b'{"push":'):
            self._message(line, now)
        elif line.endswith(b',"publish":{}}'):
            self._acked(int(line[len(b'{"id":') : line.index(b",")]))
        elif line == b"{}":
            self.transport.write(frame(b"{}", TEXT))
        elif line.startswith(b'{"id":1,"connect":'):
            channel = f"{self.namespace}:{self.room}"
            self.transport.write(frame(b'{"id":2,"subscribe":{"channel":"%b"}}' % channel.encode(), TEXT))
        elif line.startswith(b'{"id":2,"subscribe":'):
            self._joined()
        else:  # an error
            self.failures.errors += 1
            self.error = line.decode(errors="replace")


class LiveCentrifugo(Centrifugo):
    """The same without a history: what a connection misses is lost."""

    __slots__ = ()
    namespace = "live"


class FloorMember(FloorReader):
    """A reader in a room of a floor; its sends ask for a frame to the whole room and get no ack."""

    __slots__ = ("room",)

    def __init__(self, user: str, failures: Failures, room: str, frame_bytes: int) -> None:
        super().__init__(user, failures)
        self.room = room
        self.frame_bytes = frame_bytes

    async def connect(self, url: str, token: str) -> dict[str, Any]:
        return await self.open(url + self.room, b"")

    def message(self, route: Route, stamp: int) -> bytes:
        return frame(b"%06d" % self.frame_bytes)


CLIENTS: Final[dict[str, type[Member]]] = {
    "Socket.IO": SocketIO,
    "python-socketio": SocketIO,
    "Channels": Channels,
    "Centrifugo": Centrifugo,
    "Centrifugo, live only": LiveCentrifugo,
}
