"""A device that is ahead of this node: either a hub lags behind the log, or a failover rolled the log back."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import LinnetError
from router.contract.packing import MAX_INTEGER
from router.store.answers import Reply, reply_of
from router.store.heads import Head
from tests import support
from tests.gateway.world import World, token, world


async def test_device_ahead_of_a_hub_receives_no_event_twice(valkey: EmbeddedValkey) -> None:
    """The hub has missed events that the device received elsewhere; it is repaired before the device goes live."""
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


async def test_events_that_only_the_device_has_are_announced_as_a_gap(valkey: EmbeddedValkey) -> None:
    """At once, and the device receives new events."""
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


async def test_group_events_that_come_while_a_claim_is_checked_are_received(valkey: EmbeddedValkey) -> None:
    """They have seqs that the claim names, but they were written after it, so the device cannot have them."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        last = await of.say("ann", group, "kept")
        await ann.event("message", seq=last.seq)
        bob = of.client("bob")
        heads = of.node.conversations.heads
        said: list[int] = []

        def heads_later(convs: Sequence[str], reply: Reply[list[Head | LinnetError | None]]) -> None:
            async def later() -> None:
                if not said:
                    said.extend([(await of.say("ann", group, body)).seq for body in ("one", "two")])
                    await ann.event("message", seq=said[-1])
                heads(convs, reply)

            of.node.tasks.spawn(later())

        of.node.catchup._conversations.heads = heads_later  # type: ignore[method-assign]
        await bob.connected(cursors={group: last.seq + 3})
        assert bob.bodies(group) == ["one", "two"]
        assert [(gap["from"], gap["to"]) for gap in bob.of("gap")] == [(last.seq + 1, last.seq + 3)]
        await of.say("ann", group, "three")
        await bob.event("message", body="three")
        assert bob.bodies(group) == ["one", "two", "three"]


async def test_gap_is_not_announced_within_the_failover_grace(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that a replaced primary lacks may be on its successor: no gap, and no event twice."""
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


async def test_direct_conversation_that_a_failover_rolled_back_is_announced_with_its_next_event(
    valkey: EmbeddedValkey,
) -> None:
    """Before that event only the device's own cursor shows the loss."""
    async with world(valkey) as of:
        direct = keys.direct("ann", "bob")
        bob = await of.client("bob").connected(cursors={direct: 500})
        await of.direct("ann", "bob")
        new = await of.say("ann", direct, "new")
        await bob.event("message", seq=new.seq)
        assert [(gap["from"], gap["to"], gap["reason"]) for gap in bob.of("gap")] == [(1, 500, "failover")]


async def test_member_added_again_resumes_at_the_received_position(valkey: EmbeddedValkey) -> None:
    """Cursors are acked later, so the events that this connection received before the removal are not sent again."""
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
async def test_cursor_beyond_a_direct_head_loses_no_message(valkey: EmbeddedValkey, beyond: int) -> None:
    """It is lowered: the next event is delivered, live and to the next connection, and does not count as acked."""
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
    """A failover rolled back events of the device: a gap up to its cursor, and the device starts from the head."""
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


async def test_direct_cursor_is_not_lowered_within_the_failover_grace(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that a replaced primary lacks may be on its successor: no gap, and no event twice."""
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


async def test_failover_grace_ends_once_the_server_is_known_to_be_the_primary(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question to the other servers that was asked after the device was found ahead is enough."""
    async with world(valkey) as of:
        asked_at = [0.0]
        monkeypatch.setattr(type(of.redis), "failover_grace_s", property(lambda _: 3600.0))
        monkeypatch.setattr(type(of.redis), "certain_at", property(lambda _: asked_at[0]))
        direct = await of.direct("ann", "bob")
        last = await of.say("ann", direct, "kept")
        bob = of.client("bob")
        await bob.hello(cursors={direct: last.seq + 5})
        backlog = bob.session.backlog
        await support.eventually(lambda: backlog is not None and backlog.ahead_since is not None)
        assert bob.session.backlog is backlog
        asked_at[0] = of.node.loop.time() + 0.001  # the clock has milliseconds, and the moments must differ
        await bob.caught_up()
        new = await of.say("ann", direct, "new")
        await bob.event("message", seq=new.seq)
        assert bob.seqs(direct) == [new.seq]


async def test_device_ahead_of_a_rolled_back_log_misses_nothing(valkey: EmbeddedValkey) -> None:
    """Its cursor names events that no longer exist."""
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
async def test_invented_cursor_blocks_no_conversation(valkey: EmbeddedValkey, known: bool) -> None:
    """A cursor that no server has given out, sent just before the first send to a new direct conversation or to a group
    whose server was replaced, uses up none of their seqs."""
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
