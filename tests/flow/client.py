"""A client as somebody else would write it: a third-party WebSocket library and the documented interface, no more.

It remembers what it has been told, drops what it already has, acks, and resends what was not answered, so that flow
tests can state promises ("each has every message, in order") instead of frames.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support import JWT_SECRET

Event = dict[str, Any]


def token(user: str, ttl_s: float = 3600) -> str:
    """A token as the identity provider of a deployment would issue it."""
    return jwt.encode({"sub": user, "exp": time.time() + ttl_s}, JWT_SECRET, algorithm="HS256")


class ChatClient:
    """One device of one user. `received` holds each logged event once, by conversation, in the order it came."""

    def __init__(self, user: str, device: str = "phone", codec: str = "json") -> None:
        self.user, self.device, self.codec = user, device, codec
        self.received: dict[str, dict[int, Event]] = {}
        self.events: list[Event] = []
        self.duplicates = 0
        self.closed: tuple[int, str] | None = None
        self.welcome: Event = {}
        self._n = itertools.count(int(time.time() * 1e6))
        self._ids = itertools.count(1)
        self._answers: dict[Any, asyncio.Future[Event]] = {}
        self._changed = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    async def connect(self, url: str, **hello: Any) -> Event:
        """Connects and says hello; the welcome (or the error that came instead)."""
        self.closed = None
        subprotocol = "linnet.v1.msgpack" if self.codec == "msgpack" else "linnet.v1.json"
        self._socket = await connect(url, subprotocols=[subprotocol], max_size=None, compression=None)  # type: ignore[list-item]  # Subprotocol is a str
        self._reader = asyncio.create_task(self._read(self._socket))
        hello = {"token": token(self.user), "device": self.device, **hello}
        self.welcome = await self.ask("hello", **hello)
        return self.welcome

    async def disconnect(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await self._reader

    def abort(self) -> None:
        """Vanishes without a word."""
        assert self._socket is not None
        self._socket.transport.abort()

    def next_n(self) -> int:
        return next(self._n)

    async def raw(self, data: bytes | str) -> None:
        assert self._socket is not None
        await self._socket.send(data)

    async def say(self, kind: str, **fields: Any) -> None:
        """A command without waiting for an answer."""
        command = {"type": kind, **fields}
        await self.raw(msgpack.packb(command) if self.codec == "msgpack" else json.dumps(command))

    async def ask(self, kind: str, **fields: Any) -> Event:
        """A command and its direct answer; ConnectionClosed when the connection ends first."""
        ident = next(self._ids)
        self._answers[ident] = asyncio.get_running_loop().create_future()
        try:
            await self.say(kind, id=ident, **fields)
            return await self._answers[ident]
        finally:
            del self._answers[ident]

    async def send(self, to: str, body: Any, **fields: Any) -> Event:
        """Sends a message; its `ack` or `error`."""
        return await self.ask("send", to=to, body=body, **{"n": self.next_n(), **fields})

    async def until(self, predicate: Callable[[], Any], deadline_s: float = 10.0) -> Any:
        """The first true value of `predicate`, asked again whenever something came."""
        async with asyncio.timeout(deadline_s):
            while not (value := predicate()):
                await self._changed.wait()
                self._changed.clear()
            return value

    async def event(self, kind: str, deadline_s: float = 10.0, **fields: Any) -> Event:
        """The first event of this kind and with these fields, of all that came so far or come."""

        def find() -> Event | None:
            wanted = {"type": kind, **fields}.items()
            return next((event for event in self.events if wanted <= event.items()), None)

        found: Event = await self.until(find, deadline_s)
        return found

    def bodies(self, conversation: str) -> list[Any]:
        """The bodies of all messages here, in the order of their seqs."""
        log = self.received.get(conversation, {})
        return [log[seq]["body"] for seq in sorted(log) if log[seq]["type"] == "message"]

    def in_order(self, conversation: str) -> bool:
        """Whether the events came in the order of their seqs."""
        seqs = list(self.received.get(conversation, {}))
        return seqs == sorted(seqs)

    async def ack_all(self) -> None:
        await self.say("ack", cursors={conversation: max(log) for conversation, log in self.received.items() if log})

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for frame in socket:
                self._take(msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame))
        except ConnectionClosed:
            pass
        self.closed = (socket.close_code or 1006, socket.close_reason or "")
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionClosed(socket.protocol.close_rcvd, socket.protocol.close_sent))
        self._changed.set()

    def _take(self, event: Event) -> None:
        if "seq" in event and "prev" in event:
            log = self.received.setdefault(event["conversation"], {})
            if event["seq"] in log:
                self.duplicates += 1
            else:
                log[event["seq"]] = event
        answer = self._answers.get(event.get("id"))
        if answer is not None and not answer.done():
            answer.set_result(event)
        self.events.append(event)
        self._changed.set()
