"""Medians of several measurements."""

from __future__ import annotations

import msgspec

from loadtest.load.results import Measurement, Sample, encoded, measure, medians
from loadtest.meters import Reading


def measured(name: str, cpu_s: float, units: int = 1000, latencies: tuple[int, ...] = (1000,)) -> Measurement:
    sample = Sample(units // 2, 1.0, 0.5, encoded(latencies), encoded(()))
    before = {"gateway": Reading(5.0, 1000), "redis": Reading(1.0, 10)}
    after = {"gateway": Reading(5.0 + cpu_s, 3000), "redis": Reading(1.0, 10)}
    return measure(name, "message", [sample, sample], before, after)


def test_cost_is_the_cpu_between_the_barriers_per_unit_of_all_processes() -> None:
    one = measured("x", cpu_s=0.01)
    assert (one.units, round(one.cost_us("gateway"), 6), one.cost_us("redis")) == (1000, 10.0, 0.0)


def test_histograms_of_all_processes_add_up() -> None:
    """A percentile is computed from all recorded values, not as a mean of percentiles."""
    samples = [Sample(1, 1.0, 0.1, encoded(range(1, 991)), b""), Sample(1, 1.0, 0.1, encoded([50_000] * 10), b"")]
    samples = [msgspec.structs.replace(sample, ack=encoded(())) for sample in samples]
    found = measure("x", "message", samples, {}, {})
    assert found.delivery_us["50"] == 500
    assert found.delivery_us["100"] >= 50_000 * 0.999
    assert found.delivery_us["99"] <= 1000


def test_median_of_costs_ignores_one_bad_round() -> None:
    """Rounds with different numbers of units have the same weight."""
    rounds = [measured("x", 0.01), measured("x", 0.02, units=2000), measured("x", 5.0)]
    (middle,) = medians(rounds)
    assert round(middle.cost_us("gateway"), 3) == 10.0
