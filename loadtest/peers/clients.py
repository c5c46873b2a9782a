"""Connections to the peers that count and write as cheaply as Linnet's client, and can stand where it stands.

Only what a connection says is of this file; frames, pace, latencies and counts are those of `client.Chat`. Messages
are prebuilt text frames into which a number and a stamp are put. Of a message that arrives only its stamp is read,
which is the last of its body, and its body the last of it: no JSON is parsed.

Peers have no seqs, so nothing is known of their order; what is lost or comes twice shows in the counts.
"""

from __future__ import annotations

from typing import Any, Final

from loadtest.frames import TEXT, frame
from loadtest.load.client import STAMP_BYTES, Client, Failures, FloorReader, Route

FIRST: Final = 1_000_000  # numbers of messages have as many digits from the first to the last


class TextRoute(Route):
    """Sends of one client into one room: the frame but for its number and its stamp, which end in `end`."""

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
    end = ""  # what follows the stamp in a message

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
        """A whole text frame."""
        raise NotImplementedError

    def _other(self, first: int, payload: bytes, now: int) -> None:
        if first == TEXT:
            self.text_received(payload, now)
        else:
            super()._other(first, payload, now)

    def _joined(self) -> None:
        if self.welcomed is not None and not self.welcomed.done():
            self.welcomed.set_result({})

    def _message(self, payload: bytes, now: int) -> None:
        self.received += 1
        if now and self.sink is not None:
            end = len(payload) - len(self.end)
            self.sink.append(now - int(payload[end - STAMP_BYTES : end]))


class SocketIO(Member):
    """Engine.IO 4 and in it Socket.IO 5: `42[…]` is an event, `42n[…]` one to be acked, `43n[]` its ack, `2` a ping."""

    __slots__ = ()
    path = "/socket.io/?EIO=4&transport=websocket"
    end = '"}]'

    def greeting(self) -> bytes:
        return b""  # the server speaks first

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
        else:  # a CONNECT_ERROR, or goodbye
            self.failures.errors += 1
            self.error = payload.decode(errors="replace")


class Channels(Member):
    """The consumer of django_channels.py. The sender's own copy is the only ack it gets."""

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


class FloorMember(FloorReader):
    """One reader in a room of a floor; what it sends asks for a frame to all in there. No ack is waited for."""

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
}
