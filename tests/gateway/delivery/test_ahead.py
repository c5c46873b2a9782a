"""A device that comes with more than this node has: the node lags behind the log, or the log was rolled back."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.packing import MAX_INTEGER
from router.store.answers import reply_of
from tests.gateway.world import World, token, world


async def test_what_a_device_brings_is_not_given_to_it_again(valkey: EmbeddedValkey) -> None:
    """The hub has lost events that the device got elsewhere: it is repaired, and only then goes on for the device."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        first = await of.say("ann", group, "seen by all")
        await ann.event("message", seq=first.seq)
        with of.deaf():
            missed = [await of.say("ann", group, body) for body in ("missed", "missed too")]
            await of.settled()
        bob = await of.client("bob").connected(cursors={group: missed[-1].seq})
        assert bob.seqs(group) == []
        await ann.event("message", seq=missed[-1].seq)
        after = await of.say("ann", group, "after")
        await bob.event("message", seq=after.seq)
        assert bob.seqs(group) == [after.seq]
        assert bob.of("gap") == []
        assert ann.bodies(group) == ["seen by all", "missed", "missed too", "after"]


async def test_what_a_device_brings_and_no_log_has_is_announced_as_void(valkey: EmbeddedValkey) -> None:
    """It is told at once, and gets what is new."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        last = await of.say("ann", group, "kept")
        bob = await of.client("bob").connected(cursors={group: last.seq + 5})
        gap = await bob.event("gap", conversation=group)
        assert (gap["from"], gap["to"], gap["reason"]) == (last.seq + 1, last.seq + 5, "failover")
        new = await of.say("ann", group, "new")
        await bob.event("message", seq=new.seq)
        assert bob.seqs(group) == [new.seq]
        assert len(bob.of("gap")) == 1


async def test_a_void_is_told_only_by_who_can_be_sure(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server does not have that may have been succeeded, the next one has: no gap, and nothing given again."""
    async with world(valkey) as of:
        monkeypatch.setattr(type(of.redis), "failover_grace_s", property(lambda _: 60.0))
        group = await of.group("ann", "bob")
        last = await of.say("ann", group, "kept")
        bob = of.client("bob")
        await bob.hello(cursors={group: last.seq + 1})
        await of.settled()
        assert bob.session.backlog is not None
        there = await of.say("ann", group, "there now")
        assert there.seq == last.seq + 1
        await bob.caught_up()
        new = await of.say("ann", group, "new")
        await bob.event("message", seq=new.seq)
        assert (bob.seqs(group), bob.of("gap")) == ([new.seq], [])


async def test_a_direct_conversation_that_a_failover_took_back_is_announced_with_its_next_event(
    valkey: EmbeddedValkey,
) -> None:
    """Nothing but the device's own cursor knows of it, until somebody writes there."""
    async with world(valkey) as of:
        direct = keys.direct("ann", "bob")
        bob = await of.client("bob").connected(cursors={direct: 500})
        await of.direct("ann", "bob")
        new = await of.say("ann", direct, "new")
        await bob.event("message", seq=new.seq)
        assert [(gap["from"], gap["to"], gap["reason"]) for gap in bob.of("gap")] == [(1, 500, "failover")]


async def test_who_comes_into_a_group_again_goes_on_where_she_stood(valkey: EmbeddedValkey) -> None:
    """Cursors are acked a while later: what this connection was given before it left is not given again."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        said = [await of.say("ann", group, body) for body in ("one", "two")]
        await bob.event("message", seq=said[-1].seq)
        of.node.subscriptions.member_left(of.node.subscriptions.hubs[group], "bob")
        await reply_of(of.node.users.read, "bob", group, said[0].seq, 1)
        of.node.syncs.ask(bob.session, "audit")
        await bob.until(lambda: bob.session.hubs)
        said.append(await of.say("ann", group, "three"))
        await bob.event("message", seq=said[-1].seq)
        assert bob.seqs(group) == [one.seq for one in said]


async def stored_cursor(of: World, user: str, conversation: str) -> int:
    await of.settled()
    cursor: int = await reply_of(of.node.users.cursor, user, "phone", conversation)
    return cursor


@pytest.mark.parametrize("beyond", [1, 1000, MAX_INTEGER])
async def test_cursor_beyond_a_direct_head_swallows_no_message(valkey: EmbeddedValkey, beyond: int) -> None:
    """It is clamped: what comes next is delivered, live and to the next connection, and nothing is acked by it."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        last = await of.say("ann", direct, "kept")
        bob = await of.client("bob").connected()
        bob.end()
        bob = of.client("bob")
        await bob.hello(cursors={direct: min(last.seq + beyond, MAX_INTEGER)})
        said = [await of.say("ann", direct, body) for body in ("one", "two")]
        await bob.event("message", seq=said[-1].seq)
        assert (bob.seqs(direct), bob.of("gap")) == ([one.seq for one in said], [])
        assert await stored_cursor(of, "bob", direct) == last.seq
        bob.say("ack", conversation=direct, seq=said[0].seq)
        await bob.ask("ping", "pong")
        bob.end()
        again = await of.client("bob").connected()
        await again.event("message", seq=said[-1].seq)
        assert again.seqs(direct) == [said[1].seq]


async def test_cursor_beyond_a_direct_head_of_another_server_is_announced(valkey: EmbeddedValkey) -> None:
    """A failover took back what the device has: a gap to its cursor, and it starts from the head."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        last = await of.say("ann", direct, "kept")
        photograph = await of.photographed(direct)
        await of.failed_over(direct, photograph)
        bob = await of.client("bob").connected(cursors={direct: last.seq + 7})
        gap = await bob.event("gap", conversation=direct)
        assert (gap["from"], gap["to"], gap["reason"]) == (last.seq + 1, last.seq + 7, "failover")
        new = await of.say("ann", direct, "new")
        await bob.event("message", seq=new.seq)
        assert (bob.seqs(direct), len(bob.of("gap"))) == ([new.seq], 1)
        assert await stored_cursor(of, "bob", direct) == last.seq


async def test_cursors_of_other_users_conversations_are_ignored(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        await of.direct("cid", "dan")
        bob = await of.client("bob").connected(cursors={"d:cid:dan": 5, "d:bob:aaa": 5, "d:x": 5})
        await bob.ask("ping", "pong")
        assert bob.of("gap") == []


async def test_direct_cursor_is_not_clamped_while_a_successor_is_in_doubt(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server does not have that may have been succeeded, the next one has: no gap, and nothing given again."""
    async with world(valkey) as of:
        monkeypatch.setattr(type(of.redis), "failover_grace_s", property(lambda _: 60.0))
        direct = await of.direct("ann", "bob")
        last = await of.say("ann", direct, "kept")
        bob = of.client("bob")
        await bob.hello(cursors={direct: last.seq + 1})
        await of.settled()
        there = await of.say("ann", direct, "there now")
        await bob.caught_up()
        new = await of.say("ann", direct, "new")
        await bob.event("message", seq=new.seq)
        assert there.seq == last.seq + 1
        assert (bob.seqs(direct), bob.of("gap")) == ([new.seq], [])


async def test_a_device_that_is_ahead_of_a_log_that_was_rolled_back_misses_nothing(valkey: EmbeddedValkey) -> None:
    """Its cursor names what never was."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        kept = await of.say("ann", direct, "kept")
        photograph = await of.photographed(direct)
        void = await of.say("ann", direct, "void")
        await of.failed_over(direct, photograph)
        bob = await of.client("bob").connected(cursors={direct: void.seq})
        await of.say("ann", direct, "new", seen=void.seq)
        await bob.event("message", body="new")
        assert bob.bodies(direct) == ["new"]
        assert [(gap["from"], gap["to"], gap["reason"]) for gap in bob.of("gap")] == [
            (kept.seq + 1, void.seq, "failover")
        ]


@pytest.mark.parametrize("known", [False, True])
async def test_what_a_device_claims_to_have_wedges_no_conversation(valkey: EmbeddedValkey, known: bool) -> None:
    """A cursor that no server gave out, said right before the first send to a new direct conversation or to a group
    whose server was replaced, takes none of their seqs away."""
    async with world(valkey) as of:
        conv = await of.group("ann", "bob") if known else keys.direct("ann", "bob")
        await of.people("ann", "bob")
        bob = await of.client("bob").connected()
        if known:
            await of.say("bob", conv, 0)
            await of.failed_over(conv, await of.photographed(conv))
        ann = of.client("ann")
        ann.say("hello", token=token(of.node, "ann"), device="phone", cursors={conv: MAX_INTEGER})
        ann.say("send", to=conv if known else "@bob", n=1, body=1)
        first = await ann.event("ack", n=1)
        ann.say("send", to=conv, n=2, body=2)
        second = await ann.event("ack", n=2)
        assert first["seq"] + 1 == second["seq"] < MAX_INTEGER // 2
        await bob.event("message", n=2)
        assert bob.bodies(conv)[-2:] == [1, 2]
