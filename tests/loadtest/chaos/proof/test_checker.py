"""The checker against forged evidence: what is whole passes, and each kind of violation is found, under its promise."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from loadtest.chaos.proof import checker
from loadtest.chaos.proof.evidence import Conversation, Ending, Evidence, Fault, Loss, Mark, Run, Sample
from loadtest.chaos.proof.findings import NOTICED_MS, SETTLED_MS, Violation
from loadtest.chaos.proof.history import (
    Acked,
    Closed,
    Connecting,
    Entry,
    Gap,
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


def given(entry: Entry, at: int = 0) -> Received:
    return Received(at or entry.stamp, TALK, entry)


def welcome(at: int, *known: Known, said: dict[str, int] | None = None) -> list[Rows]:
    return [Connecting(at, GATEWAY), Welcomed(at, GATEWAY, "node", "session", said or {}, list(known))]


class Forged:
    """Two users, three devices, four messages, everything as it should be; tests spoil one thing."""

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
                rows.append(given(entry))
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
        """Whatever was found is this."""
        found = self.found()
        assert {violation.promise for violation in found} == {promise}, found
        assert any(all(word in violation.what for word in words) for violation in found), found

    def without(self, device: str, *seqs: int) -> None:
        self.rows[device] = [
            row for row in self.rows[device] if not (isinstance(row, Received) and row.event.seq in seqs)
        ]

    def change(self, device: str, number: int, **fields: object) -> None:
        """The device's `number`-th received event, otherwise."""
        places = [i for i, row in enumerate(self.rows[device]) if isinstance(row, Received)]
        row = self.rows[device][places[number]]
        assert isinstance(row, Received)
        self.rows[device][places[number]] = given(msgspec.structs.replace(row.event, **fields), row.at)

    def insert_after_first(self, device: str, *rows: Rows) -> None:
        place = next(i for i, row in enumerate(self.rows[device]) if isinstance(row, Received))
        self.rows[device][place + 1 : place + 1] = rows


@pytest.fixture
def forged() -> Forged:
    return Forged()


def test_all_is_well(forged: Forged) -> None:
    """Nothing is found where nothing is wrong, and what it rests on is counted."""
    checked = checker.check(forged.evidence())
    assert checked.violations == []
    assert (checked.counts["sends"], checked.counts["deliveries"], checked.counts["events"]) == (4, 12, 4)


# -- G1


def test_acked_and_not_in_the_log(forged: Forged) -> None:
    """G1: an ack for what the log does not have."""
    forged.log.pop()
    for device in forged.rows:
        forged.without(device, 104)
    forged.only("G1", "n 8 of bob/phone was acked as 104", "not in the log")


def test_acked_where_another_message_stands(forged: Forged) -> None:
    """G1: an ack names the place of somebody else's message."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Acked(2000, TALK, 3, 104, False)]
    forged.only("G1", "n 3 of ann/phone was acked as 104", "where n 8 of bob/phone stands")


def test_never_reached_a_device(forged: Forged) -> None:
    """G1: the newest message did not reach one of the devices."""
    forged.without("ann/laptop", 104)
    forged.only("G1", "ann/laptop", "misses 1 events, the first is 104", "the last it got is 103")


def test_reached_nobody_at_all(forged: Forged) -> None:
    """G1: a member whose device was given nothing of a conversation, not even that there is one."""
    forged.without("bob/phone", *SEQS)
    forged.only("G1", "bob/phone", "misses 4 events")


# -- G2


def test_seq_used_twice(forged: Forged) -> None:
    """G2: a device has another message under a seq than the log."""
    forged.change("ann/laptop", 1, user="eve", n=5, body="another")
    forged.only("G2", "ann/laptop", "eve")


def test_seq_used_twice_in_a_log_that_was_lost(forged: Forged) -> None:
    """G2: two devices have different messages under one seq, of which the log knows nothing any more."""
    void = message(105, "cyd", 3)
    forged.rows["ann/laptop"] += [given(void), Gap(1200, TALK, 105, 105, "failover")]
    forged.rows["bob/phone"] += [given(msgspec.structs.replace(void, body="x")), Gap(1200, TALK, 105, 105, "failover")]
    forged.only("G2", "bob/phone", "was told")


def test_one_order_for_all(forged: Forged) -> None:
    """G2: a device was given two events the wrong way round."""
    rows = forged.rows["ann/laptop"]
    rows[3], rows[4] = rows[4], rows[3]
    forged.only("G2", "ann/laptop", "was given 102 after 103")


def test_chain_of_the_log_is_broken(forged: Forged) -> None:
    """G2: an event of the log does not follow the one before it."""
    forged.log[2] = msgspec.structs.replace(forged.log[2], prev=101)
    for device in forged.rows:
        forged.change(device, 2, prev=101)
    forged.only("G2", "103 says it follows 101, and follows 102")


def test_chain_of_the_log_begins_in_the_air(forged: Forged) -> None:
    """G2: the first event of a log that was never trimmed follows something."""
    forged.log[0] = msgspec.structs.replace(forged.log[0], prev=55)
    for device in forged.rows:
        forged.change(device, 0, prev=55)
    forged.only("G2", "101 says it follows 55")


def test_count_falls(forged: Forged) -> None:
    """G2: the count of messages goes back."""
    forged.log[3] = msgspec.structs.replace(forged.log[3], count=1)
    for device in forged.rows:
        forged.change(device, 3, count=1)
    forged.only("G2", "count fell from 3 to 1")


def test_received_and_not_in_the_log(forged: Forged) -> None:
    """G2: a device has an event that the log does not, and was not told that it is void."""
    forged.rows["ann/laptop"].append(given(message(105, "cyd", 3)))
    forged.only("G2", "ann/laptop", "has 105, which is not in the log")


@pytest.mark.parametrize(("prev", "found"), [(107, 0), (104, 1)])
def test_void_whose_follower_was_deleted(forged: Forged, prev: int, found: int) -> None:
    """Only the `prev` of the event after it says that an event is void; where that one is gone nobody can tell."""
    void, delete = message(105, "cyd", 3), msgspec.structs.replace(message(108, "bob", 9, "delete", 107), prev=prev)
    forged.rows["bob/phone"] += [Sent(1100, TALK, 9, "delete", 107, "", 1), Acked(1100, TALK, 9, 108, False)]
    forged.rows["ann/laptop"].append(given(void))
    forged.log.append(delete)
    for rows in forged.rows.values():
        rows.append(given(delete))
    assert [one.what for one in forged.found()] == ["ann/laptop: has 105, which is not in the log"] * found


def test_announced_as_void_is_no_violation(forged: Forged) -> None:
    """After a failover an event may turn out never to have been, if that is said."""
    forged.rows["ann/laptop"] += [given(message(105, "cyd", 3)), Gap(1200, TALK, 105, 105, "failover")]
    assert forged.found() == []


# -- G3


def test_twice_in_the_log(forged: Forged) -> None:
    """G3: a resend made a second event."""
    forged.log.append(msgspec.structs.replace(message(105, "ann", 2), body="body-2"))
    for rows in forged.rows.values():
        rows.append(given(forged.log[-1]))
    forged.only("G3", "n 2 of ann/phone stands at 103 and 105")


def test_two_answers(forged: Forged) -> None:
    """G3: two acks for one n name different places."""
    forged.rows["ann/phone"].insert(3, Acked(1050, TALK, 1, 100, False))
    forged.only("G3", "n 1 was acked as 100 and as 101")


def test_never_answered(forged: Forged) -> None:
    """G3: a send that was repeated to the end and got neither ack nor refusal."""
    forged.rows["ann/phone"].append(Sent(2000, TALK, 3, "send", 0, "body-3", 9))
    forged.only("G3", "n 3 of ann/phone was never answered")


def test_refused_for_good(forged: Forged) -> None:
    """G3: a message that nothing was wrong with is refused."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Refused(2001, 3, "conflict", True)]
    forged.only("G3", "n 3 was refused for good: conflict")


def test_refused_to_a_member(forged: Forged) -> None:
    """G3: a founder who was never put out is told that there is no such conversation."""
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Refused(2001, 3, "not_found", True)]
    forged.only("G3", "n 3 was refused for good: not_found")


def test_refused_to_one_who_was_put_out_is_no_violation(forged: Forged) -> None:
    """What somebody wrote before he knew that he had been put out."""
    removed = Entry(105, 104, 4, 1105, "member", "", "", 0, 0, "remove bob")
    forged.log.append(removed)
    forged.members["bob"] = (0, 105)
    for rows in forged.rows.values():
        rows.append(given(removed))
    forged.rows["bob/phone"] += [Sent(2000, TALK, 9, "send", 0, "body-9", 1), Refused(2001, 9, "not_found", True)]
    assert forged.found() == []


def test_put_out_and_not_told(forged: Forged) -> None:
    """G1: who was put out is given everything up to that."""
    forged.log.append(Entry(105, 104, 4, 1105, "member", "", "", 0, 0, "remove bob"))
    forged.log.append(message(106, "ann", 3))
    forged.members["bob"] = (0, 105)
    forged.rows["ann/phone"] += [Sent(2000, TALK, 3, "send", 0, "body-3", 1), Acked(2001, TALK, 3, 106, False)]
    for device in ("ann/phone", "ann/laptop"):
        forged.rows[device] += [given(entry) for entry in forged.log[4:]]
    forged.only("G1", "bob/phone", "misses 1 events, the first is 105")


def test_refused_for_now_is_no_violation(forged: Forged) -> None:
    """`unavailable` before the ack is what an outage looks like."""
    forged.rows["bob/phone"].insert(-3, Refused(1103, 8, "unavailable", False))
    assert forged.found() == []


def test_internal_error(forged: Forged) -> None:
    """G3: a bug, even if the resend got through."""
    forged.rows["bob/phone"].insert(-3, Refused(1103, 8, "internal", False))
    forged.only("G3", "n 8 met an internal error")


def test_nobody_sent_it(forged: Forged) -> None:
    """G3: the log has other content than was sent."""
    forged.log[1] = msgspec.structs.replace(forged.log[1], body="invented")
    for device in forged.rows:
        forged.change(device, 1, body="invented")
    assert {violation.promise for violation in forged.found()} == {"G1", "G3"}
    assert any("nobody sent what stands at 102" in violation.what for violation in forged.found())


# -- G4, G5


def test_hole_that_nobody_announced(forged: Forged) -> None:
    """G4: an event is missing among those that came."""
    forged.without("ann/laptop", 102)
    forged.only("G4", "ann/laptop", "misses 1 events, the first is 102")


def test_announced_as_expired_is_no_violation(forged: Forged) -> None:
    """A hole that was trimmed away and announced."""
    forged.log, forged.floor = forged.log[2:], 102
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"].insert(2, Gap(1100, TALK, 1, 102, "expired"))
    assert forged.found() == []


@pytest.mark.parametrize(("gaps", "found"), [([], 1), ([(1, 101)], 1), ([(1, 102)], 0), ([(101, 101), (102, 102)], 0)])
def test_hole_in_what_was_trimmed(forged: Forged, gaps: list[tuple[int, int]], found: int) -> None:
    """G4: an acked event that the log has no more did not come to a device, which was told of less than that."""
    forged.log, forged.floor = forged.log[2:], 102
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"] += [Gap(1100, TALK, *gap, "expired") for gap in gaps]
    violations = forged.found()
    assert [one.promise for one in violations] == ["G4"] * found
    assert all("that were trimmed since, the first is" in one.what for one in violations)


def test_what_was_trimmed_and_given_is_no_violation(forged: Forged) -> None:
    """All have it, but for a device that began later, and one whose user came later. Nobody needs a deleted message."""
    delete = message(105, "ann", 3, "delete", 101)
    forged.rows["ann/phone"] += [Sent(1105, TALK, 3, "delete", 101, "", 1), Acked(1105, TALK, 3, 105, False)]
    forged.members["cyd"] = (103, 0)
    forged.rows["ann/tablet"] = welcome(1103, Known(TALK, 102, 103, 103))
    forged.rows["cyd/phone"] = [*welcome(1000), Listed(1103, [Known(TALK, 102, 103, 0)])]
    for device in ("ann/tablet", "cyd/phone"):
        forged.rows[device] += [given(entry) for entry in forged.log[2:]]
    for rows in forged.rows.values():
        rows.append(given(delete))
    forged.without("ann/laptop", 101)
    forged.log, forged.floor = [message(106, "bob", 9)], 105
    for rows in forged.rows.values():
        rows.append(given(forged.log[0]))
    forged.rows["bob/phone"] += [Sent(1106, TALK, 9, "send", 0, "body-9", 1), Acked(1106, TALK, 9, 106, False)]
    assert forged.found() == []


def test_acked_where_another_message_stood(forged: Forged) -> None:
    """G1: what all were given under the seq of an ack, before it was trimmed, was not what its author had sent."""
    for device in forged.rows:
        forged.change(device, 0, body="another")
    forged.log, forged.floor = forged.log[2:], 102
    forged.only("G1", "n 1 of ann/phone was acked as 101, where others have n 1 of ann")


def test_gap_that_was_none(forged: Forged) -> None:
    """G4: a device was told of a failover, and the events are there."""
    forged.rows["ann/laptop"].append(Gap(1200, TALK, 102, 103, "failover"))
    forged.only("G4", "was told that 102-103 never was; 102 stands there")


def test_gap_beyond_the_floor(forged: Forged) -> None:
    """G4: a device was told that more is gone than is."""
    forged.rows["ann/laptop"].append(Gap(1200, TALK, 1, 102, "expired"))
    forged.only("G4", "was told that 1-102 is gone; the log begins at 0")


def test_away_and_not_given_all(forged: Forged) -> None:
    """G5: what was written while a device was away did not come when it came back."""
    forged.log[1] = msgspec.structs.replace(forged.log[1], stamp=20_000)
    for device in ("ann/phone", "bob/phone"):
        forged.change(device, 1, stamp=20_000)
    forged.without("ann/laptop", 102)
    forged.insert_after_first("ann/laptop", Closed(10_000, 1006, "", False), *welcome(30_000, Known(TALK, 101, 102, 0)))
    forged.only("G5", "ann/laptop", "from a time when it was away")


def test_new_device_begins_too_late(forged: Forged) -> None:
    """G5: a device that the server has never seen is given less than it was promised."""
    forged.rows["ann/tablet"] = welcome(5000, Known(TALK, 103, 104, 103))
    forged.rows["ann/tablet"].append(given(forged.log[3], 5000))
    forged.only("G5", "ann/tablet", "begins with the last 1 of 4 events")


@pytest.mark.parametrize(("failover", "found"), [((100, 4_000), 0), ((9_000, 9_500), 0), ((100, 200), 1)])
def test_new_device_in_a_failover(forged: Forged, failover: tuple[int, int], found: int) -> None:
    """What a failover takes back was counted for a device that came then, or a moment before; not for a later one."""
    forged.faults = [Fault("primary-kill", "", *failover)]
    forged.rows["ann/tablet"] = welcome(12_000 if found else 5000, Known(TALK, 103, 104, 103))
    forged.rows["ann/tablet"].append(given(forged.log[3], 12_000))
    assert len(forged.found()) == found


def test_later_member_begins_where_he_came(forged: Forged) -> None:
    """A member who came later owes nobody what was before him."""
    forged.members["cyd"] = (103, 0)
    forged.rows["cyd/phone"] = [*welcome(1000), Listed(1103, [Known(TALK, 102, 103, 0)])]
    forged.rows["cyd/phone"] += [given(forged.log[2]), given(forged.log[3])]
    assert forged.found() == []


# -- G6


def test_doubled_in_a_session(forged: Forged) -> None:
    """G6: one session is given an event twice."""
    forged.rows["ann/laptop"].append(given(forged.log[3], 1300))
    forged.only("G6", "was given 104 twice in one session")


def test_given_again_what_it_said_it_had(forged: Forged) -> None:
    """G2: a session begins before the cursor that its device named."""
    forged.rows["ann/laptop"] += [Closed(1200, 1012, "", False), *welcome(1300, Known(TALK, 104, 104, 0))]
    forged.rows["ann/laptop"].append(given(forged.log[3], 1300))
    forged.only("G2", "was given 104 after 104")


@pytest.mark.parametrize(
    ("code", "words"), [(4409, "shut out"), (4500, "shut out"), (1011, "cut off"), (1002, "cut off")]
)
def test_sent_away_for_good(forged: Forged, code: int, words: str) -> None:
    """G6: a client that did nothing wrong must not come back, or is told that it did."""
    forged.rows["ann/laptop"].append(Closed(1300, code, "why", False))
    forged.only("G6", words, str(code))


@pytest.mark.parametrize(
    ("until", "step", "found"),
    [(1200, "", 0), (60_000, "", 1), (60_000, GATEWAY, 0), (60_000, "ws://two", 1)],
)
def test_token_has_expired(forged: Forged, until: int, step: str, found: int) -> None:
    """G6: told so of a token that holds, by a gateway whose clock nobody has touched."""
    forged.faults = [Fault("gateway-clock", f"{step} by +50.0 s", 1000, 1400)] if step else []
    forged.rows["ann/laptop"] += [Valid(1100, until), Closed(1300, 4501, "token expired", False), *welcome(1500)]
    violations = forged.found()
    assert len(violations) == found
    assert all(one.promise == "G6" and "has expired which holds until 60000" in one.what for one in violations)


def test_reconnects_of_a_drain_in_one_second(forged: Forged) -> None:
    """G6: those that a drain sent away come back all at once."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000)]
    for number in range(60):
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(3000 + number, 1012, "", False), *welcome(3500)]
    forged.only("G6", "60 of 60 drained clients came back in one second")


@pytest.mark.parametrize("kind", ["client-hold", "gateway-stall"])
def test_reconnects_of_a_drain_that_clients_heard_of_late(forged: Forged, kind: str) -> None:
    """A link that is held lets go of everything at once, however it was spread."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000), Fault(kind, "gateway-0", 1000, 3000)]
    for number in range(60):
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(3000 + number, 1012, "", False), *welcome(3500)]
    assert forged.found() == []


def test_reconnects_of_a_drain_that_are_spread(forged: Forged) -> None:
    """Six a second, of sixty in ten seconds, is what was promised."""
    forged.run = msgspec.structs.replace(forged.run, drain_window_s=10)
    forged.faults = [Fault("gateway-term", GATEWAY, 2000, 14_000)]
    for number in range(60):
        at = 2500 + number * 166
        forged.rows[f"zoe/{number}"] = [*welcome(1000), Closed(at, 1012, "", False), *welcome(at + 100)]
    assert forged.found() == []


def test_process_that_ends_by_itself(forged: Forged) -> None:
    """G6: a process died, and nobody had killed it."""
    forged.processes = [Ending(2000, "gateway-0", 1, "")]
    forged.only("G6", "gateway-0 ended by itself with 1")


def test_process_that_does_not_stop_well(forged: Forged) -> None:
    """G6: a process that was told to stop did not exit 0."""
    forged.processes = [Ending(2000, "gateway-0", -9, "SIGTERM"), Ending(2000, "gateway-1", -9, "SIGKILL")]
    forged.only("G6", "gateway-0 was told to stop and ended with -9")


def test_process_that_met_a_bug(forged: Forged, tmp_path: Path) -> None:
    """G6: a trace in a log is told by what it ended with; warnings are not."""
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


def test_memory_beyond_its_limit(forged: Forged) -> None:
    """G7: a process holds more than it may."""
    forged.processes = [Sample(1000, "gateway-0", LIMIT), Sample(2000, "gateway-1", LIMIT + (5 << 20))]
    forged.only("G7", "gateway-1 holds 105 MiB")


@pytest.mark.parametrize(
    ("told", "what"), [({"bob": True}, "bob is online, who is offline"), ({}, "bob is nothing, who is offline")]
)
def test_ghost(forged: Forged, told: dict[str, bool], what: str) -> None:
    """G8: somebody who has gone still shows as online, or nothing was ever said."""
    forged.run.marks = [Mark(3000, ["ann"], ["bob"])]
    forged.rows["ann/phone"] += [Watching(2000, ["bob"]), Seen(2001, told), Closed(9000, 1000, "", True)]
    forged.only("G8", "is told that " + what)


def test_presence_that_is_right_in_time(forged: Forged) -> None:
    """What was told before the mark counts, what came after it does not."""
    forged.run.marks = [Mark(3000, ["bob"], []), Mark(6000, [], ["bob"])]
    forged.rows["ann/phone"] += [Watching(2000, ["bob"]), Seen(2001, {"bob": True}), Seen(5000, {"bob": False})]
    assert forged.found() == []


def test_read_marks_differ_at_the_end(forged: Forged) -> None:
    """G9: what one device knows to be read the other does not."""
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.only("G9", "the devices of ann know different read marks")


@pytest.mark.parametrize(("ended", "found"), [(1250, 0), (1100 - SETTLED_MS, 1)])
def test_read_marks_after_a_failover(forged: Forged, ended: int, found: int) -> None:
    """They are not acked: one told before a failover's end may be gone afterwards; what was told later must stay."""
    forged.faults = [Fault("failover", "", ended - 50, ended)]
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.rows["bob/phone"].append(ReadReceipt(1200, TALK, "bob", 104))
    forged.rows["bob/phone"] += [Closed(1300, 1006, "", False), *welcome(1400, Known(TALK, 104, 104, 102))]
    assert [one.promise for one in forged.found()] == ["G9", "G9"] * found


def test_failover_that_nobody_asked_for(forged: Forged, tmp_path: Path) -> None:
    """Sentinels make one of their own when a primary is too slow; their logs say so."""
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    forged.process_logs["sentinel-0"] = tmp_path / "sentinel-0.log"
    when = datetime.fromtimestamp(2, UTC).astimezone().strftime("%d %b %Y %H:%M:%S.000")
    forged.process_logs["sentinel-0"].write_text(f"99:X {when} # +switch-master main 127.0.0.1 1 127.0.0.1 2\n")
    assert forged.found() == []


def test_read_marks_of_one_who_left(forged: Forged) -> None:
    """Nobody is told the marks of a group that he is not in."""
    forged.members["ann"] = (0, 104)
    forged.rows["ann/phone"].append(ReadReceipt(1200, TALK, "ann", 104))
    assert forged.found() == []


def test_own_messages_mark_as_read(forged: Forged) -> None:
    """Both devices have bob's newest of his own, so both know that he has read up to it."""
    forged.rows["bob/laptop"] = [*welcome(1000), *(given(entry) for entry in forged.log)]
    assert forged.found() == []


def test_read_mark_goes_back(forged: Forged) -> None:
    """G9: a welcome says less than the server had said before."""
    forged.rows["bob/phone"].append(ReadReceipt(1200, TALK, "bob", 104))
    forged.rows["bob/phone"] += [Closed(1300, 1006, "", False), *welcome(1400, Known(TALK, 104, 104, 102))]
    forged.only("G9", "read mark went from 104 back to 102")


# -- deletes


def test_deleted_messages_leave_their_marks(forged: Forged) -> None:
    """A message and its edit that were deleted may be missing anywhere, and in the chain."""
    edit = message(105, "ann", 3, "edit", 103)
    delete = message(106, "ann", 4, "delete", 103)
    for entry in (edit, delete):
        forged.rows["ann/phone"].append(Sent(entry.stamp, TALK, entry.n, entry.kind, 103, entry.body, 1))
        forged.rows["ann/phone"].append(Acked(entry.stamp, TALK, entry.n, entry.seq, False))
    forged.rows["ann/phone"] += [given(edit), given(delete)]
    forged.rows["bob/phone"] += [given(edit), given(delete)]
    forged.without("ann/laptop", 103)
    forged.rows["ann/laptop"].append(given(delete))
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


def test_duplicate_ack_during_a_broken_durability_is_no_violation(forged: Forged) -> None:
    forged.rows["ann/phone"].append(Acked(1300, TALK, 2, 103, True))
    forged.faults.append(Fault("valkey-settings", "appendonly no", 1200 - NOTICED_MS, 1400))
    assert forged.found() == []


@pytest.mark.parametrize(("gaps", "found"), [([], ["G4"]), ([(1, 102)], [])])
def test_deleted_log_must_be_announced(forged: Forged, gaps: list[tuple[int, int]], found: list[str]) -> None:
    """G4: a device that did not receive what a fault deleted was told no gap. Devices that received it are right."""
    forged.losses.append(Loss(1102, TALK, 102, ""))
    forged.log = forged.log[2:]
    forged.without("ann/laptop", 101, 102)
    forged.rows["ann/laptop"] += [Gap(1102, TALK, *gap, "expired") for gap in gaps]
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
