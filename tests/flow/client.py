"""A client that uses only a third-party WebSocket library and the documented interface.

It records the events that it receives, drops duplicates, and matches answers with commands, so that flow tests can
state promises ("each device has every message, in order") instead of frames. `whole` checks what every promise needs:
order, an unbroken `prev` chain, no message twice.

Every connected client of a test is in `OPEN`; the conftest of the flow tests ends those that are left after the test.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.support import JWT_SECRET

Event = dict[str, Any]

OPEN: set[ChatClient] = set()

SUBPROTOCOLS = {"json": Subprotocol("linnet.v1.json"), "msgpack": Subprotocol("linnet.v1.msgpack")}
SLOW_RECEIVE_BYTES = 4096
DEADLINE_S = 40.0  # of one wait


def token(user: str, ttl_s: float = 3600, **claims: str) -> str:
    """Return a token as the identity provider of a deployment would issue it."""
    return jwt.encode({"sub": user, "exp": time.time() + ttl_s, **claims}, JWT_SECRET, algorithm="HS256")


class ChatClient:
    """One device of one user. `received` holds each logged event once, by conversation, in the order it came."""

    def __init__(self, user: str, device: str = "phone", codec: str = "json") -> None:
        self.user, self.device, self.codec = user, device, codec
        self.received: dict[str, dict[int, Event]] = {}
        self.frames: dict[tuple[str, int], list[bytes | str]] = {}  # every frame with a logged event, unchanged
        self.events: list[Event] = []
        self.duplicates = 0
        self.closed: tuple[int, str] | None = None
        self.welcome: Event = {}
        self._n = itertools.count(int(time.time() * 1e6))
        self._ids = itertools.count(1)
        self._answers: dict[Any, asyncio.Future[Event]] = {}
        self._changed: set[asyncio.Future[None]] = set()
        self._reading = asyncio.Event()
        self._reading.set()
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None

    # -- connecting

    async def open(self, url: str, *, slow: bool = False, **options: Any) -> None:
        """Connect without `hello`; a slow client has a small buffer."""
        self.closed = None
        sock = _small_buffers(url) if slow else None
        options = {"subprotocols": [SUBPROTOCOLS[self.codec]], "compression": None, **options}
        self._socket = await connect(
            url, sock=sock, max_size=None, max_queue=1 if slow else 256, ping_interval=None, proxy=None, **options
        )
        OPEN.add(self)
        self._reader = asyncio.create_task(self._read(self._socket))

    async def connect(self, url: str, *, slow: bool = False, **hello: Any) -> Event:
        """Connect and send `hello`; return the welcome, or the error. While Redis does not answer, connect again when
        the client may."""
        while True:
            await self.open(url, slow=slow)
            if (answer := await self.hello(**hello)).get("code") != "unavailable":
                return answer
            await self.gone()
            await asyncio.sleep(answer.get("retry_after", 1))

    async def hello(self, **hello: Any) -> Event:
        hello = {"token": token(self.user), "device": self.device, **hello}
        self.welcome = await self.ask("hello", **hello)
        return self.welcome

    async def disconnect(self) -> None:
        """Close the connection with a close frame."""
        if self._socket is not None:
            await self._socket.close()
        await self.gone()

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def end(self) -> None:
        """End the client at the end of its test."""
        self.abort()
        await self.gone()

    async def gone(self, deadline_s: float = DEADLINE_S) -> tuple[int, str]:
        """Wait for the end of the connection; return close code and reason."""
        assert self._reader is not None
        self.read_on()
        done, _ = await asyncio.wait([self._reader], timeout=deadline_s)
        assert done, f"{self.user}/{self.device} is still connected after {deadline_s:g} s"
        await self._reader
        OPEN.discard(self)
        assert self.closed is not None
        return self.closed

    def stop_reading(self) -> None:
        """Stop reading from the connection; bytes in its small buffers stay there."""
        self._reading.clear()

    def read_on(self) -> None:
        self._reading.set()

    # -- commands

    def next_n(self) -> int:
        return next(self._n)

    async def raw(self, data: bytes | str) -> None:
        assert self._socket is not None
        await self._socket.send(data)

    async def say(self, kind: str, **fields: Any) -> None:
        """Send a command without waiting for an answer."""
        command = {"type": kind, **fields}
        await self.raw(msgpack.packb(command) if self.codec == "msgpack" else json.dumps(command))

    async def ask(self, kind: str, **fields: Any) -> Event:
        """Send a command; return its answer. If the connection ends first, raise ConnectionClosed."""
        ident = next(self._ids)
        answer: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._answers[ident] = answer
        try:
            await self.say(kind, id=ident, **fields)
            return await answer
        finally:
            del self._answers[ident]
            if answer.done() and not answer.cancelled():
                answer.exception()  # retrieved, because another exception may be raised first

    async def send(self, to: str, body: Any, **fields: Any) -> Event:
        """Send a message; return its `ack` or `error`."""
        return await self.ask("send", to=to, body=body, **{"n": self.next_n(), **fields})

    async def sent(self, to: str, body: Any, **fields: Any) -> Event:
        """Send a message that must be acked; return its `ack`. If it is over its rate, or Redis was too slow, the
        client sends again when it may."""
        fields = {"n": self.next_n(), **fields}
        while (answer := await self.send(to, body, **fields)).get("code") in ("rate_limited", "unavailable"):
            retry_after = answer.get("retry_after", 1)
            assert retry_after < DEADLINE_S, answer
            await asyncio.sleep(retry_after)
        assert answer["type"] == "ack", answer
        return answer

    async def ack_all(self) -> None:
        """Ack everything received; the answer to the `ping` after it shows that the server has handled the ack."""
        await self.say("ack", cursors={conversation: max(log) for conversation, log in self.received.items() if log})
        await self.ask("ping")

    # -- waiting

    async def until(self, predicate: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """Return the first true value of `predicate`, called again after every event."""
        try:
            async with asyncio.timeout(deadline_s):
                while not (value := predicate()):
                    changed = asyncio.get_running_loop().create_future()
                    self._changed.add(changed)
                    try:
                        await changed
                    finally:
                        self._changed.discard(changed)
                return value
        except TimeoutError:
            last = "\n".join(f"  {event!s:.300}" for event in self.events[-10:])
            what = inspect.getsource(predicate).strip()
            who = f"{self.user}/{self.device} (closed: {self.closed})"
            raise AssertionError(f"{who} waited {deadline_s:g} s for {what}; it last got\n{last}") from None

    async def event(self, kind: str, deadline_s: float = DEADLINE_S, *, since: int = 0, **fields: Any) -> Event:
        """Return the first event of this kind with these fields, received (from `since` on) or still to come."""
        wanted = {"type": kind, **{name.rstrip("_"): value for name, value in fields.items()}}

        def find() -> Event | None:
            return next((event for event in self.events[since:] if wanted.items() <= event.items()), None)

        try:
            found: Event = await self.until(find, deadline_s)
        except AssertionError as error:
            error.add_note(f"wanted: {wanted}")
            raise
        return found

    async def has(self, conversation: str, count: int, deadline_s: float = DEADLINE_S) -> list[Any]:
        """Wait for this many messages; return their bodies."""
        return list(await self.until(lambda: len(b := self.bodies(conversation)) >= count and b, deadline_s))

    async def reaches(self, ends: Mapping[str, int], deadline_s: float = DEADLINE_S) -> None:
        """Wait for the event with this seq of each of these conversations."""
        await self.until(lambda: all(seq in self.received.get(name, {}) for name, seq in ends.items()), deadline_s)

    async def more(self, count: int) -> None:
        """Wait for so many further events."""
        here = self.here
        await self.until(lambda: self.here >= here + count)

    # -- received events

    @property
    def here(self) -> int:
        """The number of events so far, for `since`."""
        return len(self.events)

    def conversation(self, conversation: str) -> Event:
        """Return the latest state of a conversation in the welcome and the later lists."""
        lists = [self.welcome, *(event for event in self.events if event["type"] == "conversations")]
        states = (state for event in reversed(lists) for state in event["conversations"])
        return next(state for state in states if state["conversation"] == conversation)

    def bodies(self, conversation: str) -> list[Any]:
        """Return the bodies of all received messages, in the order of their seqs."""
        log = self.received.get(conversation, {})
        return [log[seq]["body"] for seq in sorted(log) if log[seq]["type"] == "message"]

    def in_order(self, conversation: str) -> bool:
        """Return whether the events came in the order of their seqs."""
        seqs = list(self.received.get(conversation, {}))
        return seqs == sorted(seqs)

    def whole(self, conversation: str) -> bool:
        """Return whether all events came in order, each after the one that its `prev` names, and no send twice."""
        events = list(self.received.get(conversation, {}).values())
        follows = all(event["prev"] == before["seq"] for before, event in itertools.pairwise(events))
        sends = [(event["from"], event["device"], event["n"]) for event in events if event["n"]]
        return self.in_order(conversation) and follows and len(set(sends)) == len(sends)

    def gaps(self) -> list[Event]:
        return [event for event in self.events if event["type"] == "gap"]

    # -- receiving

    async def _read(self, socket: ClientConnection) -> None:
        try:
            while True:
                await self._reading.wait()
                self._take(await socket.recv())
        except ConnectionClosed as error:
            self.closed = (socket.close_code or 1006, socket.close_reason or "")
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(error)
            self._wake()

    def _take(self, frame: bytes | str) -> None:
        event: Event = msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)
        if "seq" in event and "prev" in event:
            log = self.received.setdefault(event["conversation"], {})
            self.frames.setdefault((event["conversation"], event["seq"]), []).append(frame)
            if event["seq"] in log:
                self.duplicates += 1
            else:
                log[event["seq"]] = event
        answer = self._answers.get(event.get("id"))
        if answer is not None and not answer.done():
            answer.set_result(event)
        self.events.append(event)
        self._wake()

    def _wake(self) -> None:
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)


def _small_buffers(url: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BYTES)
    where = urlsplit(url)
    sock.connect((where.hostname, where.port))
    sock.setblocking(False)
    return sock
