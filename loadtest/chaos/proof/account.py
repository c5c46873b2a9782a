"""The judgement of one device: its history is compared with the logs in one pass.

This module judges everything that concerns one device alone: what it received and in which order (G2), what it lacks at
the end (G1, G4, G5), how its connections ended (G6), which presence it sees (G8), which answers it received (G3).
`checker.py` judges what only shows when devices or processes are compared.

After a failover some things are not promised. Read marks and the position at which a new device begins are not acked.
So a mark that a device received up to `SETTLED_MS` after the last failover may go back once, and a device that began
then may receive less. Everything later, and before the first failover, is judged as usual.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from loadtest.chaos.proof import history
from loadtest.chaos.proof.findings import SETTLED_MS, Command, Findings, Log, Share, Violation
from loadtest.chaos.proof.history import Rows

AWAY_MS: Final = 5_000
START_EVENTS: Final = 100
EXPIRED: Final = 4501
CLOCKS_MS: Final = 1_500  # a token expires at a whole second, and the client reads its clock a moment later
NEVER: Final = (-1, 0)


class Account:
    """The account of one device."""

    def __init__(self, findings: Findings, device: str) -> None:
        self.findings = findings
        self.device = device
        self.user = device.partition("/")[0]
        self.commands: dict[int, Command] = {}
        self.received: dict[str, set[int]] = {}
        self.starts: dict[str, int] = {}
        self.sessions = 0
        self.began = 0  # when the first session began
        self.complete = False  # whether a session began while all of Redis answered, so that no conversation was held
        self.gaps: dict[str, list[tuple[int, int]]] = {}
        self.session: dict[str, int] = {}  # conversation -> the highest seq that this session had or received
        self.given: set[tuple[str, int]] = set()  # in this session
        self.connected = False
        self.drained_by = ""
        self.gateway = ""
        self.absences: list[tuple[int, int]] = []
        self.closed_at = 0
        self.unsaid_at = 0  # when it last connected without cursors: the server could not announce void events
        self.valid_until = 0
        self.server_marks: dict[
            str, tuple[int, int]
        ] = {}  # conversation -> the read mark that the server sent, and when
        self.gone_at: dict[str, int] = {}  # conversation -> when the device learned last that it is gone
        self.seen: dict[str, bool] = {}
        self.watched: set[str] = set()
        self.marks = list(findings.evidence.run.marks)

    def read(self, rows: Iterable[Rows]) -> dict[int, Command]:
        for row in rows:
            while self.marks and row.at > self.marks[0].at:
                self._mark()
            self._row(row)
        while self.marks:
            self._mark()
        if self.closed_at:
            self.absences.append((self.closed_at, 1 << 60))
        self._check_complete()
        return self.commands

    def _add(self, promise: str, what: str, at: int, conversation: str = "", seq: int = 0, n: int = 0) -> None:
        self.findings.violations.append(
            Violation(promise, f"{self.device}: {what}", at, conversation, seq, n, (self.device,))
        )

    def _row(self, row: Rows) -> None:
        counts = self.findings.counts
        match row:
            case history.Received():
                counts["deliveries"] += 1
                self._received(row)
            case history.Sent():
                self._sent(row)
            case history.Acked():
                counts["acks"] += 1
                self._acked(row)
            case history.Refused():
                counts[f"refused {row.code}"] += 1
                self._refused(row)
            case history.Gap():
                counts[f"gaps {row.reason}"] += 1
                self._gap(row)
            case history.Gone():
                self.gone_at.update(dict.fromkeys(row.conversations, row.at))
            case history.Connecting():
                self._connecting(row)
            case history.Welcomed():
                counts["connects"] += 1
                self._welcomed(row)
            case history.Valid():
                self.valid_until = row.until
            case history.Listed():
                self._known(row.conversations, row.at)
            case history.Receipt():
                if row.user == self.user:
                    self._receipt(row)
            case history.Watching():
                self.watched.update(row.users)
            case history.Seen():
                self.seen.update(row.users)
            case history.Closed():
                counts[f"closes {row.code}"] += not row.ours
                self._closed(row)
            case _:
                pass

    # -- connections

    def _connecting(self, row: history.Connecting) -> None:
        if self.drained_by:
            self.findings.gone_at.setdefault(self.drained_by, []).append(row.at)
            self.drained_by = ""
        self.gateway = row.gateway

    def _welcomed(self, row: history.Welcomed) -> None:
        if self.closed_at:
            self.absences.append((self.closed_at, row.at))
        self.closed_at = 0
        self.connected = True
        self.sessions += 1
        self.session, self.given, self.seen = {}, set(), {}
        if row.said is None:
            self.unsaid_at = row.at
        for known in row.conversations:
            read, since = self.server_marks.get(known.conversation, (0, 0))
            kept = known.conversation not in self.findings.lost and not self.findings.failed_over(since, row.at)
            if known.read < read and kept:
                what = f"read mark went from {read} back to {known.read}"
                self._add("G9", what, row.at, known.conversation, known.read)
        self._known(row.conversations, row.at)
        self.complete = self.complete or not self.findings.parts_away(row.at)

    def _known(self, conversations: list[history.Known], at: int) -> None:
        for known in conversations:
            name, had = known.conversation, known.conversation in self.received
            # A new device begins with a conversation that was held when it first connects and finds it answering.
            if (self.sessions == 1 or not self.complete) and name not in self.starts and not had:
                self._start(known, at)
                self.began = at
            elif name in self.starts and not had and self.findings.failed_over(self.began, at):
                self.starts[name] = max(known.cursor, self.starts[name])  # the failover took the first beginning back
            self.session.setdefault(known.conversation, known.cursor)
            self._read_mark(known.conversation, known.read, at)

    def _start(self, known: history.Known, at: int) -> None:
        """Judge where a device begins that the server has never seen: not later than promised."""
        self.starts[known.conversation] = max(known.cursor, self.findings.forgotten(known.conversation, at))
        log = self.findings.logs.get(known.conversation)
        if log is None or known.cursor <= log.floor or self.findings.failed_over(at, at + SETTLED_MS):
            return
        if not self.findings.stamps_hold(at):
            return  # a failover may have taken back events that were counted at the start
        first, _ = log.visible(self.user)
        after = max(log.floor, first - 1)  # `head` may lag behind the log, so stamps decide
        given = sum(entry.stamp <= at for entry in log.between(known.cursor, log.head))
        there = sum(entry.stamp <= at for entry in log.between(after, log.head))
        if given < min(START_EVENTS, there) - len(log.deleted):
            self._add(
                "G5", f"begins with only the last {given} of {there} events", at, known.conversation, known.cursor
            )

    def _closed(self, row: history.Closed) -> None:
        if self.connected:
            self.closed_at = row.at
            self.drained_by = self.gateway if row.code == 1012 and not row.ours else ""
        self.connected = False
        if row.code == EXPIRED and not row.ours:
            if row.at < self.valid_until - CLOCKS_MS and not self.findings.stepped(self.gateway, row.at):
                self._add("G6", f"received `expired` for a token that is valid until {self.valid_until}", row.at)
        elif row.code >= 4400 and not row.ours:
            self._add("G6", f"was refused with {row.code} {row.reason}", row.at)
        elif row.code in (1002, 1003, 1007, 1009, 1011) and not row.ours:
            self._add("G6", f"was closed with {row.code} {row.reason}", row.at)

    # -- sends

    def _sent(self, row: history.Sent) -> None:
        kind = "message" if row.kind == "send" else row.kind
        if row.n not in self.commands:
            self.findings.counts["sends"] += 1
            self.commands[row.n] = Command(row.conversation, 0, row.body, kind, row.target, row.at)
        elif row.attempt > 1:
            self.findings.counts["resends"] += 1

    def _acked(self, row: history.Acked) -> None:
        command = self.commands.setdefault(row.n, Command())
        if command.seq and (command.conversation, command.seq) != (row.conversation, row.seq):
            self._add(
                "G3", f"n {row.n} was acked as {command.seq} and as {row.seq}", row.at, row.conversation, row.seq, row.n
            )
        sent_at = command.at or row.at  # an ack may wait in a socket: one sent before may have been stored before
        command.conversation, command.seq, command.at = row.conversation, row.seq, row.at
        log = self.findings.logs.get(row.conversation)
        if command.kind == "message" and log is not None and row.seq not in log.by_seq:
            self._marked(row.conversation, row.seq, row.at)  # deleted since: the ack may be all that its author got
        if not row.duplicate and self.findings.unfit(sent_at, row.at):
            what = f"n {row.n} was acked while Redis did not keep what it acknowledges"
            self._add("G1", what, row.at, row.conversation, row.seq, row.n)

    def _refused(self, row: history.Refused) -> None:
        command = self.commands.get(row.n)
        if row.code == "internal":
            self._add("G3", f"n {row.n} received an internal error", row.at, n=row.n)
        if command is None or not row.final:
            return
        command.refused = row.code
        log = self.findings.logs.get(command.conversation)
        # A removal that a failover took back leaves no trace in the log.
        took_back = self.findings.failed_over(row.at, row.at + SETTLED_MS)
        stranger = log is not None and (log.moved(self.user) or took_back)
        blocked = row.code == "blocked" and command.conversation in self.findings.related
        rejected = row.code == "rejected" and command.body in self.findings.rejected
        if row.code == "rejected" and command.seq and command.conversation not in self.findings.lost:
            what = f"n {row.n} was acked as {command.seq}, and then rejected"
            self._add("G3", what, row.at, command.conversation, command.seq, row.n)
        stranger = stranger or self.findings.may_be_unknown(command.conversation, row.at)
        explained = (row.code == "not_found" and stranger) or blocked or rejected
        if command.kind == "message" and not explained:
            self._add("G3", f"n {row.n} was refused finally: {row.code}", row.at, n=row.n)

    # -- received events

    def _received(self, row: history.Received) -> None:
        name, entry = row.conversation, row.event
        seq = entry.seq
        if (name, seq) in self.given:
            self._add("G6", f"received {seq} twice in one session", row.at, name, seq)
        elif seq <= self.session.get(name, 0):
            what = f"received {seq} after {self.session[name]}"
            self._add("G2", what, row.at, name, seq)
        self.given.add((name, seq))
        self.session[name] = max(seq, self.session.get(name, 0))
        self.received.setdefault(name, set()).add(seq)
        if entry.user == self.user and entry.kind == "message":  # own messages count as read
            self._marked(name, seq, row.at)
        log = self.findings.logs.get(name)
        logged = log.by_seq.get(seq) if log is not None else None
        if logged is None:
            logged = self.findings.unlogged.setdefault((name, seq), entry)
        if logged != entry:
            self._add("G2", f"received {entry} where others have {logged}", row.at, name, seq, entry.n)

    def _gap(self, row: history.Gap) -> None:
        name = row.conversation
        self.gaps.setdefault(name, []).append((row.first, row.last))
        log = self.findings.logs.get(name)
        if log is None:
            return
        there = [entry.seq for entry in log.between(row.first - 1, row.last)]
        if row.reason == "failover" and there:
            self._add(
                "G4",
                f"received a gap {row.first}-{row.last} as void, but the log has {there[0]}",
                row.at,
                name,
                there[0],
            )
        elif row.reason == "expired" and row.last > log.floor:
            self._add(
                "G4",
                f"received a gap {row.first}-{row.last} as expired, but the log begins after {log.floor}",
                row.at,
                name,
                row.last,
            )

    # -- read marks, presence

    def _receipt(self, row: history.Receipt) -> None:
        """Record a receipt for this user. One that follows from an own message says no more than that message: the
        mark reaches the user's row a moment later, so a welcome may still have an earlier one."""
        log, place = self.findings.logs.get(row.conversation), (row.conversation, row.read)
        entry = log.by_seq.get(row.read) if log is not None else None
        entry = entry or self.findings.unlogged.get(place)
        if entry is not None and (entry.kind, entry.user) == ("message", self.user):
            self._marked(row.conversation, row.read, row.at)
        else:
            self._read_mark(row.conversation, row.read, row.at)

    def _read_mark(self, name: str, seq: int, at: int) -> None:
        """Record a read mark from the server. Receipts may overtake each other, and a client takes the highest; a
        welcome must not go back."""
        if seq > self.server_marks.get(name, NEVER)[0]:
            self.server_marks[name] = seq, at
        self._marked(name, seq, at)

    def _marked(self, name: str, seq: int, at: int) -> None:
        marks = self.findings.read.setdefault(self.user, {}).setdefault(name, {})
        if seq > marks.get(self.device, NEVER)[0]:
            marks[self.device] = seq, at

    def _mark(self) -> None:
        mark = self.marks.pop(0)
        if not self.connected:
            return
        for users, online in ((mark.online, True), (mark.offline, False)):
            for user in users:
                if user in self.watched and self.seen.get(user) is not online:
                    seen, state = (
                        {True: "online", False: "offline", None: "nothing"}[self.seen.get(user)],
                        "online" if online else "offline",
                    )
                    self._add("G8", f"sees that {user} is {seen}, but {user} is {state}", mark.at)

    # -- at the end

    def _check_complete(self) -> None:
        """Check that the device lacks nothing between its beginning and the head of each log."""
        for name, log in self.findings.logs.items():
            if self.user in log.members:
                self._check_reached(name, log)
        for name in self.received.keys() - self.findings.logs.keys() - self.findings.lost.keys():
            seq = min(self.received[name])
            self._add(
                "G2",
                f"has {seq} of a conversation that does not exist",
                self.findings.unlogged[name, seq].stamp,
                name,
                seq,
            )

    def _check_reached(self, name: str, log: Log) -> None:
        first, last = log.visible(self.user)
        received = self.received.get(name, set())
        if log.members[self.user][1] and not received and name not in self.starts:
            return  # the user joined and left while this device was offline
        after = max(self.starts.get(name, 0), first - 1)
        missing = [
            entry
            for entry in log.between(after, last)
            if entry.seq not in received and not self._announced(name, entry.seq)
        ]
        self._phantoms(name, log, received)
        if log.floor > after:
            trimmed = frozenset(seq for seq in received if seq <= log.floor)
            share = Share(self.device, after, min(last, log.floor), trimmed, self.gaps.get(name, []))
            self.findings.shares.setdefault(name, []).append(share)
        if not missing:
            return
        entry, newest = missing[0], max(received, default=0)
        what = f"misses {len(missing)} events, the first is {entry.seq} of {entry.user}/{entry.device}"
        if any(began <= entry.stamp <= ended and ended - began > AWAY_MS for began, ended in self.absences):
            promise, what = "G5", f"{what}, from a time when it was offline"
        elif entry.seq > newest:
            promise, what = "G1", f"{what}; the last that it received is {newest}"
        else:
            promise, what = "G4", f"{what}; it received no gap"
        self._add(promise, what, entry.stamp, name, entry.seq, entry.n)

    def _announced(self, name: str, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self.gaps.get(name, ()))

    def _phantoms(self, name: str, log: Log, received: set[int]) -> None:
        """Judge received events that no log has: they must have been deleted, trimmed, or announced as void.

        A void event shows in the `prev` of the event after it. It cannot be announced to a device that did not send its
        cursors, or if the event after it was deleted since. If a failover took back that the user was added again, the
        device learns that the conversation is gone, and with it all that came since.
        """
        told = self.gone_at.get(name, 0)
        for seq in sorted(received - log.by_seq.keys()):
            entry = self.findings.unlogged[name, seq]
            gone = seq <= log.floor or seq in log.deleted or (entry.kind == "edit" and entry.target in log.deleted)
            taken_back = told > entry.stamp and self.findings.failed_over(entry.stamp, told)
            if gone or taken_back or self._announced(name, seq):
                continue
            after = log.between(seq, log.head)
            if entry.stamp < self.unsaid_at or (after and after[0].prev >= seq):
                self.findings.counts["void, and could not be told"] += 1
            else:
                self._add("G2", f"has {seq}, which is not in the log", entry.stamp, name, seq, entry.n)
