"""G1 and G2 through failovers: acked events are kept, no seq is used twice, and rolled back events are announced.

A primary, two replicas and three sentinels serve two gateways and a router. Servers are killed, stalled and cut off
under traffic. A client may receive an event before it is kept; if a failover rolls it back, a `gap` announces that.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from router.contract import stamp
from tests import support
from tests.flow.client import ChatClient, Event, token
from tests.flow.conftest import Start, System
from tests.flow.resilient import ResilientClient
from tests.replication import REPLICATION, Replication


@pytest.fixture
def replication(tmp_path: Path) -> Iterator[Replication]:
    made = Replication(tmp_path / "replication")
    yield made
    made.close()


async def chat_on(replication: Replication, start: Start, durability: str, media_url: str = "") -> System:
    await replication.start()
    return await start(
        LINNET_REDIS_URL=replication.url,
        LINNET_REDIS_MODE="sentinel",
        LINNET_DURABILITY=durability,
        LINNET_REPLICAS="2",
        LINNET_MEDIA_URL=media_url,
    )


class Talk:
    """Three users who send in a group, and two of them directly; `acked` has all acks."""

    def __init__(self, system: System, replication: Replication) -> None:
        self.system, self.replication = system, replication
        codecs = {"ann": "json", "ben": "msgpack", "cem": "json"}
        self.clients = [ResilientClient(name, system.urls, codec=codec) for name, codec in codecs.items()]
        self.group = self.direct = ""
        self.acked: list[Event] = []
        self._talking: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        ann, ben, cem = self.clients
        self.group = await self.system.group("ann", "ben", "cem")
        for at, client in enumerate(self.clients):
            await client.stay(at)
        self.direct = (await ann.deliver("@ben", "hi"))["conversation"]
        places = [(ann, self.group), (ben, self.group), (cem, self.group), (ann, self.direct), (ben, self.direct)]
        self._talking = [asyncio.create_task(self._talk(*place)) for place in places]

    async def _talk(self, client: ResilientClient, conversation: str) -> None:
        for number in itertools.count():
            self.acked.append(await client.deliver(conversation, f"{client.user} {number}"))

    async def goes_on(self, count: int = 50) -> None:
        """Wait for so many further acks."""
        before = len(self.acked)
        await support.eventually(lambda: [task.result() for task in self._talking if task.done()] or
                                 len(self.acked) >= before + count, 60)  # fmt: skip

    async def end(self) -> None:
        for task in self._talking:
            task.cancel()
        await asyncio.wait(self._talking)

    def log(self, conversation: str) -> dict[int, Event]:
        """Return the events in the log of the primary."""
        with self.replication.primary.client() as redis:
            key = next(redis.scan_iter(match=f"*:log:{conversation}"))
            events = [stamp.decode(fields[b"e"]) for _, fields in redis.xrange(key)]
        return {event["seq"]: event for event in events}

    async def agree(self) -> None:
        """Check that each client received the whole log, in order, and a `gap` for every other event it received."""
        await self.end()
        places = {self.group: self.clients, self.direct: self.clients[:2]}
        for conversation, clients in places.items():
            last = (await clients[0].deliver(conversation, "the last"))["seq"]
            for client in clients:
                await client.event("message", conversation=conversation, seq=last)
        for conversation, clients in places.items():
            log = self.log(conversation)
            for ack in self.acked:
                if ack["conversation"] == conversation:
                    assert log[ack["seq"]]["n"] == ack["n"]
            sends = [(event["from"], event["n"]) for event in log.values() if event["n"]]
            assert len(set(sends)) == len(sends), "a send is in the log twice"
            for client in clients:
                assert follows(client, conversation, log)
        everything: dict[tuple[str, int], tuple[object, ...]] = {}
        for client in self.clients:
            for conversation, received in client.received.items():
                for seq, event in received.items():
                    sent = event["from"], event["n"], event.get("body")
                    assert everything.setdefault((conversation, seq), sent) == sent, "a seq was used twice"


def follows(client: ChatClient, conversation: str, log: dict[int, Event]) -> bool:
    """Check that all of the log arrived, in order, each after its `prev`, and besides it only events within gaps."""
    gaps = [event for event in client.gaps() if event["conversation"] == conversation]
    assert {gap["reason"] for gap in gaps} <= {"failover"}
    void = [range(gap["from"], gap["to"] + 1) for gap in gaps]
    received = list(client.received[conversation].values())
    assert [event["seq"] for event in received] == sorted(event["seq"] for event in received)
    for before, event in itertools.pairwise(received):
        assert event["prev"] == before["seq"] or (
            event["prev"] < before["seq"] and any(before["seq"] in taken for taken in void)
        ), f"{client.user} got no gap between {before} and {event}"
    extra = set(client.received[conversation]) - set(log)
    assert all(any(seq in taken for taken in void) for seq in extra), (
        f"{client.user} has events that are neither logged nor in a gap"
    )
    missing = [event for event in log.values() if event["seq"] not in client.received[conversation]]
    assert not missing, f"{client.user} misses {missing[0]}"
    return True


async def test_g1_acked_messages_survive_every_failover(replication: Replication, start: Start) -> None:
    """Under traffic: the primary is killed, then the next one at once; both return; then it fails back to the first.

    At `replicated` no event is acked while a replica is missing, and at the end every acked event is in the log and at
    every client.
    """
    system = await chat_on(replication, start, "replicated")
    talk = Talk(system, replication)
    await talk.begin()
    await talk.goes_on()
    first = replication.primary
    first.kill()
    second = await replication.replaced(first)
    second.kill()
    third = await replication.replaced(second)
    before = len(talk.acked)
    await replication.rejoin(first)
    assert len(talk.acked) <= before + 5, "acked with a replica missing"
    await replication.rejoin(second)
    await talk.goes_on()
    with first.client() as redis:
        redis.config_set("replica-priority", 1)
    await replication.whole()
    third.kill()
    assert await replication.replaced(third) is first
    await replication.rejoin(third)
    await talk.goes_on()
    await talk.agree()
    assert {client.closed for client in talk.clients} == {None}, "a failover closes no socket"


async def test_stalled_primary_that_resumes_acks_nothing(replication: Replication, start: Start) -> None:
    """It is stopped, replaced, and resumes as if it were the primary: no client stays with it, and nothing is lost."""
    system = await chat_on(replication, start, "replicated")
    talk = Talk(system, replication)
    await talk.begin()
    await talk.goes_on()
    first = replication.primary
    os.kill(first.pid, signal.SIGSTOP)
    await replication.replaced(first)
    os.kill(first.pid, signal.SIGCONT)
    await replication.whole()
    await talk.goes_on()
    await talk.agree()
    assert {client.closed for client in talk.clients} == {None}


async def test_nothing_is_acked_without_all_replicas(replication: Replication, start: Start, tmp_path: Path) -> None:
    """A replica is stopped: sends and resends are delivered but get `unavailable`, on a socket and over HTTP.

    When it runs again, a resend of each is acked as a duplicate. A message with a file is not even delivered:
    a failover could keep the message and lose its reference to the file.
    """
    system = await chat_on(replication, start, "replicated", f"file://{tmp_path}/store")
    ann, ben = ChatClient("ann"), ChatClient("ben", codec="msgpack")
    group = await system.group("ann", "ben")
    for at, client in enumerate((ann, ben)):
        await client.connect(system.urls[at])
    assert system.router is not None
    n, message = ann.next_n(), {"to": group, "body": "over HTTP"}
    headers = {"Authorization": f"Bearer {token('ann')}", "Idempotency-Key": "1"}
    async with httpx.AsyncClient(base_url=system.router.url, headers=headers, trust_env=False, timeout=60) as http:
        file = (await http.post("/v1/uploads?kind=file", content=b"bytes")).raise_for_status().json()["sha256"]
    os.kill(replication.servers[2].pid, signal.SIGSTOP)
    async with httpx.AsyncClient(base_url=system.router.url, headers=headers, trust_env=False, timeout=60) as http:
        for _ in range(2):
            answer = await ann.send(group, "by socket", n=n)
            assert (answer["code"], answer["n"]) == ("unavailable", n)
            assert answer["retry_after"] > 0
            assert (await http.post("/v1/messages", json=message)).status_code == 503
        with_file = {"to": group, "body": "with a file", "files": [file]}
        answers = await asyncio.gather(
            ann.send(group, "with a file", files=[file]),
            http.post("/v1/messages", json=with_file, headers={"Idempotency-Key": "2"}),
        )
        assert (answers[0]["code"], answers[1].status_code) == ("unavailable", 503)
        assert sorted(await ben.has(group, 2)) == ["by socket", "over HTTP"]
        os.kill(replication.servers[2].pid, signal.SIGCONT)
        await replication.whole()
        assert (await ann.sent(group, "by socket", n=n))["duplicate"]
        assert (await http.post("/v1/messages", json=message)).json()["duplicate"]
        assert len(ben.bodies(group)) == 2
        await http.post("/v1/messages", json=with_file, headers={"Idempotency-Key": "2"})
        assert (await ben.has(group, 3))[-1] == "with a file"
    assert await system.metric("linnet_redis_kept_total", system.gateways[0]) >= 3


async def test_g4_events_that_a_failover_rolled_back_are_announced(replication: Replication, start: Start) -> None:
    """At `memory` a failover may lose acked events: each client that received them gets `gap {failover}`, live or at
    its resume.

    The next event follows the last one that is left, and its seq is higher than those of all lost events.
    """
    system = await chat_on(replication, start, "memory")
    ann, ben = ChatClient("ann"), ChatClient("ben", codec="msgpack")
    tablet, laptop = ChatClient("ben", "tablet"), ChatClient("ben", "laptop")
    everybody = [ann, ben, tablet, laptop]
    group = await system.group("ann", "ben")
    for at, client in enumerate(everybody):
        await client.connect(system.urls[at % 2])
    direct = (await ann.sent("@ben", "kept"))["conversation"]
    left = {direct: (await ann.sent(direct, "kept"))["seq"], group: (await ann.sent(group, "kept"))["seq"]}
    first = replication.primary
    with first.client() as redis:
        assert redis.wait(2, 40_000) == 2
        replication.forbid(first, *REPLICATION)
        redis.client_kill_filter(_type="replica")
    lost = {}
    for conversation in (direct, group):
        for number in range(5):
            lost[conversation] = (await ann.sent(conversation, f"lost {number}"))["seq"]
        for client in everybody:
            await client.event("message", conversation=conversation, seq=lost[conversation])
    await laptop.disconnect()
    first.kill()
    await replication.replaced(first)
    await tablet.disconnect()
    cursors = {conversation: max(log) for conversation, log in tablet.received.items()}
    late = await system.gateway().ready()
    await eventually_welcome(tablet, late.url, cursors)
    for conversation in (direct, group):
        await eventually_acked(ann, conversation, "after")
    await laptop.connect(system.urls[0], cursors=cursors)
    for conversation in (direct, group):
        for client in everybody:
            gap = await client.event("gap", conversation=conversation)
            assert (gap["from"], gap["to"], gap["reason"]) == (left[conversation] + 1, lost[conversation], "failover")
            event = await client.event("message", conversation=conversation, body="after")
            assert event["prev"] == left[conversation]
            assert event["seq"] > lost[conversation]
            assert client.events.index(gap) < client.events.index(event)
            assert len([one for one in client.gaps() if one["conversation"] == conversation]) == 1


async def eventually_acked(client: ChatClient, conversation: str, body: str) -> None:
    """`unavailable` is told while the gateway looks for the new primary."""

    async def acked() -> bool:
        return bool((await client.send(conversation, body))["type"] == "ack")

    await support.eventually(acked)


async def eventually_welcome(client: ChatClient, url: str, cursors: dict[str, int]) -> None:
    async def welcome() -> bool:
        return bool((await client.connect(url, cursors=cursors))["type"] == "welcome")

    await support.eventually(welcome)
