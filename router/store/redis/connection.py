"""One connection to one Redis server: dial, greet, read, and dial again after a loss.

This module has the address from the URL, the greeting (AUTH, SELECT, PING), redialing with backoff, and `Link`, the
base of `pipeline` (commands) and `pubsub` (subscriptions). A `Topology` finds the server to dial.

Invariants
- `opened` is called after the server has answered the whole greeting, so a link that is up can serve: a server that is
  loading its data set, or a replica without its primary, fails the PING and is dialed again later.
- Every dial asks the topology again. If the greeting contains ROLE, the server must answer that it is a primary; if it
  contains CLUSTER MYID, it must be the server that the map names (`expected_id`): an address may be given to another
  server, even of another cluster. A server that refuses MYID is not compared.
- `opened` and `closed` alternate. Every failure (reset, protocol error, `drop`) ends in `connection_lost`, in a later
  turn of the loop and never within the caller's stack; only there the state is cleared.
- There is at most one keeper, and so at most one socket.
- An abandoned socket is detached from the link and not awaited, because a transport whose dialing was cancelled may or
  may not call back (uvloop's does not).
- A reason why the server is not usable is logged when it is new, and then once a minute while it lasts.
- The first redial is almost immediate; a link that is lost soon after opening backs off like one that cannot be dialed.
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

# If OpenTelemetry's SDK is installed, redis-py imports it for its own metrics, which are not used here: 60 modules, 2
# MB and a tenth of the start time. So the import is made to fail.
_found = sys.modules.get("opentelemetry")
sys.modules["opentelemetry"] = None  # type: ignore[assignment]  # makes the import fail
import redis  # noqa: E402  # after the line above
import redis.asyncio.connection as pool  # noqa: E402

if _found is None:
    del sys.modules["opentelemetry"]
else:
    sys.modules["opentelemetry"] = _found

RedisArg: TypeAlias = bytes | str | int | float

# Packs a command as RESP, in C. The stub of hiredis says "tuple of one", so the type is given here.
pack = cast("Callable[[tuple[RedisArg, ...]], bytes]", hiredis.pack_command)


class CommandTemplate:
    """A command of which only some parts differ between calls: the others are packed once.

    `keys` select the server; the parts that each call passes are between the first and the last ones.
    """

    __slots__ = ("_first", "_last", "keys")

    def __init__(
        self, keys: Sequence[str], first: tuple[RedisArg, ...], given: int, last: tuple[RedisArg, ...]
    ) -> None:
        self.keys = keys
        self._first = b"*%d" % (len(first) + given + len(last)) + _unnumbered(first)
        self._last = _unnumbered(last) if last else b"\r\n"

    def packed(self, given: Sequence[bytes]) -> bytes:
        """The whole command as RESP."""
        parts = [self._first]
        for part in given:
            parts += (b"$%d\r\n" % len(part), part, b"\r\n")
        parts[-1] = self._last
        return b"".join(parts)


def _unnumbered(parts: tuple[RedisArg, ...]) -> bytes:
    """The parts in RESP without their number."""
    packed = pack(parts)
    return packed[packed.index(b"\r\n") :]


MYID: Final = ("CLUSTER", "MYID")  # in the greeting of a cluster's servers
NOTHING: Final = object()  # returned by a reader without a whole reply; None is a reply
DIAL_S: Final = 3.0
STALE_S: Final = 1.0  # age up to which an answer of the sentinels is used
YOUNG_S: Final = 5.0  # a connection that is lost before this age counts as a failed dial
BACKOFF_S: Final = (0.05, 2.0)
GROWTH: Final = 1.125
LOG_AGAIN_S: Final = 60.0  # between two log lines with the same reason
REASONS: Final = 16  # reasons of which the last log time is kept

log = logging.getLogger("linnet.redis")


class Address(msgspec.Struct, frozen=True):
    """The address of a server, and the greeting with its credentials; `str()` of it contains no secret.

    It also is the `Topology` of a single server.
    """

    host: str
    port: int
    path: str
    greeting: tuple[tuple[str, ...], ...]
    tls: Trust | None
    tls_name: str = ""  # that the server's certificate must contain; empty: the host

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
    """The source of the primary's address."""

    @property
    def address(self) -> Address:
        """The last known address of the primary; before the first query, the part of it that the URL contains."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch of the last failover; 0 without failovers."""
        ...

    async def primary(self) -> Address:
        """Query the address of the primary; `ConnectionError` if there is no answer."""
        ...


def _tls(kind: Any, given: dict[str, Any]) -> ssl.SSLContext:
    """A TLS context from the URL's options; redis-py's connection keeps its context, so each call makes a new one."""
    made: ssl.SSLContext = kind(**given).ssl_context.get()
    return made


def address(url: str) -> Address:
    """The address in a redis://, rediss:// or unix:// URL, whose options redis-py parses."""
    try:
        given: dict[str, Any] = dict(pool.parse_url(url))
        kind = given.pop("connection_class", pool.Connection)
        tls = None
        if kind is pool.SSLConnection:
            files = (given.get(f"ssl_{name}") for name in ("ca_certs", "ca_path", "certfile", "keyfile"))
            tls = Trust(lambda: _tls(kind, given), tuple(file for file in files if file))
    except OSError as error:  # a certificate file that cannot be read; the text names it
        raise StartupError(f"LINNET_REDIS_URL: {error}") from None
    except (ValueError, TypeError, redis.RedisError):  # the text may contain a part of the password
        raise StartupError("LINNET_REDIS_URL: expected a redis://, rediss:// or unix:// URL of redis-py") from None
    greeting: list[tuple[str, ...]] = []
    if password := given.get("password"):
        greeting.append(("AUTH", given["username"], password) if given.get("username") else ("AUTH", password))
    if database := given.get("db"):
        greeting.append(("SELECT", str(database)))
    greeting.append(("PING",))
    return Address(given.get("host", "localhost"), given.get("port", 6379), given.get("path", ""), tuple(greeting), tls)


def backoff(failures: int) -> float:
    """Seconds before the next dial: growing, with full jitter so that nodes do not dial at the same time.

    By GROWTH, the longest wait is a quarter of the time since the loss: one that restarts quickly is found quickly.
    """
    first, most = BACKOFF_S
    return random.uniform(0, min(most, first * GROWTH ** min(failures - 1, 64))) if failures else 0.0


class _Socket(asyncio.Protocol):
    """The callbacks of one socket, passed to the link until the link abandons the socket."""

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
    """A connection that redials after a loss. Subclasses implement `opened`, `received` and `closed`."""

    NAME: ClassVar[str] = "commands"  # for log lines

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.address = topology.address
        self.up = False
        self.reconnects = 0
        self.read_bytes = 0
        self.expected_id: Callable[[], str] = _any_server
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._socket: _Socket | None = None
        self._transport: asyncio.Transport | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._greeted: asyncio.Future[bool] | None = None
        self._stale_at = math.inf
        self._greetings_left = 0  # replies of the greeting that have not arrived
        self._failures = 0
        self._opened_at = 0.0
        self._lost: tuple[float, Address] | None = None  # time and server of a logged loss that has not ended
        self._why = ""  # why this socket ends, if it does
        self._failure = "no answer"
        self._logged: dict[str, float] = {}  # server and reason -> time of the last log line
        self._finished = False

    # -- what subclasses implement

    def opened(self) -> None:
        raise NotImplementedError

    def received(self) -> None:
        """Process the replies in `self._reader`. A `hiredis.ProtocolError` drops the connection."""
        raise NotImplementedError

    def closed(self, why: str) -> None:
        raise NotImplementedError

    def new_reader(self) -> hiredis.Reader:
        return hiredis.Reader(notEnoughData=NOTHING)

    @property
    def why(self) -> str:
        """Why the connection was last lost, or could not be made. A dial that is under way does not change it."""
        return self._failure

    # -- up and down

    def start(self) -> None:
        """Begin to dial, and go on until `close`."""
        self._keeper = asyncio.create_task(self._keep())

    async def connect(self, within_s: float) -> None:
        """Dial until the link is up; `StartupError` with the last reason if that takes longer than `within_s`."""
        self.start()
        try:
            async with asyncio.timeout(within_s):
                while not self.up and self._keeper is not None:
                    await asyncio.wait({self._keeper})  # a new keeper, if the link was lost right after the greeting
        except TimeoutError:
            await self.close()
            raise StartupError(f"Redis at {self.address} cannot be reached: {self.why}") from None

    async def close(self) -> None:
        """Close for good; waiting calls are answered."""
        self._finished = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        self._hang_up("closed by Linnet")

    def drop(self, why: str) -> None:
        """Abandon this connection; the link dials again."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        if self._socket is not None:
            asyncio.get_running_loop().call_soon(self._socket.connection_lost, None)

    def follow(self, where: Address) -> None:
        """Leave the present server if it is not the primary, whose address is `where`."""
        if self.up and self.address != where:
            self.drop(f"{where} is the primary now")

    async def _keep(self) -> None:
        """Dial until the server has answered the greeting, while this task is the keeper.

        A dial may succeed in the same turn in which its time runs out. Hanging up then loses a link that is up, which
        starts another keeper; two keepers would dial two sockets for one reader.
        """
        while self._keeper is asyncio.current_task():
            await asyncio.sleep(backoff(self._failures))
            try:
                async with asyncio.timeout(DIAL_S):
                    return await self._dial()
            except Exception as error:  # noqa: BLE001 - after any error the link must go on dialing
                self._failed(error)
                self._hang_up(self._why)

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        where = self.address = await self.topology.primary()
        self._stale_at = loop.time() + STALE_S if where is not self.topology else math.inf
        self._greeted = loop.create_future()
        own = self._socket = _Socket(self)
        if where.path:
            await loop.create_unix_connection(lambda: own, where.path)
        else:
            tls = where.tls.context() if where.tls else None
            name = where.tls_name or None if tls else None
            await loop.create_connection(lambda: own, where.host, where.port, ssl=tls, server_hostname=name)
        if not await self._greeted:
            raise ConnectionError(self._why)

    def _failed(self, error: Exception) -> None:
        self._why = self._failure = str(error) or type(error).__name__
        self.report(self._why)
        self._failures += 1

    def report(self, reason: str, fields: Mapping[str, str] | None = None) -> bool:
        """Log a reason, with fields of a JSON entry, unless it was logged for this server within the last minute."""
        now, key = asyncio.get_running_loop().time(), f"{self.address} {reason}"
        if now - self._logged.get(key, -math.inf) < LOG_AGAIN_S:
            return False
        if len(self._logged) >= REASONS:
            self._logged.clear()
        self._logged[key] = now
        log.warning("Redis at %s: %s", self.address, reason, extra={"fields": dict(fields or {})})
        return True

    def _hang_up(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    # -- callbacks of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._reader = hiredis.Reader(notEnoughData=NOTHING)
        self._greetings_left = len(self.address.greeting)
        self._why = "closed by the server"
        self._transport.write(b"".join(map(pack, self.address.greeting)))

    def data_received(self, data: bytes) -> None:
        self.read_bytes += len(data)
        try:
            self._reader.feed(data)
            if not self.up and not self._greeting_done():
                return
            self.received()
        except hiredis.ProtocolError as error:
            self.drop(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._socket is not None:
            self._socket.link = None
            self._socket = None
        self._transport = None
        if exc is not None:
            self._why = str(exc)
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(False)
        if self.up:
            self._down()

    def _greeting_done(self) -> bool:
        """Process replies of the greeting; return whether the link is up now."""
        while self._greetings_left:
            reply = self._reader.gets()
            if reply is NOTHING:
                return False
            asked = self.address.greeting[-self._greetings_left]
            if asked == MYID:
                expected = self.expected_id()
                if isinstance(reply, bytes) and expected not in ("", reply.decode(errors="replace")):
                    self.drop("it is another server than the one that the cluster has at this address")
                    return False
                self._greetings_left -= 1
                continue
            if isinstance(reply, Exception):
                self.drop(str(reply))
                return False
            if isinstance(reply, list) and reply[0] != b"master":  # to ROLE
                self.drop("it is a replica")
                return False
            self._greetings_left -= 1
        if self._greeted is None or self._greeted.done():
            return False
        if asyncio.get_running_loop().time() > self._stale_at:  # a server that stalled may have been replaced
            self.drop("it answered the greeting too late: it may no longer be the primary")
            return False
        self._greeted.set_result(True)
        self._reader = self.new_reader()  # only now, so that error replies to the greeting keep their text
        self.up = True
        self._opened_at = asyncio.get_running_loop().time()
        self._report_found()
        self.opened()
        return True

    def _report_found(self) -> None:
        """Log that the connection is back after a logged loss, and whether it is to another server."""
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
        self.up, self._failure = False, self._why
        if loop.time() - self._opened_at > YOUNG_S:
            self._failures = 0
            self._logged.clear()
        else:
            self._failures += 1
        if not self._finished:
            about = {"event": "redis_lost", "connection": self.NAME, "address": str(self.address), "why": self._why}
            if self.report(f"connection lost: {self._why}", about):
                self._lost = self._lost or (loop.time(), self.address)
            self.reconnects += 1
            self._keeper = loop.create_task(self._keep())
        self.closed(self._why)


def _any_server() -> str:
    """The id that the server must have; empty: any."""
    return ""
