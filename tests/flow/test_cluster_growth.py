"""A deployment on one server becomes a cluster of one server, and grows, while people write; nothing is lost.

The server is restarted in cluster mode under running gateways of the old mode. Processes of the new mode take over,
then servers join and slots move to them.
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
from deploy.slot_plans import SlotsError
from router.contract import keys, stamp
from router.contract.tags import NUMBERED
from router.store.redis.slots import slot_of
from tests import support
from tests.cluster import CONFIG, Node
from tests.flow.conftest import Start
from tests.flow.resilient import ResilientClient
from tests.flow.test_cluster import talking


@pytest.fixture
def joining(starts_processes: None, tmp_path: Path) -> Iterator[list[Node]]:
    """A second primary, and a replica for each of the two."""
    ports = support.free_ports(6)
    nodes = [Node(tmp_path / f"node-{i}", ports[i], ports[i + 3], 15_000) for i in range(3)]
    for node in nodes:
        node._config = node._config.replace("appendfsync everysec", "appendfsync always")
    yield nodes
    for node in nodes:
        node.kill()


async def test_one_server_becomes_a_cluster_and_grows_under_load(start: Start, joining: list[Node]) -> None:
    """The deployment was made by an earlier release, and keeps its tags."""
    system = await start(partitions=NUMBERED, LINNET_DURABILITY="fsync")
    server = system.valkey
    port, bus = int(server.url.rpartition(":")[2].partition("/")[0]), *support.free_ports(1)
    url = f"redis+cluster://127.0.0.1:{port}"
    ann, ben = ResilientClient("ann", system.urls), ResilientClient("ben", system.urls, codec="msgpack")
    for at, client in enumerate((ann, ben)):
        await client.stay(at)
    group = await system.group("ann", "ben")
    direct = (await ann.deliver("@ben", "hi"))["conversation"]
    async with talking() as talk:
        for client in (ann, ben):
            talk.add(client, group)
            talk.add(client, direct)
        await talk.goes_on()

        await asyncio.to_thread(server.stop)
        server._config += CONFIG.format(timeout=15_000, port=bus)
        server.spawn()
        await asyncio.to_thread(server.wait_ready)
        with pytest.raises(SlotsError, match="one server"):
            slots.main(["--url", f"{url},127.0.0.1:1", "begin"])
        await asyncio.to_thread(slots.main, ["--url", url, "begin"])
        old = list(system.processes)
        env = {"LINNET_REDIS_URL": url, "LINNET_REDIS_MODE": "cluster"}
        gateways = [system.start("gateway", **env) for _ in range(2)]
        system.router = system.start("router", **env)
        await asyncio.gather(*(process.ready() for process in (*gateways, system.router)))
        ann.urls = ben.urls = tuple(gateway.url for gateway in gateways)
        for process in old:
            process.send(signal.SIGTERM)
        await talk.goes_on()

        second, *replicas = joining
        await join(server.client(), [second, *replicas])
        to = f"127.0.0.1:{second.port}"
        moving = sorted({slot_of(key) for key in (keys.log(group), keys.log(direct), keys.user("ann"))})
        await asyncio.to_thread(slots.main, ["--url", url, "move", *map(str, moving), "--to", to])
        await talk.goes_on()
        await talk.end()
    with redis.RedisCluster("127.0.0.1", port) as client_of_all:
        for conversation in (group, direct):
            last = (await ann.deliver(conversation, "the last"))["seq"]
            entries = client_of_all.xrange(keys.log(conversation))
            log = {event["seq"]: event for event in (stamp.decode(fields[b"e"]) for _, fields in entries)}
            assert {ack["seq"] for ack in talk.acked[conversation]} <= set(log)
            for client in (ann, ben):
                await client.event("message", conversation=conversation, seq=last)
                assert client.whole(conversation)
                assert set(client.received[conversation]) == set(log)
                assert not client.gaps()


async def join(first: redis.Redis, nodes: list[Node]) -> None:
    """Let servers join the cluster: a primary without slots, its replica, and a replica of the first server."""
    second, *replicas = nodes
    for node in nodes:
        node.spawn()
    for node in nodes:
        node.wait_ready()
    with first:
        for node in nodes:
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)  # type: ignore[no-untyped-call]
        await support.eventually(
            lambda: all(len(node.call("CLUSTER", "NODES").splitlines()) == 4 for node in nodes), 60
        )
        ident = first.execute_command("CLUSTER", "MYID").decode()  # type: ignore[no-untyped-call]
        for node, primary in zip(replicas, (second.id, ident), strict=True):
            await support.eventually(partial(replicates, node, primary), 60)
        await support.eventually(lambda: first.info("replication")["connected_slaves"] == 1, 60)
        await support.eventually(lambda: second.info()["connected_slaves"] == 1, 60)
    await support.eventually(lambda: all(node.healthy for node in nodes), 60)


def replicates(node: Node, primary: str) -> bool:
    try:
        node.call("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:  # it does not know the primary yet
        return False
    return True
