"""Notices of gone conversations: a device that had one gets an entry, live and at every `hello`, until its ack."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.packing import MAX_INTEGER
from router.store.answers import reply_of
from tests.gateway.world import Client, World, world


def gone(client: Client) -> list[dict[str, Any]]:
    """The entries of conversations that are gone, of all lists so far."""
    lists = [event["conversations"] for event in client.events if event["type"] in ("welcome", "conversations")]
    return [entry for entries in lists for entry in entries if entry.get("gone")]


async def ended(of: World, reason: str) -> str:
    """A conversation of ann's and bob's, of which bob has an event; and how it ends for bob, as a function."""
    conv = await (of.direct("ann", "bob") if reason == "user_deleted" else of.group("ann", "bob"))
    await of.say("ann", conv, "before")
    return conv


async def end(of: World, conv: str, reason: str) -> None:
    match reason:
        case "removed":
            await of.remove(conv, "bob")
        case "deleted":
            await of.node.users.leave("bob", conv, await of.node.conversations.remove_conversation(conv, None))
        case "user_deleted":
            await of.accounts.delete("ann")
            await of.node.users.leave("bob", conv, MAX_INTEGER)


REASONS = ("deleted", "removed", "user_deleted")


def entry(conv: str, reason: str) -> dict[str, Any]:
    return {"conversation": conv, "kind": keys.KIND_NAMES[conv[0]], "gone": True, "reason": reason}


@pytest.mark.parametrize("reason", REASONS)
async def test_live_session_is_notified_once_that_a_conversation_is_gone(valkey: EmbeddedValkey, reason: str) -> None:
    async with world(valkey) as of:
        conv = await ended(of, reason)
        bob = await of.client("bob").connected()
        await end(of, conv, reason)
        await bob.until(lambda: gone(bob))
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        await bob.caught_up()
        assert gone(bob) == [entry(conv, reason)]
        if reason == "removed":
            assert bob.of("member", user="bob", action="remove")


@pytest.mark.parametrize("reason", REASONS)
async def test_offline_device_is_notified_at_every_hello_until_it_acks(valkey: EmbeddedValkey, reason: str) -> None:
    """It still receives the events from before. Another device has its own ack; a device that never had the
    conversation is not notified."""
    async with world(valkey) as of:
        conv = await ended(of, reason)
        for device in ("phone", "laptop"):
            (await of.client("bob", device).connected()).end()
        late = (await of.say("ann", conv, "while away")).seq
        await end(of, conv, reason)
        for _ in range(2):
            bob = await of.client("bob").connected()
            assert gone(bob) == [entry(conv, reason)]
            assert (conv in [state["conversation"] for state in bob.of("welcome")[0]["conversations"]]) is True
            assert reason == "deleted" or late in bob.seqs(conv)
            bob.end()
        bob = await of.client("bob").connected()
        bob.say("ack", conversation=conv, seq=0)
        of.node.marks.write(bob.session, last=False)
        await of.settled()
        bob.end()
        again = await of.client("bob").connected()
        assert gone(again) == []
        assert gone(await of.client("bob", "laptop").connected()) == [entry(conv, reason)]
        assert gone(await of.client("bob", "tablet").connected()) == []


@pytest.mark.parametrize("reason", REASONS)
async def test_device_with_its_own_cursors_is_notified(valkey: EmbeddedValkey, reason: str) -> None:
    """The server has never seen the device, or has forgotten it: the cursors of `hello` count."""
    async with world(valkey) as of:
        conv = await ended(of, reason)
        await end(of, conv, reason)
        bob = await of.client("bob", "restored").connected(cursors={conv: 1})
        assert gone(bob) == [entry(conv, reason)]


async def test_session_without_acks_is_notified_of_conversations_it_received_live(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        conv = await ended(of, "user_deleted")
        await bob.event("message", conversation=conv)
        await end(of, conv, "user_deleted")
        await bob.until(lambda: gone(bob))
        assert gone(bob) == [entry(conv, "user_deleted")]


async def test_member_removed_a_second_time_is_notified_again(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()

        def told(times: int) -> bool:
            return len(gone(bob)) == times

        for times in (1, 2):
            await of.remove(group, "bob")
            await bob.until(partial(told, times))
            await of.put(group, "bob")
            await bob.until(lambda: bob.session.hubs)
        await bob.caught_up()
        bob.end()
        assert gone(await of.client("bob").connected()) == []


@pytest.mark.parametrize("acked", [False, True])
async def test_member_whose_return_a_failover_took_back_is_notified_again(valkey: EmbeddedValkey, acked: bool) -> None:
    """He was removed, and knew it; he was added again and got events, and the new primary has none of that."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        await of.remove(group, "bob")
        await bob.until(lambda: len(gone(bob)) == 1)
        if acked:
            bob.say("ack", conversation=group, seq=0)
            of.node.marks.write(bob.session, last=False)
            await of.settled()
        row = await of.redis.fetch("HGET", keys.convs("bob"), group)
        await of.put(group, "bob")
        await bob.event("message", seq=(await of.say("ann", group)).seq)
        await of.redis.fetch("HSET", keys.convs("bob"), group, row)
        await of.redis.fetch("ZINCRBY", keys.recent("bob"), 1, group)  # an audit after a failover reads it again
        of.node.syncs.ask(bob.session, "audit")
        await bob.until(lambda: len(gone(bob)) == 2)
        assert not bob.session.hubs
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        assert gone(bob) == [entry(group, "removed")] * 2


async def test_ack_of_the_removal_event_counts_as_ack_of_the_notice(valkey: EmbeddedValkey) -> None:
    """A client that does not know `gone` acks the event by which its user was removed."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            change = await of.remove(group, "bob")
            await of.settled()
        bob.end()
        bob = await of.client("bob").connected()
        await bob.event("member", seq=change.seq)
        bob.session.forget_gone(group)
        bob.say("ack", conversation=group, seq=change.seq)
        of.node.marks.write(bob.session, last=False)
        await of.settled()
        bob.end()
        assert gone(await of.client("bob").connected()) == []


async def test_late_event_does_not_restore_a_gone_conversation(valkey: EmbeddedValkey) -> None:
    """A router repeats the delivery of a direct event after the conversation was deleted; a newer event creates it
    again."""
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        end = (await of.say("ann", conv)).seq + 2
        await of.node.users.leave("bob", conv, end)

        def deliver(seq: int) -> Any:
            return reply_of(of.node.users.deliver, "bob", conv, "ann", seq, 1, b"\x81", False, 0)

        assert not await deliver(end - 1)
        row = await of.node.users.row("bob", conv)
        assert row is not None
        assert row.left
        assert await deliver(end + 1)
        row = await of.node.users.row("bob", conv)
        assert row is not None
        assert (row.left, row.head) == (False, end + 1)
        assert not await of.node.users.leave("bob", conv, end)
