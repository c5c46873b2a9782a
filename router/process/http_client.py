"""A small HTTP/1.1 client for one URL of the operator's: the webhook's receiver, the identity provider's key set.

What lives here: connections to that one address, kept and used again, and the exchange itself over h11 (uvicorn
brings it, and it does the parsing). What never does: why something is asked, or what a status means.

Invariants
- The address is the one given at start. No redirect is followed, no proxy variable is read: whoever answers cannot
  send us anywhere else.
- An exchange ends within its time limit, whatever the other side does: dribbles, stalls or sends without end. Of an
  answer at most `max_bytes` are read; a longer one costs its connection, not our memory.
- At most as many connections as the caller makes exchanges at once are open, at most IDLE of them without one.
- Exchanges that need a new connection share one lookup of the host's name: it is a call that blocks a thread, and a
  name server that does not answer must not occupy the threads that other lookups of this process need.
- A kept connection that turns out closed is no failure: the request is made again on a new one, once, if not a byte of
  an answer had come. That may deliver it twice; posts have an id for that.
"""

from __future__ import annotations

import asyncio
import socket
import time
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
WRONG_URL: Final = "must be an http:// or https:// URL, without a user name in it"


class NoAnswer(Exception):
    """No answer: not reached, cut off, too slow, or not HTTP. The text is for the operator's log."""


class Answer(Struct, frozen=True):
    """`retry_after_s`: how long the server asks to be left alone; 0 if it does not. `whole`: `body` is all of it."""

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


class Line:
    """One connection: at most one exchange at a time, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=16_384)
        self.heard = False  # whether a byte of the current answer has come

    @property
    def reusable(self) -> bool:
        return self._http.our_state is h11.IDLE and not self._reader.at_eof()

    async def exchange(self, request: h11.Request, body: bytes, max_bytes: int) -> Answer:
        self.heard = False
        for event in (request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
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

    async def _next(self) -> h11.Event:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(16_384)
            self.heard = self.heard or bool(data)
            self._http.receive_data(data)
        if not isinstance(event, h11.Event):  # PAUSED: it wants to speak something else than HTTP
            raise h11.RemoteProtocolError("not HTTP")
        return event


class HttpClient:
    """Asks one URL. `setting` is where the URL comes from, for the line that stops a start with a wrong one."""

    def __init__(self, setting: str, url: str, timeout_s: float, max_bytes: int = MAX_ANSWER_BYTES) -> None:
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
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._idle: list[Line] = []
        self._lookup: asyncio.Future[list[str]] | None = None

    async def post(self, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """The answer; `NoAnswer` if there was none in time."""
        return await self._timed("POST", [*headers, ("Content-Length", str(len(body)))], body)

    async def get(self) -> Answer:
        """The answer, on a connection of its own; `NoAnswer` if there was none in time."""
        return await self._timed("GET", [("Accept", "application/json"), ("Connection", "close")], b"")

    async def _timed(self, method: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        request = h11.Request(method=method, target=self._target, headers=[*self._headers, *headers])
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(request, body)
        except TimeoutError:
            raise NoAnswer(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            raise NoAnswer(str(error) or type(error).__name__) from None

    def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()
        if self._lookup is not None:
            self._lookup.cancel()

    async def _ask(self, request: h11.Request, body: bytes) -> Answer:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, request, body)
            except (OSError, h11.RemoteProtocolError) as error:
                if kept.heard or isinstance(error, TimeoutError):
                    raise
        return await self._exchange(await self._connected(), request, body)

    async def _connected(self) -> Line:
        """A new connection, to the first of the host's addresses that accepts one."""
        name = self._host if self._tls else None
        tls = self._tls.context() if self._tls else None
        *others, last = await self._addresses()
        for address in others:
            with suppress(OSError):
                return Line(*await asyncio.open_connection(address, self._port, ssl=tls, server_hostname=name))
        return Line(*await asyncio.open_connection(last, self._port, ssl=tls, server_hostname=name))

    async def _addresses(self) -> list[str]:
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(self._look_up())
            self._lookup.add_done_callback(lambda done: done.cancelled() or done.exception())  # all posts may be gone
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [str(where[0]) for *_, where in found]

    async def _exchange(self, line: Line, request: h11.Request, body: bytes) -> Answer:
        try:
            return await line.exchange(request, body, self._max_bytes)
        finally:
            if line.reusable and len(self._idle) < IDLE:
                self._idle.append(line)
            else:
                line.close()

    def _kept(self) -> Line | None:
        while self._idle:
            line = self._idle.pop()
            if line.reusable:
                return line
            line.close()
        return None
