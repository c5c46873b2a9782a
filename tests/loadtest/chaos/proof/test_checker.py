"""The checker against forged evidence: it passes correct evidence, and finds each violation under its promise."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from loadtest.chaos.proof import account, checker
from loadtest.chaos.proof.evidence import Conversation, Ending, Evidence, Fault, Loss, Mark, Run, Sample
from loadtest.chaos.proof.findings import NOTICED_MS, SETTLED_MS, Violation
from loadtest.chaos.proof.history import (
    Acked,
    Closed,
    Connecting,
    Entry,
    Gap,
    Gone,
    Known,
    Listed,
    Received,
    Refused,
    Rows,
    Seen,
    Sent,
    Valid,
    Watching,
    Welcomed,
)
from loadtest.chaos.proof.history import Receipt as ReadReceipt

TALK = "d:ann:bob"
GATEWAY = "ws://one"
SEQS = (101, 102, 103, 104)
LIMIT = 100 << 20


def message(seq: int, user: str, n: int, kind: str = "message", target: int = 0) -> Entry:
    body = "" if kind in ("delete", "react") else f"body-{n}"
    return Entry(seq, seq - 1 if seq > SEQS[0] else 0, seq - 100, 1000 + seq, kind, user, "phone", n, target, body)


def received(entry: Entry, at: int = 0) -> Received:
    return Received(at or entry.stamp, TALK, entry)


def welcome(at: int, *known: Known, said: dict[str, int] | None = None) -> list[Rows]:
    return [Connecting(at, GATEWAY), Welcomed(at, GATEWAY, "node", "session", said or {}, list(known))]


class Forged:
    """Correct evidence of two users, three devices and four messages; each test spoils one thing."""

    def __init__(self) -> None:
        self.log = [message(101, "ann", 1), message(102, "bob", 7), message(103, "ann", 2), message(104, "bob", 8)]
        self.rows: dict[str, list[Rows]] = {
            device: welcome(1000) for device in ("ann/laptop", "ann/phone", "bob/phone")
        }
        for entry in self.log:
            author = self.rows[f"{entry.user}/phone"]
            author.append(Sent(entry.stamp, TALK, entry.n, "send", 0, entry.body, 1))
            author.append(Acked(entry.stamp, TALK, entry.n, entry.seq, False))
            for rows in self.rows.values():
                rows.append(received(entry))
        self.run = Run(seed=0, seconds=1, level="fsync", drain_window_s=1, rss_limit_bytes=LIMIT)
        self.floor = 0
        self.members = {"ann": (0, 0), "bob": (0, 0)}
        self.faults: list[Fault] = []
        self.processes: list[Sample | Ending] = []
        self.process_logs: dict[str, Path] = {}
        self.losses: list[Loss] = []

    def evidence(self) -> Evidence:
        head = max(entry.seq for entry in self.log)
        talk = Conversation(TALK, head, self.floor, self.members, self.log)
        return Evidence(
            self.run, {TALK: talk}, dict(self.rows), self.faults, self.processes, self.process_logs, self.losses
        )

    def found(self) -> list[Violation]:
        return checker.check(self.evidence()).violations

    def only(self, promise: str, *words: str) -> None:
        """Assert that all violations are of this promise, and one has these words."""
        found = self.found()
        assert {violation.promise for violation in found} == {promise}, found
        assert any(all(word in violation.what for word in words) for violation in found), found

    def without(self, device: str, *seqs: int) -> None:
        self.rows[device] = [
            row for row in self.rows[device] if not (isinstance(row, Received) and row.event.seq in seqs)
        ]

    def change(self, device: str, number: int, **fields: object) -> None:
        """Change fields of the device's `number`-th received event."""
        places = [i for i, row in enumerate(self.rows[device]) if isinstance(row, Received)]
        row = self.rows[device][places[number]]
        assert isinstance(row, Received)
        self.rows[device][places[number]] = received(msgspec.structs.replace(row.event, **fields), row.at)

    def insert_after_first(self, device: str, *rows: Rows) -> None:
        place = next(i for i, row in enumerate(self.rows[device]) if isinstance(row, Received))
        self.rows[device][place + 1 : place + 1] = rows


@pytest.fixture
def forged() -> Forged:
    return Forged()


def test_correct_evidence_has_no_violation(forged: Forged) -> None:
    """Correct evidence has no violation, and the counts are right."""
    checked = checker.check(forged.evidence())
    assert checked.violations == []
    assert (checked.counts["sends"], checked.counts["deliveries"], checked.counts["events"]) == (4, 12, 4)


# -- G1


def test_acked_event_missing_in_the_log_is_a_violation(forged: Forged) -> None:
    """G1: the log lacks an acked event."""
    forged.log.pop()
    for device in forged.rows:
        forged.without(device, 104)
    forged.only("G1", "n 8 of bob/phone was acked as 104", "not in the log")


def test_ack_with_the_seq_of_another_message_is_a_violation(forged: Forged) -> None:
    """G1: an ack names the seq of another message."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Acked(2000, TALK, 3, 104, False)]
    forged.only("G1", "n 3 of ann/phone was acked as 104", "where the log has n 8 of bob/phone")


def test_event_missing_at_the_end_is_a_violation(forged: Forged) -> None:
    """G1: the newest message did not reach one of the devices."""
    forged.without("ann/laptop", 104)
    forged.only("G1", "ann/laptop", "misses 1 events, the first is 104", "the last that it received is 103")


def test_conversation_that_a_member_never_received_is_a_violation(forged: Forged) -> None:
    """G1: the device of a member received nothing of a conversation, not even that it exists."""
    forged.without("bob/phone", *SEQS)
    forged.only("G1", "bob/phone", "misses 4 events")


# -- G2


def test_seq_with_two_messages_is_a_violation(forged: Forged) -> None:
    """G2: a device received another message under a seq than the log has."""
    forged.change("ann/laptop", 1, user="eve", n=5, body="another")
    forged.only("G2", "ann/laptop", "eve")


def test_lost_seq_with_two_messages_is_a_violation(forged: Forged) -> None:
    """G2: two devices received different messages under one seq that the log no longer has."""
    void = message(105, "cyd", 3)
    forged.rows["ann/laptop"] += [received(void), Gap(1200, TALK, 105, 105, "failover")]
    forged.rows["bob/phone"] += [
        received(msgspec.structs.replace(void, body="x")),
        Gap(1200, TALK, 105, 105, "failover"),
    ]
    forged.only("G2", "bob/phone", "where others have")


def test_events_in_the_wrong_order_are_a_violation(forged: Forged) -> None:
    """G2: a device received two events in the wrong order."""
    rows = forged.rows["ann/laptop"]
    rows[3], rows[4] = rows[4], rows[3]
    forged.only("G2", "ann/laptop", "received 102 after 103")


def test_broken_chain_of_the_log_is_a_violation(forged: Forged) -> None:
    """G2: an event of the log does not follow the one before it."""
    forged.log[2] = msgspec.structs.replace(forged.log[2], prev=101)
    for device in forged.rows:
        forged.change(device, 2, prev=101)
    forged.only("G2", "103 has prev 101, but follows 102")


def test_first_event_with_a_predecessor_is_a_violation(forged: Forged) -> None:
    """G2: the first event of a log that was never trimmed has a predecessor."""
    forged.log[0] = msgspec.structs.replace(forged.log[0], prev=55)
    for device in forged.rows:
        forged.change(device, 0, prev=55)
    forged.only("G2", "101 has prev 55")


def test_decreasing_count_is_a_violation(forged: Forged) -> None:
    """G2: the count of messages decreases."""
    forged.log[3] = msgspec.structs.replace(forged.log[3], count=1)
    for device in forged.rows:
        forged.change(device, 3, count=1)
    forged.only("G2", "count fell from 3 to 1")


def test_received_event_missing_in_the_log_is_a_violation(forged: Forged) -> None:
    """G2: a device has an event that the log lacks, and received no gap for it."""
    forged.rows["ann/laptop"].append(received(message(105, "cyd", 3)))
    forged.only("G2", "ann/laptop", "has 105, which is not in the log")


@pytest.mark.parametrize(("prev", "found"), [(107, 0), (104, 1)])
def test_void_event_before_a_deleted_one_is_no_violation(forged: Forged, prev: int, found: int) -> None:
    """Only the `prev` of the next event shows that an event is void; if that event was deleted, it cannot be
    announced."""
    void, delete = message(105, "cyd", 3), msgspec.structs.replace(message(108, "bob", 9, "delete", 107), prev=prev)
    forged.rows["bob/phone"] += [Sent(1100, TALK, 9, "delete", 107, "", 1), Acked(1100, TALK, 9, 108, False)]
    forged.rows["ann/laptop"].append(received(void))
    forged.log.append(delete)
    for rows in forged.rows.values():
        rows.append(received(delete))
    assert [one.what for one in forged.found()] == ["ann/laptop: has 105, which is not in the log"] * found


def test_announced_void_event_is_no_violation(forged: Forged) -> None:
    """After a failover an event may turn out to be void, if a gap says so."""
    forged.rows["ann/laptop"] += [received(message(105, "cyd", 3)), Gap(1200, TALK, 105, 105, "failover")]
    assert forged.found() == []


@pytest.mark.parametrize("failover", [True, False])
def test_void_events_of_a_conversation_that_is_gone_need_no_gap(forged: Forged, failover: bool) -> None:
    """A failover took back that the user was added again; without one there is no excuse."""
    forged.faults = [Fault("failover", "", 1110, 1200)] if failover else []
    forged.rows["ann/laptop"] += [received(message(105, "cyd", 3)), Gone(1400, [TALK])]
    assert [one.promise for one in forged.found()] == ([] if failover else ["G2"])


# -- G3


def test_n_stored_twice_is_a_violation(forged: Forged) -> None:
    """G3: a resend made a second event."""
    forged.log.append(msgspec.structs.replace(message(105, "ann", 2), body="body-2"))
    for rows in forged.rows.values():
        rows.append(received(forged.log[-1]))
    forged.only("G3", "n 2 of ann/phone is stored at 103 and 105")


def test_two_different_acks_of_one_n_are_a_violation(forged: Forged) -> None:
    """G3: two acks for one n name different seqs."""
    forged.rows["ann/phone"].insert(3, Acked(1050, TALK, 1, 100, False))
    forged.only("G3", "n 1 was acked as 100 and as 101")


def test_unanswered_send_is_a_violation(forged: Forged) -> None:
    """G3: a send got neither an ack nor a refusal until the end."""
    forged.rows["ann/phone"].append(Sent(2000, TALK, 3, "send", 0, "body-3", 9))
    forged.only("G3", "n 3 of ann/phone was never answered")


def test_refused_correct_message_is_a_violation(forged: Forged) -> None:
    """G3: a correct message is refused."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Refused(2001, 3, "conflict", True)]
    forged.only("G3", "n 3 was refused finally: conflict")


def test_not_found_for_a_member_is_a_violation(forged: Forged) -> None:
    """G3: a founder who was never removed is told that the conversation does not exist."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Refused(2001, 3, "not_found", True)]
    forged.only("G3", "n 3 was refused finally: not_found")


def test_not_found_during_a_failover_is_no_violation(forged: Forged) -> None:
    """A removal that it took back leaves no trace in the log. Long after it, the refusal is a violation."""
    forged.faults = [Fault("failover", "", 1900, 2100)]
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Refused(2001, 3, "not_found", True)]
    assert forged.found() == []
    forged.faults = [Fault("failover", "", 1900 - 2 * SETTLED_MS, 1950 - 2 * SETTLED_MS)]
    forged.only("G3", "n 3 was refused finally: not_found")


def test_not_found_for_the_first_message_to_a_deleted_user_is_no_violation(forged: Forged) -> None:
    """The user exists again only once they connect. Before the fault the refusal is a violation."""
    forged.rows["ann/phone"] += [Sent(2000, "d:ann:eve", 3, "send", 0, "x", 1), Refused(2001, 3, "not_found", True)]
    forged.faults = [Fault("keys-deleted", "hash of eve", 1900, 1901)]
    assert forged.found() == []
    for fault in (Fault("keys-deleted", "hash of eve", 2100, 2101), Fault("keys-deleted", "hash of bob", 1900, 1901)):
        forged.faults = [fault]
        forged.only("G3", "n 3 was refused finally: not_found")


def test_not_found_for_a_removed_member_is_no_violation(forged: Forged) -> None:
    """A removed member may write before the removal event arrives."""
    removed = Entry(105, 104, 4, 1105, "member", "", "", 0, 0, "remove bob")
    forged.log.append(removed)
    forged.members["bob"] = (0, 105)
    for rows in forged.rows.values():
        rows.append(received(removed))
    forged.rows["bob/phone"] += [Sent(2000, TALK, 9, "send", 0, "body-9", 1), Refused(2001, 9, "not_found", True)]
    assert forged.found() == []


def test_removed_member_without_the_last_event_is_a_violation(forged: Forged) -> None:
    """G1: a removed member receives everything up to the removal."""
    forged.log.append(Entry(105, 104, 4, 1105, "member", "", "", 0, 0, "remove bob"))
    forged.log.append(message(106, "ann", 3))
    forged.members["bob"] = (0, 105)
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Acked(2001, TALK, 3, 106, False)]
    for device in ("ann/phone", "ann/laptop"):
        forged.rows[device] += [received(entry) for entry in forged.log[4:]]
    forged.only("G1", "bob/phone", "misses 1 events, the first is 105")


def test_unavailable_before_the_ack_is_no_violation(forged: Forged) -> None:
    """`unavailable` before the ack is normal in an outage."""
    forged.rows["bob/phone"].insert(-3, Refused(1103, 8, "unavailable", False))
    assert forged.found() == []


def test_internal_error_is_a_violation(forged: Forged) -> None:
    """G3: an internal error is a bug, even if the resend succeeded."""
    forged.rows["bob/phone"].insert(-3, Refused(1103, 8, "internal", False))
    forged.only("G3", "n 8 received an internal error")


def test_log_entry_that_no_device_sent_is_a_violation(forged: Forged) -> None:
    """G3: the log has other content than was sent."""
    forged.log[1] = msgspec.structs.replace(forged.log[1], body="invented")
    for device in forged.rows:
        forged.change(device, 1, body="invented")
    assert {violation.promise for violation in forged.found()} == {"G1", "G3"}
    assert any("no device sent the entry at 102" in violation.what for violation in forged.found())


@pytest.mark.parametrize("trimmed", [False, True])
@pytest.mark.parametrize(("user", "target", "found"), [("bob", 103, []), ("bob", 101, ["G1"]), ("ann", 103, ["G1"])])
def test_repeated_reaction_is_acked_with_its_first_event(
    forged: Forged, user: str, target: int, found: list[str], trimmed: bool
) -> None:
    """G1: the seq of the ack must be that of a reaction of the same user to the same message."""
    react = message(105, "bob", 9, "react", 103)
    forged.log.append(react)
    forged.rows["bob/phone"] += [Sent(1105, TALK, 9, "react", 103, "", 1), Acked(1105, TALK, 9, 105, False)]
    for rows in forged.rows.values():
        rows.append(received(react))
    forged.rows[f"{user}/phone"] += [Sent(1201, TALK, 11, "react", target, "", 1), Acked(1201, TALK, 11, 105, False)]
    if trimmed:
        forged.log, forged.floor = [message(106, "ann", 12)], 105
        forged.rows["ann/phone"] += [Sent(1106, TALK, 12, "send", 0, "body-12", 1), Acked(1106, TALK, 12, 106, False)]
        for rows in forged.rows.values():
            rows.append(received(forged.log[0]))
    assert [violation.promise for violation in forged.found()] == found


# -- G4, G5


def test_unannounced_hole_is_a_violation(forged: Forged) -> None:
    """G4: an event is missing among the received ones."""
    forged.without("ann/laptop", 102)
    forged.only("G4", "ann/laptop", "misses 1 events, the first is 102")


def test_hole_announced_as_expired_is_no_violation(forged: Forged) -> None:
    """The hole was trimmed and announced."""
    forged.log, forged.floor = forged.log[2:], 102
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"].insert(2, Gap(1100, TALK, 1, 102, "expired"))
    assert forged.found() == []


@pytest.mark.parametrize(("gaps", "found"), [([], 1), ([(1, 101)], 1), ([(1, 102)], 0), ([(101, 101), (102, 102)], 0)])
def test_trimmed_event_must_be_received_or_announced(forged: Forged, gaps: list[tuple[int, int]], found: int) -> None:
    """G4: a device did not receive an acked event that was trimmed, and its gap covers less."""
    forged.log, forged.floor = forged.log[2:], 102
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"] += [Gap(1100, TALK, *gap, "expired") for gap in gaps]
    violations = forged.found()
    assert [one.promise for one in violations] == ["G4"] * found
    assert all("that were trimmed since, the first is" in one.what for one in violations)


def test_received_trimmed_events_are_no_violation(forged: Forged) -> None:
    """All devices have it, except one that began later and one whose user joined later; no device needs a deleted
    message."""
    delete = message(105, "ann", 3, "delete", 101)
    forged.rows["ann/phone"] += [Sent(1105, TALK, 3, "delete", 101, "", 1), Acked(1105, TALK, 3, 105, False)]
    forged.members["cyd"] = (103, 0)
    forged.rows["ann/tablet"] = welcome(1103, Known(TALK, 102, 103, 103))
    forged.rows["cyd/phone"] = [*welcome(1000), Listed(1103, [Known(TALK, 102, 103, 0)])]
    for device in ("ann/tablet", "cyd/phone"):
        forged.rows[device] += [received(entry) for entry in forged.log[2:]]
    for rows in forged.rows.values():
        rows.append(received(delete))
    forged.without("ann/laptop", 101)
    forged.log, forged.floor = [message(106, "bob", 9)], 105
    for rows in forged.rows.values():
        rows.append(received(forged.log[0]))
    forged.rows["bob/phone"] += [Sent(1106, TALK, 9, "send", 0, "body-9", 1), Acked(1106, TALK, 9, 106, False)]
    assert forged.found() == []


def test_trimmed_ack_with_the_seq_of_another_message_is_a_violation(forged: Forged) -> None:
    """G1: before the trim, all devices received something else under the acked seq than its author sent."""
    for device in forged.rows:
        forged.change(device, 0, body="another")
    forged.log, forged.floor = forged.log[2:], 102
    forged.only("G1", "n 1 of ann/phone was acked as 101, where others have n 1 of ann")


def test_failover_gap_over_stored_events_is_a_violation(forged: Forged) -> None:
    """G4: a gap says failover, but the log has the events."""
    forged.rows["ann/laptop"].append(Gap(1200, TALK, 102, 103, "failover"))
    forged.only("G4", "gap 102-103 as void, but the log has 102")


def test_expired_gap_beyond_the_floor_is_a_violation(forged: Forged) -> None:
    """G4: a gap covers more than was trimmed."""
    forged.rows["ann/laptop"].append(Gap(1200, TALK, 1, 102, "expired"))
    forged.only("G4", "gap 1-102 as expired, but the log begins after 0")


def test_hole_from_offline_time_is_a_violation(forged: Forged) -> None:
    """G5: a device does not receive what was written while it was offline."""
    forged.log[1] = msgspec.structs.replace(forged.log[1], stamp=20_000)
    for device in ("ann/phone", "bob/phone"):
        forged.change(device, 1, stamp=20_000)
    forged.without("ann/laptop", 102)
    forged.insert_after_first("ann/laptop", Closed(10_000, 1006, "", False), *welcome(30_000, Known(TALK, 101, 102, 0)))
    forged.only("G5", "ann/laptop", "from a time when it was offline")


def test_new_device_that_begins_too_late_is_a_violation(forged: Forged) -> None:
    """G5: a device that the server has never seen receives less than promised."""
    forged.rows["ann/tablet"] = welcome(5000, Known(TALK, 103, 104, 103))
    forged.rows["ann/tablet"].append(received(forged.log[3], 5000))
    forged.only("G5", "ann/tablet", "begins with only the last 1 of 4 events")


def test_device_whose_first_session_a_failover_took_back_begins_anew(forged: Forged) -> None:
    """It received nothing in the first one, and begins later in the second. Without a failover it may not."""
    first, second = Known(TALK, 100, 104, 0), Known(TALK, 102, 104, 0)
    forged.rows["ann/laptop"] = [
        *welcome(5000, first), Closed(5001, 1006, "", False), *welcome(5002, second), received(forged.log[2], 5003),
        received(forged.log[3], 5003),
    ]  # fmt: skip
    assert any("misses 2 events" in one.what for one in forged.found())
    forged.faults = [Fault("primary-kill", "", 4_900, 5_100)]
    assert not any("misses" in one.what for one in forged.found())


def test_device_begins_with_a_held_conversation_once_its_part_answers(
    forged: Forged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the newest events of that time, not with those of its first session. If all answered then, it may not."""
    monkeypatch.setattr(account, "START_EVENTS", 2)
    begins = Known(TALK, 102, 104, 0)
    forged.rows["ann/laptop"] = [
        *welcome(5000), Closed(5001, 1006, "", False), *welcome(5002, begins), received(forged.log[2], 5003),
        received(forged.log[3], 5003),
    ]  # fmt: skip
    assert any("misses 2 events" in one.what for one in forged.found())
    forged.faults = [Fault("shard-gone", "", 4_900, 5_001)]
    assert not any("misses" in one.what for one in forged.found())


@pytest.mark.parametrize(("failover", "found"), [((100, 4_000), 0), ((9_000, 9_500), 0), ((100, 200), 1)])
def test_new_device_during_a_failover_may_begin_later(forged: Forged, failover: tuple[int, int], found: int) -> None:
    """A failover may take back events that were counted for a device that began then, or a moment before; not later."""
    forged.faults = [Fault("primary-kill", "", *failover)]
    forged.rows["ann/tablet"] = welcome(12_000 if found else 5000, Known(TALK, 103, 104, 103))
    forged.rows["ann/tablet"].append(received(forged.log[3], 12_000))
    assert len(forged.found()) == found


def test_later_member_needs_no_earlier_events(forged: Forged) -> None:
    """A later member does not need earlier events."""
    forged.members["cyd"] = (103, 0)
    forged.rows["cyd/phone"] = [*welcome(1000), Listed(1103, [Known(TALK, 102, 103, 0)])]
    forged.rows["cyd/phone"] += [received(forged.log[2]), received(forged.log[3])]
    assert forged.found() == []


# -- G6


def test_event_received_twice_in_a_session_is_a_violation(forged: Forged) -> None:
    """G6: one session receives an event twice."""
    forged.rows["ann/laptop"].append(received(forged.log[3], 1300))
    forged.only("G6", "received 104 twice in one session")


def test_event_below_the_sent_cursor_is_a_violation(forged: Forged) -> None:
    """G2: a session begins before the cursor that its device sent."""
    forged.rows["ann/laptop"] += [Closed(1200, 1012, "", False), *welcome(1300, Known(TALK, 104, 104, 0))]
    forged.rows["ann/laptop"].append(received(forged.log[3], 1300))
    forged.only("G2", "received 104 after 104")


@pytest.mark.parametrize(
    ("code", "words"), [(4409, "was refused"), (4500, "was refused"), (1011, "was closed"), (1002, "was closed")]
)
def test_final_close_of_a_correct_client_is_a_violation(forged: Forged, code: int, words: str) -> None:
    """G6: a correct client is told not to reconnect, or that it broke the protocol."""
    forged.rows["ann/laptop"].append(Closed(1300, code, "why", False))
    forged.only("G6", words, str(code))


@pytest.mark.parametrize(
    ("until", "step", "found"),
    [(1200, "", 0), (60_000, "", 1), (60_000, GATEWAY, 0), (60_000, "ws://two", 1)],
)
def test_expired_close_for_a_valid_token_is_a_violation(forged: Forged, until: int, step: str, found: int) -> None:
    """G6: a gateway whose clock did not step calls a valid token expired."""
    forged.faults = [Fault("gateway-clock", f"{step} by +50.0 s", 1000, 1400)] if step else []
    forged.rows["ann/laptop"] += [Valid(1100, until), Closed(1300, 4501, "token expired", False), *welcome(1500)]
    violations = forged.found()
    assert len(violations) == found
    assert all(
        one.promise == "G6" and "`expired` for a token that is valid until 60000" in one.what for one in violations
    )


def test_drained_clients_reconnecting_at_once_are_a_violation(forged: Forged) -> None:
    """G6: all drained clients reconnect at once."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000)]
    for number in range(60):
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(3000 + number, 1012, "", False), *welcome(3500)]
    forged.only("G6", "60 of 60 drained clients reconnected in one second")


@pytest.mark.parametrize("kind", ["client-hold", "gateway-stall"])
def test_drained_clients_behind_a_slow_link_are_not_judged(forged: Forged, kind: str) -> None:
    """A held link releases everything at once, however it was spread."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000), Fault(kind, "gateway-0", 1000, 3000)]
    for number in range(60):
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(3000 + number, 1012, "", False), *welcome(3500)]
    assert forged.found() == []


def test_spread_reconnects_of_a_drain_are_no_violation(forged: Forged) -> None:
    """Six a second, of sixty in ten seconds, are as promised."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000)]
    for number in range(60):
        at = 2500 + number * 166
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(at, 1012, "", False), *welcome(at + 100)]
    assert forged.found() == []


def test_process_that_ends_by_itself_is_a_violation(forged: Forged) -> None:
    """G6: a process died without being killed."""
    forged.processes = [Ending(2000, "gateway-0", 1, "")]
    forged.only("G6", "gateway-0 ended by itself with 1")


def test_process_stopped_with_an_error_is_a_violation(forged: Forged) -> None:
    """G6: a stopped process did not exit with 0."""
    forged.processes = [Ending(2000, "gateway-0", -9, "SIGTERM"), Ending(2000, "gateway-1", -9, "SIGKILL")]
    forged.only("G6", "gateway-0 was stopped and ended with -9")


def test_trace_in_a_process_log_is_a_violation(forged: Forged, tmp_path: Path) -> None:
    """G6: a trace in a log is reported with its last line; warnings are not."""
    quiet, loud = tmp_path / "gateway-0.log", tmp_path / "gateway-1.log"
    quiet.write_text("2026-01-01T00:00:00.000Z warning linnet.redis: connection lost\n")
    trace = [
        "    Traceback (most recent call last):",
        "      File 'x.py', line 1, in f",
        "    TypeError: f() takes 0",
        "",
    ]
    loud.write_text("2026-01-01T00:00:00.000Z error linnet.redis: a reply failed\n" + "\n".join(trace))
    forged.process_logs = {"gateway-0": quiet, "gateway-1": loud, "valkey": loud}
    forged.only("G6", "gateway-1 logged TypeError: f() takes 0")


# -- G7, G8, G9


def test_memory_above_the_limit_is_a_violation(forged: Forged) -> None:
    """G7: a process uses more than its limit."""
    forged.processes = [Sample(1000, "gateway-0", LIMIT), Sample(2000, "gateway-1", LIMIT + (5 << 20))]
    forged.only("G7", "gateway-1 uses 105 MiB")


@pytest.mark.parametrize(
    ("told", "what"), [({"bob": True}, "bob is online, but bob is offline"), ({}, "bob is nothing, but bob is offline")]
)
def test_wrong_presence_at_the_mark_is_a_violation(forged: Forged, told: dict[str, bool], what: str) -> None:
    """G8: an offline user is shown as online, or not at all."""
    forged.run.marks = [Mark(3000, ["ann"], ["bob"])]
    forged.rows["ann/phone"] += [Watching(2000, ["bob"]), Seen(2001, told), Closed(9000, 1000, "", True)]
    forged.only("G8", "sees that " + what)


def test_presence_right_before_the_mark_is_no_violation(forged: Forged) -> None:
    """Presence before the mark counts, presence after it does not."""
    forged.run.marks = [Mark(3000, ["bob"], []), Mark(6000, [], ["bob"])]
    forged.rows["ann/phone"] += [Watching(2000, ["bob"]), Seen(2001, {"bob": True}), Seen(5000, {"bob": False})]
    assert forged.found() == []


def test_different_read_marks_at_the_end_are_a_violation(forged: Forged) -> None:
    """G9: one device of a user has a read mark that the other lacks."""
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.only("G9", "the devices of ann know different read marks")


@pytest.mark.parametrize(("ended", "found"), [(1250, 0), (1100 - SETTLED_MS, 1)])
def test_read_marks_from_before_a_failover_may_be_lost(forged: Forged, ended: int, found: int) -> None:
    """Read marks are not acked: one from before the end of a failover may be lost; a later one must stay."""
    forged.faults = [Fault("failover", "", ended - 50, ended)]
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.rows["bob/phone"].append(ReadReceipt(1200, TALK, "bob", 103))
    forged.rows["bob/phone"] += [Closed(1300, 1006, "", False), *welcome(1400, Known(TALK, 104, 104, 102))]
    assert [one.promise for one in forged.found()] == ["G9", "G9"] * found


@pytest.mark.parametrize(
    ("process", "line"),
    [
        ("sentinel-0", "99:X {} # +switch-master main 127.0.0.1 1 127.0.0.1 2"),
        ("server-3", "99:S {} * Failover election won: I'm the new primary."),
    ],
)
def test_failover_in_a_log_counts(forged: Forged, tmp_path: Path, process: str, line: str) -> None:
    """Sentinels and the servers of a cluster start a failover if a primary is too slow; their logs say so."""
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.process_logs[process] = tmp_path / f"{process}.log"
    when = datetime.fromtimestamp(2, UTC).astimezone().strftime("%d %b %Y %H:%M:%S.000")
    forged.process_logs[process].write_text(line.format(when) + "\n")
    assert forged.found() == []


def test_read_marks_of_a_removed_member_may_differ(forged: Forged) -> None:
    """The server sends no read marks of a group that the user left."""
    forged.members["ann"] = (0, 104)
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    assert forged.found() == []


def test_own_reaction_does_not_count_as_read(forged: Forged) -> None:
    """G9: bob's phone read up to a reaction of his own, and his laptop did not receive that mark."""
    react = message(105, "bob", 9, "react", 103)
    forged.rows["bob/laptop"] = [*welcome(1000), *(received(entry) for entry in forged.log)]
    forged.log.append(react)
    forged.rows["bob/phone"] += [Sent(1105, TALK, 9, "react", 103, "", 1), Acked(1105, TALK, 9, 105, False)]
    for rows in forged.rows.values():
        rows.append(received(react))
    assert forged.found() == []
    forged.rows["bob/phone"].append(ReadReceipt(1200, TALK, "bob", 105))
    forged.only("G9", "different read marks")


def test_own_messages_count_as_read(forged: Forged) -> None:
    """Both devices have the newest message of bob himself, so both know that it is read."""
    forged.rows["bob/laptop"] = [*welcome(1000), *(received(entry) for entry in forged.log)]
    assert forged.found() == []


def test_ack_of_an_own_message_counts_as_read(forged: Forged) -> None:
    """Ann's phone was away, and the message that it sends is deleted before its catch-up: it has the ack alone."""
    own, deletion = message(105, "ann", 3), message(106, "ann", 4, "delete", 105)
    forged.rows["ann/phone"] += [Sent(1105, TALK, 3, "send", 0, "body-3", 1), Acked(1105, TALK, 3, 105, False)]
    forged.rows["ann/phone"] += [Sent(1106, TALK, 4, "delete", 105, "", 1), Acked(1106, TALK, 4, 106, False)]
    forged.log.append(deletion)
    for device, rows in forged.rows.items():
        rows += [received(entry) for entry in (own, deletion) if device != "ann/phone" or entry is deletion]
    assert forged.found() == []


def test_read_mark_that_goes_back_is_a_violation(forged: Forged) -> None:
    """G9: a welcome has a lower mark than the server sent before."""
    forged.rows["bob/phone"].append(ReadReceipt(1200, TALK, "bob", 103))
    forged.rows["bob/phone"] += [Closed(1300, 1006, "", False), *welcome(1400, Known(TALK, 104, 104, 102))]
    forged.only("G9", "read mark went from 103 back to 102")


def test_receipt_of_an_own_message_may_go_back(forged: Forged) -> None:
    """The mark that follows from a message reaches the user's row a moment after the receipt."""
    forged.rows["bob/phone"] += [
        ReadReceipt(1200, TALK, "bob", 104),
        Closed(1250, 1006, "", True),
        *welcome(1300, Known(TALK, 104, 104, 102)),
    ]
    assert forged.found() == []


# -- deletes


def test_deleted_messages_may_be_missing(forged: Forged) -> None:
    """A deleted message and its deleted edit may be missing in histories and in the chain."""
    edit = message(105, "ann", 3, "edit", 103)
    delete = message(106, "ann", 4, "delete", 103)
    for entry in (edit, delete):
        forged.rows["ann/phone"].append(Sent(entry.stamp, TALK, entry.n, entry.kind, 103, entry.body, 1))
        forged.rows["ann/phone"].append(Acked(entry.stamp, TALK, entry.n, entry.seq, False))
    forged.rows["ann/phone"] += [received(edit), received(delete)]
    forged.rows["bob/phone"] += [received(edit), received(delete)]
    forged.without("ann/laptop", 103)
    forged.rows["ann/laptop"].append(received(delete))
    forged.rows["ann/laptop"].append(ReadReceipt(1107, TALK, "ann", 103))
    forged.log = [forged.log[0], forged.log[1], forged.log[3], delete]
    assert forged.found() == []


# -- Redis trouble


@pytest.mark.parametrize(("began", "found"), [(1103 - NOTICED_MS, 2), (1103, 0)])
def test_ack_during_a_broken_durability_is_a_violation(forged: Forged, began: int, found: int) -> None:
    """G1: the processes have some seconds to notice that a setting of Redis breaks the durability; then no send is
    acked until it is restored."""
    forged.faults.append(Fault("valkey-settings", "appendfsync no", began, 1200))
    violations = forged.found()
    assert [violation.promise for violation in violations] == ["G1"] * found
    assert all("while Redis did not keep" in violation.what for violation in violations)


def test_late_ack_of_an_earlier_send_is_no_violation(forged: Forged) -> None:
    """The device did not read for a while, so the ack of a send from before waited in its socket."""
    late = message(105, "ann", 3)
    forged.log.append(late)
    forged.rows["ann/phone"] += [Sent(1105, TALK, 3, "send", 0, "body-3", 1), Acked(1300, TALK, 3, 105, False)]
    for rows in forged.rows.values():
        rows.append(received(late, 1300))
    forged.faults.append(Fault("valkey-settings", "appendfsync no", 1200 - NOTICED_MS, 1400))
    assert forged.found() == []


def test_duplicate_ack_during_a_broken_durability_is_no_violation(forged: Forged) -> None:
    forged.rows["ann/phone"].append(Acked(1300, TALK, 2, 103, True))
    forged.faults.append(Fault("valkey-settings", "appendonly no", 1200 - NOTICED_MS, 1400))
    assert forged.found() == []


@pytest.mark.parametrize(("gaps", "found"), [([], ["G4"]), ([(1, 102)], [])])
def test_deleted_log_must_be_announced(forged: Forged, gaps: list[tuple[int, int]], found: list[str]) -> None:
    """G4: a device that lacks what a fault deleted received no gap; devices that have it are right."""
    forged.losses.append(Loss(1102, TALK, 102, ""))
    forged.log = forged.log[2:]
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"] += [Gap(1102, TALK, *gap, "expired") for gap in gaps]
    assert [violation.promise for violation in forged.found()] == found


@pytest.mark.parametrize(("whole", "first_seen", "found"), [
    (True, 1103, []),
    (True, 1101, ["G4"]),
    (False, 1103, ["G4"]),
])  # fmt: skip
def test_new_device_is_told_only_what_some_key_knows(
    forged: Forged, whole: bool, first_seen: int, found: list[str]
) -> None:
    """G4: if hash and log are gone, no key has anything of the conversation; a device that comes later begins there."""
    forged.losses.append(Loss(1102, TALK, 102, "", whole))
    forged.log = forged.log[2:]
    forged.without("ann/laptop", 101, 102)
    rows = forged.rows["ann/laptop"][2:]
    forged.rows["ann/laptop"] = [*welcome(first_seen, Known(TALK, 0, 104, 0)), *rows]
    assert [violation.promise for violation in forged.found()] == found


def test_seq_reused_after_a_deletion_is_a_violation(forged: Forged) -> None:
    """G1: a conversation whose keys were deleted began again below the seqs that were acked before."""
    forged.losses.append(Loss(1104, TALK, 104, ""))
    again = msgspec.structs.replace(message(104, "ann", 3), stamp=1200)
    forged.log = [again]
    forged.rows["ann/phone"] += [Sent(1200, TALK, 3, "send", 0, "body-3", 1), Acked(1200, TALK, 3, 104, False)]
    assert "G1" in {violation.promise for violation in forged.found()}


def test_conversation_deleted_as_a_whole_leaves_no_violation(forged: Forged) -> None:
    """Its acked events are excused, if a fault deleted it; otherwise they are missing."""
    evidence = forged.evidence()
    evidence.conversations.clear()
    assert {violation.promise for violation in checker.check(evidence).violations} == {"G1", "G2"}
    evidence.losses.append(Loss(1104, TALK, 104, ""))
    assert checker.check(evidence).violations == []


def test_event_of_an_unknown_conversation_is_a_violation(forged: Forged) -> None:
    """G2: an event of another deployment came to a device of this one."""
    forged.rows["bob/phone"].append(Received(1200, "d:bob:cyd", message(101, "cyd", 1)))
    forged.only("G2", "bob/phone", "has 101 of a conversation that does not exist")


@pytest.mark.parametrize(("kind", "target", "found"), [
    ("neighbour-same", "ready", ["G10"]),
    ("neighbour-same", "linnet gateway: another deployment uses this database", []),
    ("neighbour-database", "ready", []),
])  # fmt: skip
def test_other_deployment_on_the_same_database_is_a_violation(
    forged: Forged, kind: str, target: str, found: list[str]
) -> None:
    """G10: its process must refuse to start there."""
    forged.faults.append(Fault(kind, target, 1000, 1200))
    assert [violation.promise for violation in forged.found()] == found


@pytest.mark.parametrize(("kind", "code", "found"), [
    ("valkey-rights", 1, []), ("valkey-rights", -6, ["G6"]), ("router-stall", 1, ["G6"]),
])  # fmt: skip
def test_process_may_refuse_to_start_while_a_right_is_missing(
    forged: Forged, kind: str, code: int, found: list[str]
) -> None:
    forged.faults.append(Fault(kind, "-fcall", 1000, 1200))
    forged.processes.append(Ending(1100, "router-0", code, ""))
    assert [violation.promise for violation in forged.found()] == found


def test_read_mark_of_a_deleted_row_may_go_back(forged: Forged) -> None:
    """G9: only if a fault deleted the row."""
    forged.rows["bob/phone"] += [
        Listed(1400, [Known(TALK, 104, 104, 104)]),
        Closed(1500, 1006, "", True),
        *welcome(1600, Known(TALK, 104, 104, 0)),
    ]
    assert {violation.promise for violation in forged.found()} == {"G9"}
    forged.losses.append(Loss(1550, TALK, 0, "bob"))
    assert forged.found() == []


def test_read_marks_of_a_deleted_row_may_differ_at_the_end(forged: Forged) -> None:
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.losses.append(Loss(1550, TALK, 0, "ann"))
    assert forged.found() == []
