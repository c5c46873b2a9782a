"""The schedule of faults that a seed decides."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.chaos.nemesis import FAULTS, FIRST_S, LEVELS, in_turn, possible, schedule

PROCESSES = ["gateway-0", "gateway-1", "gateway-2", "router-0", "router-1"]


def test_seed_decides_the_schedule() -> None:
    """The same seed plans the same faults at the same times; another seed plans others."""
    assert schedule(7, 600, PROCESSES) == schedule(7, 600, PROCESSES[::-1])
    assert schedule(7, 600, PROCESSES) != schedule(8, 600, PROCESSES)


def test_schedule_ends_in_time() -> None:
    """No fault begins before people are active or lasts beyond the end."""
    for seed in range(50):
        for fault in schedule(seed, 60, PROCESSES):
            assert fault.at_s >= FIRST_S
            assert fault.at_s + fault.for_s < 60


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_schedule_uses_every_fault_on_every_process(level: str, sharded: bool) -> None:
    """In a few hours every fault of the level happens to every process it can happen to, for as long as it may last."""
    kinds = possible(list(FAULTS), level, clocks=True, sharded=sharded)
    faults = schedule(1, 3600 * 4, PROCESSES, kinds)
    assert {fault.kind for fault in faults} == set(kinds)
    for kind in kinds:
        on, (least, most) = FAULTS[kind].on, FAULTS[kind].lasts
        planned = [fault for fault in faults if fault.kind == kind]
        wanted = {name for name in PROCESSES if name.startswith(on)} if on else {""}
        assert {fault.target for fault in planned} == wanted
        assert all(least <= fault.for_s <= most + 0.001 for fault in planned)


def test_faults_of_one_resource_do_not_overlap() -> None:
    """What one fault occupies, no other fault uses before it is over."""
    for seed in range(20):
        until = Counter[tuple[str, str]]()
        for fault in schedule(seed, 600, PROCESSES, every_s=0.5):
            place = (fault.target, FAULTS[fault.kind].occupies)
            assert fault.at_s >= until[place] / 1000
            until[place] = int((fault.at_s + fault.for_s) * 1000) - 2


def test_faults_that_prove_nothing_are_left_out() -> None:
    """Left out are a store that may lose what it never promised, servers that do not exist, clocks that cannot step."""
    assert "valkey-kill" not in possible([], "memory", clocks=True)
    assert "valkey-stall" in possible([], "memory", clocks=True)
    assert not {"failover", "primary-kill"}.intersection(possible([], "fsync", clocks=True))
    assert not {"valkey-kill", "store-cut"}.intersection(possible([], "replicated", clocks=True))
    assert {kind for kind in FAULTS if FAULTS[kind].occupies == "clock"} == {
        "gateway-clock",
        "router-clock",
        "valkey-clock",
    }
    assert possible(["gateway-clock", "gateway-kill", "failover"], "fsync", clocks=False) == ["gateway-kill"]


def test_faults_of_a_cluster_need_a_cluster() -> None:
    """A server that is elected may lack what was acked below `replicated`; a slot loses nothing when it moves."""
    crashes = {"shard-kill", "shard-stall", "shard-takeover", "bus-cut"}
    moves = {"slot-move", "slot-move-by-key", "shard-failover"}
    for level in LEVELS:
        assert not (crashes | moves).intersection(possible([], level, clocks=True))
        found = set(possible([], level, clocks=True, sharded=True))
        assert moves <= found
        assert (crashes <= found) == (level == "replicated")
        assert not {"valkey-kill", "primary-kill", "sentinel-kill", "neighbour-same"} & found


def test_schedule_contains_only_the_requested_kinds() -> None:
    """With `--faults`, no other kind is planned."""
    assert {fault.kind for fault in schedule(1, 600, PROCESSES, ["store-cut", "gateway-kill"])} == {
        "store-cut",
        "gateway-kill",
    }


def test_kills_in_turn_reach_every_process_and_end_in_time() -> None:
    faults = in_turn(40, PROCESSES, 4)
    assert [fault.kind for fault in faults[:3]] == ["gateway-kill", "router-kill", "valkey-kill"]
    assert {fault.target for fault in faults} == {*PROCESSES, ""}
    assert all(fault.at_s >= FIRST_S and fault.at_s + fault.for_s < 40 for fault in faults)
    assert {fault.kind for fault in faults} <= set(possible(list(FAULTS), "fsync", clocks=False))
