"""What the domain files call Redis through: functions, plain commands, publishing; and the checks at start.

What lives here: which connection a key belongs to (one, as long as Redis is one), the names of this version's
functions, awaitable twins of the callback calls, and whether the server is fit for what is promised. What never
does: a key's name, a function's arguments, a retry that could run something twice.

Invariants
- `call` and `command` never raise and never answer before they have returned; see `hot` for order and bounds.
- `Unavailable` is the only error that means "later"; the outcome of a call that met it is unknown.
- Listeners hear up and down in turn; one that raises is logged and the others still hear.

Rejected: redis-py for the calls (20-85 µs each); a connection pool (order within one connection is what lets a
gateway pipeline a device's sends). It stays for what is cold (`cold`): INFO, CONFIG, and finding a topology.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec
import redis
import redis.asyncio

from router.contract.errors import FunctionError, StartupError, Unavailable
from router.store.hot import HotConnection, HotStatistics, Reply
from router.store.library import Library, build
from router.store.link import Address, Part, address

Mode = Literal["standalone", "sentinel", "cluster"]
Durability = Literal["memory", "fsync", "replicated"]

CONNECT_S: Final = 10.0
OLDEST: Final = (7, 0)  # functions, sharded pub/sub

log = logging.getLogger("linnet.redis")


class ClientStatistics(msgspec.Struct, frozen=True):
    hot: HotStatistics
    functions: dict[str, int]  # calls by function


class Client:
    """`client = await Client.connect(url)`; `await client.close()` at the end."""

    def __init__(self, where: Address, cold: redis.asyncio.Redis, library: Library) -> None:
        self.address = where
        self.cold = cold
        self._library = library
        self._up: list[Callable[[], None]] = []
        self._down: list[Callable[[], None]] = []
        self._functions: Counter[str] = Counter()
        self._hot = HotConnection(where, library.source, partial(_tell, self._up), partial(_tell, self._down))

    @classmethod
    async def connect(
        cls, url: str, mode: Mode = "standalone", *, within_s: float = CONNECT_S, library: Library | None = None
    ) -> Client:
        """Up, with the library loaded; `StartupError` says what is wrong with the URL, the server or the functions."""
        if mode != "standalone":
            raise StartupError(f"LINNET_REDIS_MODE={mode} is not supported yet: use standalone")
        client = cls(address(url), redis.asyncio.Redis.from_url(url), library or build())
        try:
            await client._hot.connect(within_s)
            await client._load()
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        await self._hot.close()
        await self.cold.aclose()

    @property
    def available(self) -> bool:
        return self._hot.up

    def on_up(self, callback: Callable[[], None]) -> None:
        self._up.append(callback)

    def on_down(self, callback: Callable[[], None]) -> None:
        self._down.append(callback)

    @property
    def busy(self) -> bool:
        """Whether calls wait for their replies."""
        return self._hot.statistics().in_flight > 0

    async def memory_ratio(self) -> float:
        """How full the server is: used_memory / maxmemory, 0 without a limit."""
        lines = (await self.fetch("INFO", "memory")).decode().split("\r\n")
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        limit = int(info["maxmemory"])
        return int(info["used_memory"]) / limit if limit else 0.0

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(self._hot.statistics(), dict(self._functions))

    # -- calls

    def call(self, function: str, keys: Sequence[str | bytes], args: Sequence[Part], reply: Reply) -> None:
        """Call a function of our library; `reply` gets its value or a `LinnetError`."""
        self._functions[function] += 1
        name = self._library.named(function)
        self._shard_of(keys).call(("FCALL", name, len(keys), *keys, *args), reply)

    def command(self, *parts: Part, reply: Reply) -> None:
        """Send a plain command, its key second as in most."""
        self._shard_of(parts[1:2]).call(parts, reply)

    def publish(self, channel: str | bytes, payload: bytes) -> None:
        """Fire and forget: what it tells is in Redis, or is repeated by its sender."""
        self._shard_of((channel,)).call(("SPUBLISH", channel, payload), _ignore)

    async def fcall(self, function: str, keys: Sequence[str | bytes], args: Sequence[Part]) -> Any:
        """`call`, awaited."""
        future = asyncio.get_running_loop().create_future()
        self.call(function, keys, args, partial(_settle, future))
        return await future

    async def fetch(self, *parts: Part) -> Any:
        """`command`, awaited."""
        future = asyncio.get_running_loop().create_future()
        self.command(*parts, reply=partial(_settle, future))
        return await future

    def _shard_of(self, keys: Sequence[Part]) -> HotConnection:
        """The connection that serves these keys, which all bear one hash tag."""
        return self._hot

    # -- at start

    async def _load(self) -> None:
        try:
            await self.fetch("FUNCTION", "LOAD", self._library.source)
        except FunctionError as error:
            if not error.detail.endswith("already exists"):
                raise StartupError(f"Redis does not take our functions: {error.detail}") from None
        except Unavailable:  # out of memory, say: the functions may be there, else the first call tries again
            log.warning("Redis at %s did not load the functions now", self.address)

    async def check_server(self, durability: Durability) -> None:
        """`StartupError` if this server cannot keep what `durability` promises."""
        try:
            info: dict[str, Any] = await self.cold.info()
        except redis.RedisError as error:
            raise StartupError(f"Redis at {self.address} does not answer INFO: {error}") from None
        if fault := unfit(info):
            raise StartupError(f"Redis at {self.address}: {fault}")
        if durability == "fsync":
            await self._check_fsync(info)

    async def _check_fsync(self, info: dict[str, Any]) -> None:
        wanted = "set `appendonly yes` and `appendfsync always` there, or choose another LINNET_DURABILITY"
        try:
            appendfsync = (await self.cold.config_get("appendfsync")).get("appendfsync")
        except redis.RedisError:
            raise StartupError(
                f"Redis at {self.address} does not let us read its configuration, so durability fsync cannot be"
                f" checked: allow CONFIG GET, {wanted}"
            ) from None
        if not info.get("aof_enabled") or appendfsync != "always":
            raise StartupError(f"Redis at {self.address} does not fsync what it acknowledges: {wanted}")


def unfit(info: dict[str, Any]) -> str:
    """What is wrong with a server, from its INFO; empty if nothing is."""
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        return f"version {version} is too old: Redis 7.0 or any Valkey is needed"
    if info.get("cluster_enabled"):
        return "it is a cluster node: set LINNET_REDIS_MODE=cluster"
    if info.get("role") != "master":
        return "it is a replica: LINNET_REDIS_URL must name the primary"
    if (policy := info.get("maxmemory_policy")) != "noeviction":
        return f"it would evict data (maxmemory-policy {policy}): set `maxmemory-policy noeviction`"
    return ""


def _ignore(value: object) -> None:
    """The reply that nobody waits for; errors were counted where they came in."""


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return  # the caller gave up
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


def _tell(listeners: list[Callable[[], None]]) -> None:
    for listener in listeners:
        try:
            listener()
        except Exception:  # a listener's fault must not end the connection's
            log.exception("a listener of the Redis connection raised")


__all__ = ["Client", "ClientStatistics", "Durability", "Mode", "Part", "Reply", "unfit"]
