"""The promised figures: how each is read from the phases of a scenario, and its limit.

Wherever possible a figure is CPU, not time, and a ratio of phases that took turns in one run, so that a busy machine
changes it little. The limits are in `FIGURES` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from loadtest.bench import report
from loadtest.load.results import Measurement, Result
from loadtest.load.scenarios import latency, slow

SIDES: Final = ("memory", "fsync")  # the durabilities that are compared
PRIMARIES: Final = ("one server", "1 primary", "2 primaries", "3 primaries")  # the first is no cluster
Phases = Mapping[str, Measurement]
Notes = Mapping[str, float]
FLAT: Final = 1.2
SESSIONS: Final = 10_000  # on one gateway; they share the cost of an empty gateway


class Found(NamedTuple):
    """The results of a scenario: medians by phase, and notes."""

    phases: Phases
    notes: Notes


class Figure(NamedTuple):
    """A promised figure: `read` computes it (None: the run was too small for it), and `limit` is its promise."""

    name: str
    scenario: str
    read: Callable[[Found], float | None]
    limit: float
    unit: str


def _cost(name: str, part: str = "gateway") -> Callable[[Found], float]:
    return lambda found: found.phases[name].cost_us(part)


def _all_parts(phase: Measurement) -> float:
    return sum(phase.cost_us(part) for part in ("gateway", "router", "redis"))


def _to_floor(width: int) -> Callable[[Found], float]:
    return lambda found: (
        found.phases[f"fan-out 1000, W={width}"].cost_us("gateway")
        / found.phases[f"floor 1000, W={width}"].cost_us("floor")
    )


def _bytes_per_session(found: Found) -> float:
    connects = [phase for name, phase in found.phases.items() if name.startswith("connect")]
    grown = found.phases["idle"].rss_bytes["gateway"] - connects[0].rss_before["gateway"]
    return grown / sum(phase.units for phase in connects) / 1000


def _idle_cpu(found: Found) -> float:
    """Return the CPU of an idle session if `SESSIONS` sessions share the cost of an empty gateway."""
    empty, idle = found.phases["empty"], found.phases["idle"]
    empty_us = empty.cost_us("gateway") * 1000  # per second
    sessions = idle.units / idle.wall_s
    return idle.cost_us("gateway") - empty_us / sessions + empty_us / SESSIONS


def _growth(of: str, sizes: tuple[int, ...]) -> Callable[[Found], float]:
    """Compare the most expensive of the sizes with the cheapest."""

    def read(found: Found) -> float:
        costs = [found.phases[of.format(size)].cost_us("gateway") for size in sizes]
        return max(costs) / min(costs)

    return read


def _further(of: str, sizes: tuple[int, ...]) -> Callable[[Found], float]:
    """Compare the cost of each further delivery between sizes, so without the costs of the message itself."""

    def read(found: Found) -> float:
        whole = [found.phases[of.format(size)].cost_us("gateway") * size for size in sizes]
        steps = list(zip(sizes, whole, strict=True))
        further = [(b - a) / (m - n) for (n, a), (m, b) in pairwise(steps)]
        return max(further) / min(further)

    return read


def _durable(name: str) -> Callable[[Found], float]:
    return lambda found: (
        _all_parts(found.phases[f"{name}, {SIDES[1]}"]) / _all_parts(found.phases[f"{name}, {SIDES[0]}"])
    )


def _over_primaries(name: str) -> Callable[[Found], float]:
    """Compare Redis's CPU for a message between clusters of different sizes."""

    def read(found: Found) -> float:
        costs = [found.phases[f"{name}, {side}"].cost_us("redis") for side in PRIMARIES[1:]]
        return max(costs) / min(costs)

    return read


def _more_on_a_cluster(name: str, *parts: str) -> Callable[[Found], float]:
    """Return what a message costs more on the largest cluster than on one server."""
    return lambda found: sum(
        found.phases[f"{name}, {PRIMARIES[-1]}"].cost_us(part) - found.phases[f"{name}, {PRIMARIES[0]}"].cost_us(part)
        for part in parts
    )


def _p99_ms(name: str) -> Callable[[Found], float]:
    return lambda found: found.phases[name].delivery_us["99"] / 1000


def _all_back_s(found: Found) -> float | None:
    """Return the seconds until all clients were back, if as many as promised were."""
    back = found.phases["reconnect"]
    return back.wall_s if back.units >= SESSIONS else None


def _rss(found: Found) -> float:
    return found.phases[slow.STALL].rss_bytes["gateway"] / found.phases[slow.CALM].rss_bytes["gateway"]


SIDE_BY_SIDE: Final = "{} members, side by side"

FIGURES: Final = (
    Figure("fan-out to 1000, one outstanding", "fanout", _to_floor(1), 1.35, "× floor"),
    Figure("fan-out to 1000, 16 outstanding", "fanout", _to_floor(16), 0.25, "× floor"),
    Figure(
        "fan-out with deflate",
        "deflate",
        lambda found: _cost("deflated, W=1")(found) / _cost("plain, W=1")(found),
        1.5,
        "× without",
    ),
    Figure("direct, 2000/s open loop", "direct", lambda found: _all_parts(found.phases["direct, 2000/s"]), 200, "µs"),
    Figure(
        "direct, 200 outstanding",
        "direct",
        lambda found: _all_parts(found.phases["direct, 200 outstanding"]),
        80,
        "µs",
    ),
    Figure("direct at fsync, 2000/s", "durability", _durable("direct, 2000/s"), 1.5, "× memory"),
    Figure("direct at fsync, 200 outstanding", "durability", _durable("direct, 200 outstanding"), 1.5, "× memory"),
    Figure("Redis, 1 to 3 primaries, 2000/s", "primaries", _over_primaries("direct, 2000/s"), FLAT, "×"),
    Figure("Redis, 1 to 3 primaries, 200 outst.", "primaries", _over_primaries("direct, 200 outstanding"), FLAT, "×"),
    Figure("3 primaries, gateway", "primaries", _more_on_a_cluster("direct, 2000/s", "gateway"), 30, "µs more"),
    Figure("idle session, memory", "idle", _bytes_per_session, 4, "KB"),
    Figure("idle session, CPU a second", "idle", _idle_cpu, 1, "µs"),
    Figure("connect with 10 groups, gateway", "storm", _cost("reconnect"), 350, "µs"),
    Figure("connect with 10 groups, Redis", "storm", _cost("reconnect", "redis"), 60, "µs"),
    Figure("10,000 clients back", "storm", _all_back_s, 6, "s"),
    Figure("drain of 10,000 events", "drain", _cost("drain"), 5, "µs"),
    Figure("drain, first event", "drain", lambda found: found.notes["first event, ms (worst)"], 50, "ms"),
    Figure("p99 at half of the highest rate", "latency", _p99_ms(latency.HALF), 20, "ms"),
    Figure("members 10 to 5000, side by side", "growth", _growth(SIDE_BY_SIDE, (10, 100, 1000, 5000)), FLAT, "×"),
    Figure("members 100 to 5000, side by side", "growth", _growth(SIDE_BY_SIDE, (100, 1000, 5000)), FLAT, "×"),
    Figure("each further member's delivery", "growth", _further(SIDE_BY_SIDE, (10, 100, 1000, 5000)), FLAT, "×"),
    Figure("group of 1000 on 1 to 4 gateways", "growth", _growth("group on {}", (1, 2, 4)), FLAT, "×"),
    Figure("direct on 1 to 4 gateways", "growth", _growth("direct on {}", (1, 2, 4)), FLAT, "×"),
    Figure("direct on 1 to 4, none crosses", "growth", _growth("direct on {}, at home", (1, 2, 4)), FLAT, "×"),
    Figure("10 to 10,000 conversations", "growth", _growth("{} conversations", (10, 100, 1000, 10_000)), FLAT, "×"),
    Figure(
        "p99 while one reader in ten stalls",
        "slow",
        lambda found: _p99_ms(slow.STALL)(found) / _p99_ms(slow.CALM)(found),
        FLAT,
        "× before",
    ),
    Figure("memory while one reader in ten stalls", "slow", _rss, FLAT, "× before"),
)


def compare(results: list[Result]) -> str:
    """Return one line for each promised figure: what was measured, and the limit."""
    found: dict[str, Found] = {}
    for result in results:
        phases = {one.name: one for one in report.shown(result)}
        before = found.get(result.scenario, Found({}, {}))
        found[result.scenario] = Found({**before.phases, **phases}, {**before.notes, **result.notes})
    lines = []
    for figure in FIGURES:
        value = figure.read(found[figure.scenario]) if figure.scenario in found else None
        if value is not None:
            verdict = "ok" if value <= figure.limit else "OVER"
            lines.append(f"{figure.name:38} {value:8.2f} {figure.unit:10} of {figure.limit:g}  {verdict}")
    return "\n".join(lines)
