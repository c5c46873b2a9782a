"""The catch-up of sessions that are behind: each event arrives once and in order, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery import backlog, catchup
from gateway.delivery.backlog import Step
from router.contract import codecs, errors, keys, metrics, stamp
from router.contract.packing import pack
from router.store.conversations import Page
from tests import support
from tests.gateway.world import Client, World, token, world


async def stalled(client: Client) -> None:
    """The client reads no more, and its session has noticed."""
    client.connection.room = 0
    client.connection.paused = True
    client.session.writing_paused()


async def has_exactly(client: Client, conversation: str, seqs: list[int]) -> None:
    """Each of these once, and in this order."""
    await client.until(lambda: seqs[-1] in client.seqs(conversation))
    assert client.seqs(conversation) == seqs


async def logged(of: World, conversation: str) -> list[int]:
    entries = await of.redis.fetch("XRANGE", keys.log(conversation), "-", "+")
    return [int(entry[0].split(b"-")[0]) for entry in entries]


def repairs(cause: str) -> float:
    return float(metrics.REPAIRS.labels(cause)._value.get())


@pytest.mark.parametrize("seed", range(6))
async def test_session_that_falls_behind_and_goes_live_under_traffic_loses_and_repeats_nothing(
    valkey: EmbeddedValkey, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport fills in the middle of batches, at any write, and drains at any time; the session acks nothing."""
    monkeypatch.setattr(catchup, "PAGE_EVENTS", 3)
    chance = random.Random(seed)
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        slow = await of.client("bob", codec=chance.choice([codecs.JSON, codecs.MSGPACK])).connected()
        quick = await of.client("bob", "laptop").connected()
        for _ in range(30):
            slow.connection.room = chance.randrange(1, 5) if not slow.connection.paused else 0
            conversations = chance.choices([group, direct], k=chance.randrange(1, 6))
            says = [asyncio.ensure_future(of.say("ann", conversation)) for conversation in conversations]
            if chance.random() < 0.5:
                await asyncio.gather(*says)
            if slow.connection.paused and chance.random() < 0.6:
                slow.connection.drain(chance.choice([1, 2, 4, None]))
            await asyncio.gather(*says)
        slow.connection.drain()
        for conversation in (group, direct):
            seqs = await logged(of, conversation)
            assert seqs
            for client in (slow, quick):
                await has_exactly(client, conversation, seqs)
        assert slow.session.backlog is None


async def test_direct_conversation_resumes_at_the_received_position_not_the_stored_cursor(
    valkey: EmbeddedValkey,
) -> None:
    """Cursors are acked later, so a session does not receive an event twice."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        for i in range(3):
            await of.say("ann", direct, i)
        await bob.event("message", body=2)
        await stalled(bob)
        await of.say("ann", direct, 3)
        await of.settled()
        assert bob.bodies(direct) == [0, 1, 2]
        bob.connection.drain()
        await bob.event("message", body=3)
        assert bob.bodies(direct) == [0, 1, 2, 3]


async def test_audit_of_a_session_that_is_behind_repeats_nothing(valkey: EmbeddedValkey) -> None:
    """The audit may report events that the session has already received."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        await of.say("ann", direct, "given")
        await bob.event("message", body="given")
        await stalled(bob)
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        bob.connection.drain()
        await bob.caught_up()
        assert bob.bodies(direct) == ["given"]


async def test_missed_event_in_a_direct_conversation_is_repaired_once(valkey: EmbeddedValkey) -> None:
    """It is read from the log before the event that shows the gap; further gaps meanwhile belong to the same repair."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        await of.say("ann", direct, "before")
        await bob.event("message", body="before")
        counted = repairs("hole")
        with of.deaf():
            await of.say("ann", direct, "lost")
            await of.say("ann", direct, "lost too")
            await of.settled()
        await asyncio.gather(of.say("ann", direct, "after"), of.say("ann", direct, "and after"))
        await bob.event("message", body="and after")
        assert bob.bodies(direct) == ["before", "lost", "lost too", "after", "and after"]
        assert repairs("hole") == counted + 1
        await bob.caught_up()


async def test_direct_conversation_that_moves_for_the_first_time_is_read_from_the_cursor(
    valkey: EmbeddedValkey,
) -> None:
    """This is no loss, and not counted as one."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        await of.say("ann", direct, "old")
        bob = await of.client("bob").connected()
        bob.session.direct.clear()
        bob.say("ack", cursors={})
        counted = repairs("hole")
        await of.say("ann", direct, "new")
        await bob.event("message", body="new")
        assert repairs("hole") == counted


@pytest.mark.parametrize("audited", [False, True])
async def test_moves_beyond_the_bound_are_asked_for_again(
    valkey: EmbeddedValkey, audited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if audits come while the session is behind: a move that one of them could not note is found by the next."""
    monkeypatch.setattr(backlog, "MAX_MOVED", 2)
    async with world(valkey) as of:
        directs = [await of.direct("bob", f"user{i}") for i in range(9)]
        bob = await of.client("bob").connected()
        await stalled(bob)
        for i, direct in enumerate(directs):
            await of.say(f"user{i}", direct, i)
            if audited and i % 3 == 0:
                await of.settled()
                of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        assert len(bob.session.backlog.todo) == 2  # type: ignore[union-attr]  # it is stalled
        bob.connection.drain()
        await bob.until(lambda: len(bob.of("message")) >= len(directs) and bob.session.backlog is None)
        assert sorted(event["body"] for event in bob.of("message")) == list(range(9))


async def test_audit_under_way_does_not_replace_the_resync(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been answered before the move that could not be noted."""
    monkeypatch.setattr(backlog, "MAX_MOVED", 1)
    async with world(valkey) as of:
        directs = [await of.direct("bob", f"user{i}") for i in range(4)]
        bob = await of.client("bob").connected()
        await stalled(bob)
        answers: list[Any] = []
        sync = of.node.users.sync

        def held(question: Any, reply: Any) -> None:
            sync(question, lambda got: answers.append((reply, got)))

        monkeypatch.setattr(of.node.users, "sync", held)
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        for i, direct in enumerate(directs):
            await of.say(f"user{i}", direct, i)
        await of.settled()
        bob.connection.drain()
        await bob.event("message", body=0)
        await of.settled()
        monkeypatch.undo()
        (reply, got), *more = answers
        reply(got)  # the old answer, now that the session waits for a new one
        for reply, got in more:
            reply(got)
        await bob.until(lambda: len(bob.of("message")) == 4)
        assert sorted(event["body"] for event in bob.of("message")) == [0, 1, 2, 3]


async def test_session_behind_receives_groups_it_leaves_and_enters(valkey: EmbeddedValkey) -> None:
    """Of the left group everything up to the removal and nothing after, of the entered one everything from then on."""
    async with world(valkey) as of:
        left, joined = await of.group("ann", "bob"), await of.group("ann")
        bob = await of.client("bob").connected()
        await stalled(bob)
        await of.say("ann", joined, "before bob")
        await of.say("ann", left, "with bob")
        removal = await of.remove(left, "bob")
        await of.say("ann", left, "without bob")
        arrival = await of.put(joined, "bob")
        await of.say("ann", joined, "after bob")
        await of.settled()
        bob.connection.drain()
        await bob.event("message", body="after bob")
        await bob.event("member", conversation=left, action="remove")
        assert (bob.bodies(left), bob.bodies(joined)) == (["with bob"], ["after bob"])
        assert (bob.seqs(left)[-1], bob.seqs(joined)[0]) == (removal.seq, arrival.seq)
        await bob.caught_up()
        await of.say("ann", left, "still without bob")
        await of.say("ann", joined, "live")
        await bob.event("message", body="live")
        assert bob.bodies(left) == ["with bob"]


async def test_member_removed_during_connect_is_fed_from_the_cursor(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the position of the group's hub, which the session had entered by then."""
    async with world(valkey) as of:
        left, other = await of.group("ann", "bob"), await of.group("ann", "bob")
        has = await of.say("ann", left, "had")
        for body in ("missed", "missed too"):
            await of.say("ann", left, body)
        enter = of.node.subscriptions.hub
        held: list[Any] = []

        def hub(conversation: str, ready: Any) -> None:
            if conversation == other:
                held.append(ready)
            else:
                enter(conversation, ready)

        monkeypatch.setattr(of.node.subscriptions, "hub", hub)
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"), device="phone", cursors={left: has.seq})
        await support.eventually(lambda: held and bob.session.hubs)
        removal = await of.remove(left, "bob", told=False)
        await support.eventually(lambda: not bob.session.hubs)
        held[0](True)
        await bob.event("member", conversation=left, seq=removal.seq)
        assert bob.bodies(left) == ["missed", "missed too"]
        await bob.caught_up()


async def test_member_removed_during_catchup_receives_the_removal_event(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page under way was asked for before the removal, so the rest up to it is asked for afterwards."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.say("ann", group, "before")
        read: Any = of.node.conversations.range
        held: list[Any] = []

        def hold(*asked: Any) -> None:
            read(*asked[:-1], lambda page: held.append((asked[-1], page)))

        monkeypatch.setattr(of.node.conversations, "range", hold)
        bob = of.client("bob")
        await bob.hello()
        await of.settled()
        removal = await of.remove(group, "bob")
        await of.settled()
        monkeypatch.setattr(of.node.conversations, "range", read)
        ((reply, page),) = held
        reply(page)
        await bob.event("member", conversation=group, action="remove")
        assert bob.seqs(group)[-1] == removal.seq
        await bob.caught_up()


async def test_log_that_ends_before_a_live_event_is_read_again(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced primary may answer with nothing, so the position stays."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        await bob.event("message", body="before")
        read = of.node.conversations.range

        def behind(conversation: str, user: str | None, after: int, upto: int, limit: int, reply: Any) -> None:
            of.node.loop.call_soon(reply, Page([], after, 0, False))

        monkeypatch.setattr(of.node.conversations, "range", behind)
        with of.deaf():
            await of.say("ann", direct, "only the new one has it")
            await of.settled()
        await of.say("ann", direct, "heard")
        await of.settled()
        await bob.caught_up()
        monkeypatch.setattr(of.node.conversations, "range", read)
        await of.say("ann", direct, "after")
        await bob.event("message", body="after")
        assert bob.bodies(direct) == ["before", "only the new one has it", "heard", "after"]


async def test_member_removed_during_a_large_fan_out_receives_it(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removed member also receives the events that wait behind the fan-out, and the removal."""
    monkeypatch.setattr("gateway.delivery.hub.CHUNK", 1)
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid", "dan")
        clients = [await of.client(user).connected() for user in ("ann", "cid", "dan", "bob")]
        says = [of.say("ann", group, i) for i in range(3)]
        await asyncio.gather(*says, of.remove(group, "bob"))
        await clients[-1].event("member", user="bob", action="remove")
        seqs = await logged(of, group)
        for client in clients:
            await has_exactly(client, group, seqs)


async def test_at_most_one_page_is_read_ahead(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked for while the transport is full, and each page is written as soon as it is read."""
    monkeypatch.setattr(catchup, "PAGE_EVENTS", 4)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        await stalled(bob)
        for i in range(20):
            await of.say("ann", group, i)
        await of.settled()
        assert not bob.connection.reading  # nothing is read from a client that does not read
        for pages in range(1, 5):
            bob.connection.drain(1)
            await bob.until(lambda: bob.connection.paused)
            asked = of.calls("range")
            await of.settled()
            assert (len(bob.bodies(group)), of.calls("range")) == (4 * pages, asked)
        bob.connection.drain()
        await bob.event("message", body=19)
        assert bob.bodies(group) == list(range(20))
        assert bob.connection.reading


async def test_newest_conversations_are_fed_first(valkey: EmbeddedValkey) -> None:
    """A user looks first at the conversations that moved last."""
    async with world(valkey) as of:
        directs = [await of.direct("bob", f"user{i}") for i in range(4)]
        for i in (2, 0, 3, 1):
            await of.say(f"user{i}", directs[i], i)
        bob = await of.client("bob").connected()
        await bob.until(lambda: len(bob.of("message")) == 4)
        assert [event["body"] for event in bob.of("message")] == [1, 3, 0, 2]


@pytest.mark.parametrize("write", [False, True])
async def test_lost_log_is_announced_as_expired_to_a_device_that_reconnects(
    valkey: EmbeddedValkey, write: bool
) -> None:
    """The hash is still there: `gap {expired}` from the cursor to the end of the lost part, then the events since."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        first = await of.say("ann", group, "first")
        await bob.event("message", body="first")
        bob.say("ack", conversation=group, seq=first.seq)
        bob.end()
        last = await of.say("ann", group, "lost")
        await of.redis.fetch("DEL", keys.log(group))
        if write:
            await of.say("ann", group, "new")
        back = await of.client("bob").connected(cursors={group: first.seq})
        await back.event("gap")
        assert back.of("gap") == [
            {"type": "gap", "conversation": group, "from": first.seq + 1, "to": last.seq, "reason": "expired"}
        ]
        assert back.bodies(group) == (["new"] if write else [])


async def test_trimmed_log_is_announced_before_the_remaining_events(valkey: EmbeddedValkey) -> None:
    """`gap {expired}` from the cursor to the floor, then the rest."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        first = await of.say("ann", group, 0)
        await bob.event("message", body=0)
        await stalled(bob)
        said = [await of.say("ann", group, i) for i in range(1, 5)]
        floor = said[1].seq
        await of.redis.fetch("XTRIM", keys.log(group), "MINID", floor + 1)
        await of.redis.fetch("HSET", keys.conversation(group), "floor", floor)
        bob.connection.drain()
        await bob.event("message", body=4)
        assert [event for event in bob.events if event["type"] in ("gap", "message")][1:] == [
            {"type": "gap", "conversation": group, "from": first.seq + 1, "to": floor, "reason": "expired"},
            *bob.of("message")[1:],
        ]
        assert bob.bodies(group) == [0, 3, 4]


async def test_rolled_back_log_is_announced_before_the_events_that_replaced_it(valkey: EmbeddedValkey) -> None:
    """The device has events that no longer exist: `gap {failover}` names them."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        kept = await of.say("ann", direct, "kept")
        photograph = await of.photographed(direct)
        void = await of.say("ann", direct, "void")
        bob = await of.client("bob").connected()
        await bob.event("message", body="void")
        await stalled(bob)
        await of.failed_over(direct, photograph)
        new = await of.say("ann", direct, "new", seen=void.seq)
        bob.connection.drain()
        await bob.event("message", body="new")
        assert bob.of("gap") == [
            {"type": "gap", "conversation": direct, "from": kept.seq + 1, "to": void.seq, "reason": "failover"}
        ]
        assert bob.events.index(bob.of("gap")[0]) < bob.events.index(bob.of("message", body="new")[0])
        assert new.seq > void.seq


async def test_failed_read_is_retried(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis was unavailable for a moment: no event is skipped."""
    monkeypatch.setattr(catchup, "RETRY_S", 0.0)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        await stalled(bob)
        await of.say("ann", group, "missed")
        await of.settled()
        refusals = of.unavailable(2)
        bob.connection.drain()
        await bob.event("message", body="missed")
        await bob.caught_up()
        assert not refusals


async def test_session_that_closes_during_catchup_is_released(valkey: EmbeddedValkey) -> None:
    """The page that arrives later is dropped."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        behind = float(metrics.SESSIONS_BEHIND._value.get())
        await stalled(bob)
        await of.say("ann", group, "missed")
        await of.settled()
        bob.connection.drain()
        bob.end()
        await of.settled()
        assert bob.bodies(group) == []
        assert float(metrics.SESSIONS_BEHIND._value.get()) == behind
        assert of.node.subscriptions.hubs == {}


async def test_answers_are_written_before_live_events(valkey: EmbeddedValkey) -> None:
    """A hub writes at once, and an answer at the end of the turn: the welcome must not come after a live event."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        join, hubs = of.node.catchup._go_live, of.node.subscriptions.hubs

        def joined_in_the_turn_of_an_event(session: Any, behind: Any) -> None:
            join(session, behind)
            hub = hubs[group]
            hub.pending.append(event)
            hub.flush()

        tail = stamp.tail("message", group, "ann", "phone", 1, {"media": pack("text"), "body": pack("live")})
        event = stamp.fill(tail, stamp.Slots(1, 0, 1, 1))
        of.node.catchup._steps[Step.GO_LIVE] = joined_in_the_turn_of_an_event  # the race, made certain
        await bob.event("message", body="live")
        await bob.event("welcome")
        assert [event["type"] for event in bob.events] == ["welcome", "message"]


async def test_session_behind_a_damaged_event_receives_the_others_and_goes_live(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        seqs = [(await of.say("ann", group, i)).seq for i in range(3)]
        await of.damage(group, seqs[1])
        bob = await of.client("bob").connected()
        await of.say("ann", group, 3)
        await bob.event("message", body=3)
        assert bob.bodies(group) == [0, 2, 3]


async def test_session_whose_page_cannot_be_applied_ends_and_does_not_wait_for_ever(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(events: list[bytes], variant: int) -> bytes:
        raise RuntimeError("a bug")

    async with world(valkey) as of:
        await of.say("ann", await of.direct("ann", "bob"))
        monkeypatch.setattr(catchup, "event_frames", fails)
        bob = of.client("bob")
        await bob.hello()
        assert await bob.closed() == (errors.CLOSE_INTERNAL, "internal")


@pytest.mark.parametrize("damaged", ["log", "cursor"])
async def test_conversation_that_cannot_be_read_keeps_no_other_from_the_session(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """The newest conversation is damaged; what is older, and what moves meanwhile, is delivered."""
    monkeypatch.setattr(catchup, "RETRY_S", 0.05)
    async with world(valkey) as of:
        group, direct, bad = await of.group("ann", "bob"), await of.direct("ann", "bob"), await of.direct("carl", "bob")
        bob = of.client("bob")
        if damaged == "log":
            await of.say("ann", direct, "older")
            await of.damage(bad, (await of.say("carl", bad, "unread")).seq, keep=1)
            await bob.hello()
        else:
            await of.say("carl", bad)
            await bob.connected()
            bob.session.direct.clear()  # as after 1024 others, so the cursor is read
            await of.redis.fetch("HSET", keys.cursor("bob", "phone"), bad, "junk")
            await of.say("carl", bad, "unread")
            await support.eventually(lambda: bob.session.backlog is not None)
            await of.say("ann", direct, "older")
        await bob.event("message", body="older")
        await of.say("ann", group, "meanwhile")
        await bob.event("message", body="meanwhile")
        assert "unread" not in bob.bodies(bad)
