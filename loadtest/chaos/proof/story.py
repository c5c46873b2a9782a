"""The story of a violation: the rows of the devices concerned, the entry of the log, the faults, and lines of process
logs.

It reads only the histories of the devices concerned and the logs of the processes; it selects rows and judges nothing.
Bound: `ROWS` rows of each history, `LINES` lines of each process, nearest to the moment of the violation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from loadtest.chaos.proof import history
from loadtest.chaos.proof.evidence import Evidence
from loadtest.chaos.proof.findings import Violation
from loadtest.chaos.proof.history import Rows

AROUND_MS: Final = 15_000
ROWS: Final = 12
LINES: Final = 3
# The time of a log line of level warning or higher.
_LINE: Final = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})Z (?:warning|error|critical) ")


def story(evidence: Evidence, violation: Violation) -> list[str]:
    """Return the lines in the order of time."""
    found = [*_devices(evidence, violation), *_faults(evidence, violation), *_entry(evidence, violation)]
    found += _processes(evidence, violation)
    return [f"{_clock(at)} {line}" for at, line in sorted(found, key=lambda one: one[0])]


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _devices(evidence: Evidence, violation: Violation) -> Iterator[tuple[int, str]]:
    names = list(violation.devices)
    log = evidence.conversations.get(violation.conversation)
    entries = log.entries if log is not None else []
    names += [f"{entry.user}/{entry.device}" for entry in entries if entry.seq == violation.seq]
    for name in dict.fromkeys(names):
        near = [row for row in evidence.histories.get(name, ()) if _concerns(row, violation)]
        near.sort(key=lambda row: abs(row.at - violation.at))
        for row in near[:ROWS]:
            yield row.at, f"{name:14} {_told(row)}"


def _concerns(row: Rows, violation: Violation) -> bool:
    near = abs(row.at - violation.at) < AROUND_MS
    match row:
        case history.Sent() | history.Refused():
            return violation.n != 0 and row.n == violation.n
        case history.Acked():
            return (violation.n != 0 and row.n == violation.n) or (
                row.conversation == violation.conversation and row.seq == violation.seq
            )
        case history.Received() | history.Read() | history.Receipt():
            return near and row.conversation == violation.conversation
        case history.Gap():
            return row.conversation == violation.conversation
        case history.Watching():
            return False
        case history.Seen():
            return near and violation.promise == "G8"
        case _:
            return near


def _told(row: Rows) -> str:
    """A row, and of a list of conversations only how long it is."""
    name, _, *values = msgspec.to_builtins(row)
    shown = [f"[{len(value)}]" if isinstance(value, list) else str(value) for value in values]
    return f"{name} " + " ".join(shown)[:200]


def _faults(evidence: Evidence, violation: Violation) -> Iterator[tuple[int, str]]:
    for fault in evidence.faults:
        if fault.began - AROUND_MS < violation.at < fault.ended + AROUND_MS:
            yield fault.began, f"-- {fault.kind} {fault.target}, until {_clock(fault.ended)}"


def _entry(evidence: Evidence, violation: Violation) -> Iterator[tuple[int, str]]:
    log = evidence.conversations.get(violation.conversation)
    for entry in log.entries if log is not None else ():
        if entry.seq == violation.seq:
            who = f"{entry.user}/{entry.device} n {entry.n}"
            yield (
                entry.stamp,
                f"== log of {violation.conversation}: {entry.seq} after {entry.prev}, {entry.kind} of {who}",
            )


def _processes(evidence: Evidence, violation: Violation) -> Iterator[tuple[int, str]]:
    for process, path in evidence.process_logs.items():
        lines = sorted(_lines(path), key=lambda line: abs(line[0] - violation.at))
        for at, text in lines[:LINES]:
            if abs(at - violation.at) < AROUND_MS:
                yield at, f"{process:14} {text}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for line in path.read_text(errors="replace").splitlines():
        if match := _LINE.match(line):
            at = datetime.fromisoformat(match[1] + "+00:00")
            yield round(at.timestamp() * 1000), line[25:225]
