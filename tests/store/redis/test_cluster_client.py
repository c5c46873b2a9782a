"""Calls on a real cluster: whatever a redirect concerns is held, sent again, and keeps its order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from router.contract.errors import LinnetError, StartupError, Unavailable
from router.store.redis import choose, routing
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.functions import Library, build
from tests import support
from tests.cluster import Cluster, Node, slot
from tests.store.conftest import LIBRARY

LANES = 12
OUTSTANDING = 16

_numbers = itertools.count(1)


@asynccontextmanager
async def connected(where: str, library: Library = LIBRARY) -> AsyncIterator[ClusterClient]:
    client = await choose.connected(where, "cluster", library=library)
    assert isinstance(client, ClusterClient)
    try:
        yield client
    finally:
        await client.close()


def owner(cluster: Cluster, key: str) -> Node:
    """The primary that has the key's slot."""
    ident = next(node for node in cluster.nodes if node.runs).owner(slot(key))
    return next(node for node in cluster.nodes if node.runs and node.id == ident)


async def answers(client: ClusterClient, key: str) -> bool:
    try:
        return bool(await client.fcall("echo", (key,), (1,)))
    except Unavailable:
        return False


class Lane:
    """A list to which numbers are pushed, OUTSTANDING at a time."""

    def __init__(self, client: ClusterClient, key: str) -> None:
        self.key = key
        self.errors: list[LinnetError] = []
        self.pushed = self.answered = 0
        self.stopped = False
        self._client = client
        self._later = asyncio.get_running_loop().call_later
        for _ in range(OUTSTANDING):
            self._push()

    def _push(self) -> None:
        if not self.stopped:
            self.pushed += 1
            self._client.call("push", (self.key,), (self.pushed,), self._answered)

    def _answered(self, value: object) -> None:
        self.answered += 1
        if isinstance(value, LinnetError):
            self.errors.append(value)
        self._later(0.002, self._push)


class Traffic:
    def __init__(self, cluster: Cluster, client: ClusterClient) -> None:
        number = next(_numbers)
        self._cluster = cluster
        self.lanes = [Lane(client, f"{{c{20 * i + number}}}:list:{number}") for i in range(LANES)]

    async def goes_on(self) -> None:
        """Wait until every lane has had answers to calls that are made now."""
        upto = [lane.pushed for lane in self.lanes]
        await support.eventually(
            lambda: all(lane.answered > number for lane, number in zip(self.lanes, upto, strict=True))
        )

    async def stop(self) -> None:
        for lane in self.lanes:
            lane.stopped = True
        await support.eventually(lambda: all(lane.answered == lane.pushed for lane in self.lanes))

    def check(self) -> None:
        """No call failed, and each list has all its numbers in their order, each once."""
        for lane in self.lanes:
            assert not lane.errors
            found = owner(self._cluster, lane.key).call("LRANGE", lane.key, 0, -1)
            assert list(map(int, found)) == list(range(1, lane.pushed + 1)), lane.key


async def test_calls_reach_the_server_of_their_key(cluster: Cluster) -> None:
    """From any seed, also a replica; functions are loaded where they are missing."""
    for node in cluster.nodes:
        with node.client() as redis:
            if redis.info("replication")["role"] == "master":
                redis.function_flush()
    for seed in cluster.nodes:
        async with connected(f"redis+cluster://127.0.0.1:1,127.0.0.1:{seed.port}") as client:
            keys = [f"{{u{i}}}:any" for i in range(8)]
            values = await asyncio.gather(*(client.fcall("echo", (key,), (key,)) for key in keys))
            assert values == [[key.encode()] for key in keys]
            await client.fetch("SET", keys[0], "x")
            assert await client.fetch("GET", keys[0]) == b"x"
            assert {server.address.port for server in client.servers} == {
                node.port for node in cluster.nodes if node.info()["role"] == "master"
            }


async def test_slot_that_moves_costs_no_error_and_no_order(cluster: Cluster) -> None:
    """To another server and back, as a whole, under load."""
    async with connected(cluster.url) as client:
        traffic = Traffic(cluster, client)
        await traffic.goes_on()
        for lane in traffic.lanes[:3]:
            source = owner(cluster, lane.key)
            target = next(node for node in cluster.primaries if node is not source and node.info()["role"] == "master")
            await cluster.move(slot(lane.key), source, target)
            await traffic.goes_on()
            await cluster.move(slot(lane.key), target, source)
            await traffic.goes_on()
        await traffic.stop()
        traffic.check()
        assert client.routing.redirects["MOVED"]


async def test_slot_that_moves_key_by_key_costs_no_error_and_no_order(cluster: Cluster) -> None:
    """The old way, of Redis 7: meanwhile the server of the slot answers ASK, and its target only after ASKING."""
    async with connected(cluster.url) as client:
        traffic = Traffic(cluster, client)
        await traffic.goes_on()
        for lane in traffic.lanes[:3]:
            source, number = owner(cluster, lane.key), slot(lane.key)
            target = next(node for node in cluster.primaries if node is not source and node.info()["role"] == "master")
            target.call("CLUSTER", "SETSLOT", number, "IMPORTING", source.id)
            source.call("CLUSTER", "SETSLOT", number, "MIGRATING", target.id)
            while found := source.call("CLUSTER", "GETKEYSINSLOT", number, 1):
                source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", found[0])
                await traffic.goes_on()
            for node in (target, source, *cluster.primaries):
                if node.info()["role"] == "master":
                    node.call("CLUSTER", "SETSLOT", number, "NODE", target.id)
            await cluster.agree(number, target)
            await traffic.goes_on()
        await traffic.stop()
        traffic.check()
        assert client.routing.redirects["ASK"]


async def test_failover_by_hand_costs_no_error_and_no_order(cluster: Cluster) -> None:
    await cluster.home()
    async with connected(cluster.url) as client:
        traffic = Traffic(cluster, client)
        await traffic.goes_on()
        for to in (cluster.replicas[0][0], cluster.primaries[0]):
            await cluster.fail_over(to)
            await traffic.goes_on()
        await traffic.stop()
        traffic.check()


async def test_call_waits_no_longer_than_its_hold(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that nobody can serve is `unavailable` in bounded time, and with bounded memory; others are served."""
    monkeypatch.setattr(routing, "HOLD_S", 0.5)
    async with connected(cluster.url) as client:
        here, there = (
            "{c1}:held",
            next(f"{{c{i}}}:free" for i in range(256) if owner(cluster, f"{{c{i}}}") is not owner(cluster, "{c1}")),
        )
        source, number = owner(cluster, here), slot(here)
        target = owner(cluster, there)
        source.call("SET", here, "x")
        target.call("CLUSTER", "SETSLOT", number, "IMPORTING", source.id)
        source.call("CLUSTER", "SETSLOT", number, "MIGRATING", target.id)
        try:
            # One of two keys is absent: the servers answer TRYAGAIN for as long as the slot moves.
            held = [asyncio.ensure_future(client.fetch("MGET", here, f"{here}:absent")) for _ in range(5)]
            await asyncio.sleep(0)
            assert await client.fetch("GET", there) is None
            for one in held:
                with pytest.raises(Unavailable):
                    await one
            assert client.routing.expired == 5
            assert client.routing.redirects["TRYAGAIN"] >= 5
        finally:
            for node in (source, target):
                node.call("CLUSTER", "SETSLOT", number, "STABLE")
        assert await client.fetch("GET", here) == b"x"
        await support.eventually(lambda: client.routing.held() == (0, 0))
        assert client.routing.waiting == (0, 0)


async def test_server_that_is_silent_leaves_room_for_the_others(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls have at most half of the memory for calls."""
    monkeypatch.setattr(routing, "MAX_BYTES", 1 << 20)
    async with connected(cluster.url) as client:
        stopped = owner(cluster, "{c1}")
        other = next(key for i in range(256) if owner(cluster, key := f"{{c{i}}}:free") is not stopped)
        stopped.pause()
        try:
            replies: list[Any] = []
            for _ in range(40):
                client.call("push", ("{c1}:silent",), ("x" * 32_768,), replies.append)
            assert 24 <= client.routing.refused < 40  # at once, before anything could time out
            assert await client.fcall("echo", (other,), ("y" * 65_536,))
        finally:
            stopped.resume()
        await support.eventually(lambda: client.routing.waiting == (0, 0))


async def test_calls_do_not_wait_for_a_silent_server_that_was_replaced(cluster: Cluster) -> None:
    """It has calls that it never answered; those behind them go to its successor."""
    await cluster.home()
    async with connected(cluster.url) as client:
        old, new = cluster.primaries[0], cluster.replicas[0][0]
        key = next(tag for i in range(256) if owner(cluster, tag := f"{{c{i}}}:silent") is old)
        old.pause()
        try:
            replies: list[object] = []
            client.call("push", (key,), (1,), replies.append)
            await support.eventually(lambda: new.info()["role"] == "master", 60)
            await support.eventually(partial(answers, client, key), 60)
            assert len(replies) == 1
            assert isinstance(replies[0], Unavailable)
        finally:
            old.resume()
        await support.eventually(lambda: old.info()["role"] == "slave", 60)
        await cluster.caught_up(old, new)
        await cluster.fail_over(old)
        await cluster.agree(slot(key), old)


async def test_cluster_without_a_reachable_seed_refuses_to_start() -> None:
    client = choose.client("redis+cluster://127.0.0.1:1", "cluster", library=LIBRARY)
    with pytest.raises(StartupError, match=r"127\.0\.0\.1:1 cannot be reached"):
        await client.open(0.3)


async def test_one_server_is_no_cluster(own_valkey: Any) -> None:
    """Its seeds must be nodes of a cluster."""
    client = choose.client(own_valkey.url.replace("redis://", "redis+cluster://"), "cluster", library=LIBRARY)
    with pytest.raises(StartupError, match=r"no cluster node .* set LINNET_REDIS_MODE=standalone"):
        await client.open(60)


async def test_times_are_of_all_servers(cluster: Cluster) -> None:
    """The servers of this test share a clock, so the median and each server's own time agree with it.

    How far that is exact depends on how long the answers took.
    """
    async with connected(cluster.url) as client:
        for ask in (client.clock_ms, partial(client.clock_ms, "{c1}:any")):
            with cluster.primaries[1].client() as redis:
                before = redis.time()
                found = await ask()
                after = redis.time()
            assert (before[0] - 5) * 1000 <= found <= (after[0] + 6) * 1000


async def test_checks_of_start_ask_every_server(cluster: Cluster) -> None:
    """A server that would lose acked sends is named."""
    async with connected(cluster.url, build()) as client:
        await client.check_server("memory")
        await client.probe()
        assert client.failover_grace_s > 2.0
        assert client.trouble == ""
        assert await client.memory_ratio() == 0
        with pytest.raises(StartupError, match="does not fsync"):
            await client.check_server("fsync")
        worst = owner(cluster, "{c1}")
        worst.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StartupError, match=f"{worst.port}: it would evict data"):
                await client.check_server("memory")
        finally:
            worst.call("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_primary_that_dies_costs_only_its_own_slots(cluster: Cluster) -> None:
    """Calls of other slots have no error; those of its own are answered again once its replica is elected."""
    await cluster.home()
    async with connected(cluster.url) as client:
        traffic = Traffic(cluster, client)
        await traffic.goes_on()
        dead = cluster.primaries[0]
        lost = [lane for lane in traffic.lanes if owner(cluster, lane.key) is dead]
        assert 0 < len(lost) < LANES
        dead.kill()
        successor = cluster.replicas[0][0]
        await support.eventually(lambda: successor.info()["role"] == "master", 60)
        for lane in lost:
            await support.eventually(partial(answers, client, lane.key), 60)
        fresh = [len(lane.errors) for lane in lost]
        await traffic.goes_on()
        await traffic.stop()
        assert fresh == [len(lane.errors) for lane in lost]
        assert all(not lane.errors for lane in traffic.lanes if lane not in lost)
