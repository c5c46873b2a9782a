"""Functions that use the time, while the server's clock is stepped: no user is locked out, and versions still rise."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import RateLimited
from router.store.accounts import GUESS_BURST_US, GUESS_COST_US, Accounts, GuessSource
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.presence import Presence
from router.store.pushes import Pushes
from router.store.users import CONNECT_BURST_US, CONNECT_COST_US, OPEN_BURST_US, OPEN_COST_US, Users
from tests.store.calling import BURST_US, COST_US, Store, called, event
from tests.store.clock import STEPS, SteppedClock, stepped
from tests.store.test_sync import audit, message, names, register, session

HOME = GuessSource("a" * 16)

pytestmark = pytest.mark.parametrize("step", STEPS)


async def use_up(clock: SteppedClock, rate: str) -> tuple[int, float]:
    """Ask until there is no more; how often it was granted, and in how many seconds there is another."""
    for granted in range(1000):
        try:
            await ask(clock, rate)
        except RateLimited as refused:
            return granted, refused.retry_after or 0
    raise AssertionError("no end")


async def ask(clock: SteppedClock, rate: str) -> None:
    users = Users(clock.client)
    if rate == "guess":
        await Accounts(clock.client).take_guess("ann", HOME)
    elif rate == "open":
        error = await called(lambda reply: users.spend_opening("ann", reply))
        assert error is None
    else:
        await register(users, session("s", await clock.now_ms()))


RATES = {
    "guess": (GUESS_COST_US, GUESS_BURST_US),
    "open": (OPEN_COST_US, OPEN_BURST_US),
    "connect": (CONNECT_COST_US, CONNECT_BURST_US),
}


@pytest.mark.parametrize("rate", RATES)
async def test_rate_used_up_before_the_step_locks_no_user_out(
    valkey: EmbeddedValkey, tmp_path: Path, step: int, rate: str
) -> None:
    """After the step at least one call is allowed, and at most the burst."""
    cost, burst = RATES[rate]
    async with stepped(valkey, tmp_path) as clock:
        await Accounts(clock.client).ensure("ann")
        await use_up(clock, rate)
        await clock.step(step)
        granted, wait_s = await use_up(clock, rate)
        assert 1 <= granted <= burst // cost + 1
        assert wait_s * 1e6 <= cost


@pytest.mark.parametrize("device", ["phone", None])
@pytest.mark.parametrize("known", [True, False])
async def test_kick_before_the_step_keeps_no_new_session_out(
    valkey: EmbeddedValkey, tmp_path: Path, step: int, device: str | None, known: bool
) -> None:
    """A session that starts after the step registers, again and again; the kicked one does not go on."""
    async with stepped(valkey, tmp_path) as clock:
        users = Users(clock.client)
        await Accounts(clock.client).ensure("ann")
        old = session("s-old", await clock.now_ms() - 60_000)
        if known:
            await register(users, old)
        await users.kick("ann", device)
        await clock.step(step)
        assert (await audit(users, old)).status == "kicked"
        for i in range(2):
            new = session(f"s-{i}", await clock.now_ms() - 5)
            assert (await register(users, new)).status == "ok"
            assert (await audit(users, new)).status == "ok"
        assert (await audit(users, old)).status in ("kicked", "replaced")


@pytest.mark.parametrize("device", ["phone", None])
async def test_kick_after_the_step_ends_sessions_from_before_and_after_it(
    valkey: EmbeddedValkey, tmp_path: Path, step: int, device: str | None
) -> None:
    async with stepped(valkey, tmp_path) as clock:
        users = Users(clock.client)
        await Accounts(clock.client).ensure("ann")
        before = session("s-before", await clock.now_ms())
        await register(users, before)
        await users.kick("ann", device)
        await register(users, session("s-1", await clock.now_ms() + 5))
        await clock.step(step)
        after = session("s-after", await clock.now_ms())
        assert (await register(users, after)).status == "ok"
        await users.kick("ann", device)
        assert (await audit(users, after)).status == "kicked"
        assert (await audit(users, before)).status in ("kicked", "replaced")
        assert (await register(users, session("s-new", await clock.now_ms() + 5))).status == "ok"


async def test_device_that_reconnects_after_the_step_replaces_its_dead_session(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """Its gateway died without ending it; the dead session must not seem to have started later."""
    async with stepped(valkey, tmp_path) as clock:
        users = Users(clock.client)
        dead = session("s-dead", await clock.now_ms())
        assert (await register(users, dead)).status == "ok"
        await clock.step(step)
        for i in range(3):
            new = session(f"s-{i}", await clock.now_ms() + i, node="node-2")
            assert (await register(users, new)).status == "ok"
            assert (await audit(users, dead)).status == "replaced"
            assert (await audit(users, new)).status == "ok"


async def test_last_seen_is_never_in_the_future(valkey: EmbeddedValkey, tmp_path: Path, step: int) -> None:
    async with stepped(valkey, tmp_path) as clock:
        users = Users(clock.client)
        for _ in range(2):
            who = session("s", await clock.now_ms())
            await register(users, who)
            before = await clock.now_ms()
            assert await called(users.mark_away, "ann", "phone", "s")
            after = await clock.now_ms()
            await clock.step(step)
        (row,) = await called(Presence(clock.client).devices, ["ann"])
        assert before <= row[0].seen <= after


async def test_row_raised_after_the_step_is_above_earlier_ones(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """`recent` only rises, so no audit misses a conversation."""
    async with stepped(valkey, tmp_path) as clock:
        users = Users(clock.client)
        who = session("s", await clock.now_ms())
        since = (await register(users, who)).since
        await message(users, "bob", 1)
        await clock.step(step)
        for seq in (2, 3):
            for other in ("cem", "bob"):
                conv = await message(users, other, seq)
                synced = await audit(users, who, since)
                assert names(synced.rows)[-1] == conv
                since = synced.since
        assert (await audit(users, who, since)).rows == []


async def test_message_after_the_step_raises_its_conversation_above_all_others(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """Also while a library of another version writes beside this one, as during a rolling deploy."""
    async with stepped(valkey, tmp_path / "new") as clock, stepped(valkey, tmp_path / "old", "-- older") as older:
        stores = [Conversations(one.client, 20_000) for one in (clock, older)]
        for user in ("ann", "bob", "cem"):
            await Accounts(clock.client).ensure(user)
        for other in ("bob", "cem"):
            await called(stores[0].create_direct, "ann", other, COST_US, BURST_US)
        for n in range(1, 60):
            if n % 20 == 0:
                await clock.step(step)
            conv = keys.direct("ann", ("bob", "cem")[n // 2 % 2])
            await called(stores[n // 3 % 2].append, event(conv, "ann", n))
            await Users(clock.client).conversations("ann")  # rows that lag are raised when they are read
            top = await clock.client.fetch("ZREVRANGE", keys.recent("ann"), 0, 1, "WITHSCORES")
            assert top[0] == conv.encode()
            assert len(top) == 2 or float(top[1]) > float(top[3])


async def test_message_of_another_version_before_the_clock_was_put_back_is_not_forgotten(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """The clock runs ahead, another version writes, and the clock is put back, but not to before our last write."""
    async with stepped(valkey, tmp_path / "new") as clock, stepped(valkey, tmp_path / "old", "-- older") as older:
        new, old = (Conversations(one.client, 20_000) for one in (clock, older))
        for user in ("ann", "bob", "cem", "dan"):
            await Accounts(clock.client).ensure(user)
        with_bob, with_cem, others = keys.direct("ann", "bob"), keys.direct("ann", "cem"), keys.direct("cem", "dan")
        for pair in (("ann", "bob"), ("ann", "cem"), ("cem", "dan")):
            await called(new.create_direct, *pair, COST_US, BURST_US)
        await called(new.append, event(with_bob, "bob", 1))
        await clock.step(abs(step))
        await called(old.append, event(with_cem, "cem", 1))
        await clock.step(-abs(step) * 4 // 5)
        # The first of these finds out about the server, so the second, soon after it, uses what is remembered.
        await asyncio.gather(called(new.append, event(others, "dan", 1)), called(new.append, event(with_bob, "bob", 2)))
        top = await clock.client.fetch("ZREVRANGE", keys.recent("ann"), 0, 1, "WITHSCORES")
        assert top[0] == with_bob.encode()
        assert float(top[1]) > float(top[3])


# -- what routers have to do


async def due_in_time(clock: SteppedClock, step: int, claims: Callable[[], Awaitable[list[list[str]]]]) -> list[str]:
    """What is claimed right after the step, and when all that was due a minute after it has become due."""
    found = [name for names in await claims() for name in names]
    await clock.step(60)
    return found + [name for names in await claims() for name in names]


async def test_conversation_marked_before_the_step_is_claimed_after_it(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """Also one whose claim died with its router. Marks of quiet logs stay, however many there are."""
    async with stepped(valkey, tmp_path) as clock:
        s = Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client))
        conv = await s.group(ann="o")
        part = keys.partition(conv)
        far = await clock.now_ms() + 90 * 86_400_000
        quiet = [part_of_mark for i in range(250) for part_of_mark in (far + i // 100, f"~g:{i}")]
        await clock.client.fetch("ZADD", keys.dirty(part), *quiet)
        for _ in range(2):  # before any claim of this server, and after
            await s.send(conv, "ann")
            await clock.step(step)
            claims: Any = partial(s.dirty.claims, (part,), 300, 10_000)
            claimed = [name for _ in range(3) for name in (await claims())[0]]
            await clock.step(30)
            claimed += (await claims())[0]
            assert conv in claimed
            assert set(claimed) == {conv}
        assert await clock.client.fetch("ZCOUNT", keys.dirty(part), far, "+inf") >= 251


async def test_push_armed_before_the_step_is_claimed_after_it(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """At once if the step is longer than the longest delay of a push; else late by at most the step."""
    async with stepped(valkey, tmp_path) as clock:
        await Accounts(clock.client).ensure("ann")
        pushes, part = Pushes(clock.client), keys.partition("ann")
        assert await pushes.claims((part,), 10, 1000) == [[]]
        await pushes.schedule("ann", "d:ann:bob", 1, 40_000)
        await clock.step(step)
        claims: Any = partial(pushes.claims, (part,), 10, 30_000)
        claimed = await due_in_time(clock, step, claims)
        if step == -90:
            await clock.step(90)
            claimed += (await claims())[0]
        assert "ann" in claimed
        # What waits in another conversation is due by the new time, not by the one that its event had.
        await pushes.schedule("ann", "d:ann:cem", 1, 2 * 3_600_000)
        await pushes.clear("ann", {"d:ann:bob": 1})
        assert (await claims()) == [["ann"]]


async def test_finished_conversation_is_not_marked_again_by_the_step(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    async with stepped(valkey, tmp_path) as clock:
        s = Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client))
        conv = await s.group(ann="o")
        sent = await s.send(conv, "ann")
        await clock.step(step)
        again = await s.send(conv, "ann")
        assert (again.seq, again.prev) == (sent.seq + 1, sent.seq)
        assert abs(again.at - await clock.now_ms()) < 10_000
        done = await s.dirty.mark_routed(conv, again.seq, 100, 90 * 86_400_000)
        assert (done.routed, done.trimmed) == (again.seq, 0)
        assert await clock.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), conv) is None


DAY_S = 86_400


@pytest.mark.parametrize("trusts", [False, True])
async def test_clock_far_ahead_stops_trimming_by_age(
    valkey: EmbeddedValkey, tmp_path: Path, step: int, trusts: bool
) -> None:
    """A clock that is 100 days ahead for seconds would remove the history. A setting allows it."""
    async with stepped(valkey, tmp_path) as clock:
        dirty = Dirty(clock.client, None) if trusts else Dirty(clock.client)
        s = Store(clock.client, Conversations(clock.client, 20_000), dirty)
        conv, keep = await s.group(ann="o"), 90 * DAY_S * 1000
        for _ in range(5):
            last = await s.send(conv, "ann")
        await clock.step(100 * DAY_S + step)
        trimmed = (await dirty.mark_routed(conv, last.seq, 100, keep)).trimmed
        assert trimmed == (5 if trusts else 0)
        if not trusts:  # it looks again in an hour, not at once, and still trims by count
            assert (await dirty.claims((keys.partition(conv),), 10, 10_000)) == [[]]
            assert (await dirty.mark_routed(conv, last.seq, 2, keep)).trimmed == 3
            await clock.step(-100 * DAY_S - step)
            assert (await dirty.mark_routed(conv, last.seq, 2, -1)).trimmed == 2


async def test_clock_within_a_day_trims_by_age(valkey: EmbeddedValkey, tmp_path: Path, step: int) -> None:
    async with stepped(valkey, tmp_path) as clock:
        s = Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client))
        conv = await s.group(ann="o")
        await clock.step(-2 * DAY_S)
        sent = await s.send(conv, "ann")
        await clock.step(2 * DAY_S + step)
        assert (await s.dirty.mark_routed(conv, sent.seq, 100, DAY_S * 1000)).trimmed == 1


# -- conversations


async def test_rate_of_a_device_used_up_before_the_step_does_not_lock_it_out(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    async with stepped(valkey, tmp_path) as clock:
        s = Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client))
        conv = keys.new_conversation(keys.GROUP)
        assert await s.conversations.create(conv, keys.GROUP, "a title", {"ann": "o"}, 10_000_000, 30_000_000)
        n = itertools.count(1)

        async def used_up() -> int:
            for granted in range(10):
                try:
                    await s.send(conv, "ann", next(n))
                except RateLimited:
                    return granted
            raise AssertionError("no end")

        assert await used_up() == 3
        await clock.step(step)
        assert await used_up() == 3


async def test_events_after_the_step_have_higher_seqs_and_members_stay(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """Titles, members, a direct conversation that is created again: their versions are no times, and only rise."""
    async with stepped(valkey, tmp_path) as clock:
        s = Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client))
        conv, direct = await s.group(ann="o"), keys.direct("ann", "bob")
        await called(s.conversations.create_direct, "ann", "bob", 1, 1_000_000)
        first = await s.send(direct, "ann")
        await s.conversations.member(conv, "ann", "bob", "put")
        await clock.step(step)
        assert (await s.conversations.member(conv, "ann", "cem", "put")).seq == 2
        assert (await s.conversations.title(conv, "ann", "new")).seq == 3
        assert (await s.send(direct, "bob")).seq == first.seq + 1
        removed = await s.conversations.remove_conversation(conv, None)
        assert removed > 3
        (claimed,) = await s.dirty.claims((keys.partition(conv),), 10, 10_000)
        assert isinstance(claimed, list)
        assert conv in claimed
