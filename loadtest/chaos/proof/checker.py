"""Proves or refutes the promises from the evidence of a run. Pure: evidence in, violations out.

The log of a conversation is checked by itself and then taken as the truth. Each history is compared with it
(`account.py`), one device at a time and in one pass, so that memory grows with the logs and not with the deliveries
(except for trimmed events, `trimmed.py`). This module contains that order, and the checks that compare devices or
processes.

G1  an acked event is in the log, at the acked seq and as it was sent; every event of a log reached every device;
    nothing is acked while a setting of Redis breaks the durability
G2  one order: unbroken `prev` chains, no seq twice, the same events in the same order for every device
G3  one log entry per (user, device, n), one answer per n, no entry that no device sent
G4  no hole without a `gap`, and no `gap` without a hole
G5  no hole in the events that a device receives after it was offline
G6  drains: no event twice, no device refused, reconnects spread over time; processes end as they were told
G7  memory stays within its limit
G8  presence is right at every mark
G9  read marks never go back, and agree at the end (they are not acked: a failover may take back the newest)
G10 two deployments on one Redis server do not notice each other; on one database the second does not start
G11 user state: at the end each device has what is stored, no version stands for two changes, and an answered change
    or a later one of its key is stored (`states.py`)

And moderation: what a mute, a ban or slow mode forbids is not in the log (`restraints.py`); neither is what a block
forbids, and both users of a pair agree with its record (`relations.py`). And files: at the end each member can fetch
every file of an acked message, byte for byte (`files.py`). And the pre-send hook: no text is in a log that it never let
through, if the policy is to reject (`hook.py`).

Invariant: each check examines all evidence, whatever another check has found. So one cause may show as several
violations; `story.py` explains the first ones.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from loadtest.chaos.proof.account import Account
from loadtest.chaos.proof.clients import check_clients
from loadtest.chaos.proof.evidence import Ending, Evidence, Fault, Sample, SentFile
from loadtest.chaos.proof.files import check_files
from loadtest.chaos.proof.findings import Command, Findings, Log, Violation
from loadtest.chaos.proof.hook import check_hook
from loadtest.chaos.proof.pages import check_pages
from loadtest.chaos.proof.relations import check_relations
from loadtest.chaos.proof.restraints import check_restraints
from loadtest.chaos.proof.states import check_client_states, check_states
from loadtest.chaos.proof.trimmed import check_trimmed

# Reconnects in one second, as a multiple of an even spread; small numbers are uneven by chance.
PEAK: Final = 2.0
PEAK_FROM: Final = 40
BUNCHING: Final = ("client-hold", "client-stutter", "client-delay", "gateway-stall")
REFUSED_DURING: Final = ("valkey-settings", "valkey-rights")
PROCESSES: Final = ("gateway", "router")


class Checked(msgspec.Struct):
    """The verdict, and the counts it rests on."""

    violations: list[Violation]
    counts: Counter[str]


def check(evidence: Evidence) -> Checked:
    return Checker(evidence).check()


class Checker:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.findings = Findings(evidence)

    def check(self) -> Checked:
        found, logs, counts = self.findings.violations, self.findings.logs, self.findings.counts
        commands: dict[str, dict[int, Command]] = {}
        for log in logs.values():
            counts["events"] += len(log.entries)
            found += check_log(log)
        for device, rows in self.evidence.histories.items():
            counts["devices"] += 1
            commands[device] = Account(self.findings, device).read(rows)
        check_clients(self.evidence.clients, self.findings)
        check_pages(self.evidence.pages, self.evidence.contents, self.findings)
        found += check_commands(commands, self.findings)
        found += check_trimmed(self.findings, commands)
        found += self._reads()
        found += check_states(self.evidence.states, self.evidence.histories)
        found += check_client_states(self.evidence.states, self.evidence.clients)
        counts["users with state"] = sum(one.version > 0 for one in self.evidence.states)
        found += check_restraints(self.findings)
        found += check_relations(self.findings)
        found += check_hook(self.findings)
        found += check_files(self.evidence.files)
        counts["files of acked messages"] = sum(isinstance(row, SentFile) for row in self.evidence.files)
        found += check_processes(self.evidence)
        found += check_neighbours(self.evidence)
        samples = [row.rss_bytes for row in self.evidence.processes if isinstance(row, Sample)]
        counts["MiB of the largest process"] = max(samples, default=0) >> 20
        found += self._reconnects()
        return Checked(sorted(found, key=lambda one: (one.promise, one.at)), counts)

    def _reads(self) -> Iterator[Violation]:
        """Check that the devices of a user end with the same read marks, except for what a failover took back."""
        for user, conversations in self.findings.read.items():
            for conversation, devices in conversations.items():
                log = self.findings.logs.get(conversation)
                left = (
                    log is not None and log.members.get(user, (0, 1))[1] > 0
                )  # the server sends no marks of a user that left
                highest = max(mark for mark, _ in devices.values())
                marked_at = min(at for mark, at in devices.values() if mark == highest)
                marks = {device: mark for device, (mark, _) in devices.items()}
                kept = conversation not in self.findings.lost and not self.findings.failed_over(marked_at, 1 << 62)
                if len(set(marks.values())) > 1 and not left and kept:
                    yield Violation(
                        "G9",
                        f"the devices of {user} know different read marks: {marks}",
                        conversation=conversation,
                        devices=tuple(devices),
                    )

    def _bunched(self, drain: Fault) -> bool:
        """Whether clients may have received at once what a gateway sent one after the other, because links to clients
        were slow or a gateway was stalled."""
        return any(
            fault.began <= drain.ended and fault.ended >= drain.began
            for fault in self.evidence.faults
            if fault.kind in BUNCHING
        )

    def _reconnects(self) -> Iterator[Violation]:
        window = self.evidence.run.drain_window_s
        for fault in self.evidence.faults:
            if fault.kind != "gateway-term" or window <= 0:
                continue
            times = [
                at for at in self.findings.gone_at.get(fault.target, ()) if fault.began <= at <= fault.ended + 5_000
            ]
            self.findings.counts["drained"] += len(times)
            if self._bunched(fault):
                continue
            self.findings.counts["drains judged"] += 1
            peak = max(Counter(at // 1000 for at in times).values(), default=0)
            if len(times) >= PEAK_FROM and peak > PEAK * len(times) / window:
                yield Violation("G6", f"{peak} of {len(times)} drained clients reconnected in one second", fault.began)


def check_log(log: Log) -> Iterator[Violation]:
    """Check a log by itself: its chain, its counts, one entry per n."""
    before, numbers = None, dict[tuple[str, str, int], int]()
    for entry in log.entries:
        place = {"at": entry.stamp, "conversation": log.id, "seq": entry.seq}
        if before is None:
            whole = entry.prev <= log.floor or bool(log.deleted)
            last = "nothing"
        else:
            # Deleted events (a message, its edits) leave holes in the chain.
            whole = entry.prev == before.seq or (bool(log.deleted) and before.seq < entry.prev < entry.seq)
            last = str(before.seq)
            if entry.seq <= before.seq:
                yield Violation("G2", f"seq {entry.seq} is stored after {before.seq}", **place)  # type: ignore[arg-type]
            if entry.count < before.count:
                yield Violation("G2", f"count fell from {before.count} to {entry.count}", **place)  # type: ignore[arg-type]
        if not whole:
            yield Violation("G2", f"seq {entry.seq} has prev {entry.prev}, but follows {last}", **place)  # type: ignore[arg-type]
        if entry.n:
            author = (entry.user, entry.device, entry.n)
            if author in numbers:
                what = f"n {entry.n} of {entry.user}/{entry.device} is stored at {numbers[author]} and {entry.seq}"
                device = f"{entry.user}/{entry.device}"
                yield Violation("G3", what, entry.stamp, log.id, entry.seq, entry.n, (device,))
            numbers[author] = entry.seq
        before = entry


def check_commands(commands: dict[str, dict[int, Command]], findings: Findings) -> Iterator[Violation]:
    """Compare the commands of the devices with the logs."""
    logs, lost = findings.logs, findings.lost
    for log in logs.values():
        for entry in log.entries:
            device = f"{entry.user}/{entry.device}"
            if entry.n and device in commands:
                command = commands[device].get(entry.n)
                if command is None or command.kind != entry.kind or not findings.same(command.body, entry.body):
                    what = (
                        f"no device sent the entry at {entry.seq}: {entry.kind} {entry.body}, n {entry.n} of {device}"
                    )
                    yield Violation("G3", what, entry.stamp, log.id, entry.seq, entry.n, (device,))
    for device, numbers in commands.items():
        for n, command in numbers.items():
            if not command.seq and not command.refused:
                yield Violation("G3", f"n {n} of {device} was never answered", command.at, n=n, devices=(device,))
            elif command.seq and (command.conversation in logs or command.seq > lost.get(command.conversation, 0)):
                yield from check_kept(device, n, command, findings)


def check_kept(device: str, n: int, command: Command, findings: Findings) -> Iterator[Violation]:
    log = findings.logs.get(command.conversation)
    entry = log.by_seq.get(command.seq) if log is not None else None
    if entry is not None:
        sent = (f"{entry.user}/{entry.device}", entry.n) == (device, n) and findings.same(command.body, entry.body)
        if not sent and not command.repeats(entry, device):
            stored = f"n {entry.n} of {entry.user}/{entry.device}"
            what = f"n {n} of {device} was acked as {command.seq}, where the log has {stored}"
            yield Violation("G1", what, command.at, command.conversation, command.seq, n, (device,))
    elif log is None or (
        command.seq > log.floor and command.seq not in log.deleted and not _edit_of_deleted(command, log)
    ):
        what = f"n {n} of {device} was acked as {command.seq}, which is not in the log"
        yield Violation("G1", what, command.at, command.conversation, command.seq, n, (device,))


def _edit_of_deleted(command: Command, log: Log) -> bool:
    return command.kind == "edit" and bool(log.deleted)


def check_processes(evidence: Evidence) -> Iterator[Violation]:
    limit = evidence.run.rss_limit_bytes
    reported: set[str] = set()
    for row in evidence.processes:
        if isinstance(row, Sample) and row.rss_bytes > limit and row.process not in reported:
            reported.add(row.process)
            yield Violation("G7", f"{row.process} uses {row.rss_bytes >> 20} MiB", row.at)
        elif isinstance(row, Ending) and not row.asked and not _refused_to_start(row, evidence.faults):
            yield Violation("G6", f"{row.process} ended by itself with {row.code}", row.at)
        elif isinstance(row, Ending) and row.asked == "SIGTERM" and row.code:
            yield Violation("G6", f"{row.process} was stopped and ended with {row.code}", row.at)
    for process, path in evidence.process_logs.items():
        if process.startswith(PROCESSES) and (trace := _last_trace(path)):
            yield Violation("G6", f"{process} logged {trace}")


def _refused_to_start(ending: Ending, faults: list[Fault]) -> bool:
    """Whether a process ended because it was started while Redis lacked a right or broke the durability."""
    return ending.code == 1 and any(
        fault.began <= ending.at <= fault.ended + 5_000 for fault in faults if fault.kind in REFUSED_DURING
    )


def check_neighbours(evidence: Evidence) -> Iterator[Violation]:
    """Check that no process of another deployment started on the database of this one."""
    for fault in evidence.faults:
        if fault.kind == "neighbour-same" and fault.target == "ready":
            yield Violation("G10", "a gateway with another secret started on the same database", fault.began)


def _last_trace(path: Path) -> str:
    """Return the last line of the last trace in a log: it names the exception."""
    _, found, rest = path.read_text(errors="replace").rpartition("Traceback (most recent call last):")
    lines = itertools.dropwhile(lambda line: line.startswith("      "), rest.splitlines()[1:])
    return next(lines, "an error").strip() if found else ""
