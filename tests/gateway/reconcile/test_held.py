"""A session while one part of Redis does not answer: it has everything else, and that part's conversations later.

The node's client refuses every call about the lost part, and its bus reaches no channel there. Events are written by
another gateway, which has lost nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import connect
from gateway.delivery.feed import Feed
from gateway.reconcile import held
from router.contract import keys
from router.store.answers import reply_of
from tests import support
from tests.gateway.world import Client, PartedRedis, World, token, world

EXTRA = {"device": "phone"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "ASK_S", 0.01)
    monkeypatch.setattr(connect, "LOOK_S", 0.01)


@asynccontextmanager
async def two_gateways(valkey: EmbeddedValkey) -> AsyncIterator[tuple[World, World]]:
    """The gateway that loses a part of Redis, and another one."""
    async with world(valkey, None, PartedRedis) as of, world(valkey) as other:
        yield of, other


async def apart(make: Callable[[], Awaitable[str]], *others: str) -> str:
    """Make conversations until one is in another part than the others, and than bob."""
    tags = {keys.conversation(conv).partition("}")[0] for conv in others}
    while True:
        conv = await make()
        if keys.conversation(conv).partition("}")[0] not in tags:
            return conv


async def two_groups(other: World) -> tuple[str, str]:
    """Of ann and bob, in different parts."""
    lost = await other.group("ann", "bob")
    return lost, await apart(lambda: other.group("ann", "bob"), lost)


def entry(client: Client, conv: str) -> dict[str, Any]:
    """The last entry of the conversation that the client has received."""
    lists = [event["conversations"] for event in client.events if "conversations" in event]
    found: dict[str, Any] = [state for states in lists for state in states if state["conversation"] == conv][-1]
    return found


async def returned(client: Client, conv: str) -> dict[str, Any]:
    """Wait for its entry without `held`."""
    await client.until(lambda: "held" not in entry(client, conv))
    await client.caught_up()
    return entry(client, conv)


async def test_session_connects_without_the_group_of_a_lost_part_and_joins_it_later(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        lost, kept = await two_groups(other)
        first = [await other.say("ann", lost, f"before {i}") for i in range(3)]
        bob = await other.client("bob").connected()
        await reply_of(other.node.users.ack, "bob", "phone", bob.session.id, {lost: first[0].seq})
        bob.end()
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            state = entry(bob, lost)
            assert (state["held"], state["kind"], state["title"], state["cursor"]) == (
                True,
                "group",
                "a title",
                first[0].seq,
            )
            assert "held" not in entry(bob, kept)
            await other.say("ann", kept, "live")
            await bob.event("message", body="live")
            await other.say("ann", lost, "meanwhile")
            bob.say("ack", conversation=lost, seq=first[2].seq)
            assert bob.session.received_upto(lost) == 0
            assert len(of.node.held) == 1
        assert (await returned(bob, lost))["cursor"] == first[0].seq
        await other.say("ann", lost, "after")
        await bob.event("message", body="after")
        assert bob.bodies(lost) == ["before 1", "before 2", "meanwhile", "after"]
        assert not bob.of("gap")
        assert len(of.node.held) == 0


async def test_session_that_cannot_be_fed_from_a_lost_part_is_live_elsewhere(valkey: EmbeddedValkey) -> None:
    """The hub is there already, so the group is listed; its events cannot be read."""
    async with two_gateways(valkey) as (of, other):
        lost, kept = await two_groups(other)
        known = await of.client("bob").connected()
        known.end()
        await of.client("ann").connected()
        said = await other.say("ann", lost, "missed")
        await support.eventually(lambda: of.node.subscriptions.hubs[lost].written == said.seq)
        with of.lost(keys.conversation(lost), deaf=False):
            bob = await of.client("bob").connected()
            await bob.until(lambda: entry(bob, lost).get("held"))
            await other.say("ann", kept, "live")
            await bob.event("message", body="live")
            await other.say("ann", lost, "meanwhile")
            assert bob.bodies(lost) == []
        await returned(bob, lost)
        await other.say("ann", lost, "after")
        await bob.event("message", body="after")
        assert bob.bodies(lost) == ["missed", "meanwhile", "after"]


async def test_group_of_a_lost_part_is_held_although_others_here_are_in_it(valkey: EmbeddedValkey) -> None:
    """The device has everything that its hub has, but the hub receives nothing now."""
    async with two_gateways(valkey) as (of, other):
        lost, kept = await two_groups(other)
        known = await of.client("bob").connected()
        known.end()
        ann = await of.client("ann").connected()
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            assert (entry(bob, lost)["held"], entry(bob, kept).get("held")) == (True, None)
        await returned(bob, lost)
        await other.say("ann", lost, "after")
        for client in (ann, bob):
            await client.event("message", body="after")


async def test_group_whose_head_cannot_be_read_is_held(valkey: EmbeddedValkey) -> None:
    """Its channel can be subscribed to: only commands of that part fail."""
    async with two_gateways(valkey) as (of, other):
        lost, kept = await two_groups(other)
        known = await of.client("bob").connected()
        known.end()
        with of.lost(keys.conversation(lost), deaf=False):
            bob = await of.client("bob").connected()
            assert (entry(bob, lost)["held"], entry(bob, kept).get("held")) == (True, None)
        await other.say("ann", lost, "after")
        await returned(bob, lost)
        await bob.event("message", body="after")


async def test_session_holds_nothing_while_its_own_part_does_not_answer(valkey: EmbeddedValkey) -> None:
    """All of Redis may be down: then it waits, as with one server, instead of asking about each conversation."""
    async with two_gateways(valkey) as (of, other):
        lost, kept = await two_groups(other)
        bob = await of.client("bob").connected()
        bob.connection.room = 1
        await other.say("ann", kept, "fills the connection")
        await support.eventually(lambda: bob.connection.paused)
        for conv in (lost, kept):
            await other.say("ann", conv, f"missed in {conv}")
        await of.settled()
        with of.lost(keys.user("bob"), keys.conversation(lost), keys.conversation(kept)):
            bob.connection.drain()
            await support.eventually(lambda: bob.session.feed is Feed.READING)
            await of.settled()
            assert len(of.node.held) == 0
        for conv in (lost, kept):
            await bob.event("message", body=f"missed in {conv}")
        await bob.caught_up()
        assert not bob.of("conversations")


async def test_new_device_begins_where_it_would_have_begun_without_the_outage(valkey: EmbeddedValkey) -> None:
    """In a group and in a direct conversation: a hundred events back, not at the first one."""
    async with two_gateways(valkey) as (of, other):
        for make in (lambda: other.group("ann", "bob"), lambda: other.direct("ann", "bob")):
            conv = await apart(make)
            said = [await other.say("ann", conv, i) for i in range(130)]
            await reply_of(other.node.users.read, "bob", conv, said[119].seq, 120)
            with of.lost(keys.conversation(conv)):
                bob = await of.client("bob", f"new {conv[0]}").connected(device=f"new-{conv[0]}")
                state = entry(bob, conv)
                assert state["held"]
                assert "cursor" not in state
                assert bob.bodies(conv) == []
            assert (await returned(bob, conv))["cursor"] == said[29].seq
            assert bob.bodies(conv) == list(range(30, 130))
            bob.end()
            again = await of.client("bob").connected(device=f"new-{conv[0]}")
            assert again.bodies(conv) == list(range(30, 130))
            again.end()


async def test_direct_conversation_of_a_lost_part_is_read_later(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        lost = await other.direct("ann", "bob")
        kept = await apart(lambda: other.group("ann", "bob"), lost)
        bob = await of.client("bob").connected()
        bob.end()
        await other.say("ann", lost, "missed")
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            await bob.until(lambda: entry(bob, lost).get("held"))
            await other.say("ann", lost, "meanwhile")
            await other.say("ann", kept, "live")
            await bob.event("message", body="live")
            assert bob.bodies(lost) == []
        await returned(bob, lost)
        await bob.event("message", body="meanwhile")
        await other.say("ann", lost, "after")
        await bob.event("message", body="after")
        assert bob.bodies(lost) == ["missed", "meanwhile", "after"]


async def test_claim_above_the_head_of_a_lost_part_hides_no_later_event(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        direct = await other.direct("ann", "bob")
        group = await apart(lambda: other.group("ann", "bob"), direct)
        for conv in (direct, group):
            said = await other.say("ann", conv, "before")
            with of.lost(keys.conversation(conv)):
                bob = await of.client("bob").connected(cursors={conv: said.seq + 1000})
                await bob.until(lambda conv=conv, bob=bob: entry(bob, conv).get("held"))  # type: ignore[misc]
                assert bob.session.received_upto(conv) == 0
            await returned(bob, conv)
            await other.say("ann", conv, "after")
            await bob.event("message", conversation=conv, body="after")
            bob.end()


async def test_user_of_a_lost_part_is_refused_and_nothing_stays(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        await other.group("ann", "bob")
        with of.lost(keys.user("bob")):
            bob = of.client("bob")
            bob.say("hello", id=1, token=token(of.node, "bob"), device="phone")
            assert (await bob.event("error", id=1))["code"] == "unavailable"
            assert (await bob.closed())[0] == 4000
            await support.eventually(lambda: not of.node.subscriptions.users)
        await of.client("bob").connected()


async def test_session_that_ends_while_it_waits_for_a_part_leaves_nothing(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        lost, _ = await two_groups(other)
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            assert entry(bob, lost)["held"]
            bob.end()
            assert len(of.node.held) == 0
            assert not of.node.subscriptions.hubs


async def test_user_removed_from_a_group_of_a_lost_part_receives_the_events_before(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        lost, _ = await two_groups(other)
        bob = await other.client("bob").connected()
        bob.end()
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            assert entry(bob, lost)["held"]
            await other.say("ann", lost, "before")
            await other.remove(lost, "bob")
        await bob.event("member", conversation=lost, action="remove")
        assert bob.bodies(lost) == ["before"]
        await support.eventually(lambda: len(of.node.held) == 0)
        await support.eventually(lambda: lost not in of.node.subscriptions.hubs)


async def test_row_that_moves_while_its_part_does_not_answer_makes_no_second_entry(valkey: EmbeddedValkey) -> None:
    async with two_gateways(valkey) as (of, other):
        lost, _ = await two_groups(other)
        said = await other.say("ann", lost, "before")
        known = await of.client("bob").connected()
        known.end()
        with of.lost(keys.conversation(lost)):
            bob = await of.client("bob").connected()
            await reply_of(other.node.users.read, "bob", lost, said.seq, 1)
            of.node.syncs.ask(bob.session)
            await bob.event("receipt", conversation=lost)
            await of.settled()
            assert lost not in of.node.subscriptions.hubs
        await returned(bob, lost)
        assert len([state for event in bob.of("conversations") for state in event["conversations"]]) == 1


async def test_live_event_of_a_direct_conversation_that_is_held_is_read_with_the_others(valkey: EmbeddedValkey) -> None:
    """Its part answers again, but the node has not noticed yet."""
    async with two_gateways(valkey) as (of, other):
        direct = await other.direct("ann", "bob")
        said = [await other.say("ann", direct, i) for i in range(130)]
        await reply_of(other.node.users.read, "bob", direct, said[119].seq, 120)
        with of.lost(keys.conversation(direct)):
            bob = await of.client("bob").connected(device="new")
            await other.say("ann", direct, 130)
            await of.settled()
            assert bob.bodies(direct) == []
        await returned(bob, direct)
        await bob.event("message", body=130)
        assert bob.bodies(direct) == list(range(31, 131))  # a hundred events back


async def test_older_conversation_of_a_lost_part_does_not_stop_the_list(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new device, and conversations beyond the welcome."""
    async with two_gateways(valkey) as (of, other):
        directs = []
        for i in range(4):
            directs.append(await other.direct("bob", f"user-{i}"))
            await other.say(f"user-{i}", directs[-1], i)
            await other.next_ms()
        monkeypatch.setattr("router.store.users.PAGE", 2)
        with of.lost(keys.conversation(directs[0])):
            bob = await of.client("bob").connected(device="new")
            assert [entry(bob, conv).get("held") for conv in directs] == [True, None, None, None]
        await returned(bob, directs[0])
        await bob.event("message", conversation=directs[0])
        assert [bob.bodies(conv) for conv in directs] == [[0], [1], [2], [3]]
