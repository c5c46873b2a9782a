"""A small HTTP/1.1 client for one URL of the operator: the webhook's receiver, the identity provider's key set.

It keeps connections to that one address for reuse, and parses HTTP with h11 (a dependency of uvicorn). Callers
interpret statuses.

Invariants
- The address is the one given at start. Redirects are not followed and proxy variables are not read, so no answer can
  direct requests to another address.
- An exchange ends within its time limit, also if the other side sends slowly, stalls or sends without end. At most
  `max_bytes` of an answer are read; after a longer one the connection is closed.
- The number of open connections is at most the number of simultaneous exchanges; at most `idle` of them are kept.
- Exchanges that need a new connection share one lookup of the host's name, because a lookup blocks a thread: a name
  server that does not answer must not occupy the threads that other lookups of this process need.
- If a kept connection turns out to be closed and no byte of an answer has arrived, the request is sent again on a new
  one, once. The receiver may get it twice; posts have an id for that.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import h11
from msgspec import Struct
from msgspec.structs import replace

from router.contract.errors import StartupError
from router.tls import Trust

MAX_ANSWER_BYTES: Final = 65_536
MAX_RETRY_AFTER_S: Final = 86_400
IDLE: Final = 16
Body = bytes | AsyncIterator[bytes]
WRONG_URL: Final = "must be an http:// or https:// URL, without a user name in it"


class NoAnswer(Exception):
    """There is no answer: the server is unreachable, too slow, closed the connection, or does not speak HTTP.

    The text is for the operator's log.
    """


class Answer(Struct, frozen=True):
    """An answer; `retry_after_s` is the time of its Retry-After, else 0. `whole`: `body` is complete."""

    status: int
    retry_after_s: float = 0.0
    body: bytes = b""
    whole: bool = True


def retry_after_s(value: bytes, now_s: float) -> float:
    """Return the seconds that a Retry-After header asks for, at most MAX_RETRY_AFTER_S; 0 for a malformed one."""
    text, seconds = value.decode("latin-1").strip(), 0.0
    with suppress(ValueError):
        seconds = float(int(text)) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - now_s
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


class Connection:
    """One connection, for one exchange at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=16_384)
        self.received = False  # whether a byte of the current answer has arrived

    @property
    def reusable(self) -> bool:
        return self._http.our_state is h11.IDLE and not self._reader.at_eof()

    async def exchange(self, request: h11.Request, body: Body, max_bytes: int) -> Answer:
        self.received = False
        self._write(request)
        if isinstance(body, bytes):
            if body:
                self._write(h11.Data(data=body))
        else:
            async for part in body:
                self._write(h11.Data(data=part))
                await self._writer.drain()
        self._write(h11.EndOfMessage())
        await self._writer.drain()
        answer, received = Answer(0), bytearray()
        while True:
            match await self._next():
                case h11.Response(status_code=status, headers=fields):
                    asked = dict(fields).get(b"retry-after", b"")
                    answer = Answer(status, retry_after_s(asked, time.time()) if asked else 0.0)
                case h11.Data(data=data):
                    received += data
                    if len(received) > max_bytes:
                        return replace(answer, whole=False)
                case h11.EndOfMessage():
                    if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
                        self._http.start_next_cycle()
                    return replace(answer, body=bytes(received))
                case h11.ConnectionClosed():
                    raise h11.RemoteProtocolError("closed without an answer")

    def close(self) -> None:
        self._writer.transport.abort()

    def _write(self, event: h11.Event) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError("the server closed the connection")  # uvloop would raise a RuntimeError
        self._writer.write(self._http.send(event) or b"")

    async def _next(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(16_384)
            self.received = self.received or bool(data)
            self._http.receive_data(data)
        if not isinstance(event, h11.Event):  # PAUSED: the server switches to another protocol
            raise h11.RemoteProtocolError("not HTTP")
        return event


class HttpClient:
    """A client for one URL. `setting` is the variable with the URL, for the error if the URL is wrong."""

    def __init__(
        self, setting: str, url: str, timeout_s: float, max_bytes: int = MAX_ANSWER_BYTES, idle: int = IDLE
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = [("Host", parts.netloc), ("User-Agent", "linnet")]
            h11.Request(method="POST", target=target, headers=headers)
        except (ValueError, h11.LocalProtocolError):
            raise StartupError(f"{setting} {WRONG_URL}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise StartupError(f"{setting} {WRONG_URL}")
        self._tls = Trust() if parts.scheme == "https" else None
        self._host, self._port, self._target, self._headers = parts.hostname, port, target, headers
        self._timeout_s, self._max_bytes, self._keeps = timeout_s, max_bytes, idle
        self._idle: list[Connection] = []
        self._lookup: asyncio.Future[list[str]] | None = None

    async def post(self, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """Post and return the answer; `NoAnswer` if there is none in time."""
        return await self._timed("POST", [*headers, ("Content-Length", str(len(body)))], body)

    async def stream(self, headers: list[tuple[str, str]], size: int, body: AsyncIterator[bytes]) -> Answer:
        """Post `size` bytes on a new connection, so that the body is never needed twice; `NoAnswer` as for `post`."""
        return await self._timed("POST", [*headers, ("Content-Length", str(size)), ("Connection", "close")], body)

    async def get(self) -> Answer:
        """Get the answer on a new connection; `NoAnswer` if there is none in time."""
        return await self._timed("GET", [("Accept", "application/json"), ("Connection", "close")], b"")

    async def _timed(self, method: str, headers: list[tuple[str, str]], body: Body) -> Answer:
        request = h11.Request(method=method, target=self._target, headers=[*self._headers, *headers])
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._request(request, body)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            raise NoAnswer(str(error) or type(error).__name__) from None

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._lookup is not None:
            self._lookup.cancel()

    async def _request(self, request: h11.Request, body: Body) -> Answer:
        kept = self._kept() if isinstance(body, bytes) else None
        if kept is not None:
            try:
                return await self._exchange(kept, request, body)
            except (OSError, h11.RemoteProtocolError) as error:
                if kept.received or isinstance(error, TimeoutError):
                    raise
        return await self._exchange(await self._connected(), request, body)

    async def _connected(self) -> Connection:
        """A new connection, to the first of the host's addresses that accepts one."""
        name = self._host if self._tls else None
        tls = self._tls.context() if self._tls else None
        *others, last = await self._addresses()
        for address in others:
            with suppress(OSError):
                return Connection(*await asyncio.open_connection(address, self._port, ssl=tls, server_hostname=name))
        return Connection(*await asyncio.open_connection(last, self._port, ssl=tls, server_hostname=name))

    async def _addresses(self) -> list[str]:
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(self._look_up())
            # All exchanges may have ended meanwhile: retrieve the exception so that it is not logged.
            self._lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [str(where[0]) for *_, where in found]

    async def _exchange(self, connection: Connection, request: h11.Request, body: Body) -> Answer:
        try:
            return await connection.exchange(request, body, self._max_bytes)
        finally:
            if connection.reusable and len(self._idle) < self._keeps:
                self._idle.append(connection)
            else:
                connection.close()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
            connection.close()
        return None
