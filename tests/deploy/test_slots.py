"""`python -m deploy.slots`: plans are even, and slots move only where they are safe."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import slots
from deploy.slots import Primary, Servers, SlotsError, check, main, move, plan
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
    assert max(found.values()) <= 1.1 * sum(found.values()) / shards


def test_plan_of_an_even_cluster_is_empty() -> None:
    assert plan([primary("a:1", {1: 5, 2: 5}), primary("b:1", {3: 10})]) == []
    assert plan([primary("a:1", {1: 1000}), primary("b:1", {})]) == []


def test_empty_primary_gets_its_share() -> None:
    full = primary("a:1", dict.fromkeys(range(100), 10))
    found = after([full, primary("b:1", {})])
    assert found["b:1"] == pytest.approx(500, abs=20)


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
        cluster.replicas[0][0].kill()
        cluster.replicas[1][0].kill()
        await support.eventually(lambda: at.info()["connected_slaves"] == 0)
        again = Servers(url)
        with pytest.raises(SlotsError, match=r"has no replica|is failing"):
            move(again, [slot_of("{c2}")], target, said.append)
        again.close()
    finally:
        cluster.close()


def test_other_urls_are_refused() -> None:
    with pytest.raises(SlotsError, match="redis\\+cluster"):
        slots.main(["--url", "redis://127.0.0.1:1", "check"])
