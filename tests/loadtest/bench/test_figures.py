"""How the promised figures are read from phases, and when a figure is left out."""

from __future__ import annotations

import msgspec
import pytest

from loadtest.bench.figures import FIGURES, SESSIONS, Found, compare
from loadtest.load.client import Failures
from loadtest.load.results import Measurement, Result
from loadtest.load.scenarios import latency, slow


def phase(name: str, cost_us: float = 1.0, units: int = 1000, **fields: object) -> Measurement:
    """Return a phase in which each unit cost the gateway this much."""
    one = Measurement(
        name=name,
        unit="unit",
        units=units,
        wall_s=10.0,
        cpu_s={"gateway": cost_us * units / 1e6, "router": 0.0, "redis": 0.0, "floor": 0.0},
        rss_bytes={"gateway": 1000},
        rss_before={"gateway": 1000},
        client_load=0.1,
        delivery_us={"99": 1000.0},
        ack_us={},
    )
    return msgspec.structs.replace(one, **fields)


def result(scenario: str, *phases: Measurement, **notes: float) -> Result:
    return Result(scenario, {}, "today", "here", list(phases), Failures(), notes)


def read(name: str, *phases: Measurement) -> float | None:
    figure = next(one for one in FIGURES if one.name == name)
    return figure.read(Found({one.name: one for one in phases}, {}))


def test_figure_without_its_scenario_is_left_out() -> None:
    """Figures of scenarios that did not run, and of a storm that was too small, are left out."""
    told = compare([result("storm", phase("reconnect", 100.0))])
    assert "connect with 10 groups, gateway" in told
    assert "clients back" not in told
    assert "fan-out" not in told
    assert "10,000 clients back" in compare([result("storm", phase("reconnect", units=SESSIONS))])


def test_figure_over_its_limit_is_marked() -> None:
    assert "OVER" in compare([result("storm", phase("reconnect", 400.0))])
    assert "OVER" not in compare([result("storm", phase("reconnect", 300.0))])


def test_promised_number_of_sessions_shares_the_cost_of_an_empty_gateway() -> None:
    """2000 µs per second when empty, 6000 with 4000 sessions: one costs 1 µs, plus 0.2 as its share of 10,000."""
    empty, idle = phase("empty", 2.0, 8000), phase("idle", 1.5, 40_000)
    assert read("idle session, CPU a second", empty, idle) == pytest.approx(1.2)


def test_growth_is_the_most_expensive_size_over_the_cheapest() -> None:
    costs = {10: 16.0, 100: 7.0, 1000: 6.1, 5000: 6.0}
    phases = [phase(f"{size} members, side by side", cost) for size, cost in costs.items()]
    assert read("members 10 to 5000, side by side", *phases) == pytest.approx(16 / 6)
    assert read("members 100 to 5000, side by side", *phases) == pytest.approx(7 / 6)


def test_cost_of_a_further_delivery_excludes_the_message() -> None:
    """100 µs for a message and 6 for each member are flat, whatever share of the 100 small groups have."""
    phases = [phase(f"{size} members, side by side", 100 / size + 6) for size in (10, 100, 1000, 5000)]
    assert read("each further member's delivery", *phases) == pytest.approx(1.0)


def test_readers_are_compared_with_themselves() -> None:
    calm = phase(slow.CALM, delivery_us={"99": 10_000.0}, rss_bytes={"gateway": 100})
    stall = phase(slow.STALL, delivery_us={"99": 11_000.0}, rss_bytes={"gateway": 105})
    assert read("p99 while one reader in ten stalls", calm, stall) == pytest.approx(1.1)
    assert read("memory while one reader in ten stalls", calm, stall) == pytest.approx(1.05)
    assert read("p99 at half of the highest rate", phase(latency.HALF, delivery_us={"99": 7000.0})) == 7.0
