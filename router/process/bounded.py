"""HTTP/1.1 with bounds on the resources that a peer can occupy by slow sending, slow reading, or data beside bodies.

uvicorn's httptools protocol bounds only idle connections. This adds, for both processes and all their ports:

- A request's head must be complete HEAD_S after the connection was made, or after the first byte behind the previous
  answer, whatever arrives meanwhile: bytes of a head, empty lines, the rest of a body that is not read any more.
- Between two requests a connection may be idle for uvicorn's `timeout_keep_alive`; while half of the connections that
  the process accepts are open, for at most CROWDED_KEEP_ALIVE_S.
- If an answer has filled the write buffer, the peer must read it within ANSWER_S, else the connection is reset. (A
  smaller answer is in the kernel's buffer, and is not watched.)
- Data beside bodies (heads, trailers, the framing of chunks) is bounded by HEAD_BYTES a request, and one read.
- At most PIPELINED requests wait behind the one that is being answered.

The application bounds the time in which it reads a request's body.

Invariants
- A connection that is upgraded to a WebSocket has no deadline here. It is upgraded only if all earlier requests are
  answered; an upgrade that is pipelined behind an open request is ignored (RFC 9110, 7.8), and the connection ends with
  that request's answer.
- If one entry of a sweep raises, the sweep goes on and its timer is armed again.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from router.process.isolate import each

HEAD_S: Final = 10.0
ANSWER_S: Final = 60.0
HEAD_BYTES: Final = 64 * 1024
PIPELINED: Final = 16
CROWDED_KEEP_ALIVE_S: Final = 5

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Deadline:
    """A deadline of `seconds` for connections, which are kept in the order in which they are due; one timer for all."""

    def __init__(self, seconds: float, late: Callable[[BoundedHttp], None]) -> None:
        self._seconds = seconds
        self._late = late
        self._since: dict[BoundedHttp, float] = {}
        self._armed = False

    def start(self, connection: BoundedHttp) -> None:
        """Start the connection's time now, also if it was started before."""
        loop = asyncio.get_running_loop()
        self._since.pop(connection, None)
        self._since[connection] = loop.time()
        if not self._armed:
            self._armed = True
            loop.call_later(self._seconds, self._sweep)

    def stop(self, connection: BoundedHttp) -> None:
        self._since.pop(connection, None)

    def __contains__(self, connection: BoundedHttp) -> bool:
        return connection in self._since

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() - self._seconds
        each("deadlines", self._expire, [late for late, since in self._since.items() if since <= due])
        self._armed = bool(self._since)
        if self._armed:
            loop.call_later(max(0.0, next(iter(self._since.values())) - due), self._sweep)

    def _expire(self, connection: BoundedHttp) -> None:
        self.stop(connection)
        self._late(connection)


class BoundedHttp(HttpToolsProtocol):
    """One connection, until it ends or is upgraded."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._heads, self._answers = _deadlines()
        self._upgrade: bytes | None = None  # the protocol that this request upgrades to, if it was looked for
        self._upgrade_known = False
        self._beside = 0  # bytes of this request that are not of its body
        self._idle = False  # all requests are answered, and no byte has arrived since
        self._ending = False  # an upgrade was ignored: open answers are written, and no further request is read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # streams only
        super().connection_made(transport)
        self._heads.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.stop(self)
        self._answers.stop(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        if self._idle:
            self._idle = False
            self._heads.start(self)
        if self._beside > HEAD_BYTES:
            self.transport.write(_TOO_LARGE)
            self._close()
            return
        self._beside += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._beside = 0
        self._upgrade_known = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= PIPELINED:
            raise ValueError("too many requests at once")  # the parser stops, and the answer is 400
        self._heads.stop(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside = max(0, self._beside - len(body))
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            self._heads.start(self)
        elif not self.pipeline:
            self._idle = True
            if self.limit_concurrency is not None and 2 * len(self.connections) >= self.limit_concurrency:
                self.timeout_keep_alive = min(self.config.timeout_keep_alive, CROWDED_KEEP_ALIVE_S)
            else:
                self.timeout_keep_alive = self.config.timeout_keep_alive
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._ending = True
            self.cycle.keep_alive = False  # of the last open request: uvicorn closes after its answer
            return
        self._heads.stop(self)
        self._answers.stop(self)
        super().handle_websocket_upgrade()

    def _get_upgrade(self) -> bytes | None:
        """The protocol to upgrade to if any `Connection` line contains `upgrade`; uvicorn reads the last line only. It
        asks three times for each upgrade, once the headers are complete."""
        if not self._upgrade_known:
            self._upgrade_known, self._upgrade = True, None
            if b"upgrade" in self._listed(b"connection"):
                offered = self._listed(b"upgrade")
                self._upgrade = b"websocket" if b"websocket" in offered else b",".join(offered)
        return self._upgrade

    def _listed(self, name: bytes) -> list[bytes]:
        """The elements of a list header from all its lines, in lower case."""
        values = [value for header, value in self.headers if header == name]
        return [element.strip().lower() for value in values for element in value.split(b",")]

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._heads.start(self)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _close(self) -> None:
        """Close, and abort the connection HEAD_S later: if the peer does not read, the close never finishes."""
        self.transport.close()
        self._heads.start(self)

    def pause_writing(self) -> None:
        self._answers.start(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._answers.stop(self)
        super().resume_writing()

    def head_late(self) -> None:
        """Abort a connection without a head in time, unless its peer is still reading the previous answer."""
        if self in self._answers:
            self._heads.start(self)
        else:
            self.transport.abort()

    def answer_late(self) -> None:
        """Reset the connection: after a FIN the kernel would keep the unread answer, megabytes of it."""
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Deadline, Deadline]] = WeakKeyDictionary()


def _deadlines() -> tuple[Deadline, Deadline]:
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        _by_loop[loop] = Deadline(HEAD_S, BoundedHttp.head_late), Deadline(ANSWER_S, BoundedHttp.answer_late)
    return _by_loop[loop]
