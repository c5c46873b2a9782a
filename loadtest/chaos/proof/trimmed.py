"""The judgement of events that a log no longer contains because it was trimmed.

Their acks prove that they existed, and the devices that received them prove their content. So a device that received
such an event must have received what its author sent. A device that did not must have been told a `gap`, or have begun
later, or not be allowed to see it. `account.py` checks that a gap covers only trimmed events.

Not judged: chain and counts of the trimmed part, a void event in it, and an event whose ack never arrived.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import msgspec

from loadtest.chaos.proof.findings import Command, Findings, Log, Violation

Commands = dict[str, dict[int, Command]]


class Acked(msgspec.Struct, frozen=True):
    """An event below the floor: its author and the command."""

    device: str
    n: int
    command: Command


def check_trimmed(findings: Findings, commands: Commands) -> Iterator[Violation]:
    acked: dict[str, dict[int, Acked]] = {}
    deleted: dict[str, set[int]] = {name: set(log.deleted) for name, log in findings.logs.items()}
    for device, numbers in commands.items():
        for n, command in numbers.items():
            log = findings.logs.get(command.conversation)
            if command.seq and log is not None and command.seq <= log.floor:
                one = Acked(device, n, command)
                yield from _as_sent(findings, log.id, one)
                acked.setdefault(log.id, {}).setdefault(command.seq, one)
            if command.seq and command.kind == "delete" and log is not None:
                deleted[log.id].add(command.target)
    for name, events in acked.items():
        gone = deleted[name]
        findings.counts["events that were trimmed"] += len(events)
        kept = {seq for seq, one in events.items() if not (one.command.kind == "edit" and one.command.target in gone)}
        yield from _reached(findings, findings.logs[name], events, sorted(kept - gone))


def _as_sent(findings: Findings, name: str, one: Acked) -> Iterator[Violation]:
    seq = one.command.seq
    entry = findings.unlogged.get((name, seq))
    if entry is None or one.command.repeats(entry, one.device):
        return
    author = (f"{entry.user}/{entry.device}", entry.n)
    if author != (one.device, one.n) or not findings.same(one.command.body, entry.body):
        what = f"n {one.n} of {one.device} was acked as {seq}, where others have n {entry.n} of {entry.user}"
        yield Violation("G1", what, one.command.at, name, seq, one.n, (one.device,))


def _reached(findings: Findings, log: Log, events: dict[int, Acked], wanted: list[int]) -> Iterator[Violation]:
    for share in findings.shares.get(log.id, ()):
        due = wanted[bisect_left(wanted, share.after + 1) : bisect_left(wanted, share.upto + 1)]
        missing = [seq for seq in due if seq not in share.had and not share.announced(seq)]
        if missing:
            one = events[missing[0]]
            what = f"misses {len(missing)} events that were trimmed since, the first is {missing[0]} of {one.device}"
            what = f"{share.device}: {what}; it received no gap"
            yield Violation("G4", what, one.command.at, log.id, missing[0], one.n, (share.device,))
