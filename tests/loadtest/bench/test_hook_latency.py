"""The traffic beside a pre-send hook that fails: a small run against a real deployment, and its table."""

from loadtest.bench import hook_latency, report
from loadtest.bench.hook_latency import ALONE, ANSWERS, FAILS, Options
from loadtest.load.client import Failures
from loadtest.load.results import Measurement, Result


def test_traffic_beside_a_hook_that_fails_is_measured_and_nothing_is_refused(starts_processes: None) -> None:
    result = hook_latency.measure(Options(pairs=4, rate=40, seconds=0.25, rounds=1, recovery=0.2))
    assert result.good, hook_latency.table(result)
    phases = {one.name: one for one in report.shown(result)}
    reactions = [f"reactions, {name}" for name in (ANSWERS, *FAILS)]
    assert phases.keys() == {*reactions, f"messages, {ANSWERS}", f"messages, {ALONE}"}
    assert all(phases[name].units == 20 for name in reactions)
    assert all(one.ack_us for one in phases.values())


def phase(name: str, p99_ms: float) -> Measurement:
    return Measurement(name, "command", 1, 1, {}, {}, {}, 0, {}, {"50": 1000.0, "99": p99_ms * 1000})


def test_ratio_is_that_to_the_phases_before_and_after() -> None:
    """A machine that becomes slower for a while changes no ratio, and a single round has no spread."""
    rounds = [(1.0, 1.2, 1.0), (50.0, 60.0, 50.0), (2.0, 3.6, 4.0), (4.0, 8.0, 6.0)]
    names = [f"reactions, {ANSWERS}", "reactions, dead", f"reactions, {ANSWERS}"]
    measured = [phase(name, p99) for found in rounds for name, p99 in zip(names, found, strict=True)]
    assert figures(measured[:3]) == [["1.00", "1.00"], ["1.00", "1.20", "1.20", "1.20-1.20"]]
    assert figures(measured) == [["1.00", "4.00"], ["1.00", "5.80", "1.20", "1.20-1.30"]]


def figures(measured: list[Measurement]) -> list[list[str]]:
    """Return the columns of the table after the names of the phases."""
    lines = hook_latency.table(Result("hook-latency", {}, "", "", measured, Failures(), {})).splitlines()
    return [line[44:].split() for line in lines[1:-1]]
