"""Judges the clients of a run: what the SDKs promised their applications, against the logs.

G1  a command whose `stored` has resolved is in the log once it is acked, at the acked seq and as it was given; none is
    left without an end; none is lost, except with a store that was removed while no client ran
G2  every application is given the same event at the same seq, ascending in a life, and what it shows at the end is what
    the log makes of it
G3  a command takes effect at most once (a copied store promises it twice), and one that failed not at all
G4  no hole without a gap, no gap without a hole, over all lives of a store
G5  a later life is given only what is above the stored cursor of the earlier ones
G6  no client stops by itself, except where a store was copied
G8  at the end, when every client is connected, the users whose presence an application watches are online to it
G9  the devices of a user end with the same read marks

A *line* is what lives on one store have in common; a store that was removed begins a new line, with a new device.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from loadtest.chaos.proof import client_history as rows
from loadtest.chaos.proof.client_history import ClientRows
from loadtest.chaos.proof.findings import Findings, Violation
from loadtest.chaos.proof.history import Entry

RACE_MS: Final = 2_000  # a report of what was stored before the store was removed may come so much later
BEGUN_MS: Final = 5_000
PAST: Final = 100  # events that a device which is new to the server is given of the past
SHARED: Final = ("replaced", "copied")
FINAL: Final = ("not_found", "read_only", "conflict", "Cancelled")


class Sent(msgspec.Struct):
    """One command of one installation."""

    conversation: str
    kind: str
    body: str
    at: int
    stored_at: int = 0
    seq: int = 0
    failed: str = ""
    excused: bool = False


class Line(msgspec.Struct):
    """The events that the applications on one store were given."""

    began: int
    given: dict[str, dict[int, Entry]] = msgspec.field(default_factory=dict)
    given_at: dict[str, int] = msgspec.field(default_factory=dict)  # the first event of each conversation
    gaps: dict[str, list[tuple[int, int, str]]] = msgspec.field(default_factory=dict)
    kept: dict[str, int] = msgspec.field(default_factory=dict)
    kept_by: dict[int, dict[str, int]] = msgspec.field(default_factory=dict)  # what each life has reported of it


class Life(msgspec.Struct):
    base: dict[str, int]  # the stored cursors when it began
    last: dict[str, int] = msgspec.field(default_factory=dict)


class Known:
    """All events that anybody has: those of the logs, and those that clients were given and that were trimmed since."""

    def __init__(self, findings: Findings) -> None:
        self.events: dict[str, dict[int, Entry]] = {
            name: {entry.seq: entry for entry in log.entries} for name, log in findings.logs.items()
        }
        self.places: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for name, entries in self.events.items():
            for entry in entries.values():
                if entry.body:
                    self.places[entry.body].add((name, entry.seq))

    def add(self, name: str, entry: Entry) -> Entry:
        """Note an event; return the one that was known at that place."""
        if entry.body:
            self.places[entry.body].add((name, entry.seq))
        return self.events.setdefault(name, {}).setdefault(entry.seq, entry)


def check_clients(histories: Mapping[str, Iterable[ClientRows]], findings: Findings) -> None:
    """Add the violations and counts of all installations to the findings."""
    if not histories:
        return
    known = Known(findings)
    accounts = [ClientAccount(name, found, findings, known) for name, found in histories.items()]
    for account in accounts:
        account.judge()
    findings.violations += _foreign(accounts, known, findings)
    findings.violations += _read_marks(accounts)


class ClientAccount:
    """The account of one installation."""

    def __init__(self, installation: str, history: Iterable[ClientRows], findings: Findings, known: Known) -> None:
        self.installation = installation
        self.user = ""
        self.sent: dict[str, Sent] = {}
        self.lines: list[Line] = []
        self.devices: set[str] = set()
        self.copies = 1
        self.shown: rows.Shown | None = None
        self._findings = findings
        self._known = known
        self._lives: dict[int, Life] = {}
        self._of: dict[int, Line] = {}
        self._at_risk: set[str] = set()
        self._wiped_at = -RACE_MS
        self._living: set[int] = set()
        self._shared = False  # several tabs use the store at the same time
        self._leads = 0  # the tab that was given an event last
        self._live_at = 0
        self._wipes = 0  # removals of the store after which no new device name was reported yet
        for row in history:
            self._row(row)

    def _add(self, promise: str, what: str, at: int, conversation: str = "", seq: int = 0) -> None:
        self._findings.violations.append(Violation(promise, f"{self.installation}: {what}", at, conversation, seq))

    def _row(self, row: ClientRows) -> None:
        counts = self._findings.counts
        match row:
            case rows.Opened():
                counts["lives"] += 1
                self._opened(row)
            case rows.Renamed():
                counts["new device names"] += 1
                self._named(row.device, row.at)
                if self._of[row.life] is not self.lines[-1]:
                    self._live(row.life)  # each tab says it
            case rows.Asked():
                counts["commands"] += 1
                self.sent[row.ref] = Sent(row.conversation, row.kind, row.body, row.at)
            case rows.Stored():
                self._stored(row)
            case rows.Acked():
                counts["acks to applications"] += 1
                self._acked(row)
            case rows.Failed():
                counts[f"failed {row.code}"] += 1
                self._failed(row)
            case rows.Handed():
                counts["events handed over"] += 1
                self._handed(row)
            case rows.Missing():
                counts[f"gaps {row.reason}"] += 1
                self._of[row.life].gaps.setdefault(row.conversation, []).append((row.first, row.last, row.reason))
                self._gap(row)
            case rows.Kept():
                line = self._of[row.life]
                for name, seq in row.cursors.items():
                    line.kept[name] = max(seq, line.kept.get(name, 0))
                line.kept_by.setdefault(row.life, {}).update(row.cursors)
            case rows.Put():
                counts["changes of state"] += 1
            case rows.Status():
                if row.status == "stopped":
                    self._stopped(row)
                elif row.status == "live":
                    self._live_at = row.at
            case rows.Ended():
                self._living.discard(row.life)
                if row.killed:
                    for ref in self._at_risk:
                        self.sent[ref].excused = True
                    self._at_risk.clear()
            case rows.Wiped():
                self._wipe(row)
            case rows.Copied():
                self.copies += 1
            case rows.Shown():
                self.shown = row
            case rows.Bug():
                self._add("G6", f"the SDK raised: {row.text}", row.at)

    # -- lives

    def _opened(self, row: rows.Opened) -> None:
        self.user = row.user
        self._living.add(row.life)
        self._shared = self._shared or len(self._living) > 1
        self._named(row.device, row.at)
        self._live(row.life)

    def _named(self, device: str, at: int) -> None:
        """Begin a new line if the name is that of a new store. A life that began before the removal may report the old
        name."""
        if device in self.devices:
            return
        self.devices.add(device)
        if self._wipes or not self.lines:
            self._wipes = max(0, self._wipes - 1)
            self.lines.append(Line(at))

    def _live(self, life: int) -> None:
        self._of[life] = self.lines[-1]
        self._lives[life] = Life(dict(self.lines[-1].kept))

    def _wipe(self, row: rows.Wiped) -> None:
        open_ = {ref for ref, one in self.sent.items() if one.stored_at and not one.seq and not one.failed}
        self._wipes += not row.done
        self._wiped_at = row.at
        if row.running:
            self._at_risk |= open_
            return
        for ref in open_:
            self.sent[ref].excused = True

    def _stopped(self, row: rows.Status) -> None:
        self._findings.counts[f"stopped {row.reason}"] += 1
        if row.reason in SHARED and self.copies > 1:
            return
        if row.reason in ("token_expired", "unauthorized") and self._findings.clocks_stepped:
            return
        self._add("G6", f"the client stopped: {row.reason}", row.at)

    # -- commands

    def _stored(self, row: rows.Stored) -> None:
        one = self.sent.get(row.ref)
        if one is not None:
            one.stored_at = one.stored_at or row.at
            if row.at - self._wiped_at < RACE_MS:
                self._at_risk.add(row.ref)

    def _acked(self, row: rows.Acked) -> None:
        one = self.sent.get(row.ref)
        self._at_risk.discard(row.ref)
        if one is None:
            return  # of a copy
        if one.seq and one.seq != row.seq and one.kind != "react":
            self._add("G3", f"{row.ref} was acked as {one.seq} and as {row.seq}", row.at, row.conversation, row.seq)
        one.seq, one.failed = row.seq, ""
        there = self._known.events.get(row.conversation, {}).get(row.seq)
        log = self._findings.logs.get(row.conversation)
        if there is None:
            if log is None or row.seq > log.floor:
                self._add("G1", f"{row.ref} was acked as {row.seq}, which is not in the log", row.at, row.conversation)
        elif one.body and there.body != one.body:
            self._add("G1", f"{row.ref} was acked as {row.seq}, where the log has another", row.at, row.conversation)

    def _failed(self, row: rows.Failed) -> None:
        self._at_risk.discard(row.ref)
        one = self.sent.get(row.ref)
        if one is not None and not one.seq:
            one.failed = row.code

    def _check_commands(self) -> None:
        still_open = set(self.shown.open) if self.shown is not None else set()
        # A delayed copy of a refused command may be accepted later. Then the client must show the command as acked.
        still_failed = set(self.shown.failed) if self.shown is not None else set()
        for ref, one in self.sent.items():
            places = self._known.places.get(one.body, set()) if one.body else set()
            if len(places) > self.copies:
                self._add("G3", f"{ref} took effect {len(places)} times: {sorted(places)}", one.at, one.conversation)
            if places and ref in still_failed and one.failed not in ("conflict", "StoreError", "StoreLost"):
                self._add("G3", f"{ref} failed with {one.failed} and took effect: {places}", one.at, one.conversation)
            if not one.body or one.seq or places or one.excused or not one.stored_at:
                continue
            log = self._findings.logs.get(one.conversation)
            if log is not None and log.floor:
                self._findings.counts["commands that may have been trimmed"] += 1
            elif not one.failed:
                where = "its outbox still has it" if ref in still_open else "its outbox has not"
                self._add("G1", f"{ref} was stored, and has no end; {where}", one.stored_at, one.conversation)
            elif one.failed not in FINAL and one.failed != "StoreLost":
                self._add("G1", f"{ref} was stored, and failed: {one.failed}", one.stored_at, one.conversation)

    # -- events

    def _handed(self, row: rows.Handed) -> None:
        name, entry, life, line = row.conversation, row.event, self._lives[row.life], self._of[row.life]
        seq = entry.seq
        if self._shared:
            self._handed_by_tab(row, seq, line)
        elif seq <= life.last.get(name, 0):
            self._add("G5", f"life {row.life} is given {seq} after {life.last[name]}", row.at, name, seq)
        elif seq <= life.base.get(name, 0):
            what = f"life {row.life} is given {seq}, but the life before had stored {life.base[name]}"
            self._add("G5", what, row.at, name, seq)
        life.last[name] = max(seq, life.last.get(name, 0))
        line.given.setdefault(name, {})[seq] = entry
        line.given_at.setdefault(name, row.at)
        there = self._known.add(name, entry)
        if there != entry:
            self._add("G2", f"is given {entry} where others have {there}", row.at, name, seq)

    def _handed_by_tab(self, row: rows.Handed, seq: int, line: Line) -> None:
        """The tabs of a browser lead in turns. One that was frozen may finish the event that it was at, and what one
        reports after it was offline comes after what others say of the store: only its own words count against it."""
        kept = line.kept_by.get(row.life, {}).get(row.conversation, 0)
        if seq <= kept:
            if row.life == self._leads:
                what = f"tab {row.life} is given {seq}, but {kept} was stored"
                self._add("G5", what, row.at, row.conversation, seq)
            self._findings.counts["events given late to a tab that was frozen"] += row.life != self._leads
        else:
            self._leads = row.life

    def _gap(self, row: rows.Missing) -> None:
        log = self._findings.logs.get(row.conversation)
        there = [entry.seq for entry in log.between(row.first - 1, row.last)] if log is not None else []
        if row.reason == "failover" and there:
            self._add("G4", f"is given a gap {row.first}-{row.last}, but {there[0]} is there", row.at, row.conversation)
        elif row.reason == "expired" and log is not None and row.last > log.floor:
            what = f"is given a gap {row.first}-{row.last}, but the log begins after {log.floor}"
            self._add("G4", what, row.at, row.conversation)

    def judge(self) -> None:
        """Judge what shows only at the end."""
        self._check_commands()
        for number, line in enumerate(self.lines):
            last = number == len(self.lines) - 1
            for name, log in self._findings.logs.items():
                if self.user in log.members:
                    self._check_line(name, line, last=last)
        if self.shown is not None:
            self._check_shown(self.shown)

    def _check_line(self, name: str, line: Line, *, last: bool) -> None:
        given, gaps = line.given.get(name, {}), line.gaps.get(name, [])
        log = self._findings.logs[name]
        first, upto = log.visible(self.user)
        if not last:
            upto = min(upto, max(given, default=0))
        begins = min(given, default=1 << 62)
        known = self._known.events.get(name, {})
        # A new name may connect long after its store was made, because the old one is settled first.
        past = [seq for seq, entry in known.items() if seq >= begins and entry.stamp <= line.given_at.get(name, 0)]
        missing = [
            entry
            for seq, entry in sorted(known.items())
            if first <= seq <= upto
            and seq not in given
            and (seq > begins or (len(past) < PAST and entry.stamp > line.began + BEGUN_MS))
            and not any(low <= seq <= high for low, high, _ in gaps)
            # Before, a copy of the store may have acked events in the name of both.
            and (self.copies == 1 or entry.stamp > self._live_at + BEGUN_MS)
        ]
        if missing:
            newest = max(given, default=0)
            promise = "G1" if missing[0].seq > newest else "G4"
            what = (
                f"misses {len(missing)} events, the first is {missing[0].seq}; the last that it was given is {newest}"
            )
            self._add(promise, what, missing[0].stamp, name, missing[0].seq)
        void = [(low, high) for low, high, reason in gaps if reason == "failover"]
        for seq in given.keys() - log.by_seq.keys():
            if seq > log.floor and not any(low <= seq <= high for low, high in void):
                self._add("G2", f"was given {seq}, which is not in the log", given[seq].stamp, name, seq)

    def _check_shown(self, shown: rows.Shown) -> None:
        """Compare what is shown with what the log makes of it: the last text of each message, in its order."""
        for user, online in shown.online.items():
            if online is not True:
                seen = "offline" if online is False else "unknown"
                self._add("G8", f"sees that {user} is {seen}, but {user} is online", shown.at)
        for name, conversation in shown.conversations.items():
            log = self._findings.logs.get(name)
            if log is None or self.user not in log.members:
                continue
            bodies: dict[int, str] = {}
            for entry in log.entries:
                if entry.kind == "message":
                    bodies[entry.seq] = entry.body
                elif entry.kind == "edit" and entry.target in bodies:
                    bodies[entry.target] = entry.body
            seqs = [seq for seq, _ in conversation.messages if seq]
            if seqs != sorted(set(seqs)):
                self._add("G2", f"shows its messages in the order {seqs}", shown.at, name)
            for seq, body in conversation.messages:
                if seq > log.floor and bodies.get(seq) != body:
                    self._add("G2", f"shows {body} at {seq}, the log has {bodies.get(seq)}", shown.at, name, seq)
            lacking = [seq for seq in bodies if seqs and seq > seqs[0] and seq not in seqs]
            if lacking:
                self._add("G2", f"shows no message {lacking[0]}, which the log has", shown.at, name, lacking[0])


def _foreign(accounts: list[ClientAccount], known: Known, findings: Findings) -> Iterator[Violation]:
    """Check that every message was given to an SDK by an application of its author."""
    asked: dict[str, set[str]] = defaultdict(set)
    for account in accounts:
        asked[account.user].update(one.body for one in account.sent.values())
    users = {account.user for account in accounts}
    for name in findings.logs:
        for entry in known.events.get(name, {}).values():
            if entry.kind in ("message", "edit") and entry.user in users and entry.body not in asked[entry.user]:
                yield Violation("G3", f"nobody sent the entry at {entry.seq}: {entry}", entry.stamp, name, entry.seq)


def _read_marks(accounts: list[ClientAccount]) -> Iterator[Violation]:
    marks: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for account in accounts:
        for name, conversation in account.shown.conversations.items() if account.shown is not None else ():
            marks[account.user, name][conversation.read] += 1
    for (user, name), found in marks.items():
        if len(found) > 1:
            yield Violation("G9", f"the devices of {user} show different read marks: {dict(found)}", conversation=name)
