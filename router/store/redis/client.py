"""The client of Redis that the domain files use: functions, plain commands, publishing, and the checks at start.

It selects the connection for a key (there is one while Redis is one server), adds the version to function names, and
has awaitable variants of the calls with callbacks. It never retries a call.

Invariants
- `call` and `command` never raise, and never reply before they have returned; `pipeline` has their order and bounds.
- `Unavailable` is the only error after which a retry can succeed; the outcome of the failed call is unknown.
- Under sentinels every connection (`links`) leaves a server that is no longer the primary within FOLLOW_S and the time
  to ask the sentinels, because a demoted or cut-off primary neither closes its connections nor reports it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, Final, Literal, TypeVar

import msgspec

from router.contract import keys
from router.contract.clocks import Clocks
from router.contract.errors import FunctionError, LinnetError, StartupError, Unavailable
from router.contract.keys import Channels
from router.store.redis.cluster import SCHEMES as CLUSTERS
from router.store.redis.connection import Address, CommandTemplate, Link, RedisArg, Topology, address
from router.store.redis.fitness import CONFIG, HIDDEN, INFO, Fitness, Level, Verdict, config_of, info_of, unfit
from router.store.redis.functions import Library, build
from router.store.redis.pipeline import RETRY_S, Denied, HotConnection, HotStatistics, Reply
from router.store.redis.sentinel import QUERY_S, SCHEMES, Sentinels

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
    """A client of one Redis deployment; create it with `Client.connect(url)`, and `close` it at the end."""

    def __init__(self, topology: Topology, library: Library, node: HotConnection | None = None) -> None:
        """`node`: the connection to one node of a cluster, for the checks of that node."""
        self.clustered = node is not None
        self.topology = topology
        self.library = library
        self.channels = Channels()  # replaced once the deployment is known, before this client is passed to any part
        self.row_format = keys.ROWS_2  # of users' rows that are written; replaced with `channels` and followed later
        self.clocks = Clocks()  # this node's and Redis's; updated by router/process/clocks.py
        self._functions: Counter[str] = Counter()
        self._hot = node or HotConnection(topology, library.source)
        self.links: list[Link] = [self._hot]
        self.fitness: Verdict = Fitness(self._hot, clustered=self.clustered)
        self._following: asyncio.Task[None] | None = None

    @classmethod
    def make(cls, url: str, mode: Mode = "standalone", *, library: Library | None = None) -> Client:
        """A client that is not connected yet; `StartupError` if the URL is wrong."""
        topology = _topology(url, mode)
        return cls(topology, library or build(database=_database(topology.address)))

    @classmethod
    async def connect(
        cls, url: str, mode: Mode = "standalone", *, within_s: float = CONNECT_S, library: Library | None = None
    ) -> Client:
        """A connected client: `make`, then `open`."""
        client = cls.make(url, mode, library=library)
        await client.open(within_s)
        return client

    async def open(self, within_s: float = CONNECT_S) -> None:
        """Connect and load the library; `StartupError` if the server or the library is unusable."""
        try:
            await self._hot.connect(within_s)
            await self.load()
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
        """Every FOLLOW_S, ask the sentinels for the primary and make all connections follow it."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                where = await self.topology.primary()
            except ConnectionError:  # no sentinel answers, so the present server is kept
                continue
            except Exception:  # a bug here must not leave the process on a cut-off primary for ever
                log.exception("the sentinels could not be asked")
                continue
            for link in self.links:
                try:
                    link.follow(where)
                except Exception:  # a bug in one connection must not keep the others on a replaced primary
                    log.exception("a connection could not follow the primary")

    @property
    def address(self) -> Address:
        """The server that calls are sent to."""
        return self._hot.address

    @property
    def database(self) -> int:
        """The number of the database that keys are in; channels are shared by all databases of a server."""
        return _database(self.address)

    @property
    def available(self) -> bool:
        return self._hot.up

    @property
    def trouble(self) -> str:
        """The reason why Redis is not fully usable now, for operators; empty if it is."""
        for link in self.links:
            if not link.up:
                return f"Redis at {link.address} cannot be reached: {link.why}"
        if self.fitness.fault:
            return f"Redis at {self.address} is unfit: {self.fitness.fault}"
        return f"Redis at {self.address} refuses: {self._hot.refusal}" if self._hot.refusal else ""

    @property
    def servers(self) -> Sequence[Client]:
        """A client of each server that has data, as far as it answers."""
        return (self,)

    @property
    def one_server(self) -> bool:
        """Whether all slots are on one server, so that one call may touch several of them."""
        return True

    @property
    def failover_grace_s(self) -> float:
        """The longest time for which a replaced primary may still answer this process; 0 without sentinels."""
        return FOLLOW_S + QUERY_S if isinstance(self.topology, Sentinels) else 0.0

    @property
    def certain_at(self) -> float:
        """The last time (of the loop) at which no server that this process calls had been replaced; -inf if that is
        never known."""
        return -math.inf

    @property
    def busy(self) -> bool:
        """Whether calls are waiting for their replies."""
        return self._hot.statistics().in_flight > 0

    async def clock_ms(self, key: str = "") -> int:
        """The time of the server's clock, which is used for all times that several processes compare.

        `key`: of the server that has this key. On a cluster each server has its own clock.
        """
        future = asyncio.get_running_loop().create_future()
        self._shard_of((key,)).call(("TIME",), partial(settle, future))
        seconds, micros = await future
        return int(seconds) * 1000 + int(micros) // 1000

    async def memory_ratio(self) -> float:
        """The used share of the server's memory: used_memory / maxmemory, 0 without a limit."""
        info = info_of(await self.fetch("INFO", "memory"))
        limit = int(info["maxmemory"])
        return int(info["used_memory"]) / limit if limit else 0.0

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(self._hot.statistics(), dict(self._functions))

    # -- calls

    def call(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        """Call a function of the library; `reply` receives its value or a `LinnetError`."""
        self._functions[function] += 1
        name = self.library.named(function)
        self._shard_of(keys).call(("FCALL", name, len(keys), *keys, *args), reply)

    def read(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        """Call a function that only reads, as `call` does; the server refuses one that could write."""
        self._functions[function] += 1
        name = self.library.named(function)
        self._shard_of(keys).call(("FCALL_RO", name, len(keys), *keys, *args), reply)

    def template(
        self, function: str, keys: Sequence[str], first: Sequence[RedisArg], given: int, last: Sequence[RedisArg]
    ) -> CommandTemplate:
        """Make a template of a call; each `call_template` passes `given` arguments between `first` and `last`."""
        name = self.library.named(function)
        return CommandTemplate(keys, ("FCALL", name, len(keys), *keys, *first), given, tuple(last))

    def call_template(self, function: str, template: CommandTemplate, given: Sequence[bytes], reply: Reply) -> None:
        """Call a function by its template, as `call` does."""
        self._functions[function] += 1
        self._shard_of(template.keys).call_packed(template.packed(given), reply)

    def command(self, *parts: RedisArg, reply: Reply) -> None:
        """Send a plain command whose second part is its key."""
        self._shard_of(parts[1:2]).call(parts, reply)

    def publish(self, channel: str | bytes, payload: bytes) -> None:
        """Publish a payload without a reply: its content is stored in Redis, or its sender repeats it."""
        self._shard_of((channel,)).call(("SPUBLISH", channel, payload), _ignore)

    async def fcall(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg]) -> Any:
        """Call a function and return its value."""
        future = asyncio.get_running_loop().create_future()
        self.call(function, keys, args, partial(settle, future))
        return await future

    async def fcall_each(self, function: str, keys: Sequence[str], args: Sequence[RedisArg]) -> list[Any]:
        """Call a function that returns a value for each key, in one call if one server has all keys.

        Otherwise a value may be a `LinnetError`: a server that does not answer costs only its own keys.
        """
        if self.one_server:
            return list(await self.fcall(function, keys, args))
        answers: list[Any] = []
        for one in await asyncio.gather(*(self.fcall(function, (key,), args) for key in keys), return_exceptions=True):
            if isinstance(one, LinnetError):
                answers.append(one)
            elif isinstance(one, BaseException):
                raise one
            else:
                answers += one
        return answers

    def groups(self, items: Sequence[int], partition: Callable[[int], int], most: int) -> Iterator[Sequence[int]]:
        """Divide items into those of which one call may have all keys: at most `most`, and of one partition if the
        partitions are not all on one server."""
        parts: list[Sequence[int]] = [items]
        if not self.one_server:
            of: dict[int, list[int]] = {}
            for item in items:
                of.setdefault(partition(item), []).append(item)
            parts = list(of.values())
        for part in parts:
            for first in range(0, len(part), most):
                yield part[first : first + most]

    async def fetch(self, *parts: RedisArg) -> Any:
        """Send a plain command and return its reply."""
        future = asyncio.get_running_loop().create_future()
        self.command(*parts, reply=partial(settle, future))
        return await future

    async def fetch_each(self, commands: Iterable[Sequence[RedisArg]]) -> list[Any]:
        """Send plain commands and return their replies; `Unavailable` if no server answers.

        A reply may be an `Unavailable`: a server of a cluster that does not answer costs only its own keys.
        """
        replies = await asyncio.gather(*(self.fetch(*command) for command in commands), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, Unavailable):
                raise reply
        if all(isinstance(reply, Unavailable) for reply in replies):
            raise replies[0]
        return replies

    async def _read_probe(self, key: str) -> None:
        """Call a function that only reads, as the pre-send hook needs it."""
        future = asyncio.get_running_loop().create_future()
        self.read("may_take", (f"{key}:none",), ("opens", 1, 1), partial(settle, future))
        await future

    def second_connection(self) -> HotConnection:
        """Another connection to the same server, for calls that may delay the calls behind them."""
        connection = HotConnection(self.topology, self.library.source)
        connection.expected_id = self._hot.expected_id
        self.links.append(connection)
        return connection

    def _shard_of(self, keys: Sequence[RedisArg]) -> HotConnection:
        """The connection to the server of these keys, which all have one hash tag."""
        return self._hot

    # -- at start

    async def load(self) -> None:
        """Load the library; `StartupError` if the server does not take it."""
        try:
            await self.fetch("FUNCTION", "LOAD", self.library.source)
        except FunctionError as error:
            if not error.detail.endswith("already exists"):
                raise StartupError(f"Redis at {self.address} cannot load the functions: {error.detail}") from None
            await self._check_library()
        except Denied as error:
            raise StartupError(
                f"Redis at {self.address} does not allow its user to load the functions ({error.why}): give the user"
                " the rights in deploy/README.md"
            ) from None
        except Unavailable:  # for example out of memory: the functions may be loaded, else the first call tries again
            log.warning("Redis at %s did not load the functions; the first call tries again", self.address)

    async def _check_library(self) -> None:
        """Raise `StartupError` if the server has a library of the same name with another source."""
        name = self.library.name
        try:
            found = await self.fetch("FUNCTION", "LIST", "LIBRARYNAME", name, "WITHCODE")
        except Unavailable:  # denied or disconnected: if a function is missing, the first call reports it
            return
        if not any(self.library.source in library for library in found):
            raise StartupError(
                f"Redis at {self.address}: the function library {name}, or a function of it, is not Linnet's: remove"
                " it with FUNCTION DELETE"
            )

    async def check_server(self, durability: Level, replicas: int = 1) -> None:
        """Raise `StartupError` if the server cannot keep what `durability` promises, `Unavailable` if it is lost."""
        info = info_of(await self._required(self.fetch(*INFO), "does not answer INFO: allow it"))
        config: dict[str, str] = {}
        if durability == "fsync":
            config = config_of(await self._required(self.fetch(*CONFIG), HIDDEN))
        if fault := unfit(info, durability, config, clustered=self.clustered):
            raise StartupError(f"Redis at {self.address}: {fault}")
        if durability == "fsync" and (self.clustered or isinstance(self.topology, Sentinels)):
            log.warning("LINNET_DURABILITY=fsync: a failover can lose acked sends, level replicated keeps them")
        elif durability == "replicated":
            self._count_replicas(info, replicas)
        elif durability == "provider":
            log.warning("LINNET_DURABILITY=provider: what acked sends survive is what the provider of Redis at %s"
                        " promises; Linnet has not checked it", self.address)  # fmt: skip

    async def probe(self) -> None:
        """Raise `StartupError` with the missing rights of this process's user, `Unavailable` if the server is lost.

        It tries all commands of the functions on scratch keys of each family, publishing, and the other commands that
        reading needs.
        """
        await self.probe_at(list(zip(keys.PROBES, cycle(self.channels.probes()), strict=False)))

    async def probe_at(self, places: Sequence[tuple[str, str]]) -> None:
        """Try the rights on these keys, each with a channel."""
        refused: list[str] = []
        for key, channel in places:
            try:
                denials = iter(await self.fcall("probe", (key,), (channel,)))
                for command, why in zip(denials, denials, strict=True):
                    refused.append(f"{command.decode()}: {why.decode().removeprefix(DENIED)}")
                await self.fetch("HSCAN", f"{key}:none", 0)
                await self.fetch("SCAN", 0, "COUNT", 1)
                await self.fetch("SPUBLISH", channel, "")
                await self._read_probe(key)
            except Denied as error:
                refused.append(error.why)
        if refused:
            raise StartupError(
                f"Redis at {self.address} refuses what Linnet needs ({'; '.join(dict.fromkeys(refused))}): give its"
                " user the rights in deploy/README.md"
            )

    def _count_replicas(self, info: dict[str, str], replicas: int) -> None:
        """Warn if the number of replicas is not `replicas`: a missing replica stops acks, but not the start."""
        connected = int(info.get("connected_slaves", 0))
        if connected < replicas:
            log.warning("Redis at %s has %d of %d replicas: no send is acked until it has all of them", self.address,
                        connected, replicas)  # fmt: skip
        elif connected > replicas:
            log.warning("Redis at %s has %d replicas, but LINNET_REPLICAS is %d: a failover to a replica that acks did"
                        " not wait for loses acked sends", self.address, connected, replicas)  # fmt: skip

    async def _required(self, reply: Awaitable[T], refused: str) -> T:
        """The reply; `StartupError` if the server refuses the command, `Unavailable` if the connection was lost."""
        was_up, reconnects = self.available, self._hot.reconnects
        try:
            return await reply
        except LinnetError:
            if not was_up or not self.available or reconnects != self._hot.reconnects:
                raise Unavailable(retry_after=RETRY_S) from None
            raise StartupError(f"Redis at {self.address} {refused}") from None


def _database(where: Address) -> int:
    return next((int(part[1]) for part in where.greeting if part[0] == "SELECT"), 0)


def _topology(url: str, mode: Mode) -> Topology:
    if mode == "cluster":
        raise ValueError("a cluster has a client of its own (choose.py)")
    if mode == "sentinel":
        return Sentinels(url)
    if url.partition(":")[0] in SCHEMES:
        raise StartupError("LINNET_REDIS_URL names sentinels: set LINNET_REDIS_MODE=sentinel")
    if url.partition(":")[0] in CLUSTERS:
        raise StartupError("LINNET_REDIS_URL names a cluster: set LINNET_REDIS_MODE=cluster")
    return address(url)


def _ignore(value: object) -> None:
    """Ignore a reply; the connection has counted it if it is an error."""


def settle(future: asyncio.Future[Any], value: object) -> None:
    """Give a future the reply of a call."""
    if future.done():
        return  # the caller was cancelled
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


__all__ = ["Client", "ClientStatistics", "Mode", "RedisArg", "Reply"]
