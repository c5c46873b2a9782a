"""A small HTTP/1.1 client for one purpose: POST a body to the operator's URL, and learn the status.

What lives here: connections to that one address, kept and used again, and the exchange itself over h11 (uvicorn
brings it, and it does the parsing). What never does: why something is posted, or what a status means.

Invariants
- The address is the one given at start. No redirect is followed, no proxy variable is read: whoever answers cannot
  send us anywhere else.
- A post ends within its time limit, whatever the other side does: dribbles, stalls or sends without end. Of an answer
  at most MAX_ANSWER_BYTES are read; a longer one costs its connection, not our memory.
- At most as many connections as the caller makes posts at once are open, at most IDLE of them without a post.
- A kept connection that turns out closed is no failure: the post is made again on a new one, once, if not a byte of
  an answer had come. That may deliver it twice; posts bear an id for that.

Rejected: http.client in threads (its limit is per read: a dribble holds the thread for ever); httpx (four packages
for one POST); a connection per post (a TLS handshake each).
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

import h11

from router.contract.errors import StartupError

MAX_ANSWER_BYTES: Final = 65_536
IDLE: Final = 16
WRONG_URL: Final = "LINNET_WEBHOOK_URL must be an http:// or https:// URL, without a user name in it"


class PostError(Exception):
    """No answer: not reached, cut off, too slow, or not HTTP. The text is for the operator's log."""


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

    async def post(self, target: str, headers: list[tuple[str, str]], body: bytes) -> int:
        """The status of the answer, whose body was read and dropped."""
        self.heard = False
        request = h11.Request(method="POST", target=target, headers=headers)
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
        status, size = 0, 0
        while True:
            match await self._next():
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    size += len(data)
                    if size > MAX_ANSWER_BYTES:
                        return status
                case h11.EndOfMessage():
                    if self._http.their_state is h11.DONE and self._http.our_state is h11.DONE:
                        self._http.start_next_cycle()
                    return status
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

    async def post(self, headers: list[tuple[str, str]], body: bytes) -> int:
        """The status of the answer; `PostError` if there was none in time."""
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

    async def _post(self, headers: list[tuple[str, str]], body: bytes) -> int:
        kept = self._kept()
        if kept is not None:
            try:
                return await self._exchange(kept, headers, body)
            except (OSError, h11.RemoteProtocolError) as error:
                if kept.heard or isinstance(error, TimeoutError):
                    raise
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        return await self._exchange(Line(reader, writer), headers, body)

    async def _exchange(self, line: Line, headers: list[tuple[str, str]], body: bytes) -> int:
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
