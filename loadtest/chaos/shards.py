"""The Redis of a chaos run on a cluster: three shards, each a primary with a replica, whose bus can be cut.

    server -> proxy -> bus of another server

Every server announces the bus port of a proxy and dials from an address of its own, so that the proxies know both ends
of each link, and a server can be cut off from all others while clients and its replica still reach it.

Invariants
- The two servers of a shard stay together: no replica moves to another shard.
- A method that changes the cluster returns when the cluster is whole again, so that the next fault meets what it
  expects. `gone` is the exception of a few seconds in which a shard has no server.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import redis
from redis.cluster import ClusterNode

from deploy.embedded import EmbeddedValkey, known
from deploy.slot_plans import SlotsError, with_partitions
from deploy.slots import Servers, move
from loadtest.chaos.stores import START_S, Store
from loadtest.ports import free_ports
from router.store.redis.slots import SLOTS

SHARDS: Final = 3
NODE_TIMEOUT_MS: Final = 3000
STEP_S: Final = (0.02, 0.2)  # between two keys of a slot that moves key by key
REFUSED: Final = 20  # times that the tool may refuse to move a slot, a second apart
READ_BYTES: Final = 65_536

_CONFIG: Final = """\
cluster-enabled yes
cluster-config-file nodes.conf
cluster-node-timeout {timeout}
cluster-require-full-coverage no
cluster-allow-pubsubshard-when-down no
cluster-allow-replica-migration no
cluster-port {bus}
cluster-announce-bus-port {announced}
bind-source-addr {source}
"""


class Bus:
    """The proxies in front of the servers' buses. Servers are known by the addresses from which they dial."""

    def __init__(self) -> None:
        self.cut_off: set[str] = set()
        self._servers: list[asyncio.Server] = []
        self._links: dict[asyncio.StreamWriter, tuple[str, str]] = {}

    async def listen(self, port: int, to_port: int, address: str) -> None:
        """Forward the connections to `port` to the bus of the server with this address."""

        async def made(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._link(reader, writer, to_port, address)

        self._servers.append(await asyncio.start_server(made, "127.0.0.1", port))

    async def _link(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_port: int, address: str
    ) -> None:
        ends = str(writer.get_extra_info("peername")[0]), address
        other: asyncio.StreamWriter | None = None
        self._links[writer] = ends
        try:
            if self.cut_off.isdisjoint(ends):
                there, other = await asyncio.open_connection("127.0.0.1", to_port)
                self._links[other] = ends
                await asyncio.gather(_pass(reader, other), _pass(there, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the server is down or has reset the link, or the run is over
        finally:
            for end in filter(None, (writer, other)):
                self._links.pop(end, None)
                end.close()

    def cut(self, address: str) -> None:
        """Cut a server off; its links end, and no new one is made."""
        self.cut_off.add(address)
        for writer, ends in list(self._links.items()):
            if address in ends:
                writer.transport.abort()

    def heal(self) -> None:
        self.cut_off.clear()

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for writer in list(self._links):
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


class Server(EmbeddedValkey):
    """One server of the cluster."""

    def __init__(self, folder: Path, ports: tuple[int, int, int], address: str, *, fsync: bool) -> None:
        self.port, self.bus_port, self.announced_port = ports
        self.address = address
        super().__init__(folder, self.port, appendfsync="always" if fsync else "everysec")
        self._config += _CONFIG.format(
            timeout=NODE_TIMEOUT_MS, bus=self.bus_port, announced=self.announced_port, source=address
        )

    def ask(self, *command: str | bytes | float) -> Any:
        with self.client() as client:
            return client.execute_command(*command)

    @property
    def ident(self) -> str:
        return str(self.ask("CLUSTER", "MYID").decode())

    def rank(self) -> tuple[bool, int]:
        """Whether it is a primary by its own word, and the epoch of its slots; those of a dead server are lowest."""
        try:
            lines = self.ask("CLUSTER", "NODES").decode().splitlines()
        except redis.RedisError:
            return False, -1
        _, _, flags, _, _, _, epoch, *_ = next(line for line in lines if "myself" in line.split()[2]).split()
        return "master" in flags, int(epoch)


class Sharded(Store):
    """The servers of the cluster; shard i has the servers i and i + SHARDS."""

    def __init__(self, folder: Path, level: str, rng: random.Random) -> None:
        count = 2 * SHARDS
        ports = free_ports(3 * count)
        self.nodes = [
            Server(
                folder / f"server-{number}",
                (ports[number], ports[count + number], ports[2 * count + number]),
                f"127.0.1.{number + 1}",
                fsync=level == "fsync",
            )
            for number in range(count)
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:SHARDS])
        settings = {"LINNET_REDIS_URL": self.url, "LINNET_REDIS_MODE": "cluster", "LINNET_REPLICAS": "1"}
        super().__init__(folder, cast(list[EmbeddedValkey], self.nodes), settings)
        self.bus = Bus()
        self._rng = rng

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    async def start(self) -> None:
        for node in self.nodes:
            await self.bus.listen(node.announced_port, node.bus_port, node.address)
        await super().start()
        await asyncio.to_thread(self._form)
        await self._until(lambda: all(known(node.ask("CLUSTER", "NODES")) == len(self.nodes) for node in self.nodes))
        await asyncio.to_thread(self._replicate)
        await self.whole()

    def _form(self) -> None:
        for epoch, node in enumerate(self.nodes, 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.announced_port)
        for shard in range(SHARDS):
            first, after = shard * SLOTS // SHARDS, (shard + 1) * SLOTS // SHARDS
            self.nodes[shard].ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)

    def _replicate(self) -> None:
        for shard in range(SHARDS):
            self.nodes[shard + SHARDS].ask("CLUSTER", "REPLICATE", self.nodes[shard].ident)

    # -- what is known

    def client(self) -> redis.Redis:
        """Return a blocking client of all primaries, which has the methods of a client of one server."""
        nodes = [ClusterNode("127.0.0.1", port) for port in self.ports]  # type: ignore[no-untyped-call]
        made = redis.RedisCluster(startup_nodes=nodes, require_full_coverage=False, socket_timeout=5)
        return cast(redis.Redis, made)

    def shard_of(self, node: EmbeddedValkey) -> list[Server]:
        shard = self.servers.index(node) % SHARDS
        return [self.nodes[shard], self.nodes[shard + SHARDS]]

    def primary(self) -> Server:
        """Return the primary of a shard that chance decides."""
        shard = self._rng.randrange(SHARDS)
        return max((self.nodes[shard], self.nodes[shard + SHARDS]), key=Server.rank)

    def replica(self) -> Server:
        """Return the replica of a shard that chance decides."""
        primary = self.primary()
        return next(node for node in self.shard_of(primary) if node is not primary)

    async def whole(self) -> None:
        """Wait until all servers agree about all slots, and every shard has a primary with a replica."""
        await self._until(self._is_whole)

    def _is_whole(self) -> bool:
        views = [sorted(map(_range, node.ask("CLUSTER", "SLOTS"))) for node in self.nodes]
        if any(view != views[0] for view in views) or sum(last - first + 1 for first, last, _ in views[0]) != SLOTS:
            return False
        if not all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes):
            return False
        found = []
        for node in self.nodes:
            with node.client() as client:
                found.append(client.info("replication"))
        pairs = [(found[shard], found[shard + SHARDS]) for shard in range(SHARDS)]
        return all(
            sorted(one["role"] for one in pair) == ["master", "slave"]
            and all(one.get("master_link_status", "up") == "up" for one in pair)
            and all(one["slave0"]["state"] == "online" for one in pair if one["role"] == "master" and "slave0" in one)
            and any("slave0" in one for one in pair)
            for pair in pairs
        )

    async def _until(self, reached: Callable[[], bool]) -> None:
        def holds() -> bool:
            try:
                return reached()
            except redis.RedisError:
                return False

        until = asyncio.get_running_loop().time() + START_S
        while not await asyncio.to_thread(holds):
            if asyncio.get_running_loop().time() > until:
                raise RuntimeError(f"the cluster does not become whole, see the logs in {self.folder}")
            await asyncio.sleep(0.2)

    # -- what faults do

    async def fail_over(self, *how: str) -> str:
        """Promote a replica: by hand, which loses nothing, or as if it were elected, with TAKEOVER."""
        replica = await asyncio.to_thread(self.replica)
        with suppress(redis.ResponseError):  # it is the primary already
            await asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER", *how)
        return replica.folder.name

    async def move(self, *, back: bool) -> str:
        """Move the slot of a partition as a whole, by the operators' tool; `back`: and home again at once."""
        slot, source, target = await asyncio.to_thread(self._choose)
        for owner in (target, source) if back else (target,):
            await asyncio.to_thread(self._move, slot, owner)
        return f"{slot} to {target.folder.name}" + " and back" * back

    def _move(self, slot: int, target: Server) -> None:
        servers = Servers(self.url)
        try:
            for refused in range(REFUSED):
                try:
                    move(servers, [slot], f"127.0.0.1:{target.port}", lambda line: None)
                    return
                except SlotsError:
                    if refused == REFUSED - 1:
                        raise
                    time.sleep(1.0)
        finally:
            servers.close()

    async def move_by_key(self) -> str:
        """Move the slot of a partition key by key, as older tools do."""
        slot, source, target = await asyncio.to_thread(self._choose)
        await asyncio.to_thread(target.ask, "CLUSTER", "SETSLOT", slot, "IMPORTING", source.ident)
        await asyncio.to_thread(source.ask, "CLUSTER", "SETSLOT", slot, "MIGRATING", target.ident)
        while found := await asyncio.to_thread(source.ask, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in found:
                await asyncio.to_thread(source.ask, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
                await asyncio.sleep(self._rng.uniform(*STEP_S))
        ident = await asyncio.to_thread(lambda: target.ident)
        others = [node for node in self.nodes if node not in (source, target) and node.rank()[0]]
        for node in (target, source, *others):
            await asyncio.to_thread(node.ask, "CLUSTER", "SETSLOT", slot, "NODE", ident)
        return f"{slot} to {target.folder.name}"

    def _choose(self) -> tuple[int, Server, Server]:
        """A slot with a partition, its primary, and another primary."""
        primaries = [max(pair, key=Server.rank) for pair in zip(self.nodes[:SHARDS], self.nodes[SHARDS:], strict=True)]
        slot = self._rng.choice(sorted(with_partitions()))
        ranges = map(_range, primaries[0].ask("CLUSTER", "SLOTS"))
        owner = next(ident for first, last, ident in ranges if first <= slot <= last)
        source = next(node for node in primaries if node.ident == owner)
        return slot, source, self._rng.choice([node for node in primaries if node is not source])

    async def heal(self) -> None:
        await super().heal()
        self.bus.heal()
        await self.whole()

    def close(self) -> None:
        super().close()
        self.bus.close()


def _range(row: list[Any]) -> tuple[int, int, str]:
    first, last, primary, *_ = row
    return int(first), int(last), primary[2].decode()
