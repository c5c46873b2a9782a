"""The judge of contacts and blocks against forged evidence: it finds what a block forbids, and copies that differ."""

from __future__ import annotations

import pytest

from loadtest.chaos.proof.evidence import Conversation, Evidence, Loss, Related, Run, StoredPair, StoredState
from loadtest.chaos.proof.findings import Findings
from loadtest.chaos.proof.history import Entry
from loadtest.chaos.proof.relations import check_relations

CONV = "d:ann:bob"
AGREED = {"ann": ("contact", False), "bob": ("contact", False)}
STATES = [StoredState("ann", 1, {"contact/bob": (1, "x")}), StoredState("bob", 1, {"contact/ann": (1, "x")})]


def event(stamp: int, user: str = "bob", kind: str = "message") -> Entry:
    return Entry(stamp, stamp - 1, 1, stamp, kind, user, "phone", stamp, 0, "")


def call(began: int, user: str, action: str, answer: int = 200) -> Related:
    other = "bob" if user == "ann" else "ann"
    return Related(began, began + 10, user, other, action, answer)


def evidence(calls: list[Related], events: list[Entry], pairs: list[StoredPair] | None = None) -> Evidence:
    run = Run(seed=0, seconds=1, level="fsync", drain_window_s=1, rss_limit_bytes=1)
    log = Conversation(CONV, 999, 0, {}, events)
    return Evidence(run, {CONV: log}, {}, relations=calls, pairs=pairs or [], states=STATES)


@pytest.mark.parametrize("user", ["ann", "bob"])
@pytest.mark.parametrize("kind", ["message", "edit", "react"])
def test_event_of_either_user_after_the_answer_to_a_block_is_found(user: str, kind: str) -> None:
    """Until the same user lifts the block. What came before the answer, and deletes, are no violation."""
    calls = [call(100, "ann", "block"), call(200, "bob", "unblock"), call(300, "ann", "unblock")]
    events = [event(105, user, kind), event(150, user, "delete"), event(250, user, kind), event(305, user, kind)]
    assert [one.seq for one in check_relations(Findings(evidence(calls, events)))] == [250]


def test_block_without_an_answer_proves_nothing() -> None:
    for answer in (0, 503):
        assert list(check_relations(Findings(evidence([call(100, "ann", "block", answer)], [event(150)])))) == []


@pytest.mark.parametrize(("answer", "found"), [(0, 0), (503, 0), (200, 1), (404, 1)])
def test_end_of_a_block_that_was_not_answered_may_come_after_the_next_block(answer: int, found: int) -> None:
    calls = [call(80_000, "ann", "unblock", answer), call(80_100, "ann", "block")]
    assert len(list(check_relations(Findings(evidence(calls, [event(80_200)]))))) == found
    calls[0] = call(10_000, "ann", "unblock", answer)
    assert len(list(check_relations(Findings(evidence(calls, [event(80_200)]))))) == 1


@pytest.mark.parametrize(
    ("copies", "found"),
    [
        (AGREED, 0),
        (AGREED | {"bob": ("", False)}, 1),
        (AGREED | {"ann": ("contact", True)}, 1),
    ],
)
def test_copy_that_differs_from_the_record_is_found(copies: dict[str, tuple[str, bool]], found: int) -> None:
    given = evidence([], [], [StoredPair(CONV, AGREED, copies)])
    assert len(list(check_relations(Findings(given)))) == found
    given.losses.append(Loss(1, CONV, 5, "", True))
    assert list(check_relations(Findings(given))) == []


def test_key_of_the_state_that_differs_from_the_record_is_found() -> None:
    says = {"ann": ("", True), "bob": ("", False)}
    given = evidence([], [], [StoredPair(CONV, says, says)])
    what = [one.what for one in check_relations(Findings(given))]
    assert what == [
        "the state of ann has contact/bob",
        "the state of ann lacks block/bob",
        "the state of bob has contact/ann",
    ]
