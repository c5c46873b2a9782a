"""Whether a server keeps what the deployment's durability promises: judged at the start, and again while it is used.

What lives here: the judgement (`unfit`, a plain function of INFO and configuration), and `Fitness`, which asks for both
at every connect and every CHECK_S seconds. What never does: the consequence (`durability` refuses to call an append
kept, gateway and router refuse sends, `/readyz` says why).

Invariants
- The question is the first thing that leaves on a new connection, so its answer comes before that of any append there:
  no append on a server that is unfit when the connection opens is called kept.
- Only an answer changes the verdict. A lost connection or a full queue says nothing about the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Literal, cast

from router.contract.errors import LinnetError
from router.store.redis.pipeline import Denied, HotConnection

Level = Literal["memory", "fsync", "replicated"]

CHECK_S: Final = 2.0
OLDEST: Final = (7, 0)  # functions, sharded pub/sub
INFO: Final = ("INFO", "server", "replication", "memory", "persistence", "cluster")
CONFIG: Final = ("CONFIG", "GET", "appendfsync", "no-appendfsync-on-rewrite")
FSYNC: Final = "set `appendonly yes` and `appendfsync always` there, or choose another LINNET_DURABILITY"
HIDDEN: Final = (
    "does not let us read its configuration, so durability fsync cannot be checked: allow CONFIG GET, " + FSYNC
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


def unfit(info: Mapping[str, str], level: Level = "memory", config: Mapping[str, str] | None = None) -> str:
    """What is wrong with a server, from its INFO and, under `fsync`, its configuration; empty if nothing is."""
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        return f"version {version} is too old: Redis 7.0 or any Valkey is needed"
    if info.get("cluster_enabled") == "1":
        return "it is a cluster node, and LINNET_REDIS_MODE=cluster is not supported yet"
    if info.get("role") != "master":
        return "it is a replica: LINNET_REDIS_URL must name the primary"
    if (policy := info.get("maxmemory_policy")) != "noeviction":
        return f"it would evict data (maxmemory-policy {policy}): set `maxmemory-policy noeviction`"
    if level == "fsync":
        return _fsync_fault(info, config or {})
    if level == "replicated" and info.get("aof_enabled") != "1":
        return (
            "it forgets all when it restarts before it is replaced, and its replicas with it: set `appendonly yes`"
            " there, or choose another LINNET_DURABILITY"
        )
    return ""


def _fsync_fault(info: Mapping[str, str], config: Mapping[str, str]) -> str:
    if info.get("aof_enabled") != "1" or config.get("appendfsync") != "always":
        return f"it does not fsync what it acknowledges: {FSYNC}"
    if config.get("no-appendfsync-on-rewrite", "no") != "no":
        return "it does not fsync while it rewrites its append-only file: set `no-appendfsync-on-rewrite no`"
    return ""


class Fitness:
    """The verdict on the server that a connection leads to; `fault` is empty while it is fit."""

    def __init__(self, connection: HotConnection) -> None:
        self.fault = ""
        self._connection = connection
        self._level: Level = "memory"
        self._config: dict[str, str] | None = None  # None: not known now
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, level: Level) -> None:
        """Judge the server by this durability from now on, at every connect and every CHECK_S."""
        self._level = level
        self._connection.on_opened = self._ask
        self._turn()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._turn)
        if self._connection.up:
            self._ask()

    def _ask(self) -> None:
        """Replies come in order, so the configuration is known when INFO's is judged."""
        if self._level == "fsync":
            self._connection.call(CONFIG, self._configured)
        self._connection.call(INFO, self._informed)

    def _configured(self, value: object) -> None:
        self._config = None if isinstance(value, LinnetError) else config_of(cast("list[bytes]", value))
        if isinstance(value, Denied):
            self._judge(f"it {HIDDEN}")

    def _informed(self, value: object) -> None:
        if isinstance(value, Denied):
            self._judge("it does not answer INFO: allow that")
        elif not isinstance(value, LinnetError) and (self._config is not None or self._level != "fsync"):
            self._judge(unfit(info_of(cast("bytes", value)), self._level, self._config))

    def _judge(self, fault: str) -> None:
        if fault == self.fault:
            return
        self.fault = fault
        if fault:
            log.error("Redis at %s is unfit for LINNET_DURABILITY=%s, no send is acked: %s",
                      self._connection.address, self._level, fault)  # fmt: skip
        else:
            log.warning("Redis at %s is fit again", self._connection.address)
