"""Measurements: one for each measured phase, and medians over phases of the same name. Pure.

A cost is the CPU seconds of a part divided by units of work. Percentiles come from HDR histograms, which processes
exchange in encoded form and which can be added without loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

import msgspec
from hdrh.histogram import HdrHistogram

from loadtest.load.client import Failures
from loadtest.meters import Reading

HIGHEST_US = 120_000_000
SATURATED = 0.9  # of a core: a busier load client may itself be the limit


def histogram() -> HdrHistogram:
    """Return a histogram of microseconds with three significant digits."""
    return HdrHistogram(1, HIGHEST_US, 3)


def encoded(latencies_us: Iterable[int]) -> bytes:
    made = histogram()
    for latency in latencies_us:
        made.record_value(min(max(1, latency), HIGHEST_US))
    return bytes(made.encode())


class Sample(msgspec.Struct, frozen=True):
    """The measurements of one load process in one phase."""

    units: int
    wall_s: float
    cpu_s: float
    delivery: bytes
    ack: bytes


class Measurement(msgspec.Struct, frozen=True):
    """One phase: `units` of work, the resources that each part used for them, and the latencies."""

    name: str
    unit: str
    units: int
    wall_s: float
    cpu_s: dict[str, float]
    rss_bytes: dict[str, int]
    rss_before: dict[str, int]
    client_load: float  # share of a core that the busiest load process used
    delivery_us: dict[str, float]
    ack_us: dict[str, float]

    def cost_us(self, part: str = "") -> float:
        """Return the CPU µs per unit, of one part or of all parts."""
        spent = self.cpu_s.get(part, 0.0) if part else sum(self.cpu_s.values())
        return spent / max(1, self.units) * 1e6

    @property
    def rate(self) -> float:
        return self.units / max(1e-9, self.wall_s)

    @property
    def saturated(self) -> bool:
        return self.client_load > SATURATED


PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)


def percentiles(parts: Iterable[bytes]) -> dict[str, float]:
    whole = histogram()
    for part in parts:
        whole.decode_and_add(part)
    if not whole.get_total_count():
        return {}
    return {f"{p:g}": float(whole.get_value_at_percentile(p)) for p in PERCENTILES}


def measure(
    name: str, unit: str, samples: list[Sample], before: Mapping[str, Reading], after: Mapping[str, Reading]
) -> Measurement:
    return Measurement(
        name=name,
        unit=unit,
        units=sum(sample.units for sample in samples),
        wall_s=max(sample.wall_s for sample in samples),
        cpu_s={part: after[part].cpu_s - before[part].cpu_s for part in after},
        rss_bytes={part: reading.rss_bytes for part, reading in after.items()},
        rss_before={part: reading.rss_bytes for part, reading in before.items()},
        client_load=max(sample.cpu_s / max(1e-9, sample.wall_s) for sample in samples),
        delivery_us=percentiles(sample.delivery for sample in samples),
        ack_us=percentiles(sample.ack for sample in samples),
    )


class Result(msgspec.Struct, frozen=True):
    """One run: `measurements` in the order of the phases, `failures` of all clients, `notes` of the scenario."""

    scenario: str
    options: dict[str, object]
    at: str
    machine: str
    measurements: list[Measurement]
    failures: Failures
    notes: dict[str, float]
    complaint: str = ""  # the last error that one of the clients received

    @property
    def good(self) -> bool:
        return not self.failures


def medians(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the median of each figure over the measurements of the same name, in the order of the names."""
    by_name: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        by_name.setdefault(measurement.name, []).append(measurement)
    return [_median(group) for group in by_name.values()]


def _median(group: list[Measurement]) -> Measurement:
    """Return the median measurement, of costs per unit: all measurements are first scaled to one number of units."""
    units = round(median(one.units for one in group))
    first = group[0]

    def over(read: str) -> dict[str, float]:
        keys = {key: None for one in group for key in getattr(one, read)}
        return {key: median(getattr(one, read).get(key, 0.0) for one in group) for key in keys}

    return msgspec.structs.replace(
        first,
        units=units,
        wall_s=units / max(1e-9, median(one.rate for one in group)),
        cpu_s={part: median(one.cost_us(part) for one in group) * units / 1e6 for part in first.cpu_s},
        rss_bytes={part: round(value) for part, value in over("rss_bytes").items()},
        rss_before={part: round(value) for part, value in over("rss_before").items()},
        client_load=max(one.client_load for one in group),
        delivery_us=over("delivery_us"),
        ack_us=over("ack_us"),
    )
