"""router/rounds.py: fairness and bounds of claiming, with claims that are plain lists."""

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, Counter

from router.contract.errors import Unavailable
from router.contract.keys import PARTITIONS
from router.rounds import CHUNK, Rounds, every


class Due:
    """Partitions of items that are due; counts what is in hand."""

    def __init__(self, due: dict[int, list[str]]) -> None:
        self.due = due
        self.worked: list[str] = []
        self.in_hand = self.most_in_hand = 0

    async def claim(self, parts: Sequence[int], limit: int, _lease_ms: int) -> list[list[str]]:
        claimed = []
        for part in parts:
            items = self.due.get(part, [])
            claimed.append(items[:limit])
            self.due[part] = items[limit:]
        return claimed

    async def work(self, item: str) -> None:
        self.in_hand += 1
        self.most_in_hand = max(self.most_in_hand, self.in_hand)
        await asyncio.sleep(0)
        self.in_hand -= 1
        self.worked.append(item)

    def rounds(self, limit: int = 2) -> Rounds:
        failures = Counter("failures", "of this test", registry=CollectorRegistry())
        return Rounds("test", self.claim, self.work, failures, limit=limit, lease_ms=1000)


async def test_a_round_visits_every_partition_with_a_bound_on_what_is_in_hand() -> None:
    """Every partition gives up to `limit` items, and never more than a chunk's worth is worked on at once."""
    due = Due({part: [f"{part}.{i}" for i in range(3)] for part in range(PARTITIONS)})
    result = await due.rounds().round()
    assert (result.done, result.full) == (2 * PARTITIONS, True)
    assert due.most_in_hand == 2 * CHUNK
    assert not (await due.rounds().round()).full


async def test_a_run_goes_on_at_once_while_more_is_due_until_told_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A partition with more than a claim takes needs no pause between rounds."""
    due = Due({7: [str(i) for i in range(50)]})
    stop = asyncio.Event()
    work = due.work

    async def until_the_last(item: str) -> None:
        await work(item)
        if len(due.worked) == 50:
            stop.set()

    monkeypatch.setattr(due, "work", until_the_last)
    await due.rounds().run(stop, 3600)
    assert due.worked == [str(i) for i in range(50)]


async def test_rounds_begin_at_different_partitions() -> None:
    """Routers in step do not all begin with the same partition."""
    firsts: set[str] = set()
    for _ in range(40):
        due = Due({part: [str(part)] for part in range(PARTITIONS)})
        await due.rounds().round()
        firsts.add(due.worked[0])
    assert len(firsts) > 10


async def test_redis_being_away_is_no_failure_of_the_item(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Unavailable`, from a claim or from the work, is counted apart and logged by nobody here."""
    due = Due({1: ["a"], 2: ["b"]})

    async def away(*_: object) -> list[list[str]]:
        raise Unavailable

    monkeypatch.setattr(due, "work", away)
    result = await due.rounds().round()
    assert (result.unavailable, result.failed, result.done) == (2, 0, 0)
    monkeypatch.setattr(due, "claim", away)
    assert (await due.rounds().round()).unavailable == PARTITIONS // CHUNK
    assert not caplog.records


async def test_upkeep_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in upkeep is logged, and the next turn comes."""
    stop = asyncio.Event()
    turns = 0

    async def upkeep() -> None:
        nonlocal turns
        turns += 1
        if turns == 3:
            stop.set()
        raise Unavailable if turns == 2 else ValueError("broken")

    await every(stop, 0, upkeep)
    assert turns == 3
    assert [record.message for record in caplog.records] == ["upkeep failed"] * 2
