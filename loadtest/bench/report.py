"""Results for people and programs: a table, JSON, and one self-contained HTML page.

The JSON contains everything, and `python -m loadtest report FILE` turns it into the page later and elsewhere. So the
machine that runs the test needs no plotting library.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest.bench import plots
from loadtest.bench.plots import PARTS, parts_of
from loadtest.load.results import Measurement, Result, medians

WARM_UP = "warm-up"


def shown(result: Result) -> list[Measurement]:
    """Return the medians of all phases except the warm-up."""
    return [one for one in medians(result.measurements) if one.name != WARM_UP]


def table(result: Result) -> str:
    """Return one line per phase; costs are CPU µs per unit."""
    header = ["phase", "per", "units/s", *(f"{part} µs" for part in PARTS[:3]), "all µs", "p50 ms", "p99 ms"]
    header += ["p99.9 ms", "max ms", "gateway MB", "client"]
    rows = [_row(one) for one in shown(result)]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]
    lines += [f"{name}: {value:.1f}" for name, value in result.notes.items()]
    if any(one.saturated for one in shown(result)):
        lines.append("a load process was busy all the time: costs hold, rates and latencies are its own; add --workers")
    failures = ", ".join(f"{name} {count}" for name, count in msgspec.structs.asdict(result.failures).items() if count)
    lines.append("nothing lost, doubled or out of order" if result.good else f"WRONG: {failures}. {result.complaint}")
    return "\n".join(lines)


def _row(one: Measurement) -> list[str]:
    ms = [one.delivery_us.get(percentile) for percentile in ("50", "99", "99.9", "100")]
    return [
        one.name,
        one.unit,
        f"{one.rate:,.0f}",
        *(f"{one.cost_us(part):.2f}" if part in one.cpu_s else "-" for part in PARTS[:3]),
        f"{sum(one.cost_us(part) for part in parts_of(one)):.2f}",
        *("-" if value is None else f"{value / 1000:.1f}" for value in ms),
        f"{one.rss_bytes.get('gateway', 0) / 1e6:.1f}",
        f"{one.client_load:.0%}",
    ]


def write_json(results: Sequence[Result], path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def read_json(path: Path) -> list[Result]:
    return msgspec.json.decode(path.read_bytes(), type=list[Result])


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Linnet load test</title>
<style>body{{font:15px system-ui;margin:2em auto;max-width:1000px}}pre{{overflow:auto;background:#f4f4f4;padding:1em}}
figure{{margin:1em 0}}</style><h1>Linnet load test</h1>{body}</html>
"""


def write_html(results: Sequence[Result], path: Path) -> None:
    """Write a page with tables and SVG plots."""
    parts = []
    for result in results:
        options = ", ".join(f"{name} {value}" for name, value in result.options.items())
        parts.append(f"<h2>{html.escape(result.scenario)}</h2><p>{html.escape(result.at)}, {html.escape(options)}<br>")
        parts.append(f"{html.escape(result.machine)}</p><pre>{html.escape(table(result))}</pre>")
        parts += [f"<figure>{plot}</figure>" for plot in plots.of(shown(result))]
    path.write_text(_PAGE.format(body="".join(parts)), encoding="utf-8")


def write_pictures(results: Sequence[Result], folder: Path) -> None:
    """Write one SVG for each picture that these results have data for."""
    phases: dict[str, list[Measurement]] = {}
    for result in results:
        phases.setdefault(result.scenario, []).extend(shown(result))
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in plots.pictures(phases).items():
        (folder / f"{name}.svg").write_text(picture + "\n", encoding="utf-8")
