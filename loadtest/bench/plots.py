"""Measurements as SVG: the plots of a result page, and the pictures of the documentation.

Pure, except for the plotting library, which is imported when a plot is drawn: a machine that only measures needs none.
The SVG needs neither scripts nor fonts from elsewhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10
from typing import Any, Final

from loadtest.load.results import PERCENTILES, Measurement
from loadtest.load.scenarios import latency, slow

PARTS: Final = ("gateway", "router", "redis", "floor")


def parts_of(one: Measurement) -> Iterable[str]:
    """Return the parts whose CPU a phase costs: the floor for its own phases, all others otherwise."""
    return ["floor"] if one.name.startswith("floor") else [part for part in one.cpu_s if part != "floor"]


# -- a result's page


def of(measurements: list[Measurement]) -> list[str]:
    """Return all plots that these phases have data for."""
    found = [_costs(measurements)] if measurements else []
    if any(one.delivery_us for one in measurements):
        found.append(_latencies({one.name: one for one in measurements}))
    connects = [one for one in measurements if one.unit == "connect"]
    if len(connects) > 1:
        found.append(_memory(connects))
    return found


def _costs(measurements: list[Measurement]) -> str:
    chart = _chart("StackedBar", "CPU µs per unit, by part", x_label_rotation=20)
    chart.x_labels = [f"{one.name} ({one.unit})" for one in measurements]
    for part in PARTS:
        values = [one.cost_us(part) if part in parts_of(one) else 0 for one in measurements]
        if any(values):
            chart.add(part, values)
    return _svg(chart)


def _latencies(lines: Mapping[str, Measurement]) -> str:
    chart = _chart("Line", "latency from the moment a message was due, ms", logarithmic=True)
    chart.x_labels = ["max" if percentile == 100 else f"p{percentile:g}" for percentile in PERCENTILES]
    shown = {
        name: [max(0.01, value / 1000) for value in one.delivery_us.values()]
        for name, one in lines.items()
        if one.delivery_us
    }
    chart.y_labels = _decades(value for values in shown.values() for value in values)
    for name, values in shown.items():
        chart.add(name, values)
    return _svg(chart)


def _memory(connects: Sequence[Measurement]) -> str:
    chart = _chart("XY", "memory of a gateway (MB) against its connections", include_x_axis=True)
    points, total = [(0, connects[0].rss_before["gateway"] / 1e6)], 0
    for one in connects:
        total += one.units
        points.append((total, one.rss_bytes["gateway"] / 1e6))
    chart.add("gateway", points)
    return _svg(chart)


# -- the documentation


LATENCIES: Final = {  # line -> scenario, phase
    "direct message, 2000/s": ("direct", "direct, 2000/s"),
    "direct message, half of the highest rate": ("latency", latency.HALF),
    "group, all members read": ("slow", slow.CALM),
    "group, readers while others do not read": ("slow", slow.STALL),
}
GROUPS: Final = {  # line -> the name of its phases, and the part that is shown
    "floor: one bare write per member": ("floor, {} members", "floor"),
    "gateway": ("{} members", "gateway"),
    "gateway, groups side by side": ("{} members, side by side", "gateway"),
}


def pictures(phases: Mapping[str, Sequence[Measurement]]) -> dict[str, str]:
    """Return, by name, the pictures that these phases have data for."""
    by_name = {scenario: {one.name: one for one in some} for scenario, some in phases.items()}
    found: dict[str, str] = {}
    lines = {
        line: by_name[scenario][phase]
        for line, (scenario, phase) in LATENCIES.items()
        if phase in by_name.get(scenario, {})
    }
    if lines:
        found["latency"] = _latencies(lines)
    if any(re.fullmatch(r"\d+ members", name) for name in by_name.get("growth", {})):
        found["groups"] = _groups(by_name["growth"])
    connects = [one for one in phases.get("idle", ()) if one.unit == "connect"]
    if connects:
        found["memory"] = _memory(connects)
    return found


def _groups(measured: Mapping[str, Measurement]) -> str:
    chart = _chart("XY", "CPU µs for one message, against members of its group", logarithmic=True)
    sizes = sorted(int(name.split()[0]) for name in measured if re.fullmatch(r"\d+ members", name))
    lines: dict[str, list[tuple[int, float]]] = {}
    for line, (phase, part) in GROUPS.items():
        known = [(size, measured[phase.format(size)]) for size in sizes if phase.format(size) in measured]
        # A cost of zero (too small for the meter) cannot be on a logarithmic axis.
        points = [(size, one.cost_us(part) * size) for size, one in known if one.cost_us(part)]
        if points:
            lines[line] = points
    chart.x_labels = sizes
    chart.y_labels = _decades(cost for points in lines.values() for _, cost in points)
    for line, points in lines.items():
        chart.add(line, points)
    return _svg(chart)


# -- the plotter


def _decades(values: Iterable[float]) -> list[float]:
    """Return the labels of a logarithmic axis that contains all values."""
    powers = [floor(log10(value)) for value in values]
    return [10.0**power for power in range(min(powers), max(powers) + 2)]


def _chart(kind: str, title: str, **options: Any) -> Any:
    """Return a chart of pygal. Its import hook is removed, because Python warns about it at every later import."""
    import pygal
    from pygal.style import Style

    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]
    style = Style(background="white", plot_background="white", font_family="sans-serif", guide_stroke_color="#ccc")
    config = pygal.Config(
        js=[],
        disable_xml_declaration=True,
        width=900,
        height=400,
        legend_at_bottom=True,
        style=style,
        stroke_style={"width": 2},
        **options,
    )
    return getattr(pygal, kind)(config, title=title)


def _svg(chart: Any) -> str:
    """Return the SVG without the script of the plotting library, which only serves tooltips."""
    return re.sub(r"<script.*?</script>", "", str(chart.render(is_unicode=True)), flags=re.DOTALL)
