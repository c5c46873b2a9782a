"""The judgement of clients against forged evidence: correct lives pass, and each broken promise is found."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loadtest.chaos.proof import checker, clients
from loadtest.chaos.proof import client_history as rows
from loadtest.chaos.proof.client_history import ClientHistory, ClientRows, ClientWriter
from loadtest.chaos.proof.evidence import Conversation, Evidence, Run
from loadtest.chaos.proof.history import Entry

TALK = "d:ann:bob"
PHONE = "ann.phone"


def message(seq: int, user: str, body: str, kind: str = "message", target: int = 0) -> Entry:
    return Entry(seq, seq - 1, seq, 10_000 * seq, kind, user, "phone.x", seq, target, body)


LOG = (
    message(1, "bob", "b1"),
    message(2, "ann", "a2"),
    message(3, "bob", "b3"),
    message(4, "ann", "a4", "edit", 2),
    message(5, "bob", "b5"),
)


def handed(life: int, *seqs: int) -> list[ClientRows]:
    return [rows.Handed(10_000 * seq, life, TALK, LOG[seq - 1]) for seq in seqs]


def sent(ref: str, body: str, seq: int, kind: str = "message") -> list[ClientRows]:
    return [
        rows.Asked(9_000 * seq, 1, ref, TALK, kind, body),
        rows.Stored(9_500 * seq, 1, ref),
        rows.Acked(10_000 * seq, 1, ref, TALK, seq),
    ]


class Forged:
    """Two lives of one store of ann; each test spoils one thing."""

    def __init__(self) -> None:
        self.first: list[ClientRows] = [
            rows.Opened(0, 1, "ann", "phone.x"),
            rows.Status(1, 1, "live", ""),
            *sent("ann 1", "a2", 2),
            *handed(1, 1, 2, 3),
            rows.Kept(30_000, 1, {TALK: 2}),
            rows.Ended(31_000, 1, True),
        ]
        self.second: list[ClientRows] = [
            rows.Opened(32_000, 2, "ann", "phone.x"),
            *handed(2, 3),
            *sent("ann 2", "a4", 4, "edit"),
            *handed(2, 4, 5),
            rows.Shown(60_000, 2, {TALK: self.shown()}, []),
        ]
        self.floor = 0

    @staticmethod
    def shown(*texts: tuple[int, str], read: int = 5) -> rows.ShownConversation:
        return rows.ShownConversation(read, list(texts or ((1, "b1"), (2, "a4"), (3, "b3"), (5, "b5"))))

    def broken(self, **others: list[ClientRows]) -> list[tuple[str, str]]:
        """The promises that are found to be broken, and how."""
        log = [entry for entry in LOG if entry.seq > self.floor]
        talk = Conversation(TALK, 5, self.floor, {"ann": (0, 0), "bob": (0, 0)}, log)
        bob: list[ClientRows] = [
            row
            for seq in (1, 3, 5)
            for row in (rows.Asked(seq, 1, f"bob {seq}", TALK, "message", f"b{seq}"), rows.Stored(seq, 1, f"bob {seq}"))
        ]
        installations = {
            PHONE: self.first + self.second,
            "bob.phone": [rows.Opened(0, 1, "bob", "phone.y"), *bob],
            **others,
        }
        installations["bob.phone"] += handed(1, 1, 2, 3, 4, 5)
        made = Evidence(Run(1, 60, "fsync", 5, 100 << 20), {TALK: talk}, {}, clients=installations)
        return [(one.promise, one.what) for one in checker.check(made).violations]

    def first_broken(self) -> str:
        return (self.broken() or [("none", "")])[0][0]


def test_correct_lives_pass() -> None:
    """The second life is given again what was not stored, and everything is there."""
    assert Forged().broken() == []


def test_stored_command_without_an_end_is_found() -> None:
    forged = Forged()
    forged.first[-1:-1] = [rows.Asked(9, 1, "ann 9", TALK, "message", "a9"), rows.Stored(10, 1, "ann 9")]
    assert forged.first_broken() == "G1"


def test_command_that_was_never_stored_may_be_lost() -> None:
    forged = Forged()
    forged.first[-1:-1] = [rows.Asked(9, 1, "ann 9", TALK, "message", "a9")]
    assert forged.broken() == []


def test_stored_command_may_be_lost_with_a_store_that_was_removed() -> None:
    """Removed between two lives; removed under a client, it may only be lost if that client was killed, too."""
    lost: list[ClientRows] = [rows.Asked(9, 1, "ann 9", TALK, "message", "a9"), rows.Stored(10, 1, "ann 9")]
    forged = Forged()
    forged.first += [*lost, rows.Wiped(31_500, False)]
    assert forged.broken() == []
    forged = Forged()
    forged.first[-1:-1] = [*lost, rows.Wiped(11, True)]
    assert forged.broken() == []
    forged.first.pop()
    forged.second[:1] = []
    forged.second = [*handed(1, 4, 5), forged.second[-1]]
    assert ("G1", True) in [(promise, "no end" in what) for promise, what in forged.broken()]


def test_second_effect_of_a_command_is_found() -> None:
    forged = Forged()
    forged.first[2:5] = sent("ann 1", "b1", 2)
    assert "G3" in [promise for promise, _ in forged.broken()]


def test_ack_of_another_event_is_found() -> None:
    forged = Forged()
    forged.first[4] = rows.Acked(20_000, 1, "ann 1", TALK, 3)
    assert forged.first_broken() == "G1"


def test_failed_command_that_took_effect_is_found() -> None:
    forged = Forged()
    forged.first[4] = rows.Failed(20_000, 1, "ann 1", "not_found")
    assert forged.broken() == []  # a delayed copy was accepted, and its event has told the user so
    forged.second[-1] = rows.Shown(60_000, 2, {TALK: forged.shown()}, [], failed=["ann 1"])
    assert forged.first_broken() == "G3"


def test_user_who_is_shown_offline_at_the_end_is_found() -> None:
    forged = Forged()
    forged.second[-1] = rows.Shown(60_000, 2, {TALK: forged.shown()}, [], online={"bob": True})
    assert forged.broken() == []
    for seen in (False, None):
        forged.second[-1] = rows.Shown(60_000, 2, {TALK: forged.shown()}, [], online={"bob": True, "eve": seen})
        assert forged.first_broken() == "G8"


def test_event_given_twice_in_a_life_is_found() -> None:
    forged = Forged()
    forged.second += handed(2, 5)
    assert forged.first_broken() == "G5"


def test_event_below_the_stored_cursor_given_to_a_later_life_is_found() -> None:
    forged = Forged()
    forged.second[1:1] = handed(2, 2)
    assert forged.first_broken() == "G5"


def test_hole_over_two_lives_is_found_unless_a_gap_announces_it() -> None:
    forged = Forged()
    forged.second[1:2] = []
    forged.first[7:8] = []
    assert forged.first_broken() == "G4"
    forged.floor = 3
    forged.first.insert(7, rows.Missing(30_000, 1, TALK, 3, 3, "expired"))
    assert forged.broken() == []


def test_missing_end_is_found() -> None:
    forged = Forged()
    forged.second[-2:-1] = []
    assert forged.first_broken() == "G1"


def test_gap_over_what_is_there_is_found() -> None:
    forged = Forged()
    forged.second.append(rows.Missing(60_000, 2, TALK, 5, 5, "failover"))
    assert forged.first_broken() == "G4"


@pytest.mark.parametrize(
    "texts",
    [
        ((1, "b1"), (2, "a2"), (3, "b3"), (5, "b5")),
        ((1, "b1"), (2, "a4"), (5, "b5")),
        ((2, "a4"), (1, "b1"), (3, "b3")),
    ],
    ids=["edit lost", "message lost", "order"],
)
def test_view_that_differs_from_the_log_is_found(texts: tuple[tuple[int, str], ...]) -> None:
    forged = Forged()
    forged.second[-1] = rows.Shown(60_000, 2, {TALK: Forged.shown(*texts)}, [])
    assert forged.first_broken() == "G2"


def test_different_read_marks_of_a_user_are_found() -> None:
    forged = Forged()
    other: list[ClientRows] = [
        rows.Opened(0, 1, "ann", "laptop.z"),
        *handed(1, 1, 2, 3, 4, 5),
        rows.Shown(60_000, 1, {TALK: Forged.shown(read=3)}, []),
    ]
    assert [promise for promise, _ in forged.broken(**{"ann.laptop": other})] == ["G9"]


def test_client_that_stops_by_itself_is_found_unless_its_store_was_copied() -> None:
    forged = Forged()
    forged.second.append(rows.Status(61_000, 2, "stopped", "replaced"))
    assert forged.first_broken() == "G6"
    forged.first.insert(0, rows.Copied(0, "ann.copy"))
    assert forged.broken() == []


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "ann.phone.jsonl"
    writer = ClientWriter(path)
    forged = Forged()
    for row in forged.first + forged.second:
        writer.add(row)
    writer.close()
    assert list(ClientHistory(path)) == forged.first + forged.second
    assert all(isinstance(row, msgspec.Struct) for row in ClientHistory(path))


@pytest.mark.parametrize(("past", "found"), [(2, []), (3, ["G4"])])
def test_new_store_that_connects_late_begins_with_the_newest_events(
    past: int, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "PAST", past)
    forged = Forged()
    forged.first[-2:] = [rows.Kept(9_000, 1, {TALK: 1}), rows.Wiped(9_500, True), rows.Renamed(10_000, 1, "phone.z")]
    forged.first = [row for row in forged.first if not isinstance(row, rows.Handed) or row.event.seq == 1]
    late: list[ClientRows] = [rows.Handed(55_000, 1, TALK, LOG[seq - 1]) for seq in (4, 5)]
    forged.second = [*sent("ann 2", "a4", 4, "edit"), *late, rows.Shown(60_000, 1, {TALK: forged.shown()}, [])]
    assert [promise for promise, _ in forged.broken()] == found


def test_every_tab_of_a_browser_goes_on_with_its_new_store() -> None:
    """A tab that reports the new device name later receives the events again, too. A tab that was opened while the
    store was being removed reports the old name first, and the removal may end after the new name was reported."""
    forged = Forged()
    forged.first = [
        rows.Opened(0, 1, "ann", "phone.x"),
        rows.Opened(0, 2, "ann", "phone.x"),
        *sent("ann 1", "a2", 2),
        *handed(2, 1, 2, 3),
        rows.Kept(30_000, 2, {TALK: 3}),
        rows.Wiped(30_001, True),
        rows.Opened(30_001, 3, "ann", "phone.x"),
        rows.Renamed(30_002, 1, "phone.z"),
        rows.Renamed(30_003, 2, "phone.z"),
        rows.Wiped(30_003, True, done=True),
    ]
    forged.second = [
        rows.Opened(30_004, 4, "ann", "phone.z"),
        *handed(2, 1, 2, 3),
        *sent("ann 2", "a4", 4, "edit"),
        *handed(4, 4),
        *handed(2, 5),
        rows.Shown(60_000, 2, {TALK: forged.shown()}, []),
    ]
    assert forged.broken() == []
    forged.second[-1:-1] = [rows.Kept(50_001, 2, {TALK: 5}), *handed(2, 4)]
    assert forged.first_broken() == "G5"
