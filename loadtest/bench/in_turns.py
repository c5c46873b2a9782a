"""Phases measured in turns with a calm one: each trouble is between two phases without it, so a machine that becomes
slower for a while changes all three, and no ratio."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, quantiles

from loadtest.bench import report
from loadtest.load.results import Measurement, Result


def table(result: Result, what: str, calm: str, latency: Callable[[Measurement], dict[str, float]]) -> str:
    """Return one line for each kind of phase: medians over the rounds, and the middle half of the ratios.

    A ratio is that of the 99th percentile to the mean of the phases before and after, whose names end with `calm`.
    """
    lines = [f"{what:44} {'p50 ms':>8} {'p99 ms':>8} {'p99 ratio':>10}  middle half"]
    measured = [one for one in result.measurements if one.name != report.WARM_UP]
    ratios: dict[str, list[float]] = {}
    for before, one, after in zip(measured, measured[1:], measured[2:], strict=False):
        if not one.name.endswith(calm):
            ratio = latency(one)["99"] / mean((latency(before)["99"], latency(after)["99"]))
            ratios.setdefault(one.name, []).append(ratio)
    for one in report.shown(result):
        line = f"{one.name:44} {latency(one)['50'] / 1000:8.2f} {latency(one)['99'] / 1000:8.2f}"
        if found := ratios.get(one.name):
            # Each number twice, because quartiles need two numbers, and there may be only one round.
            low, middle, high = quantiles(found * 2, n=4, method="inclusive")
            line += f" {middle:10.2f}  {low:.2f}-{high:.2f}"
        lines.append(line)
    lines += [f"{name}: {value:.0f}" for name, value in result.notes.items()]
    lines.append("nothing lost or refused" if result.good else f"WRONG: {result.failures}. {result.complaint}")
    return "\n".join(lines)
