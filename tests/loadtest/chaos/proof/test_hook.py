"""The judge of the pre-send hook against forged evidence."""

from __future__ import annotations

import pytest

from loadtest.chaos.proof.checker import check
from loadtest.chaos.proof.evidence import Conversation, Evidence, Judged, Run
from loadtest.chaos.proof.history import Acked, Entry, Refused, Rows, Sent

CONV = "g1"
VERDICTS = [Judged(1, "kind", "kind"), Judged(1, "rude", "****"), Judged(1, "awful", "")]


def entry(n: int, body: str, kind: str = "message") -> Entry:
    return Entry(n, n - 1, n, n, kind, "ann", "phone", n, 0, body)


def violations(rows: list[Rows], entries: list[Entry], policy: str = "reject") -> list[tuple[str, int]]:
    run = Run(seed=0, seconds=1, level="fsync", drain_window_s=1, rss_limit_bytes=1, hook=policy)
    log = Conversation(CONV, 9, 0, {"ann": (0, 0)}, entries)
    given = Evidence(run, {CONV: log}, {"ann/phone": rows}, hook=VERDICTS)
    return [(one.promise, one.n) for one in check(given).violations if one.promise in ("G1", "G3", "hook")]


def sent(n: int, body: str) -> Sent:
    return Sent(n, CONV, n, "send", 0, body, 1)


def acked(n: int) -> Acked:
    return Acked(n, CONV, n, n, False)


def test_text_that_the_hook_let_through_is_as_it_left_it() -> None:
    rows: list[Rows] = [sent(1, "kind"), acked(1), sent(2, "rude"), acked(2)]
    assert not {"hook", "G3"} & {promise for promise, _ in violations(rows, [entry(1, "kind"), entry(2, "****")])}


@pytest.mark.parametrize("kind", ["message", "edit"])
@pytest.mark.parametrize(("policy", "found"), [("reject", True), ("accept", False)])
@pytest.mark.parametrize("body", ["rude", "awful", "never seen"])
def test_text_that_the_hook_never_let_through_is_found(policy: str, found: bool, kind: str, body: str) -> None:
    """If failures reject. The hook says nothing about other kinds of events."""
    rows: list[Rows] = [Sent(1, CONV, 1, "send" if kind == "message" else kind, 0, body, 1), acked(1)]
    assert (("hook", 1) in violations(rows, [entry(1, body, kind)], policy)) is found
    assert ("hook", 1) not in violations(rows, [entry(1, body, "react")], policy)


def test_text_that_became_another_than_the_hook_said_is_found() -> None:
    rows: list[Rows] = [sent(1, "rude"), acked(1)]
    assert ("G3", 1) in violations(rows, [entry(1, "kind")])


def test_rejection_of_a_text_that_the_hook_rejected_is_no_violation() -> None:
    rows: list[Rows] = [sent(1, "awful"), Refused(1, 1, "rejected", True)]
    assert violations(rows, []) == []
    assert violations([sent(1, "kind"), Refused(1, 1, "rejected", True)], []) == [("G3", 1)]


def test_rejection_of_a_text_that_was_acked_is_found() -> None:
    """Whatever the hook says now."""
    rows: list[Rows] = [sent(1, "kind"), acked(1), Refused(2, 1, "rejected", True)]
    assert ("G3", 1) in violations(rows, [entry(1, "kind")])
