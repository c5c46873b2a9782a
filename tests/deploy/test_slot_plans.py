"""Plans are even, an isolated slot is alone, and no server gets more than it may."""

from __future__ import annotations

import pytest

from deploy.slot_plans import Primary, SlotsError, check, isolation, plan, require_safe
from router.contract.tags import NUMBERED, TAGS
from router.store.redis.slots import slot_of


def primary(address: str, loads: dict[int, int]) -> Primary:
    return Primary(address, address, frozenset(loads), loads, 1, 0)


def after(primaries: list[Primary]) -> dict[str, int]:
    loads = {one.address: one.load for one in primaries}
    sizes = {slot: load for one in primaries for slot, load in one.loads.items()}
    for moved in plan(primaries):
        loads[moved.source] -= sizes[moved.slot]
        loads[moved.target] += sizes[moved.slot]
    return loads


@pytest.mark.parametrize("shards", [2, 3, 8, 16, 32])
def test_plan_is_even(shards: int) -> None:
    """Contiguous ranges give the busiest of 32 primaries half as much again as the mean."""
    every = sorted({slot_of(tag) for family in "cu" for tag in TAGS[NUMBERED][family]})
    parts: list[dict[int, int]] = [{} for _ in range(shards)]
    for slot in every:
        parts[slot * shards // 16384][slot] = 1000 + slot % 7
    found = after([primary(f"h:{i}", part) for i, part in enumerate(parts)])
    mean = sum(found.values()) / shards
    assert max(found.values()) <= max(1.02 * mean, mean + 1006), "more than a slot above the mean"


@pytest.mark.parametrize("shards", [3, 12, 32])
def test_plan_of_unlike_slots_is_within_a_fiftieth_of_the_mean(shards: int) -> None:
    """Where plain moves end, two slots change places."""
    every = sorted({slot_of(tag) for family in "cu" for tag in TAGS[NUMBERED][family]})
    parts: list[dict[int, int]] = [{} for _ in range(shards)]
    for slot in every:
        parts[slot * shards // 16384][slot] = 100_000 + slot * 7919 % 90_001
    found = after([primary(f"h:{i}", part) for i, part in enumerate(parts)])
    assert max(found.values()) <= 1.02 * sum(found.values()) / shards


def test_plan_of_an_even_cluster_is_empty() -> None:
    assert plan([primary("a:1", {1: 5, 2: 5}), primary("b:1", {3: 10})]) == []
    assert plan([primary("a:1", {1: 1000}), primary("b:1", {})]) == []


def test_empty_primary_gets_its_share() -> None:
    full = primary("a:1", dict.fromkeys(range(100), 10))
    found = after([full, primary("b:1", {})])
    assert found["b:1"] == pytest.approx(500, abs=20)


def test_isolation_empties_the_target_before_the_busy_slot_comes() -> None:
    busy = primary("a:1", {1: 1000, 2: 10, 3: 10})
    moves = isolation([busy, primary("b:1", {4: 30}), primary("c:1", {5: 20, 6: 5})], 1, "c:1")
    assert [(one.slot, one.source, one.target) for one in moves] == [
        (5, "c:1", "a:1"),
        (6, "c:1", "b:1"),
        (1, "a:1", "c:1"),
    ]


def test_isolation_that_would_not_help_is_refused() -> None:
    """A slot with a small part of the load must not have a primary that the others need."""
    servers = [primary(f"{name}:1", {at * 10 + i: 100 for i in range(5)}) for at, name in enumerate("abc")]
    with pytest.raises(SlotsError, match="would not help: the busiest primary has 500 now, and would have"):
        isolation(servers, 0, "c:1")
    with pytest.raises(SlotsError, match="is no primary"):
        isolation(servers, 0, "d:1")
    with pytest.raises(SlotsError, match="no other primary with replicas"):
        isolation(servers[:1], 0, "a:1")


def test_isolated_slot_stays() -> None:
    assert isolation([primary("a:1", {1: 50}), primary("b:1", {2: 70})], 2, "b:1") == []


def test_full_server_gets_no_slots() -> None:
    full = Primary("a:1", "a", frozenset(), {}, 1, 0, used=70, limit=100)
    require_safe(full, 5)
    with pytest.raises(SlotsError, match="would have 76% of its memory limit"):
        require_safe(full, 6)


def test_check_names_an_uneven_cluster() -> None:
    lines = check([primary("a:1", dict.fromkeys(range(100), 10)), primary("b:1", {200: 1})])
    assert lines[0].startswith("a:1: 100 slots")
    assert any(line.startswith("uneven: the largest has 2.00 times") for line in lines)
