"""Subscriptions: listened to while needed and no longer, and repaired from the log whatever the bus loses."""

from __future__ import annotations

import asyncio

import msgpack
import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery import repair, subscriptions
from router.contract import keys, metrics, signals
from tests import support
from tests.gateway.world import World, token, world

NAMES = keys.Channels()


def channels(of: World) -> set[str]:
    return {channel.decode() for channel in of.node.bus._wanted} - {keys.Channels().echo(of.node.name)}


async def test_a_channel_is_listened_to_while_somebody_here_needs_it(valkey: EmbeddedValkey) -> None:
    """One per user with a session, one per group with a member; direct conversations cost none."""
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


async def test_whoever_goes_while_the_subscription_is_confirmed_leaves_nothing(valkey: EmbeddedValkey) -> None:
    """At every point of a connect: the user's channel asked for, registered, the groups asked for."""
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


async def test_who_comes_while_another_goes_keeps_the_channel(valkey: EmbeddedValkey) -> None:
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


async def test_a_hole_in_a_group_is_read_from_the_log_once_for_all(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        clients = [await of.client(user).connected() for user in ("ann", "bob")]
        await of.say("ann", group, 0)
        await clients[1].event("message", body=0)
        with of.deaf():
            for i in (1, 2):
                await of.say("ann", group, i)
            await of.settled()
        asked, counted = of.calls("range"), metrics.REPAIRED_EVENTS._value.get()
        await of.say("ann", group, 3)
        for client in clients:
            await client.event("message", body=3)
            assert client.bodies(group) == [0, 1, 2, 3]
        assert of.calls("range") == asked + 1
        assert metrics.REPAIRED_EVENTS._value.get() == counted + 3


async def test_a_group_that_was_rolled_back_is_announced_before_what_replaced_it(valkey: EmbeddedValkey) -> None:
    """A hub writes events at once: the gap must have left before."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        kept = await of.say("ann", group, "kept")
        photograph = await of.photographed(group)
        void = await of.say("ann", group, "void")
        await bob.event("message", body="void")
        await of.failed_over(group, photograph)
        await of.say("ann", group, "new", seen=void.seq)
        await bob.event("message", body="new")
        assert [event["type"] for event in bob.events] == ["welcome", "message", "message", "gap", "message"]
        assert [(gap["from"], gap["to"]) for gap in bob.of("gap")] == [(kept.seq + 1, void.seq)]


async def test_a_long_repair_is_read_in_pages(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes live meanwhile comes in its place, once."""
    monkeypatch.setattr(repair, "REPAIR_EVENTS", 3)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            for i in range(10):
                await of.say("ann", group, i)
            await of.settled()
        await asyncio.gather(*(of.say("ann", group, i) for i in range(10, 30)))
        await bob.until(lambda: len(bob.bodies(group)) >= 30)
        assert sorted(bob.bodies(group)) == list(range(30))
        assert bob.seqs(group) == sorted(bob.seqs(group))


async def test_a_repair_that_fails_is_tried_again(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "RETRY_S", 0.0)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "lost")
            await of.settled()
        refusals = of.unavailable(3)
        await of.say("ann", group, "after")
        await bob.event("message", body="after")
        assert bob.bodies(group) == ["lost", "after"]
        assert not refusals


async def test_what_was_said_while_the_bus_was_away_is_looked_for(valkey: EmbeddedValkey) -> None:
    """Groups by their heads, direct conversations and memberships by `sync`; sessions stay."""
    async with world(valkey) as of:
        group, direct, joined = await of.group("ann", "bob"), await of.direct("ann", "bob"), await of.group("ann")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "in the group")
            await of.say("ann", direct, "direct")
            await of.put(joined, "bob")
            await of.say("ann", joined, "in the new group")
            await of.settled()
        of.node.resubscribe.lost()
        of.node.bus.drop("a test")
        await support.eventually(lambda: of.node.bus.statistics().reconnects == 1 and of.node.bus.restored)
        await bob.until(lambda: len(bob.of("message")) == 4)
        assert (bob.bodies(group), bob.bodies(direct), bob.bodies(joined)) == (
            ["in the group"], ["before", "direct"], ["in the new group"],
        )  # fmt: skip
        await of.say("ann", group, "live again")
        await bob.event("message", body="live again")
        assert bob.connection.closed is None


async def test_a_single_channel_that_was_lost_is_looked_after(valkey: EmbeddedValkey) -> None:
    """Its slot moved: only what came over it is compared."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "in the group")
            await of.say("ann", direct, "direct")
            await of.settled()
        of.node.resubscribe.channel_restored(keys.Channels().conversation(group).encode())
        await bob.event("message", body="in the group")
        assert bob.bodies(direct) == ["before"]
        of.node.resubscribe.channel_restored(keys.Channels().user("bob").encode())
        await bob.event("message", body="direct")
        of.node.resubscribe.channel_restored(b"a channel that nobody has any more")


async def test_a_hub_whose_conversation_vanished_while_the_bus_was_away_is_let_go(valkey: EmbeddedValkey) -> None:
    """Whoever waits for it is told that it is gone."""
    async with world(valkey) as of:
        told: list[bool] = []
        await of.cut_off()
        of.node.subscriptions.hub("g:0123456789012345678901", told.append)
        await support.eventually(lambda: told)
        assert told == [False]
        assert of.node.subscriptions.hubs == {}


async def test_connecting_while_the_bus_is_away_waits_for_it(valkey: EmbeddedValkey) -> None:
    """No welcome before the subscriptions stand: nothing falls between."""
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


async def test_a_signal_of_a_later_version_costs_nothing_else(valkey: EmbeddedValkey) -> None:
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
async def test_payload_that_is_no_event_costs_nothing_else(valkey: EmbeddedValkey, junk: bytes) -> None:
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


async def test_typing_in_a_group_reaches_everybody_else_in_both_codecs(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        of.redis.publish(keys.Channels().conversation(group), signals.encode(signals.Typing(group, "ann")))
        of.redis.publish(keys.Channels().conversation(group), signals.encode(signals.Receipt(group, "bob", 7)))
        await bob.event("typing", conversation=group)
        await ann.event("receipt", user="bob", read=7)
        assert (ann.of("typing"), bob.of("receipt")) == ([], [])
