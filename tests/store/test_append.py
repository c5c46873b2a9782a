"""Appending: once for each n, in one order, by permitted users. One test plays thousands of resends against a model."""

import asyncio
import random
import struct
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import Blocked, Conflict, LinnetError, NotFound, RateLimited, ReadOnly, Unavailable
from router.store.appends import Append, Appended
from router.store.pairs import Pairs
from tests.store.calling import BURST_US, COST_US, Store, called, event, store

WINDOW = 32
MOVED = keys.Channels("x.0:")  # of a deployment of format 2
META = struct.Struct(">QQII16sQ")


async def meta(s: Store, conv: str) -> list[Any]:
    return list(META.unpack(await s.client.fetch("HGET", keys.conversation(conv), "m")))


async def another_server_wrote_last(s: Store, conv: str) -> None:
    """Make the server a new one, as after a failover: the replication id in the counters is not that of the server."""
    m = await meta(s, conv)
    m[4] = b"f" * 16
    await s.client.fetch("HSET", keys.conversation(conv), "m", META.pack(*m))


async def died_half_way(s: Store, a: Append) -> int:
    """Leave the state of a call that died between the log and the counters; return the seq of its event."""
    last, count, *_, at = await meta(s, a.conversation)
    packed = stamp.fill(a.tail, stamp.Slots(last + 1, last, count + 1, at))
    await s.client.fetch("XADD", keys.log(a.conversation), f"{last + 1}-0", "e", packed, "f", a.user)
    return int(last) + 1


# -- the model


class Device:
    """The expected rows of one device in one conversation."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bytes]] = {}
        self.done = 0

    def expect(self, a: Append, member: bool) -> int | type[LinnetError] | None:
        """The seq of a duplicate, the refusal, or None for a new event."""
        if a.n in self.rows:
            seq, fingerprint = self.rows[a.n]
            return seq if fingerprint == a.fingerprint else Conflict
        if a.n <= max(self.done, a.done) or (len(self.rows) == WINDOW and a.n < min(self.rows)):
            return Conflict
        return None if member else NotFound

    def accept(self, a: Append, seq: int) -> None:
        self.done = max(self.done, a.done)
        self.rows = {n: row for n, row in self.rows.items() if n > self.done}
        if len(self.rows) == WINDOW:
            del self.rows[min(self.rows)]
        self.rows[a.n] = (seq, a.fingerprint)


class Model:
    """Devices that send, resend, reinstall and lie, members who are added and removed, calls that die, new servers."""

    def __init__(self, s: Store, conv: str, seed: int) -> None:
        self.s, self.conv, self.random = s, conv, random.Random(seed)
        self.devices = {(user, device): Device() for user in ("ann", "bob") for device in ("phone", "laptop")}
        self.newest = dict.fromkeys(self.devices, 0)
        self.members = {"ann", "bob"}
        self.last = 0
        self.accepted: list[tuple[str, str, int]] = []
        self.died: list[tuple[str, str, int]] = []
        self.seen: dict[str, int] = dict.fromkeys(("new", "duplicate", "Conflict", "NotFound", "adopted", "jump"), 0)

    def command(self) -> Append:
        """Mostly the next n, else one of the window, or one far behind."""
        user, device = self.random.choice(list(self.devices))
        newest, chance = self.newest[user, device], self.random.random()
        if chance < 0.5:
            n = newest + self.random.choice((1, 1, 1, 2, 5))
        else:
            n = max(1, newest - self.random.randrange(WINDOW + 4 if chance < 0.97 else 200))
        self.newest[user, device] = max(newest, n)
        body = "hello" if self.random.random() < 0.97 else "other"
        done = n - self.random.randrange(1, 40) if self.random.random() < 0.1 else 0
        return event(self.conv, user, n, device=device, body=body, done=max(0, done))

    async def batch(self, size: int) -> None:
        """Send commands in one write, and compare each answer with the model."""
        commands = [self.command() for _ in range(size)]
        answers = await asyncio.gather(
            *(called(self.s.conversations.append, a) for a in commands), return_exceptions=True
        )
        for a, answer in zip(commands, answers, strict=True):
            self.check(a, answer)

    def check(self, a: Append, answer: Appended | BaseException, jump: bool = False) -> None:
        device = self.devices[a.user, a.device]
        expected = device.expect(a, a.user in self.members)
        if isinstance(expected, type):
            assert isinstance(answer, expected), (a, answer)
            self.seen[expected.__name__] += 1
            return
        assert isinstance(answer, Appended), (a, answer)
        if expected is not None:
            assert (answer.duplicate, answer.seq) == (True, expected)
            assert answer.at > 0
            self.seen["duplicate"] += 1
            return
        assert not answer.duplicate
        assert answer.prev == self.last
        assert answer.seq > max(self.last, 1 << 40) if jump else answer.seq == self.last + 1
        self.last = answer.seq
        device.accept(a, answer.seq)
        self.accepted.append((a.user, a.device, a.n))
        assert answer.count == len(self.accepted) + len(self.died)
        self.seen["new"] += 1

    async def one(self, a: Append, jump: bool = False) -> None:
        answers = await asyncio.gather(called(self.s.conversations.append, a), return_exceptions=True)
        self.check(a, answers[0], jump)

    def fresh(self, user: str = "ann") -> Append:
        self.newest[user, "phone"] += 1
        return event(self.conv, user, self.newest[user, "phone"])

    async def die_and_resend(self) -> None:
        """Let a call die and its sender try again: the event that it left counts as the answer."""
        a = self.fresh()
        left = await died_half_way(self.s, a)
        answer = await called(self.s.conversations.append, a)
        assert (answer.seq, answer.prev, answer.duplicate) == (left, self.last, False)
        self.last = left
        self.devices[a.user, a.device].accept(a, left)
        self.accepted.append((a.user, a.device, a.n))
        self.seen["adopted"] += 1

    async def die(self) -> None:
        """Let a call die; a later event comes after its event."""
        a = self.fresh()
        self.last = await died_half_way(self.s, a)
        self.died.append((a.user, a.device, a.n))
        await self.one(self.fresh())

    async def change_servers(self) -> None:
        await another_server_wrote_last(self.s, self.conv)
        await self.one(self.fresh(), jump=True)
        self.seen["jump"] += 1

    async def come_and_go(self) -> None:
        leaves = "bob" in self.members
        change = await self.s.conversations.member(self.conv, None, "bob", "remove" if leaves else "put")
        self.members ^= {"bob"}
        assert change.prev == self.last
        self.last = change.seq


async def test_any_mix_of_resends_takes_effect_once(valkey: EmbeddedValkey) -> None:
    """Resends in any order, while members, calls and servers change: the answers are the model's, and the log contains
    each accepted event once, in one chain.
    """
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        model = Model(s, conv, seed=20)
        steps = [model.come_and_go, model.die_and_resend, model.die]
        for turn in range(75):
            await model.batch(80)
            await model.random.choice(steps)()
            if turn % 25 == 24:
                await model.change_servers()
        assert min(model.seen.values()) >= 3, model.seen

        log = await s.log(conv)
        prev, count = 0, 0
        for entry in log:
            count += entry["type"] == "message"
            assert (entry["prev"], entry["count"]) == (prev, count)
            prev = entry["seq"]
        written = [(e["from"], e["device"], e["n"]) for e in log if e["type"] == "message"]
        assert sorted(written) == sorted(model.accepted + model.died)
        assert (await meta(s, conv))[:2] == [prev, count]


# -- once


async def test_resend_after_removal_is_still_acked(valkey: EmbeddedValkey) -> None:
    """A removed member gets the first answer again, but no new event is accepted."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        first = await s.send(conv, "bob", 7)
        await s.conversations.member(conv, "ann", "bob", "remove")
        again = await s.send(conv, "bob", 7)
        assert (again.seq, again.at, again.duplicate, again.prev, again.count) == (first.seq, first.at, True, 0, 0)
        with pytest.raises(NotFound):
            await s.send(conv, "bob", 8)


async def test_same_n_with_other_content_is_a_conflict(valkey: EmbeddedValkey) -> None:
    """A reinstall that begins again with n = 1 must not get an ack for a message that was dropped."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        with pytest.raises(Conflict):
            await s.send(conv, "ann", 1, body="other")
        assert not (await s.send(conv, "ann", 1, device="laptop", body="other")).duplicate


async def test_late_n_is_accepted_if_it_is_known_to_be_new(valkey: EmbeddedValkey) -> None:
    """n = 5 sent again after n = 6 was accepted is written; an n older than 32 accepted ones is refused."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 6)
        assert not (await s.send(conv, "ann", 5)).duplicate
        await asyncio.gather(*(s.send(conv, "ann", n) for n in range(7, 37)))
        assert (await s.send(conv, "ann", 5)).duplicate
        with pytest.raises(Conflict):
            await s.send(conv, "ann", 4)
        await s.send(conv, "ann", 40)
        with pytest.raises(Conflict):
            await s.send(conv, "ann", 5)
        assert not (await s.send(conv, "ann", 39)).duplicate


async def test_done_deletes_rows_and_is_remembered(valkey: EmbeddedValkey) -> None:
    """All n ≤ done are answered: their rows are deleted, and a delayed copy is refused instead of written again."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        for n in range(1, 11):
            await s.send(conv, "ann", n, done=n - 1)
        row = await s.client.fetch("HGET", keys.conversation(conv), "d:ann/phone")
        assert len(row) == 16 + 24
        for n in (3, 9):
            with pytest.raises(Conflict):
                await s.send(conv, "ann", n)
        with pytest.raises(Conflict):
            await s.send(conv, "ann", 11, done=11)
        assert (await s.send(conv, "ann", 10)).duplicate
        assert len(await s.log(conv)) == 10


async def conflict(s: Store, conv: str, n: int, **more: Any) -> tuple[str | None, int | None]:
    with pytest.raises(Conflict) as caught:
        await s.send(conv, "ann", n, **more)
    return caught.value.reason, caught.value.next


async def test_device_whose_clock_was_ahead_learns_the_next_usable_n(valkey: EmbeddedValkey) -> None:
    """The 32 stored n are far in the future: every present n is old, and from `next` on every n is accepted."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        now, ahead = 1_700_000_000_000_000, 1_900_000_000_000_000
        for i in range(WINDOW):
            await s.send(conv, "ann", ahead + 10 * i)
        assert await conflict(s, conv, now) == ("old", ahead + 10 * (WINDOW - 1) + 1)
        for n in range(ahead + 10 * (WINDOW - 1) + 1, ahead + 10 * (WINDOW - 1) + 4):
            assert not (await s.send(conv, "ann", n)).duplicate
        assert not (await s.send(conv, "ann", now, device="laptop")).duplicate


async def test_conflict_distinguishes_content_answered_and_old(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 5)
        assert await conflict(s, conv, 5, body="other") == ("content", None)
        await s.send(conv, "ann", 9, done=7)
        assert await conflict(s, conv, 7) == ("answered", 10)
        assert await conflict(s, conv, 8, done=20) == ("answered", 21)  # by the command's own `done`
        assert not (await s.send(conv, "ann", 10, done=9)).duplicate


async def test_conflict_after_the_last_n_names_no_next(valkey: EmbeddedValkey) -> None:
    """2^53-1 is the largest n that a client can write."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 2**53 - 1, done=2**53 - 2)
        assert await conflict(s, conv, 5) == ("answered", None)


async def test_devices_of_a_user_take_bounded_memory(valkey: EmbeddedValkey) -> None:
    """A user has 64 rows in a conversation; the device that was quiet longest is replaced, another user's never."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        await s.send(conv, "bob", 1)
        await asyncio.gather(*(s.send(conv, "ann", 1, device=f"phone-{i}") for i in range(64)))
        await s.send(conv, "ann", 2, device="phone-0")
        await s.send(conv, "ann", 1, device="phone-64")
        assert (await s.send(conv, "ann", 1, device="phone-0")).duplicate
        assert (await s.send(conv, "ann", 1, device="phone-2")).duplicate
        assert (await s.send(conv, "bob", 1)).duplicate
        assert not (await s.send(conv, "ann", 1, device="phone-1")).duplicate
        rows = await s.client.fetch("HKEYS", keys.conversation(conv))
        assert sum(row.startswith(b"d:ann/") for row in rows) == 64


async def test_events_without_n_leave_no_row_and_have_no_rate(valkey: EmbeddedValkey) -> None:
    """n = 0 is written each time, but only for a member."""
    async with store(valkey.url) as s:
        conv = keys.new_conversation(keys.GROUP)
        await s.conversations.create(conv, keys.GROUP, "", {"ann": "o"}, 10_000_000, 10_000_000)
        seqs = [(await s.send(conv, "ann")).seq for _ in range(3)]
        assert seqs == [1, 2, 3]
        assert await s.client.fetch("HEXISTS", keys.conversation(conv), "d:ann/phone") == 0
        with pytest.raises(NotFound):
            await s.send(conv, "eve")


# -- one order


async def test_seq_jumps_past_all_earlier_ones_on_another_server(valkey: EmbeddedValkey) -> None:
    """After a failover the seq is beyond the log, the clock's share, and the highest seq the caller has seen."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        assert (await s.send(conv, "ann", 1, seen=900)).seq == 1
        await another_server_wrote_last(s, conv)
        seen = (await s.client.clock_ms() // 1000 - 1_750_000_000 + 60 << 20) + 7  # by a clock that is a minute ahead
        jumped = await s.send(conv, "ann", 2, seen=seen)
        assert (jumped.seq, jumped.prev) == (seen + 1, 1)
        assert (await s.send(conv, "ann", 3)).seq == jumped.seq + 1
        await another_server_wrote_last(s, conv)
        assert (await s.send(conv, "ann", 4)).seq == jumped.seq + 2

        other = await s.group(ann="o")
        await another_server_wrote_last(s, other)
        by_clock = await s.send(other, "ann", 1)
        assert (by_clock.at // 1000 - 1_749_999_999) << 20 > by_clock.seq > (by_clock.at // 1000 - 1_750_086_400) << 20


@pytest.mark.parametrize("seen", [2**53 - 1, 2**52])
async def test_seq_that_no_server_gave_out_moves_no_log(valkey: EmbeddedValkey, seen: int) -> None:
    """`seen` may come from a client, who may send any number: the log ignores it."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        for n in (1, 2):
            await another_server_wrote_last(s, conv)
            sent = await s.send(conv, "ann", n, seen=seen)
            assert sent.seq < (sent.at // 1000 - 1_750_000_000 + 1) << 20
        assert (await s.send(conv, "ann", 3)).seq == sent.seq + 1


async def test_replaced_server_stays_below_its_successor(valkey: EmbeddedValkey, own_valkey: EmbeddedValkey) -> None:
    """Two servers act as the primary within a second: events of the older one are received, but lost. Their seqs must
    not be used again, and must be below the seqs of the events that are kept.
    """
    async with store(valkey.url) as old:
        conv = await old.group(ann="o")
        await another_server_wrote_last(old, conv)
        async with store(own_valkey.url) as new:
            for key in (keys.conversation(conv), keys.log(conv)):
                await new.client.fetch("RESTORE", key, 0, await old.client.fetch("DUMP", key))
            stays = await new.send(conv, "ann", 1)
            void = await old.send(conv, "ann", 2)
            assert void.prev == stays.prev
            assert void.seq < stays.seq


async def test_event_of_a_call_that_died_before_a_failover_is_counted(valkey: EmbeddedValkey) -> None:
    """Its event is in the log, so the next one names it as `prev`: a reader without it sees the hole."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        left = await died_half_way(s, event(conv, "ann", 2))
        await another_server_wrote_last(s, conv)
        sent = await s.send(conv, "ann", 3)
        assert (sent.prev, sent.count) == (left, 3)


async def test_restarted_server_counts_as_another_one(own_valkey: EmbeddedValkey) -> None:
    """A restart may have lost events that clients have, so seqs jump; acked events are kept."""
    async with store(own_valkey.url) as s:
        conv = await s.group(ann="o")
        first = await s.send(conv, "ann", 1)
    own_valkey.kill()
    own_valkey.start()
    async with store(own_valkey.url) as s:
        again = await s.send(conv, "ann", 1)
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert again.replid != first.replid
        second = await s.send(conv, "ann", 2)
        assert second.seq > 1 << 40
        assert second.prev == first.seq


async def test_lost_direct_conversation_begins_beyond_its_old_seqs(valkey: EmbeddedValkey) -> None:
    """If its creation was lost with a server, its id is used again; its seqs must not be."""
    async with store(valkey.url) as s:
        seqs: list[int] = []
        for _ in range(2):
            assert await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
            sent = await s.send(keys.direct("ann", "bob"), "ann", 1, seen=max(seqs, default=0))
            assert sent.prev == 0
            seqs.append(sent.seq)
            await s.client.fetch("FLUSHALL")
        assert seqs[1] > seqs[0] > 1 << 40


@pytest.mark.parametrize("lost", ["FLUSHALL", "DEL", "DEL of the hash alone"])
async def test_direct_conversation_lost_by_a_running_server_uses_no_seq_twice(
    valkey: EmbeddedValkey, lost: str
) -> None:
    """Its sender may be on a gateway that has not seen the earlier seqs; connected receivers have."""
    conv = keys.direct("ann", "bob")
    async with store(valkey.url) as s:
        last = 0
        for n in range(1, 4):
            assert await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
            first = await s.send(conv, "ann", 2 * n)
            assert first.seq > last
            last = (await s.send(conv, "ann", 2 * n + 1)).seq
            assert last == first.seq + 1
            gone = {"DEL": (keys.conversation(conv), keys.log(conv)), "FLUSHALL": ()}.get(lost)
            command = ("DEL", keys.conversation(conv)) if gone is None else (lost, *gone)
            await s.client.fetch(*command)


# -- who may


async def test_strangers_readers_and_blocked_users_get_different_errors(valkey: EmbeddedValkey) -> None:
    """A stranger gets the error of a conversation that does not exist."""
    async with store(valkey.url) as s:
        channel = await s.group(keys.CHANNEL, ann="o", rob="r")
        with pytest.raises(NotFound):
            await s.send(channel, "eve", 1)
        with pytest.raises(NotFound):
            await s.send(keys.new_conversation(keys.CHANNEL), "eve", 1)
        with pytest.raises(ReadOnly):
            await s.send(channel, "rob", 1)
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        direct = keys.direct("ann", "bob")
        sent = await s.send(direct, "bob", 1)
        pairs = Pairs(s.client)
        await called(pairs.change, "ann", "bob", "block", "", 0)
        for user in ("ann", "bob"):
            with pytest.raises(Blocked):
                await s.send(direct, user, 2)
        assert (await s.send(direct, "bob", 1)).seq == sent.seq
        await called(pairs.change, "ann", "bob", "unblock", "", 0)
        await s.send(direct, "bob", 2)


async def test_targets_must_be_messages_that_the_user_sees(valkey: EmbeddedValkey) -> None:
    """Authors edit and delete their own; owners and admins delete any; none from before the user joined."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", dan="a")
        old = (await s.send(conv, "ann", 1)).seq
        joined = (await s.conversations.member(conv, "ann", "cat", "put")).seq
        new = (await s.send(conv, "bob", 1)).seq
        for action in ("edit", "delete", "react"):
            for target in (old, joined, 999):
                with pytest.raises(NotFound):
                    await s.send(conv, "cat", 1, action=action, target=target)
        for action in ("edit", "delete"):
            with pytest.raises(ReadOnly):
                await s.send(conv, "cat", 1, action=action, target=new)
        with pytest.raises(ReadOnly):
            await s.send(conv, "ann", 2, action="edit", target=new)
        reaction = await s.send(conv, "cat", 1, action="react", target=new)
        edit = await s.send(conv, "bob", 2, action="edit", target=new)
        assert (reaction.count, edit.count) == (2, 2)
        await s.send(conv, "dan", 1, action="delete", target=new)
        with pytest.raises(NotFound):
            await s.send(conv, "bob", 3, action="edit", target=edit.seq)


async def test_author_may_delete_own_messages_as_reader_and_when_blocked(valkey: EmbeddedValkey) -> None:
    """Only their author may, and only delete: no edit, no reaction, no message of another user."""
    async with store(valkey.url) as s:
        group = await s.group(ann="o", bob="m")
        own, other = (await s.send(group, "bob", 1)).seq, (await s.send(group, "ann", 1)).seq
        await s.conversations.member(group, "ann", "bob", "put", "r")
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        direct = keys.direct("ann", "bob")
        said, heard = (await s.send(direct, "bob", 1)).seq, (await s.send(direct, "ann", 1)).seq
        await called(Pairs(s.client).change, "ann", "bob", "block", "", 0)
        for conv, mine, theirs, refusal in ((group, own, other, ReadOnly), (direct, said, heard, Blocked)):
            with pytest.raises(refusal):
                await s.send(conv, "bob", 2, action="edit", target=mine)
            with pytest.raises(ReadOnly):
                await s.send(conv, "bob", 2, action="delete", target=theirs)
            await s.send(conv, "bob", 2, action="delete", target=mine)
            assert mine not in [entry["seq"] for entry in await s.log(conv)]
            with pytest.raises(NotFound):
                await s.send(conv, "bob", 3, action="delete", target=mine)


async def test_repeated_reaction_is_acked_without_an_event(valkey: EmbeddedValkey) -> None:
    """So is the removal of a missing one; each resend gets the same answer; a change is an event."""
    async with store(valkey.url, channels=MOVED) as s:
        conv = await s.group(ann="o", bob="m")
        target = (await s.send(conv, "ann", 1)).seq

        async def react(user: str, n: int, emoji: str = "+", *, remove: bool = False) -> Appended:
            return await s.send(conv, user, n, action="react", target=target, emoji=emoji, remove=remove)

        nothing = await react("bob", 1, remove=True)
        assert (nothing.written, nothing.duplicate, nothing.seq) == (False, False, target)
        first = await react("bob", 2)
        assert (first.written, first.seq) == (True, 2)
        second = await react("bob", 3)
        assert (second.written, second.duplicate, second.seq, second.at) == (False, False, first.seq, first.at)
        resent = await react("bob", 3)
        assert (resent.written, resent.duplicate, resent.seq) == (False, True, first.seq)
        for user, n, emoji in (("bob", 4, "-"), ("ann", 2, "+")):
            assert (await react(user, n, emoji)).written
        removed = await react("bob", 5, remove=True)
        assert removed.written
        assert (await react("bob", 6, remove=True)).seq == removed.seq
        assert (await react("bob", 7)).written
        assert [e["type"] for e in await s.log(conv)] == ["message", *["react"] * 5]
        assert len({note for note in await s.client.fetch("HKEYS", keys.conversation(conv)) if note[:2] == b"r:"}) == 1
        await s.send(conv, "ann", 9, action="delete", target=target)
        assert not await s.client.fetch("HEXISTS", keys.conversation(conv), f"r:{target}")


@pytest.mark.parametrize("direct", [False, True])
async def test_reactions_beside_nodes_that_note_none_are_all_written(valkey: EmbeddedValkey, direct: bool) -> None:
    """In a deployment of format 1 an older node may write reactions; an out-of-date note would swallow the next one."""
    moving, plain = keys.Channels("x.0:", ""), keys.Channels("", "x.0:")
    async with store(valkey.url, channels=moving) as s, store(valkey.url, channels=plain) as older:
        if direct:
            conv = keys.direct("ann", "bob")
            await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        else:
            conv = await s.group(ann="o")
        target = (await s.send(conv, "ann", 1)).seq
        turns = [(s, False), (older, True), (s, False), (older, False), (s, True), (s, True)]
        written = [
            (await at.send(conv, "ann", n, action="react", target=target, emoji="+", remove=remove)).written
            for n, (at, remove) in enumerate(turns, 2)
        ]
        assert written == [True, True, True, True, True, False]


async def test_reaction_from_before_the_notes_can_be_removed(valkey: EmbeddedValkey) -> None:
    """An old conversation may have reactions without a note: the first removal is an event."""
    async with store(valkey.url, channels=MOVED) as s:
        conv = await s.group(ann="o")
        target = (await s.send(conv, "ann", 1)).seq
        await s.client.fetch("HDEL", keys.conversation(conv), "noted")
        written = [
            (await s.send(conv, "ann", n, action="react", target=target, emoji="+", remove=True)).written
            for n in (2, 3)
        ]
        assert written == [True, False]


async def test_notes_of_reactions_are_bounded_and_deleted_with_their_message(
    valkey: EmbeddedValkey,
) -> None:
    """Beyond 4096 a reaction is written each time; trimming deletes the notes of trimmed messages."""
    async with store(valkey.url, channels=MOVED) as s:
        conv = await s.group(ann="o")
        target = (await s.send(conv, "ann", 1)).seq
        key, field = keys.conversation(conv), f"r:{target}"
        await s.client.fetch("HSET", key, field, (b"x" * 12 + b"\0" * 9) * 4096)
        for n in (2, 3):
            assert (await s.send(conv, "ann", n, action="react", target=target, emoji="+")).written
        assert await s.client.fetch("HSTRLEN", key, field) == 4096 * 21
        await s.dirty.mark_routed(conv, 3, 1, 10**12)
        assert not await s.client.fetch("HEXISTS", key, field)


async def test_readers_react_unless_only_members_may(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        conv = await s.group(keys.CHANNEL, ann="o", bob="m", rob="r")
        target = (await s.send(conv, "ann", 1)).seq
        assert (await s.send(conv, "rob", 1, action="react", target=target, emoji="+")).written
        await s.conversations.title(conv, "ann", None, reacting="members")
        with pytest.raises(ReadOnly, match="member"):
            await s.send(conv, "rob", 2, action="react", target=target, emoji="-")
        assert (await s.send(conv, "bob", 1, action="react", target=target, emoji="-")).written
        await s.conversations.title(conv, "ann", None, reacting="all")
        assert (await s.send(conv, "rob", 2, action="react", target=target, emoji="-")).written


async def test_reply_names_an_event_that_its_author_sees(valkey: EmbeddedValkey) -> None:
    """None from before they joined, none deleted, none of the future; the resend of an accepted one is acked."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        old, deleted = (await s.send(conv, "ann", 1)).seq, (await s.send(conv, "ann", 2)).seq
        await s.conversations.member(conv, "ann", "bob", "put")
        seen = (await s.send(conv, "ann", 3)).seq
        reply = await s.send(conv, "bob", 1, target=seen)
        assert reply.written
        await s.send(conv, "ann", 4, action="delete", target=deleted)
        for target in (old, 999):
            with pytest.raises(NotFound, match="reply_to"):
                await s.send(conv, "bob", 2, target=target)
        with pytest.raises(NotFound, match="reply_to"):
            await s.send(conv, "ann", 5, target=deleted)
        await s.send(conv, "ann", 5, action="delete", target=seen)
        assert (await s.send(conv, "bob", 1, target=seen)).duplicate


async def test_delete_removes_its_target_from_the_log(valkey: EmbeddedValkey) -> None:
    """Once; resends of the delete and of the message are acked, though the message's time is no longer known."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        target = (await s.send(conv, "bob", 1)).seq
        await s.send(conv, "bob", 2)
        delete = await s.send(conv, "ann", 1, action="delete", target=target)
        assert [entry["seq"] for entry in await s.log(conv)] == [2, delete.seq]
        assert (await s.send(conv, "ann", 1, action="delete", target=target)).duplicate
        with pytest.raises(NotFound):
            await s.send(conv, "ann", 2, action="delete", target=target)
        again = await s.send(conv, "bob", 1)
        assert (again.seq, again.at, again.duplicate) == (target, 0, True)


async def test_delete_removes_the_edits_of_its_target(valkey: EmbeddedValkey) -> None:
    """An edit contains the message's content, too; other messages keep theirs, and nothing is noted on."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        target, other = [(await s.send(conv, "ann", body="old")).seq for _ in range(2)]
        for _ in range(3):
            await s.send(conv, "ann", action="edit", target=target, body="secret")
        kept = await s.send(conv, "ann", action="edit", target=other)
        delete = await s.send(conv, "ann", action="delete", target=target)
        assert [entry["seq"] for entry in await s.log(conv)] == [other, kept.seq, delete.seq]
        fields = await s.client.fetch("HKEYS", keys.conversation(conv))
        assert [field for field in fields if field.startswith(b"e:")] == [b"e:2"]


async def test_message_is_edited_at_most_256_times(valkey: EmbeddedValkey) -> None:
    """So its note, and the work of its delete, stay small."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        target = (await s.send(conv, "ann")).seq
        await asyncio.gather(*(s.send(conv, "ann", action="edit", target=target) for _ in range(256)))
        with pytest.raises(Conflict):
            await s.send(conv, "ann", action="edit", target=target)
        await s.send(conv, "ann", action="delete", target=target)
        assert len(await s.log(conv)) == 1


# -- bounds


async def test_rate_is_per_device_and_says_when_to_retry(valkey: EmbeddedValkey) -> None:
    """A burst passes, then one event per cost; refused ones change nothing; a clock set back locks no device out."""
    async with store(valkey.url) as s:
        conv = keys.new_conversation(keys.GROUP)
        await s.conversations.create(conv, keys.GROUP, "", {"ann": "o"}, 10_000_000, 30_000_000)
        for n in (1, 2, 3):
            await s.send(conv, "ann", n)
        with pytest.raises(RateLimited) as refused:
            await s.send(conv, "ann", 4)
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 10
        assert (await s.send(conv, "ann", 3)).duplicate
        await s.send(conv, "ann", 1, device="laptop")
        await s.send(conv, "ann", 4, server=True)
        assert len(await s.log(conv)) == 5

        row = await s.client.fetch("HGET", keys.conversation(conv), "d:ann/phone")
        ahead = struct.pack(">Q", struct.unpack(">Q", row[:8])[0] + 3_600_000_000)
        await s.client.fetch("HSET", keys.conversation(conv), "d:ann/phone", ahead + row[8:])
        await s.send(conv, "ann", 5)


async def test_log_without_trimming_is_capped(valkey: EmbeddedValkey) -> None:
    """With every router down the log stops at its cap; `floor` announces the cut."""
    async with store(valkey.url, cap=100) as s:
        conv = await s.group(ann="o")
        await asyncio.gather(*(s.send(conv, "ann") for _ in range(256)))
        log = await s.log(conv)
        assert len(log) == 100
        (head,) = await called(s.conversations.heads, [conv])
        assert head.floor == log[0]["seq"] - 1 == 156


async def test_out_of_memory_is_unavailable_and_changes_nothing(valkey: EmbeddedValkey) -> None:
    """Redis refuses before the function runs; reads go on."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.client.fetch("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable):
            await s.send(conv, "ann", 1)
        assert (await called(s.conversations.range, conv, "ann", 0, 10, 10)).events == []
        await s.client.fetch("CONFIG", "SET", "maxmemory", "0")
        assert (await s.send(conv, "ann", 1)).seq == 1


# -- who learns of it


async def test_event_is_published_as_it_is_in_the_log(valkey: EmbeddedValkey) -> None:
    """Live and replay use the same bytes; those of direct conversations are published on the users' channels."""
    async with store(valkey.url) as s:
        conv, direct = await s.group(ann="o"), keys.direct("ann", "bob")
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        with valkey.client() as other, other.pubsub() as listener:
            listener.ssubscribe(keys.Channels().conversation(conv), keys.Channels().conversation(direct))
            for _ in range(2):
                assert listener.get_sharded_message(timeout=40)["type"] == "ssubscribe"
            await s.send(direct, "ann", 1)
            for n in (1, 1, 2):
                await s.send(conv, "ann", n)
            page = await called(s.conversations.range, conv, "ann", 0, 10, 10)
            published = [listener.get_sharded_message(timeout=40)["data"] for _ in range(2)]
            assert published == page.events
            assert stamp.slots(published[1])[:3] == (2, 1, 2)
            assert listener.get_sharded_message(timeout=0) is None


async def test_only_the_last_deletions_are_noted(valkey: EmbeddedValkey) -> None:
    """The note is bounded; heads and read marks use these deletions."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        sent = [(await s.send(conv, "ann", body=str(n))).seq for n in range(260)]
        for seq in sent:
            await s.send(conv, "ann", action="delete", target=seq)
        (head,) = await called(s.conversations.heads, [conv])
        assert head.deleted == tuple(sent[-256:])
        position = await called(s.conversations.read_position, conv, "ann", sent[-3])
        assert (position.seq, position.deleted_above) == (sent[-3], 2)
