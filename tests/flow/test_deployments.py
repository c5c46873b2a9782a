"""Two deployments on one Redis server are separate: neither receives the events of the other."""

from __future__ import annotations

import asyncio

import pytest

from router.contract import keys
from router.contract.tags import NUMBERED, SPREAD
from tests.flow.client import ChatClient
from tests.flow.conftest import Start, System
from tests.flow.test_presence import tells
from tests.support import eventually


async def talk(url: str, title: str) -> tuple[ChatClient, ChatClient, str]:
    ann, bob = ChatClient("ann"), ChatClient("bob", codec="msgpack")
    for client in (ann, bob):
        await client.connect(url)
    conversation = (await ann.sent("@bob", f"{title} 0"))["conversation"]
    await bob.has(conversation, 1)
    return ann, bob, conversation


async def test_deployments_in_two_databases_do_not_receive_each_others_events(start: Start) -> None:
    """Both have the same users and direct conversation; the second one's seqs are far ahead of the first's."""
    system = await start(gateways=1)
    there = system.gateway(LINNET_REDIS_URL=system.valkey.url.removesuffix("/0") + "/1")
    await there.ready()
    ann, bob, conversation = await talk(system.urls[0], "production")
    ann_there, bob_there, same = await talk(there.url, "staging")
    assert same == conversation
    for i in range(1, 4):
        await asyncio.gather(ann.sent("@bob", f"production {i}"), ann_there.sent("@bob", f"staging {i}"))
    assert await bob.has(conversation, 4) == [f"production {i}" for i in range(4)]
    assert await bob_there.has(conversation, 4) == [f"staging {i}" for i in range(4)]
    for client in (ann, bob, ann_there, bob_there):
        assert client.gaps() == []


async def of_an_earlier_release(start: Start) -> System:
    """A system whose database was laid out by an earlier release, before any process of this one has started."""
    system = await start(gateways=0, router=False)
    with system.valkey.client() as redis:
        redis.hset(keys.DEPLOYMENT, mapping={"partitions": NUMBERED, "format": keys.PLAIN})
    return system


@pytest.mark.parametrize(("before", "after"), [(keys.PLAIN, keys.MOVING), (keys.MOVING, keys.OWN)])
async def test_gateways_of_two_steps_of_the_move_receive_each_others_events(
    start: Start, before: str, after: str
) -> None:
    system = await of_an_earlier_release(start)
    gateways = []
    for form in (before, after):
        with system.valkey.client() as redis:
            redis.hset(keys.DEPLOYMENT, "format", form)
        gateways.append(system.gateway())
        await gateways[-1].ready()
    ann, bob = ChatClient("ann"), ChatClient("bob")
    await ann.connect(gateways[0].url)
    await bob.connect(gateways[1].url)
    conversation = (await ann.sent("@bob", "from before"))["conversation"]
    await bob.has(conversation, 1)
    for sender, receiver in ((ann, bob), (bob, ann)):
        await sender.say("typing", to=conversation)  # which only a channel carries: no audit would find it
        assert (await receiver.event("typing"))["from"] == sender.user
    await bob.sent("@ann", "from after")
    assert await ann.has(conversation, 2) == ["from before", "from after"]


async def test_processes_end_with_one_line_when_the_deployment_was_made_anew_with_other_tags(start: Start) -> None:
    """Other processes would not find what they ack from then on."""
    system = await start(gateways=1, partitions=NUMBERED)
    with system.valkey.client() as redis:
        redis.flushall()
        redis.hset(keys.DEPLOYMENT, "partitions", SPREAD)
    for process in system.processes:
        assert await process.ended() == 1
        *_, last = process.log.splitlines()
        assert last == (
            "linnet: the deployment has partitions 256 spread now, and had 256 when this process started: its data was"
            " lost, and it was made anew"
        )
        assert "Traceback" not in process.log


@pytest.mark.parametrize("partitions", [NUMBERED, SPREAD])
async def test_chat_is_the_same_with_either_set_of_tags(start: Start, partitions: str) -> None:
    """Group and direct messages, presence, a resume, the calls of the API, and what routers finish."""
    system = await start(partitions=partitions)
    ann, bob, direct = await talk(system.urls[0], "hi")
    group = await system.group("ann", "bob")
    await ann.sent(group, "all")
    assert await bob.has(group, 1) == ["all"]
    assert (await ann.ask("presence", users=["bob"], watch=True))["users"]["bob"]["online"]
    here = ann.here
    await bob.disconnect()
    await tells(ann, "bob", False, here, 60.0)
    last = (await ann.sent(group, "missed"))["seq"]
    await bob.connect(system.urls[1], cursors={group: max(bob.received[group])})
    await bob.event("message", conversation=group, seq=last)
    rows = await system.api("GET", "/v1/conversations", user="bob")
    assert {row["conversation"] for row in rows["conversations"]} == {group, direct}
    report = {"conversation": group, "seq": last, "reason": "spam"}
    await system.api("POST", "/v1/reports", report, user="bob")
    reports = await system.api("GET", "/v1/reports")
    assert [one["seq"] for one in reports["reports"]] == [last]
    await eventually(lambda: not system.unfinished())
    with system.valkey.client() as redis:
        families = {key.split(b"}")[0][1:2] for key in redis.scan_iter("{*") if b"." in key.split(b"}")[0]}
        numbered = [key for key in redis.scan_iter("{*") if b"." not in key.split(b"}")[0]]
        assert families == ({b"c", b"u"} if partitions == SPREAD else set())
        assert not numbered or partitions == NUMBERED
