"""The judgement of user state: correct evidence passes, and each violation of G11 is found."""

from __future__ import annotations

from loadtest.chaos.proof import client_history
from loadtest.chaos.proof.evidence import StoredState
from loadtest.chaos.proof.findings import Violation
from loadtest.chaos.proof.history import Holds, Put, Rows, Stated
from loadtest.chaos.proof.states import check_client_states, check_states

STORED = StoredState("ann", 30, {"a": (30, "x3"), "gone": (20, "")})
KEPT = {"a": (30, "x3")}


def found(*rows: Rows, device: str = "ann/phone") -> list[Violation]:
    laptop: list[Rows] = [Stated(1, "a", 10, 0, "x1"), Holds(9, 30, KEPT)]
    histories: dict[str, list[Rows]] = {"ann/laptop": laptop, device: [*rows]}
    return list(check_states([STORED], dict(histories)))


def broken(*rows: Rows) -> str:
    violations = found(*rows)
    assert {one.promise for one in violations} == {"G11"}
    assert {one.devices for one in violations} == {("ann/phone",)}
    return violations[0].what


def test_correct_evidence_has_no_violation() -> None:
    """Also a device that received less, as long as it has everything at the end; other users do not matter."""
    assert found(Put(2, "gone", 20, ""), Stated(3, "a", 30, 20, "x3"), Holds(9, 30, KEPT)) == []
    assert found(Holds(9, 30, KEPT)) == []
    assert found(Put(2, "a", 25, "x2"), Holds(9, 30, KEPT)) == []
    assert found(Stated(1, "b", 10, 0, "other"), device="bob/phone") == []


def test_device_that_differs_at_the_end_is_found() -> None:
    assert "['a']" in broken(Holds(9, 30, {"a": (10, "x1")}))
    assert "['gone']" in broken(Holds(9, 30, {**KEPT, "gone": (5, "x0")}))
    assert "version 20" in broken(Holds(9, 20, KEPT))


def test_version_of_two_changes_is_found() -> None:
    """Of two devices, or of a device and the store."""
    assert "version 10" in broken(Stated(1, "a", 10, 0, "y"))
    assert "version 30" in broken(Stated(1, "b", 30, 0, "x3"))


def test_answered_change_that_is_not_stored_is_found() -> None:
    assert "35" in broken(Put(1, "a", 35, "x4"))
    assert "None" in broken(Put(1, "b", 7, "x"))


def test_application_must_show_the_state_and_what_it_was_answered_must_be_stored() -> None:
    stored = [StoredState("ann", 9, {"app/1": (9, "x"), "app/2": (8, "")})]

    def broken(version: int, state: dict[str, str]) -> list[str]:
        put, shown = client_history.Put(1, 1, "app/1", version), client_history.Shown(2, 1, {}, [], state)
        return [one.promise for one in check_client_states(stored, {"ann.phone": [put, shown]})]

    assert broken(9, {"app/1": "x"}) == broken(7, {"app/1": "x"}) == []
    assert broken(10, {"app/1": "x"}) == ["G11"]  # it was answered, and is lost
    assert broken(9, {"app/1": "y"}) == broken(9, {}) == broken(9, {"app/1": "x", "app/2": "z"}) == ["G11"]
