"""What the domain files call Redis through: functions, plain commands, publishing; and the checks at start.

What lives here: which connection a key belongs to (one, as long as Redis is one), the names of this version's
functions, awaitable twins of the callback calls, and whether the server is fit for what is promised. What never
does: a key's name, a function's arguments, a retry that could run something twice.

Invariants
- `call` and `command` never raise and never answer before they have returned; see `hot` for order and bounds.
- `Unavailable` is the only error that means "later"; the outcome of a call that met it is unknown.
- Under sentinels every connection made of `topology` (`links`) leaves a server that is not the primary any more within
  FOLLOW_S and the time to ask, whatever it hears from there: a demoted or cut-off primary stays connected and silent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final, Literal, TypeVar

import msgspec

from router.contract import keys
from router.contract.clocks import Clocks
from router.contract.errors import FunctionError, LinnetError, StartupError, Unavailable
from router.contract.keys import Channels
from router.store.redis.connection import Address, CommandTemplate, Link, RedisArg, Topology, address
from router.store.redis.fitness import CONFIG, HIDDEN, INFO, Fitness, Level, config_of, info_of, unfit
from router.store.redis.functions import Library, build
from router.store.redis.pipeline import RETRY_S, Denied, HotConnection, HotStatistics, Reply
from router.store.redis.sentinel import ASK_S, SCHEMES, Sentinels

T = TypeVar("T")

Mode = Literal["standalone", "sentinel", "cluster"]

CONNECT_S: Final = 10.0
FOLLOW_S: Final = 1.0
DENIED: Final = "ERR ACL failure in script: "

log = logging.getLogger("linnet.redis")


class ClientStatistics(msgspec.Struct, frozen=True):
    hot: HotStatistics
    functions: dict[str, int]  # calls by function


class Client:
    """`client = await Client.connect(url)`; `await client.close()` at the end."""

    def __init__(self, topology: Topology, library: Library) -> None:
        self.topology = topology
        self.library = library
        self.channels = Channels()  # replaced once the deployment is known, before any part is made of this client
        self.clocks = Clocks()  # this node's and Redis's; kept by router/process/clocks.py
        self._functions: Counter[str] = Counter()
        self._hot = HotConnection(topology, library.source)
        self.links: list[Link] = [self._hot]
        self.fitness = Fitness(self._hot)
        self._following: asyncio.Task[None] | None = None

    @classmethod
    def make(cls, url: str, mode: Mode = "standalone", *, library: Library | None = None) -> Client:
        """A client that is not connected yet; `StartupError` says what is wrong with the URL."""
        return cls(_topology(url, mode), library or build())

    @classmethod
    async def connect(
        cls, url: str, mode: Mode = "standalone", *, within_s: float = CONNECT_S, library: Library | None = None
    ) -> Client:
        """A client that is connected: `make` and `open`."""
        client = cls.make(url, mode, library=library)
        await client.open(within_s)
        return client

    async def open(self, within_s: float = CONNECT_S) -> None:
        """Up, with the library loaded; `StartupError` says what is wrong with the server or the functions."""
        try:
            await self._hot.connect(within_s)
            await self._load()
        except BaseException:
            await self.close()
            raise
        if isinstance(self.topology, Sentinels):
            self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))
        self.fitness.stop()
        await self._hot.close()
        if isinstance(self.topology, Sentinels):
            await self.topology.close()

    async def _follow(self) -> None:
        """Tell all connections where the primary is, again and again."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                where = await self.topology.primary()
            except ConnectionError:  # nobody can tell: whoever serves us may go on
                continue
            except Exception:  # a bug here must not leave us with a cut-off primary for ever
                log.exception("the sentinels could not be asked")
                continue
            for link in self.links:
                try:
                    link.follow(where)
                except Exception:  # one link's bug must not keep the others on a primary that was replaced
                    log.exception("a connection could not be told where the primary is")

    @property
    def address(self) -> Address:
        """The server that calls go to."""
        return self._hot.address

    @property
    def database(self) -> int:
        """The number of the database that keys are in; channels are shared by all databases of a server."""
        return next((int(part[1]) for part in self.address.greeting if part[0] == "SELECT"), 0)

    @property
    def available(self) -> bool:
        return self._hot.up

    @property
    def trouble(self) -> str:
        """Why Redis cannot be used as it should now, for operators; empty if it can."""
        for link in self.links:
            if not link.up:
                return f"Redis at {link.address} cannot be reached: {link.why}"
        if self.fitness.fault:
            return f"Redis at {self.address} is unfit: {self.fitness.fault}"
        return f"Redis at {self.address} refuses: {self._hot.refusal}" if self._hot.refusal else ""

    @property
    def one_server(self) -> bool:
        """Whether all slots are on one server, so that one call may touch several of them."""
        return True

    @property
    def failover_grace_s(self) -> float:
        """How long a server may go on answering us that has been succeeded: until the sentinels have been asked again.
        Where there are none, nobody succeeds it."""
        return FOLLOW_S + ASK_S if isinstance(self.topology, Sentinels) else 0.0

    @property
    def busy(self) -> bool:
        """Whether calls wait for their replies."""
        return self._hot.statistics().in_flight > 0

    async def clock_ms(self) -> int:
        """The server's clock: the one that everything which several processes compare is told by."""
        seconds, micros = await self.fetch("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def memory_ratio(self) -> float:
        """How full the server is: used_memory / maxmemory, 0 without a limit."""
        info = info_of(await self.fetch("INFO", "memory"))
        limit = int(info["maxmemory"])
        return int(info["used_memory"]) / limit if limit else 0.0

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(self._hot.statistics(), dict(self._functions))

    # -- calls

    def call(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        """Call a function of our library; `reply` gets its value or a `LinnetError`."""
        self._functions[function] += 1
        name = self.library.named(function)
        self._shard_of(keys).call(("FCALL", name, len(keys), *keys, *args), reply)

    def template(
        self, function: str, keys: Sequence[str], first: Sequence[RedisArg], given: int, last: Sequence[RedisArg]
    ) -> CommandTemplate:
        """A call of which `given` arguments, between the first and the last ones, are told by each `call_template`."""
        name = self.library.named(function)
        return CommandTemplate(keys, ("FCALL", name, len(keys), *keys, *first), given, tuple(last))

    def call_template(self, function: str, template: CommandTemplate, given: Sequence[bytes], reply: Reply) -> None:
        """`call`, by its template."""
        self._functions[function] += 1
        self._shard_of(template.keys).call_packed(template.packed(*given), reply)

    def command(self, *parts: RedisArg, reply: Reply) -> None:
        """Send a plain command, its key second as in most."""
        self._shard_of(parts[1:2]).call(parts, reply)

    def publish(self, channel: str | bytes, payload: bytes) -> None:
        """Fire and forget: what it tells is in Redis, or is repeated by its sender."""
        self._shard_of((channel,)).call(("SPUBLISH", channel, payload), _ignore)

    async def fcall(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg]) -> Any:
        """`call`, awaited."""
        future = asyncio.get_running_loop().create_future()
        self.call(function, keys, args, partial(_settle, future))
        return await future

    async def fcall_each(self, function: str, keys: Sequence[str], args: Sequence[RedisArg]) -> list[Any]:
        """`fcall` of a function that answers a value for each key: one call where one server has all of them."""
        if self.one_server:
            return list(await self.fcall(function, keys, args))
        return [value for (value,) in await asyncio.gather(*(self.fcall(function, (key,), args) for key in keys))]

    async def fetch(self, *parts: RedisArg) -> Any:
        """`command`, awaited."""
        future = asyncio.get_running_loop().create_future()
        self.command(*parts, reply=partial(_settle, future))
        return await future

    def second_connection(self) -> HotConnection:
        """Another connection to the same server, for calls that may hold up what comes behind them."""
        connection = HotConnection(self.topology, self.library.source)
        self.links.append(connection)
        return connection

    def _shard_of(self, keys: Sequence[RedisArg]) -> HotConnection:
        """The connection that serves these keys, which all bear one hash tag."""
        return self._hot

    # -- at start

    async def _load(self) -> None:
        try:
            await self.fetch("FUNCTION", "LOAD", self.library.source)
        except FunctionError as error:
            if not error.detail.endswith("already exists"):
                raise StartupError(f"Redis does not take our functions: {error.detail}") from None
            await self._check_library()
        except Denied as error:
            raise StartupError(f"Redis at {self.address} does not let us load our functions: {error.why}") from None
        except Unavailable:  # out of memory, say: the functions may be there, else the first call tries again
            log.warning("Redis at %s did not load the functions now", self.address)

    async def _check_library(self) -> None:
        """`StartupError` if the library of our name on the server has another source than ours."""
        name = self.library.name
        try:
            found = await self.fetch("FUNCTION", "LIST", "LIBRARYNAME", name, "WITHCODE")
        except Unavailable:  # not allowed, or gone: then a call that misses its function says so
            return
        if not any(self.library.source in library for library in found):
            raise StartupError(
                f"Redis at {self.address}: the function library {name}, or a function of it, is not ours: remove it"
                " with FUNCTION DELETE"
            )

    async def check_server(self, durability: Level, replicas: int = 1) -> None:
        """`StartupError` if this server cannot keep what `durability` promises, `Unavailable` if it went away."""
        info = info_of(await self._said(self.fetch(*INFO), "does not answer INFO"))
        config: dict[str, str] = {}
        if durability == "fsync":
            config = config_of(await self._said(self.fetch(*CONFIG), HIDDEN))
        if fault := unfit(info, durability, config):
            raise StartupError(f"Redis at {self.address}: {fault}")
        if durability == "fsync" and isinstance(self.topology, Sentinels):
            log.warning("LINNET_DURABILITY=fsync: a failover can lose acked sends, replicated would keep them")
        elif durability == "replicated":
            self._count_replicas(info, replicas)

    async def probe(self) -> None:
        """`StartupError` that names the rights our user lacks; `Unavailable` if the server went away.

        Tried are all commands of our functions on scratch keys of each family, publishing, and the commands beside
        them that reading needs.
        """
        refused: list[str] = []
        for key, channel in zip(keys.PROBES, cycle(self.channels.probes()), strict=False):
            try:
                said = iter(await self.fcall("probe", (key,), (channel,)))
                for command, why in zip(said, said, strict=True):
                    refused.append(f"{command.decode()}: {why.decode().removeprefix(DENIED)}")
                await self.fetch("HSCAN", f"{key}:none", 0)
                await self.fetch("SCAN", 0, "COUNT", 1)
                await self.fetch("SPUBLISH", channel, "")
            except Denied as error:
                refused.append(error.why)
        if refused:
            raise StartupError(
                f"Redis at {self.address} refuses what Linnet needs ({'; '.join(dict.fromkeys(refused))}): give its"
                " user the rights in deploy/README.md"
            )

    def _count_replicas(self, info: dict[str, str], replicas: int) -> None:
        """How the server is configured stops the start; how it is now (a replica is down) only stops acks."""
        connected = int(info.get("connected_slaves", 0))
        if connected < replicas:
            log.warning("Redis at %s has %d of %d replicas: no send is acked until it has them", self.address,
                        connected, replicas)  # fmt: skip
        elif connected > replicas:
            log.warning("Redis at %s has %d replicas and LINNET_REPLICAS is %d: a failover to one that was not waited"
                        " for loses acked sends", self.address, connected, replicas)  # fmt: skip

    async def _said(self, asked: Awaitable[T], refused: str) -> T:
        """An answer; `StartupError` if the server is there and refuses it, `Unavailable` if it went away meanwhile."""
        there, reconnects = self.available, self._hot.reconnects
        try:
            return await asked
        except LinnetError:
            if not there or not self.available or reconnects != self._hot.reconnects:
                raise Unavailable(retry_after=RETRY_S) from None
            raise StartupError(f"Redis at {self.address} {refused}") from None


def _topology(url: str, mode: Mode) -> Topology:
    if mode == "cluster":
        raise StartupError("LINNET_REDIS_MODE=cluster is not supported yet: use standalone or sentinel")
    if mode == "sentinel":
        return Sentinels(url)
    if url.partition(":")[0] in SCHEMES:
        raise StartupError("LINNET_REDIS_URL names sentinels: set LINNET_REDIS_MODE=sentinel")
    return address(url)


def _ignore(value: object) -> None:
    """The reply that nobody waits for; errors were counted where they came in."""


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return  # the caller gave up
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


__all__ = ["Client", "ClientStatistics", "Mode", "RedisArg", "Reply"]
