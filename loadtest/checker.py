"""Proves or refutes the promises from what a run left behind. Pure: evidence in, violations out.

The log of a conversation is what is held to be true, after it has been checked by itself; every history is then held
against it, one device at a time and one pass each, so that memory goes with the logs and not with the deliveries.

G1  what was acked stands in the log, where the ack said and as it was sent; what stands there reached every device
G2  one order: `prev` chains unbroken, no seq twice, every device was told the same and in order
G3  one log entry per (user, device, n), one answer per n, no entry that nobody sent
G4  no hole that no `gap` announced, and no gap announced that was none
G5  a hole in what a device that was away got when it came back
G6  what drains: nothing doubled, nobody shut out, reconnects spread; processes end as they were told
G7  memory stays within its limit
G8  presence is right at every mark
G9  read marks never go back, and agree at the end (they are not acked: a failover may take back the newest)

Invariant: each check looks at all evidence, whatever another has found; one root cause may so show as several
violations, and the first of a device is told with its story (`story.py`).
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from loadtest import history
from loadtest.evidence import Conversation, Ending, Entry, Evidence, Sample
from loadtest.history import Rows

AWAY_MS: Final = 5_000
START_EVENTS: Final = 100
# Reconnects in one second, of as many as would come if they were spread evenly; few are uneven by chance.
PEAK: Final = 2.0
PEAK_FROM: Final = 40
FAILOVERS: Final = ("primary-kill", "primary-stall", "failover")
PROCESSES: Final = ("gateway", "router")


class Violation(msgspec.Struct, frozen=True):
    """`at`: when, as well as can be told; `devices`: whose histories tell about it."""

    promise: str
    what: str
    at: int = 0
    conversation: str = ""
    seq: int = 0
    n: int = 0
    devices: tuple[str, ...] = ()


class Log:
    """A conversation's log, ready to be asked."""

    def __init__(self, conversation: Conversation) -> None:
        self.id = conversation.id
        self.head = conversation.head
        self.floor = conversation.floor
        self.members = conversation.members
        self.entries = conversation.entries
        self.by_seq = {entry.seq: entry for entry in conversation.entries}
        self.seqs = [entry.seq for entry in conversation.entries]
        # Users who came or went: what they wrote about that time may have been refused.
        self.moved = {entry.body.partition(" ")[2] for entry in conversation.entries if entry.kind == "member"}
        self.deleted = {entry.target for entry in conversation.entries if entry.kind == "delete"}

    def visible(self, user: str) -> tuple[int, int]:
        """First and last seq that the user may see; (1, 0) for a stranger."""
        first, last = self.members.get(user, (1, -1))
        return first, last or self.head

    def between(self, after: int, upto: int) -> list[Entry]:
        return self.entries[bisect_right(self.seqs, after) : bisect_right(self.seqs, upto)]


class Order(msgspec.Struct):
    """What became of one n of one device."""

    conversation: str = ""
    seq: int = 0
    body: str = ""
    kind: str = ""
    at: int = 0
    refused: str = ""


class Checked(msgspec.Struct):
    """The verdict, and what it rests on."""

    violations: list[Violation]
    counts: Counter[str]


def check(evidence: Evidence) -> Checked:
    return Checker(evidence).check()


class Checker:
    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.logs = {name: Log(one) for name, one in evidence.conversations.items()}
        self.found: list[Violation] = []
        self.counts: Counter[str] = Counter()
        # What was received and stands in no log (deleted since, or rolled back): all must have been told the same.
        self.unlogged: dict[tuple[str, int], tuple[str, Entry]] = {}
        self.gone_at: dict[str, list[int]] = {}  # gateway -> when devices that it sent away asked for a new connection
        self.failed_over = any(fault.kind in FAILOVERS for fault in evidence.faults)
        self.read: dict[str, dict[str, dict[str, int]]] = {}  # user -> conversation -> device -> read mark

    def check(self) -> Checked:
        orders: dict[str, dict[int, Order]] = {}
        for log in self.logs.values():
            self.counts["events"] += len(log.entries)
            self.found += check_log(log)
        for device, rows in self.evidence.histories.items():
            self.counts["devices"] += 1
            orders[device] = Account(self, device).read(rows)
        self.found += check_orders(orders, self.logs)
        self.found += self._reads()
        self.found += check_processes(self.evidence)
        samples = [row.rss_bytes for row in self.evidence.processes if isinstance(row, Sample)]
        self.counts["MiB of the largest process"] = max(samples, default=0) >> 20
        self.found += self._reconnects()
        return Checked(sorted(self.found, key=lambda one: (one.promise, one.at)), self.counts)

    def _reads(self) -> Iterator[Violation]:
        """At the end all devices of a user know the same read marks."""
        for user, conversations in self.read.items() if not self.failed_over else ():
            for conversation, devices in conversations.items():
                log = self.logs.get(conversation)
                left = log is not None and log.members.get(user, (0, 1))[1] > 0  # whose marks nobody is told any more
                if len(set(devices.values())) > 1 and not left:
                    yield Violation(
                        "G9",
                        f"the devices of {user} know different read marks: {devices}",
                        conversation=conversation,
                        devices=tuple(devices),
                    )

    def _reconnects(self) -> Iterator[Violation]:
        window = self.evidence.run.drain_window_s
        for fault in self.evidence.faults:
            if fault.kind != "gateway-term" or window <= 0:
                continue
            times = [at for at in self.gone_at.get(fault.target, ()) if fault.began <= at <= fault.ended + 5_000]
            self.counts["drained"] += len(times)
            peak = max(Counter(at // 1000 for at in times).values(), default=0)
            if len(times) >= PEAK_FROM and peak > PEAK * len(times) / window:
                yield Violation("G6", f"{peak} of {len(times)} drained clients came back in one second", fault.began)


def check_log(log: Log) -> Iterator[Violation]:
    """A log by itself: its chain, its counts, one entry per n."""
    before, numbers = None, dict[tuple[str, str, int], int]()
    for entry in log.entries:
        place = {"at": entry.stamp, "conversation": log.id, "seq": entry.seq}
        if before is None:
            whole = entry.prev <= log.floor or bool(log.deleted)
            last = "nothing"
        else:
            # Events that were deleted since (a message, its edits) leave marks in the chain.
            whole = entry.prev == before.seq or (bool(log.deleted) and before.seq < entry.prev < entry.seq)
            last = str(before.seq)
            if entry.seq <= before.seq:
                yield Violation("G2", f"seq {entry.seq} stands behind {before.seq}", **place)  # type: ignore[arg-type]
            if entry.count < before.count:
                yield Violation("G2", f"count fell from {before.count} to {entry.count}", **place)  # type: ignore[arg-type]
        if not whole:
            yield Violation("G2", f"seq {entry.seq} says it follows {entry.prev}, and follows {last}", **place)  # type: ignore[arg-type]
        if entry.n:
            author = (entry.user, entry.device, entry.n)
            if author in numbers:
                what = f"n {entry.n} of {entry.user}/{entry.device} stands at {numbers[author]} and {entry.seq}"
                device = f"{entry.user}/{entry.device}"
                yield Violation("G3", what, entry.stamp, log.id, entry.seq, entry.n, (device,))
            numbers[author] = entry.seq
        before = entry


def check_orders(orders: dict[str, dict[int, Order]], logs: dict[str, Log]) -> Iterator[Violation]:
    """What devices sent against what stands in the logs."""
    for log in logs.values():
        for entry in log.entries:
            device = f"{entry.user}/{entry.device}"
            if entry.n and device in orders:
                order = orders[device].get(entry.n)
                if order is None or (order.kind != entry.kind or order.body != entry.body):
                    what = f"nobody sent what stands at {entry.seq}: {entry.kind} {entry.body}, n {entry.n} of {device}"
                    yield Violation("G3", what, entry.stamp, log.id, entry.seq, entry.n, (device,))
    for device, numbers in orders.items():
        for n, order in numbers.items():
            if not order.seq and not order.refused:
                yield Violation("G3", f"n {n} of {device} was never answered", order.at, n=n, devices=(device,))
            elif order.seq:
                yield from check_kept(device, n, order, logs.get(order.conversation))


def check_kept(device: str, n: int, order: Order, log: Log | None) -> Iterator[Violation]:
    entry = log.by_seq.get(order.seq) if log is not None else None
    if entry is not None:
        if (f"{entry.user}/{entry.device}", entry.n, entry.body) != (device, n, order.body):
            what = (
                f"n {n} of {device} was acked as {order.seq}, where n {entry.n} of {entry.user}/{entry.device} stands"
            )
            yield Violation("G1", what, order.at, order.conversation, order.seq, n, (device,))
    elif log is None or (order.seq > log.floor and order.seq not in log.deleted and not _edit_of_deleted(order, log)):
        what = f"n {n} of {device} was acked as {order.seq}, which is not in the log"
        yield Violation("G1", what, order.at, order.conversation, order.seq, n, (device,))


def _edit_of_deleted(order: Order, log: Log) -> bool:
    return order.kind == "edit" and bool(log.deleted)


def check_processes(evidence: Evidence) -> Iterator[Violation]:
    limit = evidence.run.rss_limit_bytes
    told: set[str] = set()
    for row in evidence.processes:
        if isinstance(row, Sample) and row.rss_bytes > limit and row.process not in told:
            told.add(row.process)
            yield Violation("G7", f"{row.process} holds {row.rss_bytes >> 20} MiB", row.at)
        elif isinstance(row, Ending) and not row.asked:
            yield Violation("G6", f"{row.process} ended by itself with {row.code}", row.at)
        elif isinstance(row, Ending) and row.asked == "SIGTERM" and row.code:
            yield Violation("G6", f"{row.process} was told to stop and ended with {row.code}", row.at)
    for process, path in evidence.said.items():
        if process.startswith(PROCESSES) and (trace := _last_trace(path)):
            yield Violation("G6", f"{process} logged {trace}")


def _last_trace(path: Path) -> str:
    """The last line of the last trace in a log: which exception it was."""
    _, found, rest = path.read_text(errors="replace").rpartition("Traceback (most recent call last):")
    lines = itertools.dropwhile(lambda line: line.startswith("      "), rest.splitlines()[1:])
    return next(lines, "an error").strip() if found else ""


class Account:
    """One device's history, held against the logs in one pass."""

    def __init__(self, checker: Checker, device: str) -> None:
        self.checker = checker
        self.device = device
        self.user = device.partition("/")[0]
        self.orders: dict[int, Order] = {}
        self.had: dict[str, set[int]] = {}
        self.starts: dict[str, int] = {}
        self.sessions = 0
        self.gaps: dict[str, list[tuple[int, int]]] = {}
        self.session: dict[str, int] = {}  # conversation -> the highest seq that this session had or was given
        self.given: set[tuple[str, int]] = set()  # in this session
        self.connected = False
        self.sent_away = ""
        self.gateway = ""
        self.away: list[tuple[int, int]] = []
        self.closed_at = 0
        self.unsaid_at = 0  # when it last came without a word of what it has: who then has too much cannot be told
        self.told: dict[str, int] = {}  # conversation -> read mark, as the server said it
        self.seen: dict[str, bool] = {}
        self.watched: set[str] = set()
        self.marks = list(checker.evidence.run.marks)

    def read(self, rows: Iterable[Rows]) -> dict[int, Order]:
        for row in rows:
            while self.marks and row.at > self.marks[0].at:
                self._mark()
            self._row(row)
        while self.marks:
            self._mark()
        if self.closed_at:
            self.away.append((self.closed_at, 1 << 60))
        self._complete()
        return self.orders

    def _add(self, promise: str, what: str, at: int, conversation: str = "", seq: int = 0, n: int = 0) -> None:
        self.checker.found.append(
            Violation(promise, f"{self.device}: {what}", at, conversation, seq, n, (self.device,))
        )

    def _row(self, row: Rows) -> None:
        counts = self.checker.counts
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
            case history.Connecting():
                self._connecting(row)
            case history.Welcomed():
                counts["connects"] += 1
                self._welcomed(row)
            case history.Listed():
                self._known(row.conversations, row.at)
            case history.Receipt():
                if row.user == self.user:
                    self._read_mark(row.conversation, row.read)
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
        if self.sent_away:
            self.checker.gone_at.setdefault(self.sent_away, []).append(row.at)
            self.sent_away = ""
        self.gateway = row.gateway

    def _welcomed(self, row: history.Welcomed) -> None:
        if self.closed_at:
            self.away.append((self.closed_at, row.at))
        self.closed_at = 0
        self.connected = True
        self.sessions += 1
        self.session, self.given, self.seen = {}, set(), {}
        if row.said is None:
            self.unsaid_at = row.at
        for known in row.conversations:
            if known.read < self.told.get(known.conversation, 0) and not self.checker.failed_over:
                what = f"read mark went from {self.told[known.conversation]} back to {known.read}"
                self._add("G9", what, row.at, known.conversation, known.read)
        self._known(row.conversations, row.at)

    def _known(self, conversations: list[history.Known], at: int) -> None:
        for known in conversations:
            if self.sessions == 1 and known.conversation not in self.starts and known.conversation not in self.had:
                self._start(known, at)
            self.session.setdefault(known.conversation, known.cursor)
            self._read_mark(known.conversation, known.read)

    def _start(self, known: history.Known, at: int) -> None:
        """Where a device begins that the server has never seen: not later than it was promised."""
        self.starts[known.conversation] = known.cursor
        log = self.checker.logs.get(known.conversation)
        if log is None or known.cursor <= log.floor or self.checker.failed_over:
            return  # what a failover took back was counted when it began
        first, _ = log.visible(self.user)
        after = max(log.floor, first - 1)  # `head` may lag behind the log, so what stood there then is told by its time
        given = sum(entry.stamp <= at for entry in log.between(known.cursor, log.head))
        there = sum(entry.stamp <= at for entry in log.between(after, log.head))
        if given < min(START_EVENTS, there) - len(log.deleted):
            self._add("G5", f"begins with the last {given} of {there} events", at, known.conversation, known.cursor)

    def _closed(self, row: history.Closed) -> None:
        if self.connected:
            self.closed_at = row.at
            self.sent_away = self.gateway if row.code == 1012 and not row.ours else ""
        self.connected = False
        if row.code >= 4400 and not row.ours:
            self._add("G6", f"was shut out with {row.code} {row.reason}", row.at)
        elif row.code in (1002, 1003, 1007, 1009, 1011) and not row.ours:
            self._add("G6", f"was cut off with {row.code} {row.reason}", row.at)

    # -- sends

    def _sent(self, row: history.Sent) -> None:
        kind = "message" if row.kind == "send" else row.kind
        if row.n not in self.orders:
            self.checker.counts["sends"] += 1
            self.orders[row.n] = Order(conversation=row.conversation, body=row.body, kind=kind, at=row.at)
        elif row.attempt > 1:
            self.checker.counts["resends"] += 1

    def _acked(self, row: history.Acked) -> None:
        order = self.orders.setdefault(row.n, Order())
        if order.seq and (order.conversation, order.seq) != (row.conversation, row.seq):
            self._add(
                "G3", f"n {row.n} was acked as {order.seq} and as {row.seq}", row.at, row.conversation, row.seq, row.n
            )
        order.conversation, order.seq, order.at = row.conversation, row.seq, row.at

    def _refused(self, row: history.Refused) -> None:
        order = self.orders.get(row.n)
        if row.code == "internal":
            self._add("G3", f"n {row.n} met an internal error", row.at, n=row.n)
        if order is None or not row.final:
            return
        order.refused = row.code
        log = self.checker.logs.get(order.conversation)
        stranger = log is not None and (self.user in log.moved or self.user not in log.members)
        if order.kind == "message" and not (row.code == "not_found" and stranger):
            self._add("G3", f"n {row.n} was refused for good: {row.code}", row.at, n=row.n)

    # -- what came

    def _received(self, row: history.Received) -> None:
        name, seq = row.conversation, row.seq
        entry = Entry(seq, row.prev, row.count, row.stamp, row.kind, row.user, row.device, row.n, row.target, row.body)
        if (name, seq) in self.given:
            self._add("G6", f"was given {seq} twice in one session", row.at, name, seq)
        elif seq <= self.session.get(name, 0):
            what = f"was given {seq} after {self.session[name]}"
            self._add("G2", what, row.at, name, seq)
        self.given.add((name, seq))
        self.session[name] = max(seq, self.session.get(name, 0))
        self.had.setdefault(name, set()).add(seq)
        if row.user == self.user:  # writing marks as read
            self._marked(name, seq)
        log = self.checker.logs.get(name)
        logged = log.by_seq.get(seq) if log is not None else None
        if logged is None:
            _, logged = self.checker.unlogged.setdefault((name, seq), (self.device, entry))
        if logged != entry:
            self._add("G2", f"was told {entry} where others have {logged}", row.at, name, seq, row.n)

    def _gap(self, row: history.Gap) -> None:
        name = row.conversation
        self.gaps.setdefault(name, []).append((row.first, row.last))
        log = self.checker.logs.get(name)
        if log is None:
            return
        there = [entry.seq for entry in log.between(row.first - 1, row.last)]
        if row.reason == "failover" and there:
            self._add(
                "G4", f"was told that {row.first}-{row.last} never was; {there[0]} stands there", row.at, name, there[0]
            )
        elif row.reason == "expired" and row.last > log.floor:
            self._add(
                "G4",
                f"was told that {row.first}-{row.last} is gone; the log begins at {log.floor}",
                row.at,
                name,
                row.last,
            )

    # -- read marks, presence

    def _read_mark(self, name: str, seq: int) -> None:
        """As the server says it. Receipts may overtake each other, a client takes the highest; a welcome must not."""
        self.told[name] = max(seq, self.told.get(name, 0))
        self._marked(name, seq)

    def _marked(self, name: str, seq: int) -> None:
        marks = self.checker.read.setdefault(self.user, {}).setdefault(name, {})
        marks[self.device] = max(seq, marks.get(self.device, 0))

    def _mark(self) -> None:
        mark = self.marks.pop(0)
        if not self.connected:
            return
        for users, online in ((mark.online, True), (mark.offline, False)):
            for user in users:
                if user in self.watched and self.seen.get(user) is not online:
                    told = {True: "online", False: "offline", None: "nothing"}[self.seen.get(user)]
                    self._add("G8", f"is told that {user} is {told}, who is {'on' if online else 'off'}line", mark.at)

    # -- at the end

    def _complete(self) -> None:
        """Nothing is missing between where the device began and the head."""
        for name, log in self.checker.logs.items():
            if self.user in log.members:
                self._whole(name, log)

    def _whole(self, name: str, log: Log) -> None:
        first, last = log.visible(self.user)
        had = self.had.get(name, set())
        if log.members[self.user][1] and not had and name not in self.starts:
            return  # came and went while this device was away: it is not told of what is over
        after = max(self.starts.get(name, 0), first - 1)
        missing = [
            entry for entry in log.between(after, last) if entry.seq not in had and not self._told(name, entry.seq)
        ]
        self._phantoms(name, log, had)
        if not missing:
            return
        entry, newest = missing[0], max(had, default=0)
        what = f"misses {len(missing)} events, the first is {entry.seq} of {entry.user}/{entry.device}"
        if any(began <= entry.stamp <= ended and ended - began > AWAY_MS for began, ended in self.away):
            promise, what = "G5", f"{what}, from a time when it was away"
        elif entry.seq > newest:
            promise, what = "G1", f"{what}; the last it got is {newest}"
        else:
            promise, what = "G4", f"{what}; it was told no gap"
        self._add(promise, what, entry.stamp, name, entry.seq, entry.n)

    def _told(self, name: str, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self.gaps.get(name, ()))

    def _phantoms(self, name: str, log: Log, had: set[int]) -> None:
        """What a device was given and no log has: deleted, trimmed, or announced as void."""
        for seq in sorted(had - log.by_seq.keys()):
            _, entry = self.checker.unlogged[name, seq]
            gone = seq <= log.floor or seq in log.deleted or (entry.kind == "edit" and entry.target in log.deleted)
            if gone or self._told(name, seq):
                continue
            if entry.stamp < self.unsaid_at:
                self.checker.counts["void, and could not be told"] += 1
            else:
                self._add("G2", f"has {seq}, which is not in the log", entry.stamp, name, seq, entry.n)
