"""One connection to one Redis server: dial, greet, read, lose, dial again.

What lives here: the address as the URL says it, the greeting (AUTH, SELECT, PING), the redial with backoff, and
`Link`, the protocol that `hot` (commands) and `bus` (subscriptions) build on. What never does: a command of Linnet,
a key, a queue of calls, a way to find the primary among several servers (`Topology`; `sentinel` has one).

Invariants
- `opened` is called once the server has answered the whole greeting, so a link that is up can serve: a server that
  loads its data set, or a replica without its primary, fails the PING and is dialed again later.
- Every dial asks the topology anew. A server whose greeting has ROLE in it must answer that it is a primary.
- `opened` and `closed` alternate. Whatever goes wrong (reset, garbage, `drop`) ends in `connection_lost`, one loop
  turn later at the earliest, never inside the caller's stack; there alone state is torn down.
- One keeper at most, hence one socket at most.
- A socket that was given up is heard no more, and not waited for: a transport whose dialing was cancelled may or may
  not call back (uvloop's does not).
- Each reason why the server cannot be used is logged when it is new, and again each minute while it lasts.
- The first redial is (almost) immediate; a link that keeps dying young backs off like one that cannot be dialed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol, TypeAlias, cast

import hiredis
import msgspec

from router.contract.errors import StartupError
from router.tls import Trust

# redis-py loads OpenTelemetry's SDK for metrics of its own wherever it is installed: 60 modules, 2 MB and a tenth of
# the start, for nothing. So it does not find it.
_found = sys.modules.get("opentelemetry")
sys.modules["opentelemetry"] = None  # type: ignore[assignment]  # what Python reads as "there is none"
import redis  # noqa: E402  # after that
import redis.asyncio.connection as pool  # noqa: E402

if _found is None:
    del sys.modules["opentelemetry"]
else:
    sys.modules["opentelemetry"] = _found

RedisArg: TypeAlias = bytes | str | int | float

# A command as RESP, in C. hiredis' stub says "tuple of one", which is why the type is ours.
pack = cast("Callable[[tuple[RedisArg, ...]], bytes]", hiredis.pack_command)


class CommandTemplate:
    """A command of which only some parts differ from call to call: the others are packed once.

    `keys` tell whose server it is for; what is given at each call stands between the first parts and the last.
    """

    __slots__ = ("_first", "_last", "keys")

    def __init__(
        self, keys: Sequence[str], first: tuple[RedisArg, ...], given: int, last: tuple[RedisArg, ...]
    ) -> None:
        self.keys = keys
        self._first = b"*%d" % (len(first) + given + len(last)) + _unnumbered(first)
        self._last = _unnumbered(last) if last else b"\r\n"

    def packed(self, *given: bytes) -> bytes:
        """The whole command as RESP."""
        parts = [self._first]
        for part in given:
            parts += (b"$%d\r\n" % len(part), part, b"\r\n")
        parts[-1] = self._last
        return b"".join(parts)


def _unnumbered(parts: tuple[RedisArg, ...]) -> bytes:
    """Packed, but for how many they are."""
    packed = pack(parts)
    return packed[packed.index(b"\r\n") :]


NOTHING: Final = object()  # "the reader holds no whole reply"; None is a reply
DIAL_S: Final = 3.0
STALE_S: Final = 1.0  # where sentinels tell: how long their answer may be acted on
YOUNG_S: Final = 5.0
BACKOFF_S: Final = (0.05, 2.0)
SAY_S: Final = 60.0  # between two log lines of one reason
REASONS: Final = 16  # reasons whose last line is remembered

log = logging.getLogger("linnet.redis")


class Address(msgspec.Struct, frozen=True):
    """Where a server is and who we are to it; `str()` of it bears no secret. Of one server: a `Topology` too."""

    host: str
    port: int
    path: str
    greeting: tuple[tuple[str, ...], ...]
    tls: Trust | None

    def __repr__(self) -> str:
        return self.path or (f"{self.host}:{self.port}" if self.port else self.host)

    __str__ = __repr__

    @property
    def address(self) -> Address:
        return self

    async def primary(self) -> Address:
        return self

    @property
    def epoch(self) -> int:
        return 0


class Topology(Protocol):
    """What knows where the primary is."""

    @property
    def address(self) -> Address:
        """Where it was when last asked; before that, as much as the URL says."""
        ...

    @property
    def epoch(self) -> int:
        """Of the last failover; 0 where there are none."""
        ...

    async def primary(self) -> Address:
        """Where it is now; `ConnectionError` when nobody can tell."""
        ...


def _tls(kind: Any, given: dict[str, Any]) -> ssl.SSLContext:
    """What redis-py makes of the URL's options; its connection keeps the context, so each is of a connection anew."""
    made: ssl.SSLContext = kind(**given).ssl_context.get()
    return made


def address(url: str) -> Address:
    """The address in a redis://, rediss:// or unix:// URL, with redis-py's reading of its options."""
    try:
        given: dict[str, Any] = dict(pool.parse_url(url))
        kind = given.pop("connection_class", pool.Connection)
        tls = None
        if kind is pool.SSLConnection:
            files = (given.get(f"ssl_{name}") for name in ("ca_certs", "ca_path", "certfile", "keyfile"))
            tls = Trust(lambda: _tls(kind, given), tuple(file for file in files if file))
    except OSError as error:  # a certificate that cannot be read: the text names the file
        raise StartupError(f"LINNET_REDIS_URL: {error}") from None
    except (ValueError, TypeError, redis.RedisError):  # the text may hold a piece of the password
        raise StartupError("LINNET_REDIS_URL: not a redis://, rediss:// or unix:// URL as redis-py reads it") from None
    greeting: list[tuple[str, ...]] = []
    if password := given.get("password"):
        greeting.append(("AUTH", given["username"], password) if given.get("username") else ("AUTH", password))
    if database := given.get("db"):
        greeting.append(("SELECT", str(database)))
    greeting.append(("PING",))
    return Address(given.get("host", "localhost"), given.get("port", 6379), given.get("path", ""), tuple(greeting), tls)


def backoff(failures: int) -> float:
    """Seconds before the next dial: doubling, with full jitter so that nodes come apart."""
    first, most = BACKOFF_S
    return random.uniform(0, min(most, first * 2.0 ** min(failures - 1, 16))) if failures else 0.0


class _Wire(asyncio.Protocol):
    """One socket's callbacks, passed on until the link leaves it."""

    def __init__(self, link: Link) -> None:
        self.link: Link | None = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.link is None:
            cast(asyncio.Transport, transport).abort()
        else:
            self.link.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.link is not None:
            self.link.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.link is not None:
            self.link.connection_lost(exc)


class Link:
    """A connection that keeps itself up. Subclasses say what happens when it opens, reads and closes."""

    NAME: ClassVar[str] = "commands"  # in the log

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.address = topology.address
        self.up = False
        self.reconnects = 0
        self.read_bytes = 0
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._wire: _Wire | None = None
        self._transport: asyncio.Transport | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[bool] | None = None
        self._stale_at = math.inf
        self._owed = 0  # replies of the greeting still to come
        self._failures = 0
        self._opened_at = 0.0
        self._lost: tuple[float, Address] | None = None  # when a loss was logged that is not over, and at which server
        self._why = "no answer"
        self._said: dict[str, float] = {}  # server and reason -> when it was logged last
        self._finished = False

    # -- what subclasses say

    def opened(self) -> None:
        raise NotImplementedError

    def received(self) -> None:
        """Take what `self._reader` holds. A `hiredis.ProtocolError` of it drops the connection."""
        raise NotImplementedError

    def closed(self, why: str) -> None:
        raise NotImplementedError

    def new_reader(self) -> hiredis.Reader:
        return hiredis.Reader(notEnoughData=NOTHING)

    @property
    def why(self) -> str:
        """The last reason why the connection could not be used."""
        return self._why

    # -- up and down

    async def connect(self, within_s: float) -> None:
        """Dial until it is up; `StartupError` with the last reason when that takes longer than `within_s`."""
        self._keeper = asyncio.create_task(self._keep())
        try:
            async with asyncio.timeout(within_s):
                while not self.up:
                    await asyncio.wait({self._keeper})  # another one, when it was lost right after the greeting
        except TimeoutError:
            why = self._why
            await self.close()
            raise StartupError(f"Redis at {self.address} cannot be reached: {why}") from None

    async def close(self) -> None:
        """Down for good, with everything that waits told so."""
        self._finished = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        self._hang_up("closed by us")

    def drop(self, why: str) -> None:
        """Give this connection up; the link dials anew."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        if self._wire is not None:
            asyncio.get_running_loop().call_soon(self._wire.connection_lost, None)

    def follow(self, where: Address) -> None:
        """The primary is there now: leave any other server."""
        if self.up and self.address != where:
            self.drop(f"{where} is the primary now")

    async def _keep(self) -> None:
        """Dial until the server has greeted us, for as long as nobody else does.

        A dial may succeed in the very turn its time runs out. Then hanging up loses a link that is up, which gives it
        another keeper: two would dial two sockets for the one reader.
        """
        while self._keeper is asyncio.current_task():
            await asyncio.sleep(backoff(self._failures))
            try:
                async with asyncio.timeout(DIAL_S):
                    return await self._dial()
            except Exception as error:  # noqa: BLE001 - whatever it is, a link that stops dialing is down for good
                self._failed(error)
                self._hang_up(self._why)

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        where = self.address = await self.topology.primary()
        self._stale_at = loop.time() + STALE_S if where is not self.topology else math.inf
        self._greeted = loop.create_future()
        wire = self._wire = _Wire(self)
        if where.path:
            await loop.create_unix_connection(lambda: wire, where.path)
        else:
            await loop.create_connection(
                lambda: wire, where.host, where.port, ssl=where.tls.context() if where.tls else None
            )
        if not await self._greeted:
            raise ConnectionError(self._why)

    def _failed(self, error: Exception) -> None:
        self._why = str(error) or type(error).__name__
        self.say(self._why)
        self._failures += 1

    def say(self, reason: str, fields: Mapping[str, str] | None = None) -> bool:
        """Log a reason, with fields of a JSON entry, unless the last minute has an entry of that reason and server."""
        now, key = asyncio.get_running_loop().time(), f"{self.address} {reason}"
        if now - self._said.get(key, -math.inf) < SAY_S:
            return False
        if len(self._said) >= REASONS:
            self._said.clear()
        self._said[key] = now
        log.warning("Redis at %s: %s", self.address, reason, extra={"fields": dict(fields or {})})
        return True

    def _hang_up(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    # -- what the wire says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._owed = len(self.address.greeting)
        self._why = "closed by the server"
        self._transport.write(b"".join(map(pack, self.address.greeting)))

    def data_received(self, data: bytes) -> None:
        self.read_bytes += len(data)
        try:
            self._reader.feed(data)
            if not self.up and not self._take_greeting():
                return
            self.received()
        except hiredis.ProtocolError as error:
            self.drop(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._wire is not None:
            self._wire.link = None
            self._wire = None
        self._transport = None
        if exc is not None:
            self._why = str(exc)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(False)
        if self.up:
            self._down()

    def _take_greeting(self) -> bool:
        """Whether the server has answered all of the greeting, and well."""
        while self._owed:
            reply = self._reader.gets()
            if reply is NOTHING:
                return False
            if isinstance(reply, Exception):
                self.drop(str(reply))
                return False
            if isinstance(reply, list) and reply[0] != b"master":  # to ROLE
                self.drop("it is a replica")
                return False
            self._owed -= 1
        if self._greeted is None or self._greeted.done():
            return False
        if asyncio.get_running_loop().time() > self._stale_at:  # who was stalled may have been succeeded since we asked
            self.drop("it greeted us too late to be sure that it is the primary still")
            return False
        self._greeted.set_result(True)
        self._reader = (
            self.new_reader()
        )  # the server has said all it was asked; refusals of the greeting keep their text
        self.up = True
        self._opened_at = asyncio.get_running_loop().time()
        self._say_found()
        self.opened()
        return True

    def _say_found(self) -> None:
        """Log that a lost server is back, or which one took its place."""
        lost, self._lost = self._lost, None
        if lost is None:
            return
        down_s, was, epoch = round(self._opened_at - lost[0], 3), lost[1], self.topology.epoch
        moved = was != self.address
        about: dict[str, str | float] = {"connection": self.NAME, "address": str(self.address), "down_s": down_s}
        if moved:
            about |= {"failover_from": str(was), "epoch": epoch}
        log.info(
            "Redis at %s: %s found again after %.1f s%s", self.address, self.NAME, down_s,
            f", by the failover of epoch {epoch} from {was}" if moved else "",
            extra={"fields": {"event": "redis_found", **about}},
        )  # fmt: skip

    def _down(self) -> None:
        loop = asyncio.get_running_loop()
        self.up = False
        if loop.time() - self._opened_at > YOUNG_S:
            self._failures = 0
            self._said.clear()
        else:
            self._failures += 1
        if not self._finished:
            about = {"event": "redis_lost", "connection": self.NAME, "address": str(self.address), "why": self._why}
            if self.say(f"connection lost: {self._why}", about):
                self._lost = self._lost or (loop.time(), self.address)
            self.reconnects += 1
            self._keeper = loop.create_task(self._keep())
        self.closed(self._why)
