"""Fitness: whether a server keeps what the deployment's durability promises, checked at start and while it is used.

`unfit` is a plain function of INFO and configuration. `Fitness` requests both at every connect and every CHECK_S
seconds. While a server is unfit, `durability` counts no append as kept, gateway and router refuse sends, and `/readyz`
gives the reason.

Invariants
- The check is the first request on a new connection, so its replies come before the reply of any append there: no
  append counts as kept on a server that is unfit when the connection opens.
- Only a reply changes the verdict; a lost connection or a full queue does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Literal, Protocol, cast

from router.contract.errors import LinnetError
from router.store.redis.pipeline import Denied, HotConnection

Level = Literal["memory", "fsync", "replicated", "provider"]

CHECK_S: Final = 2.0
OLDEST: Final = (7, 0)  # the first version with functions and sharded pub/sub
INFO: Final = ("INFO", "server", "replication", "memory", "persistence", "cluster")
CONFIG: Final = ("CONFIG", "GET", "appendfsync", "no-appendfsync-on-rewrite")
FSYNC: Final = "set `appendonly yes` and `appendfsync always` there, or choose another LINNET_DURABILITY"
HIDDEN: Final = (
    "does not allow its user to read its configuration, so durability fsync cannot be checked: allow CONFIG GET, "
    + FSYNC
)

log = logging.getLogger("linnet.redis")


def info_of(reply: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = reply.decode().split("\r\n")
    return dict(line.split(":", 1) for line in lines if ":" in line)


def config_of(reply: list[bytes]) -> dict[str, str]:
    """The parameters of a CONFIG GET reply."""
    names = (part.decode() for part in reply)
    return dict(zip(names, names, strict=True))


def unfit(
    info: Mapping[str, str],
    level: Level = "memory",
    config: Mapping[str, str] | None = None,
    *,
    clustered: bool = False,
) -> str:
    """The fault of a server by its INFO and, at `fsync`, its configuration; empty if it is fit.

    `clustered`: it is expected to be a node of a cluster.
    """
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        return f"version {version} is too old: Redis 7.0 or any Valkey is needed"
    if not clustered and info.get("cluster_enabled") == "1":
        return "it is a cluster node: set LINNET_REDIS_MODE=cluster"
    if clustered and info.get("cluster_enabled") != "1":
        return "it is no cluster node: set LINNET_REDIS_MODE=standalone or sentinel"
    if info.get("role") != "master":
        return "it is a replica: LINNET_REDIS_URL must name the primary"
    policy = info.get("maxmemory_policy", "")
    if level == "provider" and (not policy or policy.startswith("volatile-")):
        return ""  # only answers to Idempotency-Keys expire, so nothing else would be evicted
    if policy != "noeviction":
        return f"it would evict data (maxmemory-policy {policy}): set `maxmemory-policy noeviction`"
    if level == "fsync":
        return _fsync_fault(info, config or {})
    if level == "replicated" and info.get("aof_enabled") != "1":
        return (
            "if it restarts before it is replaced, it and its replicas lose all data: set `appendonly yes` there, or"
            " choose another LINNET_DURABILITY"
        )
    return ""


def _fsync_fault(info: Mapping[str, str], config: Mapping[str, str]) -> str:
    if info.get("aof_enabled") != "1" or config.get("appendfsync") != "always":
        return f"it does not fsync what it acknowledges: {FSYNC}"
    if config.get("no-appendfsync-on-rewrite", "no") != "no":
        return "it does not fsync while it rewrites its append-only file: set `no-appendfsync-on-rewrite no`"
    return ""


class Verdict(Protocol):
    """`fault` is empty while the server, or every server of a cluster, is fit."""

    @property
    def fault(self) -> str: ...
    def watch(self, level: Level) -> None: ...
    def stop(self) -> None: ...


class Fitness:
    """The verdict on the server of a connection."""

    def __init__(self, connection: HotConnection, *, clustered: bool = False) -> None:
        self.fault = ""
        self._clustered = clustered
        self._connection = connection
        self._level: Level = "memory"
        self._config: dict[str, str] | None = None  # None if it is not known
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, level: Level) -> None:
        """Check the server for this durability level from now on, at every connect and every CHECK_S."""
        self._level = level
        self._connection.on_opened = self._request
        self._check()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        if self._connection.up:
            self._request()

    def _request(self) -> None:
        """Request the configuration before INFO: replies come in order, so it is known when INFO's is judged."""
        if self._level == "fsync":
            self._connection.call(CONFIG, self._configured)
        self._connection.call(INFO, self._informed)

    def _configured(self, value: object) -> None:
        self._config = None if isinstance(value, LinnetError) else config_of(cast("list[bytes]", value))
        if isinstance(value, Denied):
            self._judge(f"it {HIDDEN}")

    def _informed(self, value: object) -> None:
        if isinstance(value, Denied):
            self._judge("it does not answer INFO: allow it")
        elif not isinstance(value, LinnetError) and (self._config is not None or self._level != "fsync"):
            info = info_of(cast("bytes", value))
            self._judge(unfit(info, self._level, self._config, clustered=self._clustered))

    def _judge(self, fault: str) -> None:
        if fault == self.fault:
            return
        self.fault = fault
        if fault:
            log.error("Redis at %s is unfit for LINNET_DURABILITY=%s, so no send is acked: %s",
                      self._connection.address, self._level, fault)  # fmt: skip
        else:
            log.warning("Redis at %s is fit again", self._connection.address)


class ClusterFitness:
    """The verdicts on all servers of a cluster that have slots; each server is judged by itself."""

    def __init__(self) -> None:
        self._of: dict[HotConnection, Verdict] = {}
        self._level: Level | None = None

    @property
    def fault(self) -> str:
        """The fault of one of the servers that are unfit."""
        return next((one.fault for one in self._of.values() if one.fault), "")

    def fault_of(self, connection: HotConnection) -> str:
        one = self._of.get(connection)
        return "" if one is None else one.fault

    def add(self, connection: HotConnection, one: Verdict) -> None:
        self._of[connection] = one
        if self._level is not None:
            one.watch(self._level)

    def remove(self, connection: HotConnection) -> None:
        one = self._of.pop(connection, None)
        if one is not None:
            one.stop()

    def watch(self, level: Level) -> None:
        self._level = level
        for one in self._of.values():
            one.watch(level)

    def stop(self) -> None:
        for one in self._of.values():
            one.stop()
