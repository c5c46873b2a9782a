"""Ratios: the cost of a message on each side, as a multiple of Linnet's. Pure.

The cost is the CPU of all parts of a side: both nodes, its Redis, and Linnet's router. A ratio is the median of the
ratios of all rounds, because the phases of one round ran one after the other. Costs and latencies are medians, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

from loadtest.load.results import Measurement, Result, medians
from loadtest.peers.load import LINNET, Options, phases

REACHED: Final = 0.9  # of the offered rate; a side below it is saturated
HEADER: Final = ("phase", "side", "× Linnet", "CPU µs", "of it Redis", "per second", "p50 ms", "p99 ms", "")
TEXT_COLUMNS: Final = (0, 1, 8)
WORDS: Final = """\
CPU µs of all processes of a side, per message (direct), delivery (group) or connect. A client of Linnet connects
without groups, one of a peer to one room.
Linnet (durability `memory`) keeps and orders what it acks, and repeats what was missed. Of the peers only Centrifugo
does, within its limits, and not where it is called live only.
The floor is one process without Redis that writes a prebuilt frame to each who is to get it, and nothing else.
Latency counts from when a message was due; where a side is saturated it is a queue's, but a message's cost holds."""

Parts = Mapping[str, Sequence[str]]  # side -> the parts whose CPU is its cost


class Row(msgspec.Struct, frozen=True):
    """One side in one phase."""

    phase: str
    side: str
    ratio: float
    cost_us: float
    redis_us: float
    rate: float
    p50_us: float | None
    p99_us: float | None
    saturated: bool


def rows(result: Result, parts: Parts) -> list[Row]:
    """Return, by phase, a row for each side in order."""
    options = msgspec.convert(result.options, Options)
    by_name: dict[str, list[Measurement]] = {}
    for one in result.measurements:
        by_name.setdefault(one.name, []).append(one)
    found: list[Row] = []
    for name, phase in phases(options).items():
        base = [cost(one, parts[LINNET]) for one in by_name[f"{LINNET}: {name}"]]
        found += [_row(name, side, by_name[f"{side}: {name}"], base, parts[side], phase.rate) for side in parts]
    return found


def cost(one: Measurement, parts: Sequence[str]) -> float:
    """Return the µs per unit."""
    return sum(one.cost_us(part) for part in parts)


def _row(
    phase: str, side: str, rounds: list[Measurement], base: list[float], parts: Sequence[str], offered: float
) -> Row:
    typical = medians(rounds)[0]
    return Row(
        phase=phase,
        side=side,
        ratio=median(cost(one, parts) / linnet for one, linnet in zip(rounds, base, strict=True)),
        cost_us=median(cost(one, parts) for one in rounds),
        redis_us=median(cost(one, [part for part in parts if part.endswith("redis")]) for one in rounds),
        rate=typical.rate,
        p50_us=typical.delivery_us.get("50"),
        p99_us=typical.delivery_us.get("99"),
        saturated=typical.rate < REACHED * offered,
    )


def table(result: Result, parts: Parts) -> str:
    """Return one line per phase and side, and the notes that explain them."""
    lines: list[Sequence[str]] = [HEADER]
    last = ""
    for row in rows(result, parts):
        lines.append(_cells(row, "" if row.phase == last else row.phase))
        last = row.phase
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text = ["  ".join(_put(line, widths)).rstrip() for line in lines]
    text += [WORDS, f"{result.notes.get('rounds', 0):g} rounds, all sides in turn; {result.machine}; {result.at}"]
    text += [f"{name}: {count:g}" for name, count in result.notes.items() if name != "rounds"]
    if any(one.saturated for one in result.measurements):
        text.append(
            "The load process was busy all the time in some phases: costs hold, rates and latencies are its own."
        )
    return "\n".join(text)


def _cells(row: Row, phase: str) -> tuple[str, ...]:
    ms = ["-" if value is None else f"{value / 1000:.1f}" for value in (row.p50_us, row.p99_us)]
    return (
        phase,
        row.side,
        f"{row.ratio:.2f}",
        f"{row.cost_us:.1f}",
        f"{row.redis_us:.1f}",
        f"{row.rate:,.0f}",
        *ms,
        "saturated" if row.saturated else "",
    )


def _put(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column in TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
