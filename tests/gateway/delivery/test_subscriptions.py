"""Subscriptions: a channel is subscribed while a session needs it, and one unreadable payload costs nothing else."""

from __future__ import annotations

import asyncio

import msgpack
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import Unavailable
from tests import support
from tests.gateway.world import World, token, world

NAMES = keys.Channels()


def channels(of: World) -> set[str]:
    return {channel.decode() for channel in of.bus._wanted} - {keys.Channels().echo(of.node.name)}


async def test_channel_is_subscribed_while_a_session_needs_it(valkey: EmbeddedValkey) -> None:
    """One per user with a session, one per group with a member; direct conversations need none."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.say("ann", await of.direct("ann", "bob"))
        ann = await of.client("ann").connected()
        phone, laptop = await of.client("bob").connected(), await of.client("bob", "laptop").connected()
        both = {keys.Channels().user("ann"), keys.Channels().user("bob"), keys.Channels().conversation(group)}
        assert channels(of) == both
        phone.end()
        assert channels(of) == both
        laptop.end()
        assert channels(of) == both - {keys.Channels().user("bob")}
        ann.end()
        assert channels(of) == set()
        assert (of.node.subscriptions.hubs, of.node.subscriptions.users, of.node.subscriptions._channels) == (
            {},
            {},
            {},
        )


async def test_session_that_ends_during_subscribe_leaves_nothing(valkey: EmbeddedValkey) -> None:
    """At every step of a connect: subscribing the user's channel, registering, subscribing the groups."""
    async with world(valkey) as of:
        await of.group("bob", "ann")
        for turns in range(60):
            bob = of.client("bob")
            bob.say("hello", token=token(of.node, "bob"))
            for _ in range(turns):
                await asyncio.sleep(0)
            bob.end()
            await of.settled()
            await of.settled()
            assert channels(of) == set(), turns
            assert (of.node.subscriptions.hubs, of.node.subscriptions.users) == ({}, {})


async def test_session_that_begins_while_another_ends_keeps_the_channel(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        for _ in range(5):
            old = await of.client("bob", "old").connected()
            new = of.client("bob", "new")
            new.say("hello", token=token(of.node, "bob"), device="new")
            old.end()
            await new.event("welcome")
            await new.caught_up()
            said = await of.say("ann", group)
            await new.event("message", seq=said.seq)
            new.end()


async def test_connect_waits_while_the_bus_is_down(valkey: EmbeddedValkey) -> None:
    """There is no welcome before the subscriptions are confirmed, so no event is missed."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.cut_off()
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        await of.redis.fetch("PING")
        assert bob.events == []
        await bob.event("welcome")
        await of.say("ann", group, "x")
        await bob.event("message", body="x")


async def test_late_answer_without_a_head_makes_no_hub_unreachable(valkey: EmbeddedValkey) -> None:
    """The head was asked for twice, and the first answer has confirmed the hub."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.client("ann").connected()
        subscriptions = of.node.subscriptions
        subscriptions.start_hub(subscriptions.hubs[group], Unavailable())
        assert subscriptions.reaches_conversation(group)


async def test_signal_of_a_later_version_is_skipped(valkey: EmbeddedValkey) -> None:
    """The events of its batch are delivered, on every kind of channel."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        bob.say("presence", users=["ann"], watch=True)
        await bob.event("presence")
        unknown = msgpack.packb(["later", 1, 2])
        for channel in (
            keys.Channels().conversation(group),
            keys.Channels().user("bob"),
            keys.Channels().presence("ann"),
        ):
            of.redis.publish(channel, unknown)
        await asyncio.gather(of.say("ann", group, "in the group"), of.say("ann", direct, "direct"))
        await bob.event("message", body="in the group")
        await bob.event("message", body="direct")
        assert of.node.bus.statistics().callback_errors == 0


@pytest.mark.parametrize("junk", [b"", b"\x80", b"\x89junk", b"\x8a" + b"\xff" * 200])
async def test_unreadable_payload_is_skipped(valkey: EmbeddedValkey, junk: bytes) -> None:
    """The events of its batch are delivered, on every kind of channel."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        bob.say("presence", users=["ann"], watch=True)
        await bob.event("presence")
        batches: list[list[tuple[bytes, bytes]]] = []
        received = of.node.bus._on_messages
        of.node.bus._on_messages = batches.append
        await of.say("ann", group, "in the group")
        await of.say("ann", direct, "direct")
        await support.eventually(lambda: sum(map(len, batches)) >= 2)
        of.node.bus._on_messages = received
        spoilt = [
            (channel.encode(), junk)
            for channel in (NAMES.conversation(group), NAMES.user("bob"), NAMES.presence("ann"))
        ]
        received([*spoilt, *(message for batch in batches for message in batch)])
        await bob.event("message", body="direct")
        await bob.event("message", body="in the group")
        assert of.node.bus.statistics().callback_errors == 0


async def test_typing_in_a_group_reaches_all_other_members_in_both_codecs(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        of.redis.publish(keys.Channels().conversation(group), signals.encode(signals.Typing(group, "ann")))
        of.redis.publish(keys.Channels().conversation(group), signals.encode(signals.Receipt(group, "bob", 7)))
        await bob.event("typing", conversation=group)
        await ann.event("receipt", user="bob", read=7)
        assert (ann.of("typing"), bob.of("receipt")) == ([], [])


async def test_part_that_raises_when_a_channel_is_confirmed_keeps_it_from_no_other(valkey: EmbeddedValkey) -> None:
    """Of a group, and of a user: each that waits is called."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        subscriptions = of.node.subscriptions
        for subscribe, name in ((subscriptions.hub, group), (subscriptions.user, "ann")):
            confirmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

            def fails(_: bool) -> None:
                raise RuntimeError("a bug")

            subscribe(name, fails)
            subscribe(name, confirmed.set_result)
            async with asyncio.timeout(support.DEADLINE_S):
                assert await confirmed
        await support.eventually(lambda: channels(of) == set())
