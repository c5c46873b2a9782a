"""The sets of scenarios behind `make bench`.

*Short* (`make bench`, ≤ 5 minutes) contains what can be measured quickly. *Full* (`--full`, ≤ 20 minutes) has as many
sessions as are promised, and adds growth, latency, a minute of stalled readers and durability. *Quick* (`--quick`, ≤ 1
minute) is for CI: every scenario is small and runs on one deployment; a lost message fails it, and tables are printed
without a verdict on figures. After the short and the full set, each promised figure is compared with its limit
(`figures.py`), unless its scenario was not in the set.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

import msgspec

from loadtest.bench import report, sdk_cost
from loadtest.bench.figures import PRIMARIES, SESSIONS, SIDES, compare
from loadtest.load import local
from loadtest.load.conductor import run
from loadtest.load.results import Result
from loadtest.load.scenarios.table import SCENARIOS

Steps = tuple[tuple[str, dict[str, Any]], ...]

SHORT: Final[Steps] = (
    ("fanout", {"seconds": 0.6}),
    ("deflate", {"outstanding": (1,), "seconds": 0.4, "rounds": 3, "members": 500, "body": 512}),
    ("direct", {"seconds": 1.0}),
    ("idle", {"connections": 4000, "steps": 2}),
    ("storm", {"clients": 500, "rounds": 3}),
    ("drain", {"readers": 3}),
)

FULL: Final[Steps] = (
    ("fanout", {}),
    ("deflate", {"body": 512}),
    ("direct", {}),
    ("durability", {"seconds": 1.5, "rounds": 1}),
    ("primaries", {"seconds": 1.5, "rounds": 1}),
    ("idle", {"connections": SESSIONS}),
    ("storm", {"clients": SESSIONS, "rounds": 3}),
    ("drain", {}),
    ("latency", {}),
    ("growth", {"over": "members"}),
    ("growth", {"over": "gateways"}),
    ("growth", {"over": "conversations", "seconds": 3}),
    ("slow", {"members": 1000, "seconds": 60, "calm": 30}),
)

QUICK: Final[Steps] = (
    ("fanout", {"members": 200, "seconds": 0.3, "rounds": 1}),
    ("direct", {"seconds": 0.5, "rounds": 1}),
    ("mixed", {"users": 200, "seconds": 1, "rounds": 1}),
    ("storm", {"clients": 200, "rounds": 1}),
    ("drain", {"readers": 1}),
    ("slow", {"members": 100, "seconds": 2, "calm": 1}),
)


def short() -> list[Result]:
    return _each(SHORT)


def full() -> list[Result]:
    return _each(FULL)


def quick() -> list[Result]:
    """Run all scenarios on one deployment, without a verdict on figures."""
    results = []
    with local.deployment() as target:
        for name, given in QUICK:
            scenario = SCENARIOS[name]
            results.append(_printed(run(scenario, scenario.Options(**given), target)))
    return results


def _each(steps: Steps) -> list[Result]:
    """Run each scenario on a deployment of its own, then compare the figures."""
    results = []
    for name, given in steps:
        if name in IN_TURNS:
            results.append(_printed(in_turns(name, given)))
            continue
        scenario = SCENARIOS[name]
        with local.deployment(gateways=scenario.gateways) as target:
            results.append(_printed(run(scenario, scenario.Options(**given), target)))
    print("\n" + compare(results))
    with local.deployment() as target:
        print("\n" + sdk_cost.table(sdk_cost.measure(target)))
    return results


def _printed(result: Result) -> Result:
    print(f"\n{result.scenario}\n{report.table(result)}", flush=True)
    return result


TURNS: Final = 5

# Sets in which `direct` runs on several deployments in turns: by name of a side, how its deployment is made.
IN_TURNS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "durability": {side: {"durability": side} for side in SIDES},
    "primaries": {side: {"primaries": count} for count, side in enumerate(PRIMARIES)},
}


def in_turns(name: str, given: dict[str, Any]) -> Result:
    """Run `direct` on the deployments of one of the sets above; each run is one round of one side."""
    scenario = SCENARIOS["direct"]
    options = scenario.Options(**given)
    with ExitStack() as stack:
        targets = {side: stack.enter_context(local.deployment(**how)) for side, how in IN_TURNS[name].items()}
        rounds = [
            _named(run(scenario, options, target), side) for _ in range(TURNS) for side, target in targets.items()
        ]
    return _joined(name, rounds)


def _named(result: Result, side: str) -> Result:
    measurements = [
        one if one.name == report.WARM_UP else msgspec.structs.replace(one, name=f"{one.name}, {side}")
        for one in result.measurements
    ]
    return msgspec.structs.replace(result, measurements=measurements)


def _joined(scenario: str, rounds: list[Result]) -> Result:
    failures = rounds[0].failures
    for one in rounds[1:]:
        failures = failures + one.failures
    return msgspec.structs.replace(
        rounds[0],
        scenario=scenario,
        measurements=[one for result in rounds for one in result.measurements],
        failures=failures,
        complaint=next((one.complaint for one in rounds if one.complaint), ""),
    )
