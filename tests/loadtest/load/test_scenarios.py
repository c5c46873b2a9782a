"""Each scenario in a small size against a real deployment, and its command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from loadtest import __main__ as command_line
from loadtest.bench import report
from loadtest.load import local
from loadtest.load.conductor import LoadFailed, Target, run
from loadtest.load.scenarios.table import SCENARIOS

SMALL: dict[str, dict[str, Any]] = {
    "fanout": {"members": 20, "outstanding": (1, 4), "seconds": 0.1, "rounds": 1, "gateways": 2},
    "direct": {"pairs": 4, "rate": 200, "outstanding": (8,), "seconds": 0.2, "rounds": 1},
    "mixed": {"users": 20, "members": 10, "rate": 100, "seconds": 0.3, "rounds": 1},
    "idle": {"connections": 20, "seconds": 0.1, "settle": 0, "steps": 1},
    "storm": {"clients": 20, "groups": 2, "members": 10, "rounds": 1},
    "drain": {"events": 400, "conversations": 5, "readers": 1},
    "presence": {"watched": 4, "watchers": 4, "rounds": 1},
    "slow": {"members": 20, "seconds": 0.5, "calm": 0.3},
    "growth": {"sizes": (2, 10, 20), "seconds": 0.1, "rounds": 1},
    "latency": {"pairs": 4, "start": 100, "step": 0.2, "narrow": 4, "seconds": 0.3},
    "deflate": {"members": 10, "outstanding": (1,), "seconds": 0.1, "rounds": 1, "body": 512},
}


@pytest.fixture(scope="module")
def target(starts_processes: None) -> Iterator[Target]:
    with local.deployment() as target:
        yield target


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_loses_nothing_and_reports_its_costs(name: str, target: Target) -> None:
    options = SCENARIOS[name].Options(**SMALL[name])
    result = run(SCENARIOS[name], options, target, workers=1 if name == "drain" else 2)
    assert result.good, report.table(result)
    for one in report.shown(result):
        assert one.units > 0, one.name
    assert any(one.cost_us("gateway") > 0 for one in report.shown(result))


def test_second_run_receives_nothing_of_the_first(target: Target) -> None:
    """Both runs use the same users and devices; the first run acks everything, so that the second does not receive it
    again."""
    options = SCENARIOS["direct"].Options(**{**SMALL["direct"], "pairs": 2})
    for _ in range(2):
        result = run(SCENARIOS["direct"], options, target)
        assert result.good, report.table(result)


def test_refused_client_ends_the_run_with_the_reason(target: Target) -> None:
    """If tokens are refused, the run ends with an error that says so and does not hang."""
    stranger = msgspec.structs.replace(target, jwt_secret="another-secret-of-thirty-two-bytes-or-more")
    with pytest.raises(LoadFailed, match="unauthorized"):
        run(SCENARIOS["idle"], SCENARIOS["idle"].Options(connections=1, seconds=0.1, settle=0, steps=1), stranger)


def test_options_of_every_scenario_are_on_the_command_line() -> None:
    arguments = command_line.parser().parse_args(["fanout", "--members", "7", "--outstanding", "1", "8"])
    assert (arguments.members, arguments.outstanding, arguments.target) == (7, [1, 8], [])
