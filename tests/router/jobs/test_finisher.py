"""router/jobs/finisher.py: unfinished work of a gateway that died is done once, for any number of attempts."""

import asyncio
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics, stamp
from router.contract.errors import Unavailable
from router.contract.packing import pack
from router.jobs import finisher
from router.jobs.finisher import Deliver, Finisher, Join, Leave, SchedulePush, plan
from router.store import dirty
from router.store.answers import reply_of
from router.store.conversations import Page
from router.store.moderation import Act
from tests.router.world import World, settings, world

GROUP = "g:" + "x" * 22
DIRECT = keys.direct("ann", "bob")


def event(
    seq: int, author: str, kind: str = "message", at: int = 0, count: int = 0, conv: str = DIRECT, **fields: object
) -> bytes:
    tail = stamp.tail(kind, conv, author, "phone", seq, {name: pack(value) for name, value in fields.items()})
    return stamp.fill(tail, stamp.Slots(seq, seq - 1, count, at))


def worker(w: World, **changes: object) -> Finisher:
    return Finisher(settings(**changes), w.conversations, w.users, w.pushes, w.dirty, w.contacts, w.files, w.audit)


# -- the plan


def test_both_users_of_a_direct_conversation_get_its_last_event() -> None:
    """A slot only needs the last of many events; each author's own last message moves their read mark."""
    events = [event(1, "ann"), event(2, "bob", count=2), event(3, "ann", count=3)]
    assert plan(DIRECT, events, [frozenset()] * 3, 0) == [
        Deliver("ann", "bob", 3, 3, events[2], True, 0),
        Deliver("bob", "ann", 2, 2, events[1], True, 0),
        Deliver("bob", "ann", 3, 3, events[2], False, 0),
    ]


def test_only_own_messages_mark_as_read_and_every_deletion_is_delivered() -> None:
    """A reaction, or a backend's message, is delivered like an event of the other user."""
    events = [
        event(1, "ann"),
        event(2, "bob", "delete", target=1),
        event(3, "bob", server=True),
        event(4, "ann", "react", target=3, emoji="+", remove=False),
    ]
    assert plan(DIRECT, events, [frozenset()] * 4, 0) == [
        Deliver("ann", "bob", 1, 0, events[0], True, 0),
        Deliver("ann", "bob", 2, 0, events[1], False, 1),
        Deliver("ann", "bob", 4, 0, events[3], False, 0),
        Deliver("bob", "ann", 2, 0, events[1], False, 1),
        Deliver("bob", "ann", 4, 0, events[3], False, 0),
    ]


def test_conversation_with_oneself_is_delivered_once() -> None:
    """Both parties are one user."""
    conv = keys.direct("ann", "ann")
    note = event(1, "ann", conv=conv)
    assert plan(conv, [note], [frozenset(["ann"])], 0) == [Deliver("ann", "ann", 1, 0, note, True, 0)]


def test_last_change_of_a_member_counts() -> None:
    """Joins and leaves have the seq of their change. A new role is a change, too; it moves no read mark, but keeps the
    one of the event that added the user."""
    events = [
        event(1, "ann", "member", conv=GROUP, user="bob", action="add", role="member", count=4),
        event(2, "ann", "member", conv=GROUP, user="cid", action="add", role="member"),
        event(3, "ann", "member", conv=GROUP, user="cid", action="remove", role=None),
        event(4, "ann", "member", conv=GROUP, user="dan", action="role", role="admin"),
        event(5, "ann", conv=GROUP, body="x"),
        event(6, "ann", "member", conv=GROUP, user="bob", action="role", role="reader", count=5),
    ]
    bob, dan = Join("bob", 6, 1, 4, "r"), Join("dan", 4, 0, 0, "a")
    assert plan(GROUP, events, [frozenset()] * 6, 0) == [bob, Leave("cid", 3), dan]


def test_deadline_is_of_the_first_message_and_includes_the_last() -> None:
    """One deadline per user, never for their own messages."""
    everybody = frozenset(["ann", "bob"])
    events = [event(1, "ann", at=1000), event(2, "ann", at=2000), event(3, "bob", at=3000)]
    pushes = [action for action in plan(GROUP, events, [everybody] * 3, 500) if isinstance(action, SchedulePush)]
    assert sorted(pushes, key=lambda push: push.user) == [
        SchedulePush("ann", 3, 3500),
        SchedulePush("bob", 2, 1500),
    ]


@pytest.mark.parametrize("body", ["bob", {"mentions": "bob"}, {"mentions": [1, None]}, ["mentions"], None, {}])
def test_body_of_any_shape_mentions_only_a_list_of_names(body: object) -> None:
    """A body is any value of a client; only a list of names under `mentions` counts."""
    assert finisher.mentions(event(1, "ann", body=body)) == []


# -- the work


async def test_direct_message_whose_gateway_died_reaches_both(valkey: EmbeddedValkey) -> None:
    """After `finish` both rows are at the message, the author's as read, and the conversation is unmarked."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        said = await w.say("ann", conv)
        await worker(w).finish(conv)
        ann, bob = await w.row("ann", conv), await w.row("bob", conv)
        assert (ann.head, ann.read, bob.head, bob.read) == (said.seq, said.seq, said.seq, 0)
        assert (bob.count, bob.read_count, bob.title) == (1, 0, "ann")
        assert not w.is_dirty(conv)


async def test_finished_conversation_is_not_finished_again(valkey: EmbeddedValkey) -> None:
    """A second run finds no event above `routed` and writes nothing."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        await w.say("ann", conv)
        await worker(w).finish(conv)
        before = await w.row("bob", conv), await w.users.conversations("bob")
        await worker(w).finish(conv)
        assert (await w.row("bob", conv), await w.users.conversations("bob")) == before


async def test_finisher_that_dies_before_done_is_followed_by_another(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed between deliver and done: the lease hides its claim, and the next finisher does all the work."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        said = await w.say("ann", conv)
        w.due_now(conv)

        async def dies(*_: object) -> None:
            raise Unavailable

        with monkeypatch.context() as patch:
            patch.setattr(w.dirty, "mark_routed", dies)
            assert (await worker(w).round()).unavailable == 1
        assert w.is_dirty(conv)
        assert (await worker(w).round()).done == 0, "the lease hides it"
        rows = (await w.users.conversations("bob")).rows
        w.due_now(conv)
        assert (await worker(w).round()).done == 1
        assert not w.is_dirty(conv)
        assert (await w.users.conversations("bob")).rows == rows, "nothing was raised twice"
        assert (await w.row("bob", conv)).head == said.seq


async def test_two_finishers_share_the_work(valkey: EmbeddedValkey) -> None:
    """Side by side they finish all conversations, each of which is claimed by one of them."""
    async with world(valkey) as w:
        convs = [await w.direct("ann", f"bob{i}") for i in range(40)]
        for conv in convs:
            await w.say("ann", conv)
            w.due_now(conv)
        rounds = await asyncio.gather(worker(w).round(), worker(w).round())
        assert sum(one.done for one in rounds) == len(convs)
        assert not any(map(w.is_dirty, convs))
        assert all([(await w.row(f"bob{i}", conv)).head for i, conv in enumerate(convs)])


async def test_one_failing_conversation_stops_no_other(
    valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, logged once, and due again after its lease; the others of its round are finished."""
    async with world(valkey) as w:
        bad, good = await w.direct("ann", "bob"), await w.direct("ann", "cid")
        for conv in (bad, good):
            await w.say("ann", conv)
            w.due_now(conv)
        with valkey.client() as redis:
            redis.xadd(keys.log(bad), {"e": b"no event at all, and long enough to have slots" * 2})
            redis.hset(keys.conversation(bad), "routed", 0)
        failed = metrics.FINISHED.labels("failed")
        before = failed._value.get()
        result = await worker(w).round()
        assert (result.done, result.failed) == (1, 1)
        assert failed._value.get() == before + 1
        assert "finisher: items failed in this round: 1" in caplog.text
        assert w.is_dirty(bad)
        assert not w.is_dirty(good)


async def test_files_whose_server_is_away_hold_no_event_back(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation stays marked until the files could be looked at."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob")
        await w.client.fetch("HSET", keys.conversation(conv), "freed", b"x" * 32)
        w.due_now(conv)

        async def away(*_: object) -> None:
            raise Unavailable

        with monkeypatch.context() as patch:
            patch.setattr(w.files, "recheck", away)
            assert (await worker(w).round()).unavailable == 1
        assert not (await w.row("bob", conv)).left
        assert w.is_dirty(conv)
        w.due_now(conv)
        assert (await worker(w).round()).done == 1
        assert not w.is_dirty(conv)


async def test_founders_join_though_the_api_died(valkey: EmbeddedValkey) -> None:
    """A group's first finish joins all its members, because no event has its founders."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob", "cid")
        said = await w.say("ann", conv)
        await worker(w).finish(conv)
        for name in ("ann", "bob", "cid"):
            row = await w.row(name, conv)
            assert (row.left, row.title, row.kind) == (False, "a title", "g")
        assert said.seq


async def test_member_events_change_the_users_rows(valkey: EmbeddedValkey) -> None:
    """An added user joins with earlier events as read; a removed one leaves; for pages of any size."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob")
        await w.people("cid")
        await w.say("ann", conv)
        await worker(w).finish(conv)
        added = await w.conversations.member(conv, "ann", "cid", "put", "m")
        await w.conversations.member(conv, "ann", "bob", "remove")
        await worker(w).finish(conv)
        cid, bob = await w.row("cid", conv), await w.row("bob", conv)
        assert (cid.left, cid.read, cid.read_count) == (False, added.seq, 1)
        assert bob.left


async def test_role_change_of_a_process_that_died_reaches_the_row(valkey: EmbeddedValkey) -> None:
    """It changes neither the read mark nor, if it is repeated, a later role."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob")
        await worker(w).finish(conv)
        said = await w.say("ann", conv)
        await reply_of(w.users.read, "bob", conv, said.seq, 1)
        change = await w.conversations.member(conv, "ann", "bob", "put", "a")
        await worker(w).finish(conv)
        bob, ann = await w.row("bob", conv), await w.row("ann", conv)
        assert (bob.role, bob.read, bob.read_count, bob.changed) == ("a", said.seq, 1, change.seq)
        assert ann.role == "o"
        await w.conversations.member(conv, "ann", "bob", "put", "r")
        await worker(w).finish(conv)
        assert not await w.users.join("bob", conv, "a title", change.seq, 0, 0, "a")
        assert (await w.row("bob", conv)).role == "r"


async def test_user_added_and_removed_before_the_first_finish_is_not_present(valkey: EmbeddedValkey) -> None:
    """A member listing never overrides a change that came after the head before it."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob")
        await w.say("ann", conv)
        await w.conversations.member(conv, "ann", "bob", "remove")
        await worker(w).finish(conv)
        assert (await w.row("bob", conv)).left
        assert not (await w.row("ann", conv)).left


async def test_all_members_join_if_the_log_is_trimmed_past_routed(valkey: EmbeddedValkey) -> None:
    """The event that added a member is no longer in the log; the listing has the member."""
    async with world(valkey) as w:
        conv = await w.group("ann")
        await w.people("bob")
        await w.say("ann", conv)
        await worker(w).finish(conv)
        await w.conversations.member(conv, "ann", "bob", "put", "m")
        last = await w.say("ann", conv)
        with valkey.client() as redis:
            redis.xtrim(keys.log(conv), minid=f"{last.seq}-0", approximate=False)
            redis.hset(keys.conversation(conv), "floor", last.prev)
        await worker(w).finish(conv)
        assert not (await w.row("bob", conv)).left


async def test_all_members_leave_a_removed_conversation(valkey: EmbeddedValkey) -> None:
    """Its members' rows are marked, and its keys are deleted."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob")
        await w.say("ann", conv)
        await worker(w).finish(conv)
        await w.conversations.remove_conversation(conv, "ann")
        assert (await worker(w).round()).done == 1
        assert (await w.row("ann", conv)).left
        assert (await w.row("bob", conv)).left
        assert not w.is_dirty(conv)
        with valkey.client() as redis:
            assert not redis.exists(keys.conversation(conv), keys.log(conv))


async def test_removed_direct_conversation_leaves_both_and_begins_again(valkey: EmbeddedValkey) -> None:
    """Both rows are marked; the next first message creates it again, without earlier events."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        for _ in range(3):
            await w.say("ann", conv)
        await worker(w).finish(conv)
        await w.conversations.remove_conversation(conv, None)
        assert (await worker(w).round()).done == 1
        assert [(await w.row(user, conv)).left for user in ("ann", "bob")] == [True, True]
        await w.direct("ann", "bob")
        seq = (await w.say("ann", conv)).seq
        row = await w.row("bob", conv)
        assert (row.left, row.head, row.count, row.unread(row.count, ())) == (False, seq, 1, 1)


async def test_conversation_lost_by_redis_is_unmarked(valkey: EmbeddedValkey) -> None:
    """Its mark is removed instead of being claimed again after every lease."""
    async with world(valkey) as w:
        conv = await w.group("ann")
        await w.say("ann", conv)
        with valkey.client() as redis:
            redis.delete(keys.conversation(conv))
        w.due_now(conv)
        result = await worker(w).round()
        assert (result.done, result.failed) == (1, 0)
        assert not w.is_dirty(conv)


async def test_long_backlog_is_processed_in_pages(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more events than a page holds, the last one is delivered, and `routed` is at the head."""
    monkeypatch.setattr(finisher, "PAGE", 3)
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        for _ in range(10):
            said = await w.say("ann", conv)
        await worker(w).finish(conv)
        head = await w.conversations.head(conv)
        assert head is not None
        assert (head.routed, (await w.row("bob", conv)).head) == (said.seq, said.seq)


async def test_log_is_trimmed_when_all_is_routed(valkey: EmbeddedValkey) -> None:
    """The oldest events beyond the retained number are removed, and `floor` is set."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        for _ in range(105):
            said = await w.say("ann", conv)
        await worker(w, retention_events=100).finish(conv)
        page: Page = await reply_of(w.conversations.range, conv, None, 0, said.seq, 200)
        assert len(page.events) == 100
        assert page.floor > 0


@pytest.mark.parametrize("body", [{"mentions": ["bob", "nobody", "ann"]}])
async def test_large_group_pushes_to_mentioned_members(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, body: object
) -> None:
    """Above PUSH_MEMBERS a message waits for mentioned members, not for its author or strangers."""
    monkeypatch.setattr(finisher, "PUSH_MEMBERS", 2)
    async with world(valkey) as w:
        conv = await w.group("ann", "bob", "cid")
        await w.say("ann", conv)
        said = await w.say("ann", conv, body)
        await w.say("cid", conv)
        await worker(w, heartbeat_s=1).finish(conv)
        waits = (await w.pushes.waiting("bob")).waits
        assert waits[conv].seq == said.seq
        assert 0 <= waits[conv].due - (said.at + 11_000) < 11_000
        for name in ("ann", "cid", "nobody"):
            assert not (await w.pushes.waiting(name)).waits


async def test_group_message_is_no_push_across_a_block(valkey: EmbeddedValkey) -> None:
    """In either direction; the others get it, and a push for the messages of others."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob", "cid", "dan")
        await w.contacts.change("bob", "ann", "block")
        await w.contacts.change("ann", "cid", "block")
        await w.say("ann", conv)
        await worker(w).finish(conv)
        waiting = [name for name in ("bob", "cid", "dan") if (await w.pushes.waiting(name)).waits]
        assert waiting == ["dan"]
        await w.say("dan", conv)
        await worker(w).finish(conv)
        assert (await w.pushes.waiting("bob")).waits


async def test_small_group_pushes_to_all_but_the_author(valkey: EmbeddedValkey) -> None:
    """In direct conversations and small groups every message waits for all other members."""
    async with world(valkey) as w:
        conv = await w.group("ann", "bob", "cid")
        said = await w.say("ann", conv)
        await worker(w).finish(conv)
        assert not (await w.pushes.waiting("ann")).waits
        for name in ("bob", "cid"):
            assert (await w.pushes.waiting(name)).waits[conv].seq == said.seq


async def test_no_push_waits_without_a_webhook(valkey: EmbeddedValkey) -> None:
    """Without a URL no pushes accumulate in Redis."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        await w.say("ann", conv)
        await worker(w, webhook_url="").finish(conv)
        assert not (await w.pushes.waiting("bob")).waits


async def test_backlog_is_measured(valkey: EmbeddedValkey) -> None:
    """Due conversations and the age of the oldest, over all partitions."""
    async with world(valkey) as w:
        for name in ("bob", "cid"):
            conv = await w.direct("ann", name)
            await w.say("ann", conv)
            w.due_now(conv)
        await worker(w).measure()
        assert metrics.DIRTY._value.get() == 2
        assert metrics.DIRTY_AGE_SECONDS._value.get() > 1e9


async def test_overdue_time_is_measured_by_redis_clock(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock made the deadlines, and a router's may be wrong."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        await w.say("ann", conv)
        due = await w.client.clock_ms() - 3_600_000
        await w.client.fetch("ZADD", keys.dirty(keys.partition(conv)), due, conv)
        monkeypatch.setattr(dirty, "time_ns", lambda: 0)
        await worker(w).measure()
        assert 3600 <= metrics.DIRTY_AGE_SECONDS._value.get() < 4200


@pytest.mark.parametrize(("ahead_s", "held"), [(86_000, 0), (87_000, 1), (-87_000, 0)])
async def test_trimming_held_by_a_clock_far_ahead_is_measured(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, ahead_s: int, held: int
) -> None:
    async with world(valkey) as w:
        clock_ms = w.client.clock_ms

        async def ahead() -> int:
            return await clock_ms() + 1000 * ahead_s

        monkeypatch.setattr(w.client, "clock_ms", ahead)
        await worker(w).measure()
        assert metrics.TRIMMING_HELD._value.get() == held


async def test_stopped_finisher_ends_its_running_items(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running finisher processes due conversations and returns soon after `stop` is set."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        await w.say("ann", conv)
        w.due_now(conv)
        stop = asyncio.Event()
        done = w.dirty.mark_routed

        async def seen(*args: Any) -> Any:
            stop.set()
            return await done(*args)

        monkeypatch.setattr(w.dirty, "mark_routed", seen)  # the moment at which it has the claim in hand
        await worker(w).run(stop)
        assert not w.is_dirty(conv)


# -- moderation


async def test_acts_of_a_router_that_died_reach_the_audit_once(valkey: EmbeddedValkey) -> None:
    """Of a conversation that goes on, and of one that was deleted meanwhile."""
    async with world(valkey) as w:
        groups = [await w.group("ann", "bob") for _ in range(2)]
        for group in groups:
            act = Act(conversation=group, actor="ann", by="ann", user="bob", reason="spam")
            await w.moderation.restrain(act, "mute")
        await w.conversations.remove_conversation(groups[1], "ann")
        for group in groups * 2:
            await worker(w).finish(group)
            entries = await w.client.fetch("XRANGE", keys.audit_of_conversations(keys.partition(group)), "-", "+")
            assert sum(group.encode() in fields[1] for _, fields in entries) == 1


async def test_audit_without_memory_delays_no_delivery(valkey: EmbeddedValkey) -> None:
    """The act stays noted, and the conversation marked, until there is memory again."""
    async with world(valkey) as w:
        group = await w.group("ann", "bob")
        await w.say("ann", group)
        await worker(w).finish(group)  # all members have joined
        await w.moderation.restrain(Act(conversation=group, actor="ann", by="ann", user="bob"), "mute")
        await w.client.fetch("CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(Unavailable):
                await worker(w).finish(group)
        finally:
            await w.client.fetch("CONFIG", "SET", "maxmemory", "0")
        head = await w.conversations.head(group)
        assert head is not None
        assert (head.acts, head.routed) == (True, head.seq)
        assert await w.client.fetch("ZSCORE", keys.dirty(keys.partition(group)), group)
        await worker(w).finish(group)
        head = await w.conversations.head(group)
        assert head is not None
        assert not head.acts
