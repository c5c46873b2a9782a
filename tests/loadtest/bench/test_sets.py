"""The sets: their options exist, and the durabilities take turns."""

from __future__ import annotations

import msgspec
import pytest

from loadtest.bench import sets
from loadtest.bench.figures import FIGURES
from loadtest.bench.sets import FULL, QUICK, SHORT
from loadtest.load.scenarios.table import SCENARIOS


@pytest.mark.parametrize("steps", [SHORT, FULL, QUICK])
def test_options_of_every_set_exist(steps: sets.Steps) -> None:
    for name, given in steps:
        struct = SCENARIOS["direct" if name == "durability" else name].Options
        assert msgspec.convert(given, struct) == struct(**given)


def test_full_set_contains_every_promised_scenario() -> None:
    assert {figure.scenario for figure in FIGURES} == {name for name, _ in FULL}


@pytest.mark.processes
def test_durabilities_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two deployments take turns, nothing is lost on either, and each phase has the name of its side."""
    monkeypatch.setattr(sets, "DURABLE_ROUNDS", 2)
    small = {"pairs": 2, "rate": 200, "outstanding": (4,), "seconds": 0.2, "rounds": 1}
    found = sets.durability(small)
    assert found.good
    names = [one.name for one in found.measurements if one.name != "warm-up"]
    assert names == 2 * [
        f"direct, {phase}, {side}" for side in ("memory", "fsync") for phase in ("200/s", "4 outstanding")
    ]
