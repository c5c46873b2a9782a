"""Files of acked messages, as members got them at the end of a run."""

from __future__ import annotations

from msgspec.structs import replace

from loadtest.chaos.proof.evidence import FetchedFile, FileRows, SentFile
from loadtest.chaos.proof.files import check_files

SHA, OTHER = "a" * 64, "b" * 64
SENT = SentFile(1, "g:x", 7, SHA, ["ann", "bob"])
ANN = FetchedFile(2, "g:x", 7, SHA, "ann", 200, SHA)
BOB = replace(ANN, user="bob")


def found(*rows: FileRows) -> list[str]:
    return [violation.what for violation in check_files(rows)]


def test_file_that_all_members_got_breaks_no_promise() -> None:
    assert found(SENT, ANN, BOB) == []


def test_file_that_a_member_did_not_get_is_reported() -> None:
    """Not asked for, refused, or with other bytes; also the file of another message."""
    assert found(SENT, ANN) == [f"bob did not fetch the file {SHA}"]
    assert found(SENT, ANN, replace(BOB, seq=8)) == [f"bob did not fetch the file {SHA}"]
    assert found(SENT, ANN, replace(BOB, status=404)) == [f"bob got 404 for the file {SHA}"]
    assert found(SENT, replace(ANN, digest=OTHER), BOB) == [f"ann got other bytes for the file {SHA}: {OTHER}"]
