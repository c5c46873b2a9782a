"""A real node on a real server, with clients whose connection is a recorder.

What a client sees is what its session writes: frames are parsed as they come, events are waited for, never slept for.
A connection may be full: `room` is the number of writes it still takes before it tells the session to pause, from
within the write, as a transport does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, cast

import msgpack
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from gateway.delivery.session import Session
from gateway.node import Node, now_ms
from gateway.websocket.connection import WebSocketConnection
from router.contract import keys, stamp, wire
from router.contract.errors import Unavailable
from router.contract.packing import pack
from router.contract.settings import Settings
from router.contract.tokens import issue
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.conversations import Append, Appended, Change
from router.store.redis.client import Client as Redis
from router.store.users import Sync, Synced
from tests import support

DEADLINE_S = 15.0
COST_US, BURST_US = 1, 60_000_000  # a rate that no test meets by accident

_n = count(1)


class Connection:
    """As much of a WebSocketConnection as a session uses."""

    def __init__(self) -> None:
        self.deflate = False
        self.transport = self
        self.last_received = asyncio.get_running_loop().time()
        self.session: Any = None
        self.written: list[bytes] = []
        self.events: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.room: int | None = None
        self.paused = False
        self.reading = True
        self.pings = 0
        self.closed: tuple[int, str] | None = None

    def write(self, frames: bytes) -> None:
        if self.closed:
            return
        self.written.append(frames)
        self.events += parsed(frames)
        self.news.set()
        if self.room is not None:
            self.room -= 1
            if self.room <= 0 and not self.paused:
                self.paused = True
                self.session.writing_paused()

    def drain(self, room: int | None = None) -> None:
        """The peer has read all; from here on there is room for so many writes (None: for all)."""
        self.room, self.paused = room, False
        self.session.writing_resumed()

    def close(self, code: int, reason: str = "") -> None:
        self.closed = (code, reason)
        self.news.set()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def ping(self) -> None:
        self.pings += 1

    def get_write_buffer_size(self) -> int:
        return 0


def parsed(frames: bytes) -> list[dict[str, Any]]:
    """The events in some unmasked, uncompressed frames."""
    events = []
    while frames:
        length, at = frames[1], 2
        if length > 125:
            at = 4 if length == 126 else 10
            length = int.from_bytes(frames[2:at])
        payload, opcode, frames = frames[at : at + length], frames[0], frames[at + length :]
        events.append(json.loads(payload) if opcode == 0x81 else msgpack.unpackb(payload))
    return events


class Client:
    """A device with a session on `node`."""

    def __init__(self, node: Node, user: str, device: str = "phone", codec: wire.Codec = wire.JSON) -> None:
        self.node = node
        self.user = user
        self.device = device
        self.codec = codec
        self.connection = Connection()
        self.session = Session(node.session_ports, cast(WebSocketConnection, self.connection), codec, None)
        self.connection.session = self.session
        node.sessions.opened(self.session)

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.connection.events

    def say(self, kind: str, **fields: Any) -> None:
        """One command, as bytes."""
        value = {"type": kind, **fields}
        packed: bytes = json.dumps(value).encode() if self.codec.text else msgpack.packb(value)
        self.session.message_received(packed, self.codec.text)

    async def until(self, done: Callable[[], Any]) -> Any:
        """The first true value of `done`, asked again whenever something was written."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not (value := done()):
                    self.connection.news.clear()
                    await self.connection.news.wait()
        except TimeoutError:
            raise AssertionError(f"not seen by {self.user}, who has {self.events[-20:]}") from None
        return value

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """All events of a kind with these fields, so far."""
        return [
            event for event in self.events
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items())
        ]  # fmt: skip

    async def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of this kind with these fields."""
        found: dict[str, Any] = (await self.until(lambda: self.of(kind, **fields)))[0]
        return found

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Says hello with a good token; the welcome."""
        self.say("hello", **({"token": token(self.node, self.user), "device": self.device} | fields))
        return await self.event("welcome")

    async def caught_up(self) -> Client:
        """Until the session is level with the log, which nothing that is written says."""
        await support.eventually(lambda: self.session.backlog is None, DEADLINE_S)
        return self

    async def connected(self, **fields: Any) -> Client:
        """Says hello and waits until it is level with the log."""
        await self.hello(**fields)
        return await self.caught_up()

    async def closed(self) -> tuple[int, str]:
        closed: tuple[int, str] = await self.until(lambda: self.connection.closed)
        return closed

    def end(self) -> None:
        """The connection is lost."""
        self.session.connection_closed(1006, "")

    async def ask(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        """A command and its direct answer."""
        number = next(_n)
        self.say(kind, id=number, **fields)
        return await self.event(answer, id=number)

    def bodies(self, conversation: str) -> list[Any]:
        return [event["body"] for event in self.of("message", conversation=conversation)]

    def seqs(self, conversation: str) -> list[int]:
        """Every seq of the conversation, in the order in which it came."""
        return [event["seq"] for event in self.events if "seq" in event and "prev" in event
                and event["conversation"] == conversation]  # fmt: skip


def token(node: Node, user: str, ttl_s: float = 3600.0) -> str:
    return issue(user, settings(token_ttl_s=ttl_s), now_ms())[0]


def settings(**changes: Any) -> Settings:
    return replace(Settings(jwt_secret=support.JWT_SECRET, sends_per_s=1e5, send_burst=100_000), **changes)


class World:
    """A node, and a hand on the store as another gateway or the API would have."""

    def __init__(self, node: Node, redis: Redis) -> None:
        self.node = node
        self.redis = redis
        self.accounts = Accounts(redis)

    def client(self, user: str, device: str = "phone", codec: wire.Codec = wire.JSON) -> Client:
        return Client(self.node, user, device, codec)

    def calls(self, function: str) -> int:
        """How often this node has called a function."""
        return self.redis.statistics().functions.get(function, 0)

    async def people(self, *users: str) -> None:
        for user in users:
            await self.accounts.ensure(user)

    async def direct(self, user: str, other: str) -> str:
        await self.people(user, other)
        await reply_of(self.node.conversations.create_direct, user, other, COST_US, BURST_US)
        return keys.direct(user, other)

    async def group(self, *users: str, kind: str = keys.GROUP) -> str:
        """A group that its founders know of; the first is its owner."""
        await self.people(*users)
        conv = keys.new_conversation(kind)
        roles = dict.fromkeys(users, "m") | {users[0]: "o"}
        assert await self.node.conversations.create(conv, kind, "a title", roles, COST_US, BURST_US)
        for user in users:
            await self.node.users.join(user, conv, "a title", 0, 0, 0)
        return conv

    async def put(self, conv: str, user: str, role: str = "m") -> Change:
        await self.people(user)
        change = await self.node.conversations.member(conv, None, user, "put", role)
        await self.node.users.join(user, conv, "a title", change.seq, change.prev, 0)
        return change

    async def remove(self, conv: str, user: str, told: bool = True) -> Change:
        change = await self.node.conversations.member(conv, None, user, "remove")
        if told:
            await self.node.users.leave(user, conv, change.seq)
        return change

    async def say(self, user: str, conv: str, body: Any = "hello", seen: int = 0, backend: bool = False) -> Appended:
        """A message from elsewhere, by a gateway that has seen events up to `seen`, or by a backend."""
        n = next(_n)
        tail = stamp.tail(
            "message",
            conv,
            user,
            "elsewhere",
            n,
            {"media": pack("text"), "body": pack(body)} | ({"server": pack(True)} if backend else {}),
        )
        append = Append(conv, user, "elsewhere", n, 0, pack(n).ljust(8), tail, seen=seen, server=True)
        done: Appended = await reply_of(self.node.conversations.append, append)
        if conv[0] == keys.DIRECT:
            event = stamp.fill(tail, stamp.Slots(done.seq, done.prev, done.count, done.at))
            for party in {*keys.parties(conv)}:
                other = keys.other_party(conv, party)
                await reply_of(
                    self.node.users.deliver,
                    party,
                    conv,
                    other,
                    done.seq,
                    done.count,
                    event,
                    party == user and not backend,
                    0,
                )
        return done

    async def register(self, user: str, device: str, started: int) -> Synced:
        """A session of another gateway."""
        question = Sync(user=user, device=device, session=f"s-{started}", node="other", started=started, register=True)
        return await reply_of(self.node.users.sync, question)

    async def photographed(self, conv: str) -> dict[str, bytes]:
        """The conversation as a replica has it now."""
        return {key: await self.redis.fetch("DUMP", key) for key in (keys.conversation(conv), keys.log(conv))}

    async def failed_over(self, conv: str, photograph: dict[str, bytes]) -> None:
        """That replica is the primary now, and another server than the one that wrote last."""
        for key, dump in photograph.items():
            await self.redis.fetch("RESTORE", key, 0, dump, "REPLACE")
        meta = await self.redis.fetch("HGET", keys.conversation(conv), "m")
        await self.redis.fetch("HSET", keys.conversation(conv), "m", meta[:24] + b"another server!!" + meta[40:])

    async def next_ms(self) -> None:
        """Of two conversations that moved in one millisecond either may come first."""
        now = now_ms()
        await support.eventually(lambda: now_ms() > now, every_s=0)

    async def cut_off(self) -> None:
        """The bus has lost its connection, and dials again."""
        self.node.bus.drop("a test")
        await support.eventually(lambda: not self.node.bus.up, every_s=0)

    def unavailable(self, times: int) -> list[Unavailable]:
        """The next reads of a log, so many, are refused; the refusals that are still to come."""
        store: Any = self.node.conversations
        read, refusals = store.range, [Unavailable() for _ in range(times)]

        def flaky(*asked: Any) -> None:
            if refusals:
                self.node.loop.call_soon(asked[-1], refusals.pop())
            else:
                read(*asked)

        store.range = flaky
        return refusals

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Whatever is published meanwhile is lost, if it is waited for (`settled`)."""
        bus = self.node.bus
        hears, bus._on_messages = bus._on_messages, lambda messages: None
        yield
        bus._on_messages = hears

    async def settled(self) -> None:
        """Everything that was asked of Redis, and published there, has come: an echo of our own is back."""
        await self.redis.fetch("PING")
        heard = asyncio.get_running_loop().create_future()
        channel = keys.Channels().presence(f"nobody-{next(_n)}")
        self.node.bus.subscribe([channel], lambda _: heard.set_result(None))
        await heard
        await self.redis.fetch("PING")
        self.node.bus.unsubscribe([channel])


@asynccontextmanager
async def world(valkey: EmbeddedValkey, **changes: Any) -> AsyncIterator[World]:
    """A node with these settings; another `world` on the same server is another gateway."""
    redis = await Redis.connect(valkey.url)
    try:
        node = Node(settings(**changes), redis)
        node.clock.stop()  # a turn comes when a test takes it, never because a second has passed
        try:
            # The first audit comes a while after each connect, and would hide that nothing else has found something.
            node.audits.first = lambda session: None  # type: ignore[method-assign]  # tests ask for audits themselves
            await node.bus.connect(DEADLINE_S)
            yield World(node, redis)
        finally:
            await node.close()
        assert node.bus.statistics().callback_errors == 0
    finally:
        await redis.close()
    assert redis.statistics().hot.callback_errors == 0
