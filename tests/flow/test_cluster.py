"""Whole systems on a real cluster of three primaries, each with a replica: what users are promised holds there, too.

Slots move and servers fail over under traffic. A move, and a failover by hand, show clients nothing at all. If a
primary dies, what is on other servers goes on, and what it had goes on once its replica is elected.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from router.contract import keys, stamp
from router.contract.tags import NUMBERED, SPREAD
from router.store.redis.slots import slot_of
from tests import support
from tests.cluster import Cluster, Node
from tests.flow.client import ChatClient, Event
from tests.flow.conftest import Start, System
from tests.flow.resilient import ResilientClient
from tests.flow.test_presence import tells
from tests.support import begin_deployment

HELD_S: Final = 2.0  # for which a call waits for its slot, as deploy/README.md says


@pytest.fixture
def cluster(starts_processes: None, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster", (1, 1, 1))
    yield made
    made.close()


async def chat_on(cluster: Cluster, start: Start, durability: str, partitions: str = SPREAD) -> System:
    await cluster.start()
    begin_deployment(primary_of(cluster, keys.DEPLOYMENT), partitions)
    seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.primaries)
    return await start(
        partitions=partitions,
        LINNET_REDIS_URL=f"redis+cluster://{seeds}",
        LINNET_REDIS_MODE="cluster",
        LINNET_DURABILITY=durability,
    )


def primary_of(cluster: Cluster, key: str) -> Node:
    ident = next(node for node in cluster.nodes if node.runs).owner(slot_of(key))
    return next(node for node in cluster.nodes if node.runs and node.id == ident)


def replica_of(cluster: Cluster, primary: Node) -> Node:
    """The other server of the same shard."""
    for first, others in zip(cluster.primaries, cluster.replicas, strict=True):
        shard = [first, *others]
        if primary in shard:
            return next(node for node in shard if node is not primary)
    raise AssertionError("no such server")


def log_of(cluster: Cluster, conversation: str) -> dict[int, Event]:
    key = keys.log(conversation)
    entries = primary_of(cluster, key).call("XRANGE", key, "-", "+")
    events = [stamp.decode(fields[b"e"]) for _, fields in entries]
    return {event["seq"]: event for event in events}


class Talk:
    """Devices that send, each one message after the other; `acked` has all acks by conversation."""

    def __init__(self) -> None:
        self.acked: dict[str, list[Event]] = {}
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, client: ChatClient, conversation: str) -> None:
        self.acked.setdefault(conversation, [])
        self._tasks.append(asyncio.create_task(self._talk(client, conversation)))

    async def _talk(self, client: ChatClient, conversation: str) -> None:
        deliver = client.deliver if isinstance(client, ResilientClient) else partial(acked_by, client)
        for number in itertools.count():
            if self._over:
                return
            self.acked[conversation].append(await deliver(conversation, f"{client.user} {number}"))

    async def goes_on(self, *conversations: str, count: int = 20) -> None:
        """Wait for so many further acks in each of these conversations, or in all."""
        counts = {name: len(self.acked[name]) + count for name in conversations or self.acked}
        await support.eventually(lambda: [task.result() for task in self._tasks if task.done()] or
                                 all(len(self.acked[name]) >= upto for name, upto in counts.items()), 60)  # fmt: skip

    async def end(self) -> None:
        """End when each device has the answer to its last send, so that nothing is written later."""
        self._over = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)


async def acked_by(client: ChatClient, conversation: str, body: str) -> Event:
    """Send a message until it is acked; return the ack. It is `unavailable` only after a call was held for HELD_S,
    which a slow machine needs for a failover."""
    n, began = client.next_n(), time.monotonic()
    while (answer := await client.send(conversation, body, n=n)).get("code") in ("rate_limited", "unavailable"):
        assert answer["code"] != "unavailable" or time.monotonic() - began >= HELD_S, answer
        await asyncio.sleep(answer.get("retry_after", 1))
    assert answer["type"] == "ack", answer
    return answer


@asynccontextmanager
async def talking() -> AsyncIterator[Talk]:
    talk = Talk()
    try:
        yield talk
    finally:
        for task in talk._tasks:
            task.cancel()


async def test_slot_moves_and_failovers_by_hand_show_clients_nothing(cluster: Cluster, start: Start) -> None:
    """Login, direct and group messages, presence and a resume; no send is refused before it was held."""
    system = await chat_on(cluster, start, "memory")
    clients = {name: ChatClient(name) for name in ("ann", "ben", "cem")}
    for at, (name, client) in enumerate(clients.items()):
        await system.api("POST", "/v1/accounts", {"user": name, "password": "a long password"})
        login = await system.api("POST", "/v1/login", {"user": name, "password": "a long password"})
        await client.open(system.urls[at % 2])
        await client.hello(token=login["token"])
    ann, ben, cem = clients.values()
    group = await system.group("ann", "ben", "cem")
    direct = (await ann.sent("@ben", "hi"))["conversation"]
    presence = await ann.ask("presence", users=["cem"], watch=True)
    assert presence["users"]["cem"]["online"]
    async with talking() as talk:
        for client, conversation in ((ann, group), (ben, group), (ann, direct), (ben, direct)):
            talk.add(client, conversation)
        await cem.has(group, 1)
        here = ann.here
        await cem.disconnect()
        await tells(ann, "cem", False, here, 60.0)
        for key in (keys.conversation(group), keys.conversation(direct), keys.user("ben")):
            source = primary_of(cluster, key)
            target = next(node for node in cluster.primaries if node is not source)
            await cluster.move(slot_of(key), source, target)
            await talk.goes_on()
        for key in (keys.conversation(group), keys.user("cem")):
            await cluster.fail_over(replica_of(cluster, primary_of(cluster, key)))
            await talk.goes_on()
        here = ann.here
        await cem.connect(system.urls[1], cursors={group: max(cem.received[group])})
        await tells(ann, "cem", True, here, 60.0)
        await talk.goes_on()
        await talk.end()
    for conversation, readers in ((group, (ann, ben, cem)), (direct, (ann, ben))):
        last = (await ann.sent(conversation, "the last"))["seq"]
        log = log_of(cluster, conversation)
        for client in readers:
            await client.event("message", conversation=conversation, seq=last)
            assert client.whole(conversation)
            assert set(client.received[conversation]) == set(log)
        sends = [(event["from"], event["n"]) for event in log.values() if event["n"]]
        assert len(set(sends)) == len(sends), "a send is in the log twice"
        assert {ack["seq"] for ack in talk.acked[conversation]} <= set(log)
        assert not any(client.gaps() for client in readers)
    assert {client.closed for client in (ann, ben)} == {None}


async def test_dead_primary_costs_nothing_that_was_acked_and_nobody_else(cluster: Cluster, start: Start) -> None:
    """At `replicated`: meanwhile a group on another server is acked; afterwards both are, with every acked event.

    The deployment has the tags of earlier releases.
    """
    system = await chat_on(cluster, start, "replicated", NUMBERED)
    ann, ben = ResilientClient("ann", system.urls), ResilientClient("ben", system.urls, codec="msgpack")
    for at, client in enumerate((ann, ben)):
        await client.stay(at)
    home = {primary_of(cluster, keys.user(name)) for name in ("ann", "ben")}
    dead = next(node for node in cluster.primaries if node not in home)
    groups = [await system.group("ann", "ben", title=str(i)) for i in range(40)]  # so that each server has some
    lost = next(group for group in groups if primary_of(cluster, keys.conversation(group)) is dead)
    other = next(group for group in groups if primary_of(cluster, keys.conversation(group)) is not dead)
    async with talking() as talk:
        for client, conversation in ((ann, lost), (ben, lost), (ann, other), (ben, other)):
            talk.add(client, conversation)
        await talk.goes_on()
        dead.kill()
        await talk.goes_on(other)
        await support.eventually(lambda: replica_of(cluster, dead).info()["role"] == "master", 60)
        await talk.goes_on(other)
        dead.start()
        await talk.goes_on()
        await talk.end()
    for conversation in (lost, other):
        last = (await ann.deliver(conversation, "the last"))["seq"]
        log = log_of(cluster, conversation)
        assert {ack["seq"] for ack in talk.acked[conversation]} <= set(log)
        for client in (ann, ben):
            await client.event("message", conversation=conversation, seq=last)
            assert client.in_order(conversation)
            missing = set(log) - set(client.received[conversation])
            assert not missing
    await outage_is_shown(cluster, dead, (ann, ben), lost, other)
    assert {client.closed for client in (ann, ben)} == {None}


async def outage_is_shown(
    cluster: Cluster, dead: Node, clients: tuple[ResilientClient, ...], lost: str, other: str
) -> None:
    """Without any server of a shard, those who are connected see a group there as held, and write elsewhere."""

    def shown(held: bool) -> bool:
        return all(client.conversation(lost).get("held") is held for client in clients)

    shard = (dead, replica_of(cluster, dead))
    for node in shard:
        node.kill()
    await support.eventually(lambda: shown(True), 60)
    acked = await clients[0].deliver(other, "elsewhere")
    for node in shard:
        node.spawn()
    await support.eventually(lambda: shown(False), 60)
    ends = {lost: (await clients[1].deliver(lost, "again", 60.0))["seq"], other: acked["seq"]}
    for client in clients:
        await client.reaches(ends)
        assert client.in_order(lost)
