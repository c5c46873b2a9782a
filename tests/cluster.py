"""A real Redis Cluster on loopback, for tests of what only a cluster does: its slots move, and its primaries fail over.

Tests connect to it as the product does (`url` of some nodes), or call functions on the node that they name.

Invariants
- `start` gives each primary an equal range of slots, in the order of `primaries`.
- Methods that change the cluster return when every node that runs agrees.
"""

from __future__ import annotations

import os
import signal
from binascii import crc_hqx
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from deploy.embedded import EmbeddedValkey, known
from tests import support

FORM: Final = os.environ.get("CLUSTER_CHECK", "")  # `full` or `quick` in make cluster-check
long: Final = pytest.mark.skipif(FORM not in ("full", "quick"), reason="part of make cluster-check")

SLOTS: Final = 16384
NODE_TIMEOUT_MS: Final = 2000
AGREE_S: Final = 60.0

CONFIG: Final = """\
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout {timeout}
cluster-require-full-coverage no
cluster-allow-replica-migration no
cluster-port {port}
"""


def slot(key: str) -> int:
    """The slot of a key with a hash tag."""
    return crc_hqx(key.partition("{")[2].partition("}")[0].encode(), 0) % SLOTS


class Node(EmbeddedValkey):
    """One server of the cluster."""

    def __init__(
        self, folder: Path, port: int, bus_port: int, timeout_ms: int = NODE_TIMEOUT_MS, *, fsync: bool = False
    ) -> None:
        super().__init__(folder, port, appendfsync="always" if fsync else "everysec")
        self.port = port
        self.bus_port = bus_port
        self._config += CONFIG.format(timeout=timeout_ms, port=bus_port)

    @property
    def runs(self) -> bool:
        return self.returncode is None

    def call(self, *command: Any) -> Any:
        """Run one command on this node; an error is raised, and so is a redirect."""
        with self.client() as client:
            return client.execute_command(*command)

    def info(self) -> dict[str, Any]:
        """Its section about replication."""
        with self.client() as client:
            return dict(client.info("replication"))

    @property
    def id(self) -> str:
        return str(self.call("CLUSTER", "MYID").decode())

    @property
    def healthy(self) -> bool:
        return b"cluster_state:ok" in self.call("CLUSTER", "INFO")

    @property
    def knows_all(self) -> bool:
        """Whether it knows a primary for every slot. It is healthy without, as long as no shard is required."""
        return bool(sum(last - first + 1 for first, last, *_ in self.call("CLUSTER", "SLOTS")) == SLOTS)

    def owner(self, number: int) -> str:
        """The id of the slot's primary, as this node knows it; empty if there is none."""
        for first, last, primary, *_ in self.call("CLUSTER", "SLOTS"):
            if first <= number <= last:
                return str(primary[2].decode())
        return ""

    def pause(self) -> None:
        """Stop the process; it keeps its connections and its memory."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class Cluster:
    """`primaries[i]` begins with the i-th range of slots; `replicas[i]` are its replicas."""

    def __init__(
        self,
        folder: Path,
        replicas: Sequence[int],
        *,
        timeout_ms: int = NODE_TIMEOUT_MS,
        empty: int = 0,
        fsync: bool = False,
    ) -> None:
        """`replicas`: their number, for each primary. `empty`: primaries without slots, the last in `primaries`."""
        primaries = len(replicas)
        size = primaries + sum(replicas) + empty
        ports = support.free_ports(2 * size)
        self.nodes = [
            Node(folder / str(port), port, bus, timeout_ms, fsync=fsync)
            for port, bus in zip(ports[:size], ports[size:], strict=True)
        ]
        self._holders = primaries
        self.primaries = self.nodes[: primaries + empty]
        others = iter(self.nodes[primaries + empty :])
        self.replicas = [[next(others) for _ in range(number)] for number in replicas]

    @property
    def url(self) -> str:
        """An address that names all its nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    async def start(self) -> Cluster:
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_ready()
        first, *others = self.nodes
        for epoch, node in enumerate(self.nodes, 1):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in others:
            first.call("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        for i in range(self._holders):
            ends = (i * SLOTS // self._holders, (i + 1) * SLOTS // self._holders - 1)
            self.primaries[i].call("CLUSTER", "ADDSLOTSRANGE", *ends)
        await support.eventually(
            lambda: all(known(node.call("CLUSTER", "NODES")) == len(self.nodes) for node in self.nodes),
            AGREE_S,
        )
        for primary, replicas in zip(self.primaries, self.replicas, strict=False):
            for node in replicas:
                node.call("CLUSTER", "REPLICATE", primary.id)
        await support.eventually(lambda: all(node.healthy and node.knows_all for node in self.nodes), AGREE_S)
        await support.eventually(self._replicated, AGREE_S)
        return self

    def _replicated(self) -> bool:
        return all(
            _online(primary) == len(found) for primary, found in zip(self.primaries, self.replicas, strict=False)
        )

    def close(self) -> None:
        for node in self.nodes:
            node.kill()

    # -- a slot moved as a whole

    async def move(self, number: int, source: Node, target: Node, last: int | None = None) -> None:
        """Move a slot, or all from it to `last`, by atomic slot migration; while a server refuses to begin or gives up,
        begin again."""
        ends = (number, number if last is None else last)

        def moved() -> bool:
            if target.owner(number) == target.id:
                return True
            migrations = source.call("CLUSTER", "GETSLOTMIGRATIONS")
            if all(one[b"state"] in _ENDED for one in migrations):
                with suppress(redis.ResponseError):  # right after a failover the servers do not agree on the owner yet
                    source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ends, "NODE", target.id)
            return False

        await support.eventually(moved, AGREE_S, every_s=0.05)
        await self.agree(number, target)

    async def agree(self, number: int, owner: Node) -> None:
        """Wait until every node that runs knows the owner of a slot."""
        await support.eventually(
            lambda: all(node.owner(number) == owner.id for node in self.nodes if node.runs), AGREE_S, every_s=0.05
        )

    # -- a failover

    async def fail_over(self, to: Node, *how: str) -> None:
        """Promote a replica: without a loss, or as if it were elected, with `TAKEOVER`."""

        def promoted() -> bool:
            if to.info()["role"] != "master":
                with suppress(redis.ResponseError):  # it does not know yet that its primary is gone
                    to.call("CLUSTER", "FAILOVER", *how)
                return False
            return to.healthy

        await support.eventually(promoted, AGREE_S, every_s=0.05)

    async def home(self) -> None:
        """Make the first server of each shard its primary again, which a failover may have changed."""
        for primary, replicas in zip(self.primaries, self.replicas, strict=False):
            for other in replicas:
                if other.info()["role"] == "master":
                    await support.eventually(lambda primary=primary: primary.info()["role"] == "slave", AGREE_S)  # type: ignore[misc]
                    await self.caught_up(primary, other)
                    await self.fail_over(primary)
        await support.eventually(lambda: all(node.healthy for node in self.nodes if node.runs), AGREE_S)

    @staticmethod
    async def caught_up(replica: Node, primary: Node) -> None:
        """Wait until a replica has all that its primary has."""

        def level() -> bool:
            has, wrote = replica.info(), primary.info()["master_repl_offset"]
            following = has["role"] == "slave" and has["master_link_status"] == "up"
            return following and bool(has["slave_repl_offset"] == wrote)

        await support.eventually(level, AGREE_S, every_s=0.05)


_ENDED: Final = (b"success", b"failed", b"cancelled", b"canceled")


def _online(primary: Node) -> int:
    info = primary.info()
    return [info[f"slave{i}"]["state"] for i in range(info["connected_slaves"])].count("online")
