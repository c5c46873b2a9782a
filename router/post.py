"""A small HTTP/1.1 client for one purpose: POST a body to the operator's URL, and return status and Retry-After.

What lives here: connections to that one address, kept and used again, and the exchange itself over h11 (uvicorn
brings it, and it does the parsing). What never does: why something is posted, or what a status means.

Invariants
- The address is the one given at start. No redirect is followed, no proxy variable is read: whoever answers cannot
  send us anywhere else.
- A post ends within its time limit, whatever the other side does: dribbles, stalls or sends without end. Of an answer
  at most MAX_ANSWER_BYTES are read; a longer one costs its connection, not our memory.
- At most as many connections as the caller makes posts at once are open, at most IDLE of them without a post.
- Posts that need a new connection share one lookup of the host's name: it is a call that blocks a thread, and a name
  server that does not answer must not occupy the threads that other lookups of this process need.
- A kept connection that turns out closed is no failure: the post is made again on a new one, once, if not a byte of
  an answer had come. That may deliver it twice; posts bear an id for that.

Rejected: http.client in threads (its limit is per read: a dribble holds the thread for ever); httpx (four packages
for one POST); a connection per post (a TLS handshake each).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import h11
from msgspec import Struct

from router.contract.errors import StartupError

MAX_ANSWER_BYTES: Final = 65_536
MAX_RETRY_AFTER_S: Final = 86_400
IDLE: Final = 16
WRONG_URL: Final = "LINNET_WEBHOOK_URL must be an http:// or https:// URL, without a user name in it"


class PostError(Exception):
    """No answer: not reached, cut off, too slow, or not HTTP. The text is for the operator's log."""


class Answer(Struct, frozen=True):
    """`retry_after_s`: how long the receiver asks to be left alone; 0 if it does not."""

    status: int
    retry_after_s: float = 0.0


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

    async def post(self, target: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """The answer, whose body was read and dropped."""
        self.heard = False
        request = h11.Request(method="POST", target=target, headers=headers)
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
        answer, size = Answer(0), 0
        while True:
            match await self._next():
                case h11.Response(status_code=status, headers=fields):
                    asked = dict(fields).get(b"retry-after", b"")
                    answer = Answer(status, retry_after_s(asked, time.time()) if asked else 0.0)
                case h11.Data(data=data):
                    size += len(data)
                    if size > MAX_ANSWER_BYTES:
                        return answer
                case h11.EndOfMessage():
                    if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
                        self._http.start_next_cycle()
                    return answer
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


class Poster:
    """Posts to one URL."""

    def __init__(self, url: str, timeout_s: float) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = [("Host", parts.netloc), ("User-Agent", "linnet")]
            h11.Request(method="POST", target=target, headers=headers)
        except (ValueError, h11.LocalProtocolError):
            raise StartupError(WRONG_URL) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise StartupError(WRONG_URL)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port, self._target, self._headers = parts.hostname, port, target, headers
        self._timeout_s = timeout_s
        self._idle: list[Line] = []
        self._lookup: asyncio.Future[list[str]] | None = None

    async def post(self, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """The answer; `PostError` if there was none in time."""
        headers = [*self._headers, *headers, ("Content-Length", str(len(body)))]
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(headers, body)
        except TimeoutError:
            raise PostError(f"no answer within {self._timeout_s:g} s") from None
        except (OSError, h11.RemoteProtocolError) as error:  # ssl.SSLError is an OSError
            raise PostError(str(error) or type(error).__name__) from None

    def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()
        if self._lookup is not None:
            self._lookup.cancel()

    async def _post(self, headers: list[tuple[str, str]], body: bytes) -> Answer:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, headers, body)
            except (OSError, h11.RemoteProtocolError) as error:
                if kept.heard or isinstance(error, TimeoutError):
                    raise
        return await self._exchange(await self._connected(), headers, body)

    async def _connected(self) -> Line:
        """A new connection, to the first of the host's addresses that accepts one."""
        name = self._host if self._tls else None
        *others, last = await self._addresses()
        for address in others:
            with suppress(OSError):
                return Line(*await asyncio.open_connection(address, self._port, ssl=self._tls, server_hostname=name))
        return Line(*await asyncio.open_connection(last, self._port, ssl=self._tls, server_hostname=name))

    async def _addresses(self) -> list[str]:
        if self._lookup is None or self._lookup.done():
            self._lookup = asyncio.ensure_future(self._look_up())
            self._lookup.add_done_callback(lambda done: done.cancelled() or done.exception())  # all posts may be gone
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        return [str(where[0]) for *_, where in found]

    async def _exchange(self, line: Line, headers: list[tuple[str, str]], body: bytes) -> Answer:
        try:
            return await line.post(self._target, headers, body)
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
