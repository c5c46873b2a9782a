"""The sets: their options exist, and the durabilities take turns."""

from __future__ import annotations

import msgspec
import pytest

from loadtest.bench import sets
from loadtest.bench.figures import FIGURES, PRIMARIES
from loadtest.bench.sets import FULL, QUICK, SHORT
from loadtest.load.scenarios.table import SCENARIOS


@pytest.mark.parametrize("steps", [SHORT, FULL, QUICK])
def test_options_of_every_set_exist(steps: sets.Steps) -> None:
    for name, given in steps:
        struct = SCENARIOS["direct" if name in sets.IN_TURNS else name].Options
        assert msgspec.convert(given, struct) == struct(**given)


def test_full_set_contains_every_promised_scenario() -> None:
    assert {figure.scenario for figure in FIGURES} == {name for name, _ in FULL}


@pytest.mark.processes
def test_durabilities_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two deployments take turns, nothing is lost on either, and each phase has the name of its side."""
    monkeypatch.setattr(sets, "TURNS", 2)
    small = {"pairs": 2, "rate": 200, "outstanding": (4,), "seconds": 0.2, "rounds": 1}
    found = sets.in_turns("durability", small)
    assert found.good
    names = [one.name for one in found.measurements if one.name != "warm-up"]
    assert names == 2 * [
        f"direct, {phase}, {side}" for side in ("memory", "fsync") for phase in ("200/s", "4 outstanding")
    ]


@pytest.mark.processes
def test_clusters_take_turns_with_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meters count the CPU of all primaries, and nothing is lost on any side."""
    monkeypatch.setattr(sets, "TURNS", 1)
    sides = sets.IN_TURNS["primaries"]
    monkeypatch.setitem(sets.IN_TURNS, "primaries", {name: sides[name] for name in (PRIMARIES[0], PRIMARIES[-1])})
    found = sets.in_turns("primaries", {"pairs": 6, "rate": 200, "outstanding": (12,), "seconds": 0.3, "rounds": 1})
    assert found.good
    phases = {one.name: one for one in found.measurements if one.name != "warm-up"}
    assert set(phases) == {
        f"direct, {phase}, {side}" for side in (PRIMARIES[0], PRIMARIES[-1]) for phase in ("200/s", "12 outstanding")
    }
    assert all(one.cost_us("redis") > 0 for one in phases.values())
