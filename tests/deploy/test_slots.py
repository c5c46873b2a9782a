"""`python -m deploy.slots`: plans are even, and slots move only where they are safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import slots
from deploy.slots import Primary, Servers, SlotsError, check, isolation, main, move, plan
from router.contract import keys
from router.store.redis.slots import slot_of
from tests import support
from tests.cluster import Cluster


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
    every = sorted({slot_of(tag) for family in "cu" for tag in keys.tags(family)})
    parts: list[dict[int, int]] = [{} for _ in range(shards)]
    for slot in every:
        parts[slot * shards // 16384][slot] = 1000 + slot % 7
    found = after([primary(f"h:{i}", part) for i, part in enumerate(parts)])
    mean = sum(found.values()) / shards
    assert max(found.values()) <= max(1.02 * mean, mean + 1006), "more than a slot above the mean"


@pytest.mark.parametrize("shards", [3, 12, 32])
def test_plan_of_unlike_slots_is_within_a_fiftieth_of_the_mean(shards: int) -> None:
    """Where plain moves end, two slots change places."""
    every = sorted({slot_of(tag) for family in "cu" for tag in keys.tags(family)})
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
    slots.require_safe(full, 5)
    with pytest.raises(SlotsError, match="would have 76% of its memory limit"):
        slots.require_safe(full, 6)


def test_check_names_an_uneven_cluster() -> None:
    lines = check([primary("a:1", dict.fromkeys(range(100), 10)), primary("b:1", {200: 1})])
    assert lines[0].startswith("a:1: 100 slots")
    assert any(line.startswith("uneven: the largest has 2.00 times") for line in lines)


async def test_slots_move_only_to_a_server_whose_replicas_have_them(
    starts_processes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, (1, 1, 0), timeout_ms=15_000)
    try:
        await cluster.start()
        url = f"redis+cluster://127.0.0.1:{cluster.primaries[0].port}"
        servers = Servers(url)
        first, second, bare = (f"127.0.0.1:{node.port}" for node in cluster.primaries)
        number = slot_of("{c1}")
        owner = next(node for node in cluster.primaries if node.id == node.owner(number))
        target = second if owner is cluster.primaries[0] else first
        owner.call("SET", "{c1}:x", "kept")
        said: list[str] = []
        with pytest.raises(SlotsError, match="has no replica"):
            move(servers, [number], bare, said.append)
        with pytest.raises(SlotsError, match="is no primary"):
            move(servers, [number], "127.0.0.1:1", said.append)
        assert said == []
        move(servers, [number], target, said.append)
        assert said == [f"moved {number} from 127.0.0.1:{owner.port} to {target}"]
        at = next(node for node in cluster.primaries if target.endswith(str(node.port)))
        assert at.call("GET", "{c1}:x") == b"kept"
        move(servers, [number], target, said.append)
        assert len(said) == 1, "it is there already"
        replica = cluster.replicas[cluster.primaries.index(at)][0]
        another = next(slot for tag in keys.tags("c") if owner.owner(slot := slot_of(tag)) == owner.id)
        monkeypatch.setattr(slots, "REPLICAS_S", 1.0)
        replica.pause()
        try:
            with pytest.raises(SlotsError, match="did not receive the slots in time"):
                move(servers, [another], target, said.append)
        finally:
            replica.resume()
        servers.close()
        main(["--url", url, "check"])
        assert f"{target}: " in capsys.readouterr().out
        main(["--url", url, "plan"])
        assert capsys.readouterr().out
        with pytest.raises(SlotsError, match="cluster-slot-stats-enabled yes"):
            main(["--url", url, "plan", "--by", "cpu"])
        for node in cluster.primaries:
            node.call("CONFIG", "SET", "cluster-slot-stats-enabled", "yes")
        main(["--url", url, "plan", "--by", "cpu"])
        await cluster.caught_up(replica, at)
        await isolates_a_busy_group(cluster, url, capsys)
        cluster.replicas[0][0].kill()
        cluster.replicas[1][0].kill()
        await support.eventually(lambda: at.info()["connected_slaves"] == 0)
        again = Servers(url)
        with pytest.raises(SlotsError, match=r"has no replica|is failing"):
            move(again, [slot_of("{c2}")], target, said.append)
        again.close()
    finally:
        cluster.close()


async def isolates_a_busy_group(cluster: Cluster, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The group gets a primary for itself, with all its keys; what was there goes to one that has a replica."""
    first, second, bare = cluster.primaries
    group = next(
        conv for conv in iter(lambda: keys.new_conversation("g"), "") if bare.owner(slot_of(keys.log(conv))) != bare.id
    )
    home, target = (first, second) if first.id == first.owner(slot_of(keys.log(group))) else (second, first)
    home.call("SET", keys.log(group), "x" * 200_000)
    for node, size in ((home, 60_000), (target, 100)):
        tag = next(tag for tag in keys.tags("u") if node.owner(slot_of(tag)) == node.id)
        node.call("SET", f"{tag}:other", "x" * size)
    to = f"127.0.0.1:{target.port}"
    with pytest.raises(SlotsError, match="has no replica"):
        main(["--url", url, "isolate", group, "--to", f"127.0.0.1:{bare.port}"])
    capsys.readouterr()
    main(["--url", url, "isolate", group, "--to", to, "--only-say"])
    assert f"move {slot_of(keys.log(group))} --to {to}" in capsys.readouterr().out
    assert home.call("EXISTS", keys.log(group)) == 1
    main(["--url", url, "isolate", group, "--to", to])
    servers = Servers(url)
    alone = next(one for one in servers.primaries() if one.address == to)
    servers.close()
    assert set(alone.loads) == {slot_of(keys.log(group))}
    assert target.call("EXISTS", keys.log(group)) == 1
    main(["--url", url, "isolate", group, "--to", to])
    assert "has this slot and no other" in capsys.readouterr().out


def test_other_urls_are_refused() -> None:
    with pytest.raises(SlotsError, match="redis\\+cluster"):
        slots.main(["--url", "redis://127.0.0.1:1", "check"])
