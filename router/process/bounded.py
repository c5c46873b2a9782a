"""HTTP/1.1 with bounds: what a peer may hold of a process by sending or reading slowly, or by sending what is no body.

uvicorn's httptools protocol, which bounds an idle connection and nothing else. Added here, for both processes and all
their ports:

- a request's head must be complete HEAD_S after the connection was made or the answer before it was given, whatever
  trickles in meanwhile: bytes of a head, empty lines, the rest of a body that nobody wants any more;
- an answer must be taken within ANSWER_S once it has filled the write buffer, else the connection is reset (a smaller
  one lies with the kernel, and the socket is ours no longer once it was given);
- what comes beside bodies (heads, trailers, the framing of chunks) is bounded by HEAD_BYTES a request, and one read;
- at most PIPELINED requests wait behind the one that is being answered.

A request's body, while the application asks for it, is the application's business. An upgraded connection is no longer
ours: its head was complete, and `on_headers_complete` forgets it.

Rejected: a timer per connection (a reconnect storm would pay for them; one sweep per deadline does); a 408 for a late
head (who is that slow does not read it).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S: Final = 10.0
ANSWER_S: Final = 60.0
HEAD_BYTES: Final = 64 * 1024
PIPELINED: Final = 16

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Deadline:
    """Connections that owe something within `seconds`, in the order in which it is due; one timer for all of them."""

    def __init__(self, seconds: float, late: Callable[[BoundedHttp], None]) -> None:
        self._seconds = seconds
        self._late = late
        self._since: dict[BoundedHttp, float] = {}
        self._armed = False

    def start(self, connection: BoundedHttp) -> None:
        """It owes it from now on."""
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
        for connection in [owing for owing, since in self._since.items() if since <= due]:
            self.stop(connection)
            self._late(connection)
        self._armed = bool(self._since)
        if self._armed:
            loop.call_later(max(0.0, next(iter(self._since.values())) - due), self._sweep)


class BoundedHttp(HttpToolsProtocol):
    """One connection, until it ends or is upgraded."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._heads, self._answers = _deadlines()
        self._beside = 0  # bytes of this request that were no body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # streams only
        super().connection_made(transport)
        self._heads.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.stop(self)
        self._answers.stop(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._beside > HEAD_BYTES:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
            return
        self._beside += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._beside = 0
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
        if not self.pipeline:
            self._heads.start(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._answers.start(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._answers.stop(self)
        super().resume_writing()

    def head_late(self) -> None:
        """No head; but who is still reading the answer before it has the time for that first."""
        if self in self._answers:
            self._heads.start(self)
        else:
            self.transport.abort()

    def answer_late(self) -> None:
        """Reset: after a FIN the kernel would go on offering what nobody takes, megabytes of it, without us."""
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Deadline, Deadline]] = WeakKeyDictionary()


def _deadlines() -> tuple[Deadline, Deadline]:
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        _by_loop[loop] = Deadline(HEAD_S, BoundedHttp.head_late), Deadline(ANSWER_S, BoundedHttp.answer_late)
    return _by_loop[loop]
