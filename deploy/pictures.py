"""The dashboards as pictures, drawn from the data of a Prometheus, for deploy/README.md.

`.venv/check/bin/python -m deploy.pictures PROMETHEUS_URL FOLDER [MINUTES]` draws every dashboard of deploy/grafana. The
panels' positions, titles, units and expressions are those of Grafana; the colors and fonts are not. It runs with the
checks' own Python, which has a plotter, so it imports no module of Linnet.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.dates
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

GRAFANA = Path(__file__).parent / "grafana"
POINTS = 150
CELL_INCHES = 0.42, 0.30  # of Grafana's grid: 24 columns, rows of 30 pixels
MAX_LEGENDS = 7
DPI, COLORS = 90, 64

mpl.use("Agg")
plt.style.use("dark_background")
plt.rcParams |= {
    "font.size": 6.5,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "#181b1f",
    "figure.facecolor": "#111217",
    "axes.edgecolor": "#33363b",
    "grid.color": "#2c2f34",
    "lines.linewidth": 1.0,
}

PREFIXES = [(1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")]
SUFFIXES = {"s": "s", "bytes": "B", "Bps": "B/s", "ops": "/s", "reqps": "/s", "cps": "/s"}


def rounded(value: float, unit: str) -> str:
    """A number with its unit, rounded for reading."""
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "percent":
        return f"{value:.0f}%"
    if value == 0:
        return f"0{SUFFIXES.get(unit, '')}"
    small = unit == "s"
    factor, prefix = next(
        ((f, p) for f, p in PREFIXES if abs(value) >= f and (small or f >= 1) and not (small and f > 1)), (1, "")
    )
    return f"{value / factor:.3g}{prefix}{SUFFIXES.get(unit, '')}"


def query_range(url: str, expression: str, began: float, until: float) -> list[dict[str, Any]]:
    step = max(1.0, (until - began) / POINTS)
    query = {"query": expression.replace("$__rate_interval", "30s"), "start": began, "end": until, "step": step}
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{urllib.parse.urlencode(query)}") as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], "").removesuffix(":9000"), template).strip()


def draw_stat(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[float], list[float]]]) -> None:
    axes.set_axis_off()
    value = series[0][2][-1] if series else float("nan")
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    color = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
    text = rounded(value, panel["fieldConfig"]["defaults"]["unit"])
    shown = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c"}[color]
    axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=15, color=shown, weight="bold")


def draw_lines(axes: Axes, panel: dict[str, Any], series: list[tuple[str, list[float], list[float]]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for name, times, values in series:
        stamps = [datetime.fromtimestamp(at, UTC) for at in times]
        axes.plot(stamps, values, label=name)
    axes.grid(visible=True, linewidth=0.5)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] <= 0 or not any(any(values) for _, _, values in series):
        axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value, defaults["unit"])))
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
    axes.xaxis.set_major_locator(matplotlib.dates.AutoDateLocator(minticks=2, maxticks=5))
    if series:
        few = [name for name, _, _ in series][:MAX_LEGENDS]
        axes.legend(few, loc="upper left", fontsize=5, frameon=False, ncols=2 if len(few) > 3 else 1)


DRAW = {"stat": draw_stat, "timeseries": draw_lines}


def draw(dashboard: dict[str, Any], url: str, began: float, until: float, path: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = 24 * CELL_INCHES[0], rows * CELL_INCHES[1]
    figure = plt.figure(figsize=(width, height))
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        left, bottom = at["x"] / 24, 1 - (at["y"] + at["h"]) / rows
        if panel["type"] == "row":
            figure.text(left + 0.005, bottom + 0.2 / rows, panel["title"], fontsize=8, color="#9fa7b3")
            continue
        box = (left + 0.035, bottom + 0.9 / rows, at["w"] / 24 - 0.045, (at["h"] - 2.1) / rows)
        axes = figure.add_axes(box)
        axes.set_title(panel["title"])
        series = []
        for target in panel["targets"]:
            for one in query_range(url, target["expr"], began, until):
                points = [(at, float(value)) for at, value in one["values"] if value != "NaN"]
                if points:
                    times, values = zip(*points, strict=True)
                    series.append((legend(target["legendFormat"], one["metric"]), list(times), list(values)))
        DRAW[panel["type"]](axes, panel, series)
        if panel["type"] == "timeseries":
            axes.set_xlim(datetime.fromtimestamp(began, UTC), datetime.fromtimestamp(until, UTC))
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    with Image.open(path) as picture:  # a palette takes a third of the space
        picture.convert("RGB").quantize(COLORS).save(path, optimize=True)


def main(url: str, folder: str, minutes: str = "10") -> None:
    until = time.time()
    for source in sorted(GRAFANA.glob("*.json")):
        target = Path(folder) / f"{source.stem}.png"
        draw(json.loads(source.read_text()), url, until - 60 * float(minutes), until, target)
        print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
