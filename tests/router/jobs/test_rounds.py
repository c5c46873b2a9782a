"""router/jobs/rounds.py: fairness and bounds of claims, with plain lists of items."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from prometheus_client import CollectorRegistry, Counter

from router.contract import metrics
from router.contract.errors import LinnetError, Unavailable
from router.contract.keys import PARTITIONS
from router.jobs import rounds
from router.jobs.rounds import CHUNK, Rounds, every
from tests import support


class Due:
    """Partitions of due items; counts the running ones."""

    def __init__(self, due: dict[int, list[str]]) -> None:
        self.due = due
        self.worked: list[str] = []
        self.in_hand = self.most_in_hand = 0

    async def claim(self, parts: Sequence[int], limit: int, _lease_ms: int) -> list[list[str] | LinnetError]:
        claimed: list[list[str] | LinnetError] = []
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

    def rounds(self, limit: int = 2, look: Callable[[], Awaitable[Sequence[int]]] | None = None) -> Rounds:
        failures = Counter("failures", "of this test", registry=CollectorRegistry())
        return Rounds("test", self.claim, self.work, failures, limit=limit, lease_ms=1000, due=look)


async def test_round_visits_every_partition_with_a_bound_on_running_items() -> None:
    """Every partition gives up to `limit` items, and never more than a chunk's worth of items run at once."""
    due = Due({part: [f"{part}.{i}" for i in range(3)] for part in range(PARTITIONS)})
    result = await due.rounds().round()
    assert (result.done, result.full) == (2 * PARTITIONS, True)
    assert due.most_in_hand == 2 * CHUNK
    assert not (await due.rounds().round()).full


async def test_run_claims_only_from_partitions_that_have_due_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round claims from all; then an error of a look is reported, and the next round looks again."""
    monkeypatch.setattr(rounds, "CLAIM_ALL_S", 3600.0)
    stop = asyncio.Event()

    class Looked(Due):
        def __init__(self) -> None:
            super().__init__({})
            self.claimed: list[list[int]] = []
            self.looks = iter(([], Unavailable(), [7, 9], [7]))

        async def look(self) -> Sequence[int]:
            found = next(self.looks)
            if isinstance(found, LinnetError):
                raise found
            self.due.update((part, [f"of {part}"]) for part in found)
            return found

        async def claim(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
            self.claimed.append(sorted(parts))
            return await super().claim(parts, limit, lease_ms)

        async def work(self, item: str) -> None:
            await super().work(item)
            if len(self.worked) == 3:
                stop.set()

    due = Looked()
    await due.rounds(look=due.look).run(stop, 0)
    assert sorted(due.worked) == ["of 7", "of 7", "of 9"]
    assert sorted(part for parts in due.claimed[:-2] for part in parts) == list(range(PARTITIONS))
    assert due.claimed[-2:] == [[7, 9], [7]]


async def test_run_claims_from_all_partitions_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from those in which a look has found nothing: only a claim sees marks of another clock."""
    monkeypatch.setattr(rounds, "CLAIM_ALL_S", 0.0)
    stop = asyncio.Event()
    due = Due({3: ["a", "b", "c"]})

    async def look() -> Sequence[int]:
        return ()

    async def work(item: str) -> None:
        due.worked.append(item)
        if len(due.worked) == 3:
            stop.set()

    due.work = work  # type: ignore[method-assign]
    await due.rounds(limit=1, look=look).run(stop, 0)
    assert sorted(due.worked) == ["a", "b", "c"]


async def test_partition_without_an_answer_costs_the_others_nothing() -> None:
    """Its server is away: the other partitions of the same claim are worked on, and it is reported."""

    class Away(Due):
        async def claim(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
            items = await super().claim(parts, limit, lease_ms)
            return [Unavailable() if part == 7 else found for part, found in zip(parts, items, strict=True)]

    due = Away({part: [str(part)] for part in range(PARTITIONS)})
    result = await due.rounds().round()
    assert (result.done, result.unavailable, result.failed) == (PARTITIONS - 1, 1, 0)


class Slow(Due):
    """Items that begin with `slow` end when the test says so."""

    def __init__(self, due: dict[int, list[str]]) -> None:
        super().__init__(due)
        self.begun: list[str] = []
        self.released = asyncio.Event()

    async def work(self, item: str) -> None:
        self.begun.append(item)
        if item.startswith("slow"):
            await self.released.wait()
        await super().work(item)


async def test_slow_item_delays_no_other() -> None:
    """While one item is running, all others are processed, also later ones of its own partition."""
    due = Slow({part: [f"{part}.{i}" for i in range(3)] for part in range(PARTITIONS)} | {7: ["slow"]})
    stop = asyncio.Event()
    run = asyncio.create_task(due.rounds().run(stop, 0))
    await support.eventually(lambda: len(due.worked) == 3 * (PARTITIONS - 1))
    due.due[7] = ["late"]
    await support.eventually(lambda: due.worked[-1] == "late")
    stop.set()
    due.released.set()
    await run
    assert due.worked[-1] == "slow"


async def test_claims_wait_for_free_slots() -> None:
    """If all slots are in use, no item is claimed; each pair of slots that becomes free is used at once."""
    due = Slow({part: [f"slow{part}.{i}" for i in range(2)] for part in range(PARTITIONS)})
    stop = asyncio.Event()
    run = asyncio.create_task(due.rounds().run(stop, 0))
    await support.eventually(lambda: len(due.begun) == 2 * CHUNK)
    assert sum(map(len, due.due.values())) == 2 * (PARTITIONS - CHUNK)
    due.released.set()
    await support.eventually(lambda: len(due.worked) == 2 * PARTITIONS)
    stop.set()
    await run
    assert due.most_in_hand <= 2 * CHUNK


async def test_stopped_run_ends_after_its_running_items() -> None:
    """No item is claimed, running ones end, and a failure of one is still reported."""
    due = Slow({3: ["slow", "b"]})
    rounds, stop = due.rounds(), asyncio.Event()
    run = asyncio.create_task(rounds.run(stop, 0))
    await support.eventually(lambda: due.worked == ["b"])
    stop.set()
    due.due[3] = ["more"]
    due.released.set()
    await run
    assert due.worked == ["b", "slow"]
    assert metrics.ROUND_ITEMS.labels("test")._value.get() == 0


async def test_cancelled_run_cancels_its_running_items() -> None:
    """A process that cannot wait any longer leaves no running work; the lease makes the item due again."""
    due = Slow({3: ["slow"]})
    run = asyncio.create_task(due.rounds().run(asyncio.Event(), 0))
    await support.eventually(lambda: due.begun == ["slow"])
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    due.released.set()
    assert due.worked == []
    assert metrics.ROUND_ITEMS.labels("test")._value.get() == 0


async def test_item_that_raises_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """More items than there are slots fail, and all are tried."""
    due = Due({part: [f"{part}.{i}" for i in range(2)] for part in range(PARTITIONS)})

    async def broken(_item: str) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(due, "work", broken)
    assert (await due.rounds().round()).failed == 2 * PARTITIONS


async def test_run_goes_on_without_a_pause_while_more_items_are_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If a partition has more items than a claim takes, the next round begins at once."""
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


async def test_outage_of_redis_is_no_failure_of_the_item(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Unavailable`, from a claim or from the work, is counted separately and not logged."""
    due = Due({1: ["a"], 2: ["b"]})

    async def away(*_: object) -> list[list[str]]:
        raise Unavailable

    monkeypatch.setattr(due, "work", away)
    result = await due.rounds().round()
    assert (result.unavailable, result.failed, result.done) == (2, 0, 0)
    monkeypatch.setattr(due, "claim", away)
    assert (await due.rounds().round()).unavailable == PARTITIONS // CHUNK
    assert not caplog.records


async def test_periodic_work_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the next turn runs."""
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
