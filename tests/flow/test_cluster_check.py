"""`make cluster-check`: what a cluster promises under load, in figures. `-s` shows them.

A crowd on real gateways writes all the time while slots move, servers fail over, die, are cut off, join, and change
their addresses. QUICK=1 causes some of it, without the bounds that a busy machine exceeds. Where a part of the
product keeps what is shown, it is switched off once (tests/apart.py), and the same look at the logs must find faults.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import redis

from deploy.embedded import EmbeddedValkey, known
from deploy.slots import Servers
from loadtest.chaos.proxy import Proxy
from loadtest.chaos.shards import NODE_TIMEOUT_MS, Sharded
from router.contract import keys, stamp
from router.contract.tags import NUMBERED, TAGS
from router.store.redis.slots import slot_of
from tests import cluster as clusters
from tests import support
from tests.cluster import FORM, SLOTS, Cluster, Node
from tests.flow.client import ChatClient
from tests.flow.conftest import Start, System
from tests.flow.crowd import (
    LIMITS,
    WINDOW,
    Crowd,
    Sender,
    Verdict,
    aside,
    judge,
    longest_ack_s,
    longest_silence_s,
    p99_s,
)
from tests.flow.resilient import ResilientClient
from tests.flow.test_cluster import HELD_S, primary_of, replica_of

FULL: Final = FORM == "full"
MOVES, FAILOVERS = (30, 20) if FULL else (3, 2)
KILLS: Final = 20
LOAD_S: Final = 60.0 if FULL else 3.0  # of a load that is measured
RATE: Final = 2000.0  # sends a second, or half of what is reached
LONGEST_ACK_S: Final = 2.0
GROUPS: Final = 6  # of each shard
MEMBERS: Final = 3
SLOW_TIMEOUT_MS: Final = 15_000
GROWTH_BYTES: Final = 64 << 20

pytestmark = [clusters.long, pytest.mark.alone]
in_full: Final = pytest.mark.skipif(not FULL, reason="not with QUICK=1")


def say(text: str) -> None:
    print(f"\n    {text}", end="", flush=True)


async def system_on(url: str, start: Start, durability: str, **env: str) -> System:
    settings: dict[str, Any] = {**LIMITS, **env}
    return await start(LINNET_REDIS_URL=url, LINNET_REDIS_MODE="cluster", LINNET_DURABILITY=durability, **settings)


async def crowd_on(system: System, owner: Callable[[str], object], url: str = "", per_shard: int = GROUPS) -> Crowd:
    """A crowd of groups, `per_shard` on each primary that has any, all connected to this gateway or in turn to all."""
    crowd = Crowd()
    urls = itertools.cycle([url] if url else system.urls)
    serial = next(_crowds)
    shards: dict[object, int] = {}
    for number in range(per_shard * 3):
        users = [f"crowd-{serial}-{number}-{i}" for i in range(MEMBERS)]
        senders = [await crowd.add(next(urls), user) for user in users]
        group = await system.group(*users)
        while shards.get(owner(keys.conversation(group)), 0) >= per_shard:
            await system.api("DELETE", f"/v1/conversations/{group}")
            group = await system.group(*users)
        shards[owner(keys.conversation(group))] = shards.get(owner(keys.conversation(group)), 0) + 1
        for sender in senders:
            sender.write_to(group)
    crowd.write(100.0)
    await support.eventually(lambda: all(sender.acked for sender in crowd.senders))
    return crowd


_crowds = itertools.count(1)


def owner_on(cluster: Cluster) -> Callable[[str], Node]:
    return lambda key: primary_of(cluster, key)


def log_on(cluster: Cluster) -> Callable[[str], list[bytes]]:
    def log_of(conversation: str) -> list[bytes]:
        key = keys.log(conversation)
        return [fields[b"e"] for _, fields in primary_of(cluster, key).call("XRANGE", key, "-", "+")]

    return log_of


async def half_of_the_highest_rate(crowd: Crowd) -> float:
    """Write as fast as answers come for a while; return half of that, or RATE."""
    crowd.write(1e6)
    before, began = crowd.acked, time.monotonic()
    await asyncio.sleep(min(LOAD_S, 5.0))
    highest = (crowd.acked - before) / (time.monotonic() - began)
    crowd.write(min(RATE, highest / 2))
    say(f"highest rate {highest:.0f}/s")
    await support.eventually(lambda: sum(len(sender.route.pending) for sender in crowd.senders) < 100)
    return min(RATE, highest / 2)


@pytest.fixture
def cluster(starts_processes: None, tmp_path: Path) -> Iterator[Cluster]:
    """Three primaries, each with a replica; all fsync. On a busy machine none must look dead to the others."""
    made = Cluster(tmp_path / "cluster", (1, 1, 1), fsync=True, timeout_ms=SLOW_TIMEOUT_MS)
    yield made
    made.close()


def new_node(folder: Path) -> Node:
    """A server of that cluster, at an address that is new."""
    port, bus_port = support.free_ports(2)
    return Node(folder, port, bus_port, SLOW_TIMEOUT_MS, fsync=True)


async def some_move(cluster: Cluster, crowd: Crowd, rng: random.Random) -> None:
    """Move the slot of one of the crowd's conversations to another primary, as a whole."""
    number = slot_of(keys.conversation(rng.choice(crowd.senders).conversation))
    source = next(node for node in cluster.nodes if node.id == cluster.nodes[0].owner(number))
    others = [node for node in cluster.nodes if node is not source and node.info()["role"] == "master"]
    await cluster.move(number, source, rng.choice(others))


async def some_failover(cluster: Cluster, rng: random.Random) -> None:
    """Promote a replica by hand."""
    replica = rng.choice([node for node in cluster.nodes if node.info()["role"] == "slave"])
    await support.eventually(lambda: replica.info()["master_link_status"] == "up")
    await cluster.fail_over(replica)
    await support.eventually(lambda: all(node.healthy for node in cluster.nodes))


async def test_moves_and_failovers_by_hand_under_load_show_clients_nothing(cluster: Cluster, start: Start) -> None:
    """Without the hold there are errors, and without the barrier messages of a device change places."""
    rng = random.Random(1)
    await cluster.start()
    system = await system_on(cluster.url, start, "fsync")
    crowd = await crowd_on(system, owner_on(cluster))
    rate = await half_of_the_highest_rate(crowd)
    crowd.forget()
    before = crowd.acked
    began = time.monotonic()
    for i in range(max(MOVES, FAILOVERS)):
        if i < MOVES:
            await aside(some_move(cluster, crowd, rng))
        if i < FAILOVERS:
            await aside(some_failover(cluster, rng))
    took = time.monotonic() - began
    sent = (crowd.acked - before) / took
    await crowd.settled()
    longest = longest_ack_s(crowd.senders)
    say(f"{MOVES} moves, {FAILOVERS} failovers in {took:.0f} s; {sent:.0f} of {rate:.0f} acks/s; longest {longest:.2f}"
        f" s, p99 {p99_s(crowd.senders) * 1000:.0f} ms; refused {len(crowd.refused)}")  # fmt: skip
    assert all(one.code == "unavailable" and one.silent_s >= HELD_S for one in crowd.refused)
    if FULL:
        assert not crowd.refused
        assert longest <= LONGEST_ACK_S
    found = judge(crowd, log_on(cluster))
    assert found == Verdict()
    failures = crowd.failures
    assert (failures.holes, failures.duplicates, failures.gaps, failures.closes) == (0, 0, 0, 0)
    await crowd.leave()

    crowd = await crowd_without("hold", system, cluster)
    while not any(one.silent_s < HELD_S for one in crowd.refused):
        await aside(some_move(cluster, crowd, rng))
    await crowd.leave()
    if FULL:
        crowd = await crowd_without("barrier", system, cluster)
        found = Verdict()
        while not found.disordered:
            crowd.write(900.0)
            for _ in range(4):
                await aside(some_move(cluster, crowd, rng))
            await crowd.settled()
            found = judge(crowd, log_on(cluster))
        say(f"without the barrier: {found}")
        await crowd.leave()


async def crowd_without(part: str, system: System, cluster: Cluster) -> Crowd:
    """A small crowd on a gateway in which a part is switched off."""
    broken = system.start("gateway", True, TEST_WITHOUT=part)
    await broken.ready()
    return await crowd_on(system, owner_on(cluster), broken.url, 1)


async def test_empty_primary_joins_under_load(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    """It has no functions, and there is no router to load them; a quarter of all slots moves there.

    A gateway that does not load them, either, shows its clients errors.
    """
    await cluster.start()
    system = await system_on(cluster.url, start, "fsync")
    crowd = await crowd_on(system, owner_on(cluster))
    control = await crowd_without("library", system, cluster)
    await control.settled()
    assert system.router is not None
    system.router.send(signal.SIGTERM)
    await system.router.ended()
    await half_of_the_highest_rate(crowd)
    crowd.forget()
    joined = new_node(tmp_path / "joined")
    joined.spawn()
    try:
        joined.wait_ready()
        cluster.primaries[0].call("CLUSTER", "MEET", "127.0.0.1", joined.port, joined.bus_port)
        await support.eventually(lambda: all(known(node.call("CLUSTER", "NODES")) == 7 for node in cluster.nodes))
        cluster.nodes.append(joined)
        moved = sorted({slot_of(keys.conversation(sender.conversation)) for sender in crowd.senders})[::4]
        for i, source in enumerate(cluster.primaries):
            first = i * SLOTS // 3
            await aside(cluster.move(first, source, joined, first + SLOTS // 12 - 1))
        for number in moved:
            source = next(node for node in cluster.nodes if node.id == joined.owner(number))
            if source is not joined:
                await aside(cluster.move(number, source, joined))
        assert len(joined.call("KEYS", "{c*}:log:*"))
        await crowd.settled()
        say(f"moved a quarter of the slots; longest ack {longest_ack_s(crowd.senders):.2f} s,"
            f" refused {len(crowd.refused)}")  # fmt: skip
        assert all(one.code == "unavailable" and one.silent_s >= HELD_S for one in crowd.refused)
        assert not FULL or not crowd.refused
        assert judge(crowd, log_on(cluster)) == Verdict()
        assert (crowd.failures.holes, crowd.failures.closes) == (0, 0)
        home = slot_of(keys.conversation(control.senders[0].conversation))
        joined.call("FUNCTION", "FLUSH")
        source = next(node for node in cluster.nodes if node.id == joined.owner(home))
        if source is not joined:
            await aside(cluster.move(home, source, joined))
        joined.call("FUNCTION", "FLUSH")
        control.write(100)
        await support.eventually(lambda: any(one.code == "internal" for one in control.refused))
        await control.leave()
        await crowd.leave()
    finally:
        joined.kill()


async def test_servers_with_new_addresses_are_found(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    """One after the other, and then all at once, as if each was started elsewhere. The seed is a name that leads on."""
    await cluster.start()
    (port,) = support.free_ports(1)
    seed = Proxy(port, cluster.nodes[0].port)
    await seed.start()
    system = await system_on(f"redis+cluster://127.0.0.1:{port}", start, "fsync")
    crowd = await crowd_on(system, owner_on(cluster), per_shard=2)
    crowd.write(200)

    def elsewhere(node: Node) -> Node:
        node.kill()
        made = new_node(node.folder)
        cluster.nodes[cluster.nodes.index(node)] = made
        made.spawn()
        return made

    def whole() -> bool:
        return all(node.healthy and known(node.call("CLUSTER", "NODES")) == 6 for node in cluster.nodes) and all(
            (info := node.info()).get("master_link_status", "up") == "up"
            and (info["role"] == "slave" or info["connected_slaves"] == 1)
            for node in cluster.nodes
        )

    async def back() -> float:
        """Wait until everybody is acked again; return how long that took since the cluster was whole."""
        began = time.monotonic()
        counts = {sender: len(sender.acked) + WINDOW for sender in crowd.senders}
        await support.eventually(partial(have_more, counts), 120)
        return time.monotonic() - began

    try:
        for node in list(cluster.nodes):
            made = elsewhere(node)
            await asyncio.to_thread(made.wait_ready)
            seed.to_port = made.port
            await aside(support.eventually(whole, 120))
            await back()
        dead = list(cluster.nodes)
        for node in dead:
            node.kill()
        for node in dead:
            elsewhere(node)
        for node in cluster.nodes:
            await asyncio.to_thread(node.wait_ready)
        seed.to_port = cluster.nodes[0].port
        for node in cluster.nodes[1:]:
            cluster.nodes[0].call("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        await aside(support.eventually(whole, 120))
        took = await back()
        say(f"all addresses new: back {took:.1f} s after the servers")
        assert took <= 15.0 or not FULL
        await crowd.settled()
        found = judge(crowd, log_on(cluster))
        assert (found.broken, found.doubled, found.lost) == (0, 0, 0)
        await crowd.leave()
    finally:
        await seed.close()


@in_full
async def test_killed_primaries_cost_the_others_nothing(starts_processes: None, start: Start, tmp_path: Path) -> None:
    """At `replicated`, with two replicas each: else no ack comes until the dead server is back."""
    cluster = Cluster(tmp_path / "cluster", (2, 2, 2))
    try:
        await cluster.start()
        system = await system_on(cluster.url, start, "replicated", LINNET_REPLICAS="2")
        crowd = await crowd_on(system, owner_on(cluster), per_shard=3)
        rate = await half_of_the_highest_rate(crowd) / 2
        crowd.write(rate)
        silences, calm, during, refused = list[float](), list[float](), list[float](), 0
        for kill in range(KILLS):
            conversation = crowd.senders[kill * MEMBERS % len(crowd.senders)].conversation
            dead = primary_of(cluster, keys.conversation(conversation))
            lost = [one for one in crowd.senders if primary_of(cluster, keys.conversation(one.conversation)) is dead]
            others = [one for one in crowd.senders if one not in lost]
            crowd.forget()
            await asyncio.sleep(3.0)
            calm.append(p99_s(others))
            crowd.forget()
            dead.kill()
            killed = time.monotonic()
            await aside(support.eventually(partial(serves_without, cluster)))
            counts = {one: len(one.acked) for one in lost}
            dead.spawn()  # acks wait for both replicas, so for this server, too
            await asyncio.to_thread(dead.wait_ready)
            await support.eventually(partial(have_more, counts))
            silences.append(longest_silence_s(lost, killed))
            during.append(p99_s(others))
            refused += sum(len(one.refused) for one in others)
            await aside(support.eventually(partial(whole_with, cluster, 2), 120))
        await crowd.settled()
        say(f"{KILLS} kills at {rate:.0f}/s: own shard silent {median(silences):.1f} s (median), {max(silences):.1f} s"
            f" (most); p99 of the others {median(during) * 1000:.0f} ms, before"
            f" {median(calm) * 1000:.0f} ms; refused there {refused}; {crowd.failures.closes} closes")  # fmt: skip
        found = judge(crowd, log_on(cluster))
        assert (found.broken, found.doubled, found.lost) == (0, 0, 0)
        assert not refused
        assert max(silences) <= 4 * clusters.NODE_TIMEOUT_MS / 1000 + 5
        assert median(during) <= 2 * median(calm)
        await crowd.leave()
    finally:
        cluster.close()


def have_more(counts: dict[Sender, int]) -> bool:
    """Whether each of them has had more acks than these."""
    late = {one: count for one, count in counts.items() if len(one.acked) <= count}
    assert not late, [(one.client.user, len(one.route.pending), one.refused[-1:], one.client.error) for one in late]
    return True


def serves_without(cluster: Cluster) -> bool:
    """Whether the servers that run serve all slots."""
    alive = [node for node in cluster.nodes if node.runs]
    return sum(node.info()["role"] == "master" for node in alive) == 3 and all(node.healthy for node in alive)


def whole_with(cluster: Cluster, replicas: int) -> bool:
    found = [node.info() for node in cluster.nodes]
    return all(
        info["connected_slaves"] == replicas if info["role"] == "master" else info["master_link_status"] == "up"
        for info in found
    ) and all(node.healthy for node in cluster.nodes)


@in_full
async def test_lost_shard_leaves_memory_bounded_and_processes_restart(cluster: Cluster, start: Start) -> None:
    """People elsewhere connect, write and see what is held; when it is back, everybody has everything."""
    await cluster.start()
    system = await system_on(cluster.url, start, "fsync")
    crowd = await crowd_on(system, owner_on(cluster))
    ann = "ann"
    lost_at = next(node for node in cluster.primaries if node is not primary_of(cluster, keys.user(ann)))
    reader = ResilientClient(ann, system.urls)
    await reader.stay()
    groups = [await system.group(ann) for _ in range(20)]
    lost = next(group for group in groups if primary_of(cluster, keys.conversation(group)) is lost_at)
    other = next(group for group in groups if primary_of(cluster, keys.conversation(group)) is not lost_at)
    written = (await reader.deliver(lost, "before"))["seq"]
    pair = (lost_at, replica_of(cluster, lost_at))
    for node in pair:
        node.kill()
    crowd.write(1e6)
    await support.eventually(lambda: reader.conversation(lost).get("held") is True)
    before = {process: process.rss_bytes for process in system.processes}
    until = time.monotonic() + LOAD_S
    connects: list[float] = []
    while time.monotonic() < until:
        began = time.monotonic()
        fresh = ChatClient(ann, f"device-{len(connects) % 8}")
        await fresh.connect(system.urls[0])
        connects.append(time.monotonic() - began)
        assert fresh.conversation(lost)["held"] is True
        assert (await fresh.sent(other, "elsewhere"))["type"] == "ack"
        await fresh.disconnect()
        await asyncio.sleep(0.5)
    grown = max(process.rss_bytes - size for process, size in before.items())
    say(f"shard gone for {LOAD_S:.0f} s at full load: memory +{grown / 1e6:.1f} MB at most; {len(connects)} connects,"
        f" longest {max(connects):.2f} s")  # fmt: skip
    assert grown <= GROWTH_BYTES
    assert max(connects) <= 3.0
    await crowd.leave()
    old = list(system.processes)
    system.gateways = [system.start("gateway") for _ in range(2)]
    system.router = system.start("router")
    await asyncio.gather(*(process.ready() for process in (*system.gateways, system.router)))
    reader.urls = system.urls
    for process in old:
        process.send(signal.SIGTERM)
    await reader.deliver(other, "by the new ones")
    for node in pair:
        node.spawn()
    await support.eventually(lambda: not reader.conversation(lost).get("held"))
    after = (await reader.deliver(lost, "after"))["seq"]
    await reader.reaches({lost: after})
    assert reader.in_order(lost)
    assert {written, after} <= set(reader.received[lost])
    assert not reader.gaps()


@in_full
async def test_primary_that_is_cut_off_stops_to_ack_and_its_readers_leave_it(
    starts_processes: None, start: Start, tmp_path: Path
) -> None:
    """Cut off from the other servers and from its replica. At `memory` only what it acked after the cut is gone."""
    store = Sharded(tmp_path, "memory", random.Random(1))
    try:
        await store.start()
        system = await system_on(store.url, start, "memory")
        crowd = await crowd_on(system, lambda key: holder(store, key), per_shard=2)
        crowd.write(300)
        old = await asyncio.to_thread(store.primary)
        its = [one for one in crowd.senders if holder(store, keys.conversation(one.conversation)) == old.port]
        kept_before = {one: set(one.acked) for one in its}
        wrote = offset(old)
        await aside(support.eventually(lambda: all(offset(node) >= wrote for node in store.shard_of(old))))
        with old.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        cut = time.monotonic()
        store.bus.cut(old.address)

        def refuses() -> bool:
            return b"cluster_state:fail" in old.ask("CLUSTER", "INFO")

        await aside(support.eventually(refuses))
        refused = time.monotonic() - cut
        old.ask("CONFIG", "SET", "cluster-allow-reads-when-down", "yes")
        records = {one.conversation: entries(old.port, one.conversation) for one in its}
        seen = {one: len(one.acked) for one in its}
        await support.eventually(lambda: all(len(one.acked) > seen[one] for one in its))
        left = time.monotonic() - cut
        with old.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "+psync", "+sync", "+replconf")
        store.bus.heal()
        await store.whole()
        await crowd.settled()
        gone = used_twice = early = 0
        for one in its:
            kept = entries(holder(store, keys.conversation(one.conversation)), one.conversation)
            used_twice += sum(kept.get(seq, entry) != entry for seq, entry in records[one.conversation].items())
            kept_ns = {event["n"] for event in map(stamp.decode, kept.values()) if event["from"] == one.client.user}
            gone += len(one.acked - kept_ns)
            early += len(kept_before[one] - kept_ns)
        say(f"cut off: refuses after {refused:.1f} s, acked by the successor after {left:.1f} s; acked after the cut"
            f" and lost: {gone}; gaps told: {crowd.failures.gaps}")  # fmt: skip
        assert used_twice == 0
        assert early == 0
        assert refused <= NODE_TIMEOUT_MS / 1000 + 1
        assert left <= 2 * NODE_TIMEOUT_MS / 1000 + 5
        await crowd.leave()
    finally:
        store.close()


def holder(store: Sharded, key: str) -> int:
    """The port of the primary that has a key, as most servers know it."""
    found: list[int] = []
    for node in store.nodes:
        with suppress(redis.RedisError):
            ranges = node.ask("CLUSTER", "SLOTS")
            found.append(next(primary[1] for a, b, primary, *_ in ranges if a <= slot_of(key) <= b))
    return max(found, key=found.count)


def offset(server: EmbeddedValkey) -> int:
    """How much a server has of its shard's writes."""
    with server.client() as client:
        info = client.info("replication")
    return int(info.get("slave_repl_offset", info["master_repl_offset"]))


def entries(port: int, conversation: str) -> dict[int, bytes]:
    with redis.Redis(port=port) as client:
        client.execute_command("READONLY")
        found = client.execute_command("XRANGE", keys.log(conversation), "-", "+")
    return {int(ident.split(b"-")[0]): fields[b"e"] for ident, fields in found}


@in_full
async def test_bytes_are_spread_evenly_after_a_loaded_run(cluster: Cluster, start: Start) -> None:
    """Measured on the servers, slot by slot, and divided over 3 and over 12 primaries with equal ranges. The same bytes
    would be uneven with the tags of earlier releases."""
    await cluster.start()
    system = await system_on(cluster.url, start, "fsync")
    users = [f"user-{number}" for number in range(400)]
    crowd = Crowd()
    for user in users:
        await crowd.add(system.urls[0], user)
    for step in range(1, 16):
        counts = {sender: len(sender.acked) for sender in crowd.senders}
        for number, sender in enumerate(crowd.senders):
            sender.write_to(f"@{users[(number + step * 7) % len(users)]}")
            sender.send()
        await support.eventually(partial(have_more, counts))
    await crowd.leave()
    servers = Servers(cluster.url)
    by_slot: dict[int, int] = {}
    for one in servers.primaries("bytes"):
        by_slot.update(one.loads)
    servers.close()
    numbered = {
        slot_of(spread): slot_of(plain)
        for family in "cu"
        for spread, plain in zip(keys.tags(family), TAGS[NUMBERED][family], strict=True)
    }
    found = {}
    for shards in (3, 12):
        for name, places in (("spread", dict[int, int]()), ("numbered", numbered)):
            loads = [0] * shards
            for number, size in by_slot.items():
                loads[places.get(number, number) * shards // SLOTS] += size
            found[name, shards] = max(loads) / (sum(loads) / shards)
    say(f"largest / mean bytes of {sum(by_slot.values()) / 1e6:.1f} MB: " +
        ", ".join(f"{name} over {shards}: {ratio:.3f}" for (name, shards), ratio in found.items()))  # fmt: skip
    assert found["spread", 3] <= 1.12
    assert found["spread", 12] <= 1.12
    assert found["numbered", 12] > found["spread", 12]
