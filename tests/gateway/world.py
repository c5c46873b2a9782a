"""A real node on a real server, with clients whose connection records the frames.

Tests see what a session writes: frames are parsed as they are written, and events are waited for without sleeps. A
connection can be full: after `room` writes it calls `writing_paused` from within the write, like a transport.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, cast

import msgpack
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from gateway.delivery.session import Session
from gateway.node import Node, now_ms
from gateway.websocket.connection import WebSocketConnection
from router.contract import codecs, keys, stamp
from router.contract.errors import Unavailable
from router.contract.packing import pack
from router.contract.settings import Settings
from router.contract.tokens import issue
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.appends import Append, Appended
from router.store.conversations import Change
from router.store.redis.client import Client as Redis
from router.store.redis.fitness import Fitness
from router.store.redis.pubsub import Bus
from router.store.sync import Sync, Synced
from tests import support

DEADLINE_S = 40.0
COST_US, BURST_US = 1, 60_000_000  # a rate that no test meets by accident

_n = count(1)


class Connection:
    """The part of a WebSocketConnection that a session uses."""

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
        """Empty the connection, as if the peer had read everything; from now on it takes `room` writes (None: all)."""
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
    """Return the events in unmasked, uncompressed frames."""
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

    def __init__(self, node: Node, user: str, device: str = "phone", codec: codecs.Codec = codecs.JSON) -> None:
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
        """Pass one command to the session, as bytes."""
        value = {"type": kind, **fields}
        packed: bytes = json.dumps(value).encode() if self.codec.text else msgpack.packb(value)
        self.session.message_received(packed, self.codec.text)

    async def until(self, done: Callable[[], Any]) -> Any:
        """Return the first true value of `done`, called again after every write."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not (value := done()):
                    self.connection.news.clear()
                    await self.connection.news.wait()
        except TimeoutError:
            raise AssertionError(f"{self.user} has not received it, but {self.events[-20:]}") from None
        return value

    def of(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Return all events of a kind with these fields, so far."""
        return [
            event for event in self.events
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items())
        ]  # fmt: skip

    async def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for the first event of this kind with these fields; return it."""
        found: dict[str, Any] = (await self.until(lambda: self.of(kind, **fields)))[0]
        return found

    async def hello(self, **fields: Any) -> dict[str, Any]:
        """Send `hello` with a valid token; return the welcome."""
        self.say("hello", **({"token": token(self.node, self.user), "device": self.device} | fields))
        return await self.event("welcome")

    async def caught_up(self) -> Client:
        """Wait until the session is live, which no frame shows."""
        await support.eventually(lambda: self.session.backlog is None, DEADLINE_S)
        return self

    async def connected(self, **fields: Any) -> Client:
        """Send `hello`, and wait until the session is live."""
        await self.hello(**fields)
        return await self.caught_up()

    async def closed(self) -> tuple[int, str]:
        closed: tuple[int, str] = await self.until(lambda: self.connection.closed)
        return closed

    def end(self) -> None:
        """Lose the connection."""
        self.session.connection_closed(1006, "")

    async def ask(self, kind: str, answer: str, **fields: Any) -> dict[str, Any]:
        """Send a command; return its answer."""
        number = next(_n)
        self.say(kind, id=number, **fields)
        return await self.event(answer, id=number)

    def bodies(self, conversation: str) -> list[Any]:
        return [event["body"] for event in self.of("message", conversation=conversation)]

    def seqs(self, conversation: str) -> list[int]:
        """Return every seq of the conversation, in the order of arrival."""
        return [event["seq"] for event in self.events if "seq" in event and "prev" in event
                and event["conversation"] == conversation]  # fmt: skip


def token(node: Node, user: str, ttl_s: float = 3600.0) -> str:
    return issue(user, settings(token_ttl_s=ttl_s), now_ms())[0]


def settings(**changes: Any) -> Settings:
    return replace(Settings(jwt_secret=support.JWT_SECRET, sends_per_s=1e5, send_burst=100_000), **changes)


class PartedRedis(Redis):
    """A client of a Redis whose parts fail one by one: calls about a part in `lost`, by its hash tag, are refused."""

    lost: frozenset[str] = frozenset()

    @property
    def one_server(self) -> bool:
        return False

    def loses(self, names: Sequence[Any]) -> bool:
        return any(tag in str(name) for name in names for tag in self.lost)

    def call(self, function: str, keys: Any, args: Any, reply: Any) -> None:
        if not self._refused(keys, reply):
            super().call(function, keys, args, reply)

    def call_template(self, function: str, template: Any, given: Any, reply: Any) -> None:
        if not self._refused(template.keys, reply):
            super().call_template(function, template, given, reply)

    def command(self, *parts: Any, reply: Any) -> None:
        if not self._refused(parts[1:2], reply):
            super().command(*parts, reply=reply)

    def _refused(self, names: Sequence[Any], reply: Any) -> bool:
        refused = self.loses(names)
        if refused:
            asyncio.get_running_loop().call_soon(reply, Unavailable())
        return refused


class World:
    """A node, and the store as another gateway or the API uses it."""

    def __init__(self, node: Node, redis: Redis) -> None:
        self.node = node
        self.redis = redis
        self.accounts = Accounts(redis)

    def client(self, user: str, device: str = "phone", codec: codecs.Codec = codecs.JSON) -> Client:
        return Client(self.node, user, device, codec)

    def calls(self, function: str) -> int:
        """Return how often this node has called a function."""
        return self.redis.statistics().functions.get(function, 0)

    async def people(self, *users: str) -> None:
        for user in users:
            await self.accounts.ensure(user)

    async def direct(self, user: str, other: str) -> str:
        await self.people(user, other)
        await reply_of(self.node.conversations.create_direct, user, other, COST_US, BURST_US)
        return keys.direct(user, other)

    async def group(self, *users: str, kind: str = keys.GROUP, conv: str = "") -> str:
        """Create a group that is in its members' lists; the first member is the owner."""
        await self.people(*users)
        conv = conv or keys.new_conversation(kind)
        roles = dict.fromkeys(users, "m") | {users[0]: "o"}
        assert await self.node.conversations.create(conv, kind, "a title", roles, COST_US, BURST_US)
        for user, role in roles.items():
            await self.node.users.join(user, conv, "a title", 0, 0, 0, role)
        return conv

    async def put(self, conv: str, user: str, role: str = "m") -> Change:
        await self.people(user)
        change = await self.node.conversations.member(conv, None, user, "put", role)
        await self.node.users.join(user, conv, "a title", change.seq, change.prev, 0, change.role)
        return change

    async def remove(self, conv: str, user: str, told: bool = True) -> Change:
        change = await self.node.conversations.member(conv, None, user, "remove")
        if told:
            await self.node.users.leave(user, conv, change.seq)
        return change

    async def say(self, user: str, conv: str, body: Any = "hello", seen: int = 0, backend: bool = False) -> Appended:
        """Append a message through another gateway, which has seen events up to `seen`, or by a backend."""
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
        """Register a session of another gateway."""
        question = Sync(user=user, device=device, session=f"s-{started}", node="other", started=started, register=True)
        return await reply_of(self.node.users.sync, question)

    async def photographed(self, conv: str) -> dict[str, bytes]:
        """Return the conversation as a replica has it now."""
        return {key: await self.redis.fetch("DUMP", key) for key in (keys.conversation(conv), keys.log(conv))}

    async def failed_over(self, conv: str, photograph: dict[str, bytes]) -> None:
        """Restore the conversation as that replica has it, on another server than the one that wrote last."""
        for key, dump in photograph.items():
            await self.redis.fetch("RESTORE", key, 0, dump, "REPLACE")
        meta = await self.redis.fetch("HGET", keys.conversation(conv), "m")
        await self.redis.fetch("HSET", keys.conversation(conv), "m", meta[:24] + b"another server!!" + meta[40:])

    async def damage(self, conv: str, seq: int, keep: int = -3) -> None:
        """The end of this event is lost, in the log; of a few bytes no function of Redis can read the seq."""
        key = keys.log(conv)
        entries = await self.redis.fetch("XRANGE", key, "-", "+")
        await self.redis.fetch("DEL", key)
        for entry, (name, event, *more) in entries:
            damaged = int(entry.split(b"-")[0]) == seq
            await self.redis.fetch("XADD", key, entry, name, event[:keep] if damaged else event, *more)

    async def next_ms(self) -> None:
        """Wait for the next millisecond, because conversations that move in the same one have no order."""
        now = now_ms()
        await support.eventually(lambda: now_ms() > now, every_s=0)

    async def cut_off(self) -> None:
        """Cut the connection of the bus, which then reconnects."""
        self.bus.drop("a test")
        await support.eventually(lambda: not self.bus.up, every_s=0)

    @property
    def bus(self) -> Bus:
        """The node's pub/sub, of one server."""
        assert isinstance(self.node.bus, Bus)
        return self.node.bus

    @property
    def fitness(self) -> Fitness:
        """The verdict on the one server."""
        assert isinstance(self.node.client.fitness, Fitness)
        return self.node.client.fitness

    def unavailable(self, times: int) -> list[Unavailable]:
        """Refuse the next `times` reads of a log; return the refusals that are still to come."""
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
    def lost(self, *names: str, deaf: bool = True) -> Iterator[None]:
        """Lose the parts of Redis with these keys or channels meanwhile, for this node, and if `deaf` for its bus."""
        assert isinstance(self.redis, PartedRedis)
        redis, bus = self.redis, cast(Any, self.node.bus)
        redis.lost = frozenset(name[name.index("{") : name.index("}") + 1] for name in names)
        reaches, subscribe = bus.reaches, bus.subscribe

        def refuse(channels: list[str], ready: Callable[[bool], None]) -> None:
            if deaf and redis.loses(channels):
                self.node.loop.call_soon(ready, False)
            else:
                subscribe(channels, ready)

        bus.reaches = lambda channel: not (deaf and redis.loses([channel])) and reaches(channel)
        bus.subscribe = refuse
        try:
            yield
        finally:
            bus.reaches, bus.subscribe, redis.lost = reaches, subscribe, frozenset()

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Lose everything that is published meanwhile; wait for it with `settled` before leaving."""
        bus = self.node.bus
        receive, bus._on_messages = bus._on_messages, lambda messages: None
        yield
        bus._on_messages = receive

    async def settled(self) -> None:
        """Wait until all answers of Redis and all published messages have arrived, by an own message that returns."""
        await self.redis.fetch("PING")
        heard = asyncio.get_running_loop().create_future()
        channel = keys.Channels().presence(f"nobody-{next(_n)}")
        self.node.bus.subscribe([channel], lambda _: heard.set_result(None))
        await heard
        await self.redis.fetch("PING")
        self.node.bus.unsubscribe([channel])


@asynccontextmanager
async def world(
    valkey: EmbeddedValkey, channels: keys.Channels | None = None, kind: type[Redis] = Redis, /, **changes: Any
) -> AsyncIterator[World]:
    """Start a node with these settings; another `world` on the same server is another gateway."""
    redis = await kind.connect(valkey.url)
    redis.channels = channels or redis.channels
    async with serving(redis, **changes) as of:
        yield of


@asynccontextmanager
async def serving(redis: Redis, **changes: Any) -> AsyncIterator[World]:
    """Start a node with this client, which is closed at the end."""
    try:
        node = Node(settings(**changes), redis)
        node.clock.stop()  # tests take turns themselves; none comes because a second has passed
        try:
            # The first audit after each connect would hide that another part has not found a lost event.
            node.audits.first = lambda session: None  # type: ignore[method-assign]  # tests ask for audits themselves
            await node.bus.connect(DEADLINE_S)
            yield World(node, redis)
        finally:
            await node.close()
        assert node.bus.statistics().callback_errors == 0
    finally:
        await redis.close()
    assert redis.statistics().hot.callback_errors == 0
