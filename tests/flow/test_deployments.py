"""Two deployments on one Redis server are separate: neither receives the events of the other."""

from __future__ import annotations

import asyncio

import pytest

from router.contract import keys
from tests.flow.client import ChatClient
from tests.flow.conftest import Start, System


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
        redis.hset(keys.DEPLOYMENT, mapping={"partitions": str(keys.PARTITIONS), "format": keys.PLAIN})
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
