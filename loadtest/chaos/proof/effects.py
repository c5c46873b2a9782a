"""The effects of each kind of fault on people: the figures for the table of failures. Pure: evidence in, lines out.

A message is counted for every fault that was active between its send and its ack, or between its stamp and its arrival.
So only a run of one kind of fault (`--faults`) tells what that kind does. Waits that a device caused itself (it was
offline, read slowly, or had just done so) are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Final

import msgspec

from loadtest.chaos.proof import history
from loadtest.chaos.proof.evidence import Evidence, Fault
from loadtest.chaos.proof.history import Rows

AFTER_MS: Final = 5_000  # what happens this long after a fault counts as its effect
SELF_MS: Final = 5_000
EXPIRED: Final = 4501

HEADING: Final = "fault             times  lasted  cut off unavailable  ack med/max  deliv. med/max  closes"


class Effect(msgspec.Struct):
    """The effect of one fault: closes, refusals, and the longest times to an ack and to a delivery."""

    fault: Fault
    closes: Counter[int]
    unavailable: int = 0
    ack_ms: int = 0
    delivery_ms: int = 0


def effects_of_faults(evidence: Evidence) -> list[str]:
    """Return a line for each kind of fault."""
    effects = [Effect(fault, Counter()) for fault in evidence.faults if fault.kind != "rolling"]
    for rows in evidence.histories.values():
        DeviceEffects(effects).through(rows)
    kinds = sorted({one.fault.kind for one in effects})
    return [HEADING, *(_line(kind, [one for one in effects if one.fault.kind == kind]) for kind in kinds)]


def _line(kind: str, them: list[Effect]) -> str:
    closes = sum((one.closes for one in them), Counter[int]())
    lasted = median(one.fault.ended - one.fault.began for one in them) / 1000
    cut, refused = median(one.closes.total() for one in them), median(one.unavailable for one in them)
    ack, delivery = [one.ack_ms / 1000 for one in them], [one.delivery_ms / 1000 for one in them]
    how = ", ".join(f"{count} × {code}" for code, count in closes.most_common())
    return (
        f"{kind:17} {len(them):5} {lasted:6.1f}s  {cut:7.0f} {refused:11.0f} {median(ack):5.1f}/{max(ack):5.1f}s"
        f" {median(delivery):6.1f}/{max(delivery):5.1f}s  {how}"
    )


class DeviceEffects:
    """Reads the history of one device."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        self._sent: dict[int, int] = {}
        self._since = 0  # since when it is connected; 0: it is not
        self._valid_until = 0
        self._excused = 0  # until when its waits are its own doing

    def through(self, rows: Iterable[Rows]) -> None:
        for row in rows:
            match row:
                case history.Welcomed():
                    self._since = row.at
                case history.Valid():
                    self._valid_until = row.until
                case history.Paused():
                    self._excused = row.at + SELF_MS if not row.on else 1 << 60
                case history.Left():
                    self._sent.clear()
                    self._excused = row.at + SELF_MS
                case history.Closed():
                    self._closed(row)
                case history.Sent(attempt=1) if row.at > self._excused:
                    self._sent.setdefault(row.n, row.at)
                case history.Refused(code="unavailable"):
                    for one in self._during(row.at, row.at):
                        one.unavailable += 1
                case history.Acked():
                    self._acked(row)
                case history.Received(event=event) if self._since and event.stamp > max(self._since, self._excused):
                    for one in self._during(event.stamp, row.at):
                        one.delivery_ms = max(one.delivery_ms, row.at - event.stamp)
                case _:
                    pass

    def _closed(self, row: history.Closed) -> None:
        self._excused = min(self._excused, row.at + SELF_MS)
        if self._since and not row.ours and not (row.code == EXPIRED and row.at >= self._valid_until):
            for one in self._during(row.at, row.at):
                one.closes[row.code] += 1
        self._since = 0

    def _acked(self, row: history.Acked) -> None:
        began = self._sent.pop(row.n, 0)
        if began and row.at > self._excused:
            for one in self._during(began, row.at):
                one.ack_ms = max(one.ack_ms, row.at - began)

    def _during(self, began: int, ended: int) -> list[Effect]:
        return [
            one
            for one in self._effects
            if began <= one.fault.ended + AFTER_MS and ended >= one.fault.began and began >= one.fault.began - AFTER_MS
        ]
