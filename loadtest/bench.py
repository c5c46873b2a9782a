"""The short set behind `make bench`: each scenario small enough for a minute, held against what the project promises.

The figures are CPU, not time, and ratios to the floor of the same rounds, so that a busy machine changes them little;
what they are held against stands in `FIGURES` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from loadtest import local, report
from loadtest.results import Measurement, Result
from loadtest.run import run
from loadtest.scenarios import SCENARIOS

Phases = dict[str, Measurement]


class Figure(NamedTuple):
    """One promise: how it is read from a scenario's phases, and what it must not exceed."""

    name: str
    scenario: str
    read: Callable[[Phases], float]
    limit: float
    unit: str


def _to_floor(width: int) -> Callable[[Phases], float]:
    return lambda phases: (
        phases[f"fan-out 1000, W={width}"].cost_us("gateway") / phases[f"floor 1000, W={width}"].cost_us("floor")
    )


def _all_parts(name: str) -> Callable[[Phases], float]:
    return lambda phases: sum(phases[name].cost_us(part) for part in ("gateway", "router", "redis"))


def _bytes_per_session(phases: Phases) -> float:
    connects = [phase for name, phase in phases.items() if name.startswith("connect")]
    grown = phases["idle"].rss_bytes["gateway"] - connects[0].rss_before["gateway"]
    return grown / sum(phase.units for phase in connects) / 1000


FIGURES = (
    Figure("fan-out to 1000, one outstanding", "fanout", _to_floor(1), 1.35, "× floor"),
    Figure("fan-out to 1000, 16 outstanding", "fanout", _to_floor(16), 0.25, "× floor"),
    Figure(
        "fan-out with deflate",
        "deflate",
        lambda phases: phases["deflated, W=1"].cost_us("gateway") / phases["plain, W=1"].cost_us("gateway"),
        1.5,
        "× without",
    ),
    Figure("direct, 2000/s open loop", "direct", _all_parts("direct, 2000/s"), 200, "µs"),
    Figure("direct, 200 outstanding", "direct", _all_parts("direct, 200 outstanding"), 80, "µs"),
    Figure("idle session, memory", "idle", _bytes_per_session, 4, "KB"),
    Figure("idle session, CPU a second", "idle", lambda phases: phases["idle"].cost_us("gateway"), 1, "µs"),
    Figure(
        "connect with 10 groups, gateway", "storm", lambda phases: phases["reconnect"].cost_us("gateway"), 350, "µs"
    ),
    Figure("connect with 10 groups, Redis", "storm", lambda phases: phases["reconnect"].cost_us("redis"), 60, "µs"),
    Figure("drain of 10,000 events", "drain", lambda phases: phases["drain"].cost_us("gateway"), 5, "µs"),
)

SET: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fanout", {"seconds": 0.6}),
    ("deflate", {"outstanding": (1,), "seconds": 0.4, "rounds": 3, "members": 500, "body": 512}),
    ("direct", {"seconds": 1.0}),
    ("idle", {"connections": 4000, "seconds": 15, "steps": 2}),
    ("storm", {"clients": 500, "rounds": 3}),
    ("drain", {"readers": 3}),
)


# A second gateway that does nothing would be counted among what idle sessions cost.
GATEWAYS = {"idle": 1}


def run_all() -> list[Result]:
    """All of the set, each against a deployment of its own, and the figures at the end."""
    results = []
    for name, given in SET:
        with local.deployment(gateways=GATEWAYS.get(name, 2)) as target:
            result = run(name, SCENARIOS[name].Options(**given), target)
        print(f"\n{name}\n{report.table(result)}", flush=True)
        results.append(result)
    print("\n" + figures(results))
    return results


def figures(results: list[Result]) -> str:
    """What is promised and what was found."""
    phases = {result.scenario: {one.name: one for one in report.shown(result)} for result in results}
    lines = []
    for figure in FIGURES:
        found = figure.read(phases[figure.scenario])
        verdict = "ok" if found <= figure.limit else "OVER"
        lines.append(f"{figure.name:36} {found:8.2f} {figure.unit:10} of {figure.limit:g}  {verdict}")
    return "\n".join(lines)
