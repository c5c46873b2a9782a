"""The work of routers: marked by every write, leased, trimmed and unmarked; quiet logs are trimmed by age."""

import asyncio

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import LinnetError, NotFound
from router.contract.packing import MAX_INTEGER
from router.store.dirty import Backlog, Routed
from router.store.openings import Opening, Wanted
from router.store.redis.client import Client
from tests.store.calling import BURST_US, COST_US, Store, called, store

DAY = 86_400_000
COALESCE_MS = 1500
DELIVERED_MS = 4000


async def marks(s: Store, conv: str) -> dict[str, float]:
    """The partition's marks but for the sentinel, with their due times."""
    found = await s.client.fetch("ZRANGE", keys.dirty(keys.partition(conv)), 0, -1, "WITHSCORES")
    return {name.decode(): float(due) for name, due in zip(found[::2], found[1::2], strict=True) if name != b"!"}


async def now_ms(s: Store) -> int:
    seconds, micros = await s.client.fetch("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


async def make_due(s: Store, name: str, conv: str) -> None:
    await s.client.fetch("ZADD", keys.dirty(keys.partition(conv)), 1, name)


async def claim(s: Store, conv: str, lease_ms: int = 60_000) -> list[str]:
    (found,) = await s.dirty.claims((keys.partition(conv),), 10, lease_ms)
    assert isinstance(found, list)
    return found


async def fill(s: Store, conv: str, count: int) -> None:
    await asyncio.gather(*(s.send(conv, "ann") for _ in range(count)))


async def test_new_group_is_marked_for_its_founders(valkey: EmbeddedValkey) -> None:
    """Its creator's process may die before all founders have rows; a direct one is marked by its first event."""
    async with store(valkey.url) as s:
        conv, direct = await s.group(ann="o"), keys.direct("ann", "bob")
        made = (await s.conversations.describe(conv, None)).made
        assert await marks(s, conv) == {conv: made + COALESCE_MS}
        assert await s.dirty.mark_routed(conv, 0, 100, DAY) == Routed(0, 0, 0, 0)
        assert await marks(s, conv) == {}
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        assert await marks(s, direct) == {}


async def test_burst_is_one_mark_due_after_its_first_event(valkey: EmbeddedValkey) -> None:
    """Gateways have time to finish by themselves; the mark does not move with every event."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.dirty.mark_routed(conv, 0, 100, DAY)
        first = await s.send(conv, "ann", 1)
        assert await claim(s, conv) == []
        assert await s.dirty.backlog((keys.partition(conv),)) == Backlog(0, 0)
        await fill(s, conv, 5)
        await s.conversations.member(conv, "ann", "bob", "put")
        await s.conversations.title(conv, "ann", "x")
        assert await marks(s, conv) == {conv: first.at + COALESCE_MS}


async def test_event_delivered_by_append_is_due_later(valkey: EmbeddedValkey) -> None:
    """Routers only have to push and trim, and handle more events of a busy conversation at once."""
    async with store(valkey.url) as s:
        conv = keys.direct("ann", "bob")
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        first = await s.send(conv, "ann", 1)
        await fill(s, conv, 5)
        assert await marks(s, conv) == {conv: first.at + DELIVERED_MS}


async def test_next_event_of_a_finished_conversation_marks_it_again(valkey: EmbeddedValkey) -> None:
    """A partly finished one always has a mark, whatever happens between."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        for _ in range(2):
            first = await s.send(conv, "ann")
            await s.send(conv, "ann")
            await s.dirty.mark_routed(conv, first.seq, 100, DAY)
            await s.send(conv, "ann")
            assert conv in await marks(s, conv)
            await s.dirty.mark_routed(conv, MAX_INTEGER, 100, DAY)
            assert conv not in await marks(s, conv)
        assert (await s.send(conv, "ann")).at + COALESCE_MS == (await marks(s, conv))[conv]


async def test_claim_is_a_lease(valkey: EmbeddedValkey) -> None:
    """A router that dies holds its conversations no longer than its lease; new events do not break it."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        await make_due(s, conv, conv)
        before = await now_ms(s)
        backlog = await s.dirty.backlog((keys.partition(conv), keys.partition(conv) ^ 1))
        assert (backlog.count, before - 1 <= backlog.overdue_ms <= await now_ms(s) - 1) == (1, True)
        assert await claim(s, conv) == [conv]
        assert await claim(s, conv) == []
        await s.send(conv, "ann", 2)
        assert before + 60_000 <= (await marks(s, conv))[conv] <= await now_ms(s) + 60_000
        await make_due(s, conv, conv)
        assert await claim(s, conv, 0) == [conv]
        assert await claim(s, conv, 0) == [conv]


async def test_claim_takes_no_more_than_its_limit(valkey: EmbeddedValkey) -> None:
    """The oldest first; never the sentinel; a partition without conversations has none."""
    async with store(valkey.url) as s:
        names = [f"g:{i}" for i in range(5)]
        await s.client.fetch("ZADD", keys.dirty(7), "+inf", "!", *(x for i, n in enumerate(names) for x in (i + 1, n)))
        assert (await s.dirty.backlog((7,))).count == 5
        assert await s.dirty.claims((7,), 2, 60_000) == [names[:2]]
        assert await s.dirty.claims((7, 8), 10, 60_000) == [names[2:], []]
        assert await s.dirty.backlog((8,)) == Backlog(0, 0)


async def test_look_names_the_partitions_with_due_conversations_and_claims_none(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        now = await now_ms(s)
        for part, due, name in ((7, now - 1, "g:7"), (8, now + 3_600_000, "~g:8"), (9, now, "g:9")):
            await s.client.fetch("ZADD", keys.dirty(part), "+inf", "!", due, name)
        assert await s.dirty.due() == [7, 9]
        assert await s.dirty.claims((7, 8, 9), 8, 60_000) == [["g:7"], [], ["g:9"]]
        assert await s.dirty.due() == []


async def test_partition_that_does_not_answer_costs_only_its_own_claim(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, each server answers for itself; the backlog leaves out what is not known."""
    monkeypatch.setattr(Client, "one_server", property(lambda _: False))
    async with store(valkey.url) as s:
        for part in (7, 9):
            await s.client.fetch("ZADD", keys.dirty(part), 1, f"conversation of {part}")
        await s.client.fetch("SET", keys.dirty(8), "no set")
        seven, eight, nine = await s.dirty.claims((7, 8, 9), 5, -60_000)
        assert (seven, nine) == (["conversation of 7"], ["conversation of 9"])
        assert isinstance(eight, LinnetError)
        assert (await s.dirty.backlog((7, 8, 9))).count == 2
        with pytest.raises(LinnetError):
            await s.dirty.backlog((8,))


@pytest.mark.parametrize("one_server", [True, False])
async def test_claim_of_several_partitions_returns_each_ones_items(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, one_server: bool
) -> None:
    """Up to the limit of each, in the requested order: in one call, or in one for each if slots are apart."""
    monkeypatch.setattr(Client, "one_server", property(lambda _: one_server))
    async with store(valkey.url) as s:
        for part, names in ((7, ("a", "b")), (9, ("c",))):
            for due, name in enumerate(names):
                await s.client.fetch("ZADD", keys.dirty(part), due + 1, name)
        calls = s.client.statistics().functions.get("claim", 0)
        assert await s.dirty.claims((9, 8, 7), 1, 60_000) == [["c"], [], ["a"]]
        assert await s.dirty.claims((9, 8, 7), 1, 60_000) == [[], [], ["b"]]
        assert s.client.statistics().functions["claim"] - calls == (2 if one_server else 6)


async def test_done_unmarks_at_the_head_and_marks_below_it(valkey: EmbeddedValkey) -> None:
    """An event that arrives during the work is not lost; `routed` never falls and never passes the head."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 3)
        assert await s.dirty.mark_routed(conv, 2, 100, DAY) == Routed(2, 3, 0, 0)
        assert (await marks(s, conv))[conv] <= await now_ms(s)
        assert await s.dirty.mark_routed(conv, 1, 100, DAY) == Routed(2, 3, 0, 0)
        assert await s.dirty.mark_routed(conv, 9, 100, DAY) == Routed(3, 3, 0, 0)
        assert conv not in await marks(s, conv)
        (head,) = await called(s.conversations.heads, [conv])
        assert (head.routed, head.seq) == (3, 3)
        assert (await s.send(conv, "ann")).seq == 4
        assert conv in await marks(s, conv)


async def test_done_trims_by_count_and_raises_the_floor(valkey: EmbeddedValkey) -> None:
    """Events beyond the retained number are removed, and `floor` announces it."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 110)
        assert await s.dirty.mark_routed(conv, 110, 100, DAY) == Routed(110, 110, 10, 10)
        assert [entry["seq"] for entry in await s.log(conv)] == list(range(11, 111))
        assert (await called(s.conversations.range, conv, "ann", 0, MAX_INTEGER, 1)).floor == 10
        assert (await called(s.conversations.range_before, conv, "ann", 20, 9)).more is False
        assert await called(s.conversations.openings, "ann", [Wanted(conv, 0)]) == [Opening("o", 10)]
        assert await s.dirty.mark_routed(conv, 110, 100, DAY) == Routed(110, 110, 10, 0)


async def test_done_deletes_the_edit_notes_of_trimmed_messages(valkey: EmbeddedValkey) -> None:
    """The notes are deleted with the message, so they are bounded by the log."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        target = (await s.send(conv, "ann")).seq
        await s.send(conv, "ann", action="edit", target=target)
        key = keys.conversation(conv)
        assert await s.client.fetch("HEXISTS", key, f"e:{target}") == 1
        await fill(s, conv, 99)
        assert (await s.dirty.mark_routed(conv, MAX_INTEGER, 100, DAY)).trimmed == 1
        assert await s.client.fetch("HEXISTS", key, f"e:{target}") == 0


async def test_done_never_trims_unrouted_events(valkey: EmbeddedValkey) -> None:
    """However many there are, and however old."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 110)
        assert await s.dirty.mark_routed(conv, 4, 100, -DAY) == Routed(4, 110, 4, 4)
        assert (await s.log(conv))[0]["seq"] == 5


async def test_done_trims_a_long_log_in_steps(valkey: EmbeddedValkey) -> None:
    """No call blocks Redis for long: it removes 128 events and is due again at once until the rest is done."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 400)
        trimmed = [(await s.dirty.mark_routed(conv, 400, 100, DAY)).trimmed]
        while (await marks(s, conv))["~" + conv] <= await now_ms(s):
            assert await claim(s, conv) == [conv]
            trimmed.append((await s.dirty.mark_routed(conv, 400, 100, DAY)).trimmed)
        assert trimmed == [128, 128, 44]
        assert len(await s.log(conv)) == 100


async def test_quiet_log_is_trimmed_when_its_events_are_too_old(valkey: EmbeddedValkey) -> None:
    """It stays marked for that day; its claim is an ordinary one, and an empty log has no mark."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        sent = await s.send(conv, "ann", 1)
        await fill(s, conv, 4)
        assert (await s.dirty.mark_routed(conv, 5, 100, DAY)).trimmed == 0
        assert await marks(s, conv) == {"~" + conv: sent.at + DAY + 3_600_000}
        await make_due(s, "~" + conv, conv)
        assert await claim(s, conv) == [conv]
        assert list(await marks(s, conv)) == [conv]
        assert await s.dirty.mark_routed(conv, 5, 100, -1) == Routed(5, 5, 5, 5)
        assert await marks(s, conv) == {}
        assert await s.log(conv) == []
        assert await s.send(conv, "ann", 1) == sent.__class__(1, 0, 0, 0, True, sent.replid)
        assert (await s.send(conv, "ann", 2)).prev == 5
        await s.dirty.mark_routed(conv, 6, 100, DAY)
        assert list(await marks(s, conv)) == ["~" + conv]
        await s.dirty.mark_routed(conv, 6, 100, -1)
        assert await marks(s, conv) == {}


async def test_conversation_marked_twice_is_claimed_once(valkey: EmbeddedValkey) -> None:
    """Its age mark is removed, and a running lease is unchanged."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        for name in (conv, "~" + conv):
            await make_due(s, name, conv)
        assert await claim(s, conv) == [conv]
        await make_due(s, "~" + conv, conv)
        assert await claim(s, conv) == []
        assert list(await marks(s, conv)) == [conv]


async def test_done_clears_the_marks_of_a_lost_conversation(valkey: EmbeddedValkey) -> None:
    """A conversation that a failover lost is not claimed for ever."""
    async with store(valkey.url) as s:
        conv = keys.new_conversation(keys.GROUP)
        for name in (conv, "~" + conv):
            await make_due(s, name, conv)
        with pytest.raises(NotFound):
            await s.dirty.mark_routed(conv, 1, 100, DAY)
        assert await marks(s, conv) == {}


async def test_finishing_works_while_memory_is_full(valkey: EmbeddedValkey) -> None:
    """Trimming frees memory."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 110)
        await make_due(s, conv, conv)
        await s.client.fetch("CONFIG", "SET", "maxmemory", "1")
        assert await claim(s, conv) == [conv]
        assert (await s.dirty.mark_routed(conv, 110, 100, DAY)).trimmed == 10
        await s.conversations.remove_conversation(conv, "ann")
        await s.dirty.forget_conversation(conv)


async def test_removed_conversation_keeps_its_lease(valkey: EmbeddedValkey) -> None:
    """If a router that read the head before the removal calls done, the next router still finds the conversation."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        await s.dirty.mark_routed(conv, 1, 100, DAY)
        await s.conversations.remove_conversation(conv, "ann")
        assert await claim(s, conv) == [conv]
        with pytest.raises(NotFound):
            await s.dirty.mark_routed(conv, 1, 100, DAY)
        assert list(await marks(s, conv)) == [conv]
