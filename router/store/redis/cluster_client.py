"""The client of a cluster: it has the interface of the client of one server, and a client of each of its servers.

`map_follower` follows the map; `routing` has the connections and sends the calls. A process starts if one server with
slots answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from statistics import median
from typing import Any, Final

import msgspec

from router.contract import keys as names
from router.contract.errors import Internal, LinnetError, StartupError, Unavailable
from router.store.redis.client import CONNECT_S, Client, ClientStatistics
from router.store.redis.cluster import Cluster
from router.store.redis.connection import CommandTemplate, RedisArg, pack
from router.store.redis.fitness import ClusterFitness, Level, config_of
from router.store.redis.functions import Library, build
from router.store.redis.map_follower import ASK_S, DOUBT_S, POLL_S, MapFollower
from router.store.redis.pipeline import RETRY_S, HotConnection, HotStatistics, Reply
from router.store.redis.routing import Line, Routing
from router.store.redis.slots import slot_of

UNNAMED_S: Final = 60.0  # for which a connection to a server without slots is kept
SETTLE_S: Final = 2.0  # for which a start waits for further servers once one answers
SHARDS: Final = 64  # that have metrics of their own
NODE_TIMEOUT_S: Final = 15.0  # the servers' default, where they do not tell their own
# Settings without which a part that is down takes others with it, or a server that is cut off looks well.
ADVISED: Final = {
    "cluster-require-full-coverage": "no",
    "cluster-allow-pubsubshard-when-down": "no",
    "cluster-allow-replica-migration": "no",
}
CLUSTER_CONFIG: Final = ("CONFIG", "GET", "cluster-node-timeout", *ADVISED)

log = logging.getLogger("linnet.redis")


class ClusterStatistics(msgspec.Struct, frozen=True):
    epoch: int
    partitions_served: int
    partitions_down: int
    redirects: dict[str, int]  # by kind
    held: int
    longest_hold_s: float  # since the last time
    in_flight: list[int]  # by shard, in the order of their slots
    calls: list[int]  # the same: sent since the last time


class ClusterClient(Client):
    """A client of a cluster. The connection of its base class only asks for the map."""

    def __init__(self, cluster: Cluster, library: Library | None = None) -> None:
        super().__init__(cluster, library or build())
        self.cluster = cluster
        doubted = asyncio.Event()
        self.routing = Routing(cluster, self.library.source, doubted.set)
        self.map = MapFollower(cluster, self.routing, self._hot, doubted, self._look_round)
        self.routing.changed.append(self._watch_lines)
        self._servers: dict[Line, Client] = {}
        self._fitness = ClusterFitness()
        self.fitness = self._fitness
        self._past = _NONE  # of connections that are closed
        self._calls_seen: dict[Line, int] = {}  # of each primary, when the statistics were last read
        self._closing: set[asyncio.Task[None]] = set()
        self._node_timeout_s = NODE_TIMEOUT_S

    async def open(self, within_s: float = CONNECT_S) -> None:
        """Find the cluster and load the library on the servers that answer; `StartupError` if none is usable."""
        try:
            await self._hot.connect(within_s)
            self.map.start()
            await self._until_served(within_s)
            await self._each(Client.load)
        except BaseException:
            await self.close()
            raise

    async def _until_served(self, within_s: float) -> None:
        """Wait until a server with slots answers, and SETTLE_S at most until all do."""
        loop = asyncio.get_running_loop()
        began, first = loop.time(), None
        while True:
            serving = self.routing.serving
            if serving and first is None:
                first = loop.time()
            timed = all(line.ahead_ms is not None for line in serving)
            if first is not None and timed and (serving == self.routing.primaries or loop.time() - first > SETTLE_S):
                return
            if first is None and self.map.refusal:
                raise StartupError(f"Redis at {self.address} {self.map.refusal}")
            if first is None and loop.time() - began > within_s:
                raise StartupError(f"Redis at {self.address}: none of the cluster's servers with slots can be reached")
            await asyncio.sleep(DOUBT_S / 10)

    async def close(self) -> None:
        await self.map.stop()
        self._fitness.stop()
        await asyncio.gather(*(line.close() for line in self.routing.lines.values()), self._hot.close())
        if self._closing:
            await asyncio.wait(self._closing)

    # -- its servers

    def _look_round(self) -> None:
        """Ask all servers for their time, and leave those that no map names any more."""
        for line in self.routing.serving:
            self._ask_time(line)
        for line in self.routing.unnamed(UNNAMED_S):
            self._close(line)

    def doubt(self) -> None:
        """Ask for the map soon: it may have changed."""
        self.map.doubted.set()

    def server(self, line: Line) -> Client:
        """The client of one server, for its checks and subscriptions; `line` is its connection for calls."""
        server = self._servers.get(line)
        if server is None:
            server = self._servers[line] = Client(line.topology, self.library, line)
            self._fitness.add(line, server.fitness)
        server.channels = self.channels
        return server

    def _watch_lines(self) -> None:
        for line in self.routing.serving:
            self.server(line)
            if line.ahead_ms is None:
                self._ask_time(line)

    def _close(self, line: Line) -> None:
        self._past = _total([self._past, line.statistics()])
        self._servers.pop(line, None)
        self._fitness.remove(line)
        self.later(line.close())

    def later(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close a connection to a server that is gone; `close` waits for it."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -- what is known

    @property
    def servers(self) -> Sequence[Client]:
        """A client of each server with slots that answers."""
        return [self.server(line) for line in self.routing.serving]

    @property
    def database(self) -> int:
        return 0

    @property
    def available(self) -> bool:
        return bool(self.routing.serving)

    @property
    def trouble(self) -> str:
        """The reason why no part of the cluster is usable now; empty if one is."""
        if not self.available and any(line.up for line in self.routing.primaries):
            return f"Redis at {self.address}: the servers of the cluster say that it is down, and refuse all calls"
        if not self.available:
            return f"Redis at {self.address}: no server of the cluster can be reached: {self._hot.why}"
        return f"Redis is unfit: {self.fitness.fault}" if self.fitness.fault else ""

    @property
    def one_server(self) -> bool:
        return False

    @property
    def failover_grace_s(self) -> float:
        """A server that is cut off answers for at most its node timeout."""
        return self._node_timeout_s + POLL_S + ASK_S

    @property
    def certain_at(self) -> float:
        return self.map.certain_at

    @property
    def busy(self) -> bool:
        return self.routing.waiting[0] > 0

    def fault(self, key: str) -> str:
        """The fault of the server that has this key; empty if it is fit, or not known."""
        line = self.routing.owner(slot_of(key))
        return "" if line is None else self.fault_of(line)

    def fault_of(self, line: Line) -> str:
        return self._fitness.fault_of(line)

    def cluster_statistics(self) -> ClusterStatistics:
        owners = [self.routing.owner(slot_of(tag)) for tag in (*names.tags("c"), *names.tags("u"))]
        up = [line is not None and line.serves for line in owners]
        longest, self.routing.longest_hold_s = self.routing.longest_hold_s, 0.0
        shards = [(line, line.statistics()) for line in self.routing.primaries[:SHARDS]]
        before, self._calls_seen = self._calls_seen, {line: now.calls for line, now in shards}
        return ClusterStatistics(
            epoch=self.map.epoch,
            partitions_served=sum(up),
            partitions_down=len(up) - sum(up),
            redirects=dict(self.routing.redirects),
            held=self.routing.held()[1],
            longest_hold_s=longest,
            in_flight=[now.in_flight for _, now in shards],
            calls=[now.calls - before.get(line, now.calls) for line, now in shards],
        )

    def statistics(self) -> ClientStatistics:
        lines = [line.statistics() for line in self.routing.lines.values()]
        hot = _total([self._past, self._hot.statistics(), *lines])
        calls, size = self.routing.waiting
        refused = hot.refused + self.routing.refused + self.routing.expired
        return ClientStatistics(
            msgspec.structs.replace(hot, up=self.available, in_flight=calls, in_flight_bytes=size, refused=refused),
            dict(self._functions),
        )

    # -- times and memory

    def _ask_time(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        line.call(("TIME",), partial(_timed, line, loop.time(), loop.time))

    async def clock_ms(self, key: str = "") -> int:
        """The time of the server that has this key; without a key the median of all servers' times."""
        if key:
            line = self.routing.owner(slot_of(key))
            if line is None or not line.up:
                raise Unavailable(retry_after=RETRY_S)
            return await self.server(line).clock_ms()
        ahead = [line.ahead_ms for line in self.routing.serving if line.ahead_ms is not None]
        if not ahead:
            raise Unavailable(retry_after=RETRY_S)
        return round(asyncio.get_running_loop().time() * 1000 + median(ahead))

    async def memory_ratio(self) -> float:
        """The largest used share of the memory of a server that answers."""
        found: list[float] = await self._each(Client.memory_ratio)
        return max(found)

    async def _each(self, ask: Callable[[Client], Awaitable[Any]]) -> list[Any]:
        """An answer of every server that answers; `StartupError` if one has it, `Unavailable` if no server answers."""
        found = await asyncio.gather(*map(ask, self.servers), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, Unavailable):
                raise one
        answers = [one for one in found if not isinstance(one, BaseException)]
        if not answers:
            raise Unavailable(retry_after=RETRY_S)
        return answers

    # -- calls

    def call(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        self._functions[function] += 1
        self._route(keys[0], ("FCALL", self.library.named(function), len(keys), *keys, *args), reply)

    def read(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        self._functions[function] += 1
        self._route(keys[0], ("FCALL_RO", self.library.named(function), len(keys), *keys, *args), reply)

    def call_template(self, function: str, template: CommandTemplate, given: Sequence[bytes], reply: Reply) -> None:
        self._functions[function] += 1
        self.routing.call(slot_of(template.keys[0]), template.packed(given), reply)

    def command(self, *parts: RedisArg, reply: Reply) -> None:
        self._route(parts[1], parts, reply)

    def publish(self, channel: str | bytes, payload: bytes) -> None:
        self._route(channel, ("SPUBLISH", channel, payload), _ignore)

    def _route(self, key: RedisArg, command: tuple[RedisArg, ...], reply: Reply) -> None:
        try:
            packed = pack(command)
        except (TypeError, ValueError) as error:  # a bug of the caller: a wrong type, or a string that is no UTF-8
            log.error("a command cannot be packed", exc_info=error)
            asyncio.get_running_loop().call_soon(reply, Internal())
            return
        self.routing.call(slot_of(key), packed, reply)

    def _shard_of(self, keys: Sequence[RedisArg]) -> HotConnection:
        raise NotImplementedError("calls of a cluster are routed by their slot")

    def second_connection(self) -> HotConnection:
        raise NotImplementedError("a cluster has a second connection for each server (durability)")

    # -- at start

    async def check_server(self, durability: Level, replicas: int = 1) -> None:
        """Check every server that answers, as for one server."""
        await self._each(lambda server: server.check_server(durability, replicas))
        found = await self._each(_cluster_config)
        timeouts = [int(config["cluster-node-timeout"]) / 1000 for config in found if "cluster-node-timeout" in config]
        self._node_timeout_s = max(timeouts, default=NODE_TIMEOUT_S)
        for name, wanted in ADVISED.items():
            if any(config.get(name, wanted) != wanted for config in found):
                log.warning("Redis: set `%s %s` on all servers of the cluster (deploy/README.md, On a cluster)",
                            name, wanted)  # fmt: skip

    async def probe(self) -> None:
        """Try the rights on every server that answers, on scratch keys and channels of its slots."""
        await asyncio.gather(*map(self._probe, self.routing.serving))

    async def _probe(self, line: Line) -> None:
        def has(name: str) -> bool:
            return self.routing.owner(slot_of(name)) is line

        tags = [next(filter(has, names.tags(family)), "") for family in "cuf"]
        channel = f"{self.channels.bus}{tags[0] or tags[1]}:probe"
        keys = [f"{tag}:probe" for tag in tags if tag] + [names.PROBES[-1]] * has(names.PROBES[-1])
        if tags[0] or tags[1]:
            await self.server(line).probe_at([(key, channel) for key in keys])


async def _cluster_config(server: Client) -> dict[str, str]:
    """The server's settings that concern the cluster; empty if it does not tell them."""
    try:
        return config_of(await server.fetch(*CLUSTER_CONFIG))
    except LinnetError:
        return {}


def _timed(line: Line, asked: float, clock: Callable[[], float], reply: object) -> None:
    if isinstance(reply, list):
        seconds, micros = reply
        line.ahead_ms = int(seconds) * 1000 + int(micros) / 1000 - (asked + clock()) / 2 * 1000


def _ignore(value: object) -> None:
    """Ignore the reply to a publication; its content is stored in Redis, or its sender repeats it."""


_NONE: Final = HotStatistics(
    up=False, calls=0, in_flight=0, in_flight_bytes=0, written_bytes=0, read_bytes=0, batches=0, refused=0, timeouts=0,
    reconnects=0, loads=0, callback_errors=0, errors={},
)  # fmt: skip


def _total(parts: Sequence[HotStatistics]) -> HotStatistics:
    """The sum of the counts of several connections."""
    errors: Counter[str] = Counter()
    for part in parts:
        errors.update(part.errors)
    numbers = [field for field in HotStatistics.__struct_fields__ if field not in ("up", "errors")]
    sums = {field: sum(getattr(part, field) for part in parts) for field in numbers}
    return HotStatistics(up=any(part.up for part in parts), errors=dict(errors), **sums)
