"""A deployment on one server, or behind sentinels, becomes a cluster of one server and grows, while people write.

The server is restarted in cluster mode under running gateways of the old mode. Processes of the new mode take over,
then servers join and slots move to them. Nothing is lost.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from deploy import slots
from deploy.embedded import EmbeddedValkey, known
from deploy.slot_plans import SlotsError
from router.contract import keys, stamp
from router.contract.tags import NUMBERED
from router.store.redis.slots import slot_of
from tests import support
from tests.cluster import CONFIG, Node, long
from tests.flow.conftest import Start, System
from tests.flow.resilient import ResilientClient
from tests.flow.test_cluster import Talk, talking
from tests.replication import NAME, Replication


@pytest.fixture
def joining(starts_processes: None, tmp_path: Path) -> Iterator[list[Node]]:
    """A second primary, and a replica for each of the two."""
    ports = support.free_ports(6)
    nodes = [Node(tmp_path / f"node-{i}", ports[i], ports[i + 3], 15_000, fsync=True) for i in range(3)]
    yield nodes
    for node in nodes:
        node.kill()


@pytest.fixture
def replication(starts_processes: None, tmp_path: Path) -> Iterator[Replication]:
    made = Replication(tmp_path / "replication", replicas=1)
    yield made
    made.close()


class Growth:
    """Two people who write to a group and to each other on the system that grows."""

    def __init__(self, system: System, talk: Talk) -> None:
        self.system, self.talk = system, talk
        self.ann = ResilientClient("ann", system.urls)
        self.ben = ResilientClient("ben", system.urls, codec="msgpack")
        self.group = self.direct = ""

    async def begin(self) -> None:
        for at, client in enumerate((self.ann, self.ben)):
            await client.stay(at)
        self.group = await self.system.group("ann", "ben")
        self.direct = (await self.ann.deliver("@ben", "hi"))["conversation"]
        for client in (self.ann, self.ben):
            for conversation in (self.group, self.direct):
                self.talk.add(client, conversation)
        await self.talk.goes_on()

    async def restart_in_cluster_mode(self, server: EmbeddedValkey, url: str) -> None:
        await asyncio.to_thread(server.stop)
        server._config += CONFIG.format(timeout=15_000, port=support.free_ports(1)[0])
        server.spawn()
        await asyncio.to_thread(server.wait_ready)
        with pytest.raises(SlotsError, match="one server"):
            slots.main(["--url", f"{url},127.0.0.1:1", "begin"])
        await asyncio.to_thread(slots.main, ["--url", url, "begin"])

    async def roll(self, url: str) -> None:
        """Replace all processes by processes of the new mode."""
        old = list(self.system.processes)
        env = {"LINNET_REDIS_URL": url, "LINNET_REDIS_MODE": "cluster"}
        gateways = [self.system.start("gateway", **env) for _ in range(2)]
        self.system.router = self.system.start("router", **env)
        await asyncio.gather(*(process.ready() for process in (*gateways, self.system.router)))
        self.ann.urls = self.ben.urls = tuple(gateway.url for gateway in gateways)
        for process in old:
            process.send(signal.SIGTERM)
        await self.talk.goes_on()

    async def end(self, port: int) -> None:
        """Nobody has lost a message, and nobody was told of a gap."""
        await self.talk.end()
        with redis.RedisCluster("127.0.0.1", port) as client_of_all:
            for conversation in (self.group, self.direct):
                last = (await self.ann.deliver(conversation, "the last"))["seq"]
                entries = client_of_all.xrange(keys.log(conversation))
                log = {event["seq"]: event for event in (stamp.decode(fields[b"e"]) for _, fields in entries)}
                assert {ack["seq"] for ack in self.talk.acked[conversation]} <= set(log)
                for client in (self.ann, self.ben):
                    await client.event("message", conversation=conversation, seq=last)
                    assert client.whole(conversation)
                    assert set(client.received[conversation]) == set(log)
                    assert not client.gaps()


async def test_one_server_becomes_a_cluster_and_grows_under_load(start: Start, joining: list[Node]) -> None:
    """The deployment was made by an earlier release, and keeps its tags."""
    system = await start(partitions=NUMBERED, LINNET_DURABILITY="fsync")
    server = system.valkey
    port = port_of(server)
    url = f"redis+cluster://127.0.0.1:{port}"
    async with talking() as talk:
        growth = Growth(system, talk)
        await growth.begin()
        await growth.restart_in_cluster_mode(server, url)
        await growth.roll(url)

        second, *replicas = joining
        await join(server.client(), [second, *replicas])
        to = f"127.0.0.1:{second.port}"
        moving = sorted({slot_of(key) for key in (keys.log(growth.group), keys.log(growth.direct), keys.user("ann"))})
        await asyncio.to_thread(slots.main, ["--url", url, "move", *map(str, moving), "--to", to])
        await talk.goes_on()
        await growth.end(port)


@long
async def test_primary_behind_sentinels_becomes_a_cluster_under_load(
    start: Start, replication: Replication, joining: list[Node]
) -> None:
    """At `replicated`. Its replica follows it until one of the cluster has taken its place."""
    await replication.start()
    system = await start(
        LINNET_REDIS_URL=replication.url,
        LINNET_REDIS_MODE="sentinel",
        LINNET_DURABILITY="replicated",
        LINNET_REPLICAS="1",
    )
    server, replica = replication.servers
    port = port_of(server)
    url = f"redis+cluster://127.0.0.1:{port}"
    async with talking() as talk:
        growth = Growth(system, talk)
        await growth.begin()
        for sentinel in replication.sentinels:
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "REMOVE", NAME)
        await growth.restart_in_cluster_mode(server, url)
        await growth.roll(url)
        *_, first_replica = joining
        await join(server.client(), [first_replica], beside=1)
        await asyncio.to_thread(replica.stop)
        await talk.goes_on()
        await growth.end(port)


def port_of(server: EmbeddedValkey) -> int:
    return int(server.url.rpartition(":")[2].partition("/")[0])


async def join(first: redis.Redis, nodes: list[Node], beside: int = 0) -> None:
    """Let servers join the cluster: a replica of the first server, and before it a primary without slots with its own
    replica. `beside`: how many replicas the first server has that are not of the cluster."""
    *primaries, last = nodes if len(nodes) == 1 else (nodes[0], nodes[2])
    for node in nodes:
        node.spawn()
    for node in nodes:
        node.wait_ready()
    with first:
        for node in nodes:
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)  # type: ignore[no-untyped-call]
        await support.eventually(
            lambda: all(known(node.call("CLUSTER", "NODES")) == len(nodes) + 1 for node in nodes), 60
        )
        ident = first.execute_command("CLUSTER", "MYID").decode()  # type: ignore[no-untyped-call]
        await support.eventually(partial(replicates, last, ident), 60)
        for primary in primaries:
            await support.eventually(partial(replicates, nodes[1], primary.id), 60)
            await support.eventually(lambda primary=primary: primary.info()["connected_slaves"] == 1, 60)  # type: ignore[misc]
        await support.eventually(lambda: last.info().get("master_link_status") == "up", 60)
        await support.eventually(lambda: first.info("replication")["connected_slaves"] == 1 + beside, 60)
    await support.eventually(lambda: all(node.healthy for node in nodes), 60)


def replicates(node: Node, primary: str) -> bool:
    try:
        node.call("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:  # it does not know the primary yet
        return False
    return True
