"""The next step of a session that is behind, decided without I/O."""

from __future__ import annotations

import pytest

from gateway.delivery import backlog as module
from gateway.delivery.backlog import Backlog, Step, next_step


class Hub:
    def __init__(self, conversation: str, written: int) -> None:
        self.conversation = conversation
        self.written = written


def backlog(
    todo: dict[str, int | None] | None = None,
    positions: dict[str, int] | None = None,
    older: bool = False,
    overflowed: bool = False,
    claims: bool = False,
) -> Backlog:
    made = Backlog()
    made.todo = todo or {}
    made.positions = positions or {}
    made.list_older = (lambda: None) if older else None
    made.overflowed = overflowed
    made.claims = {"d": 7} if claims else {}
    return made


LEVEL = [Hub("g", 5)]


@pytest.mark.parametrize(
    ("state", "hubs", "unflushed", "step"),
    [
        (backlog(), [], False, Step.GO_LIVE),
        (backlog(positions={"g": 5}), LEVEL, False, Step.GO_LIVE),
        (backlog(positions={"g": 5}), LEVEL, True, Step.FLUSH),
        (backlog(positions={"g": 6}), LEVEL, True, Step.COMPARE_AHEAD),
        (backlog(positions={"g": 6}, overflowed=True), LEVEL, True, Step.RESYNC),
        (backlog(positions={"g": 5}, older=True, overflowed=True), LEVEL, True, Step.LIST_OLDER),
        (backlog(positions={"g": 4}, older=True, overflowed=True), LEVEL, True, Step.NOTE_MOVED_HUBS),
        (backlog({"d": 7}, {"g": 4}, older=True, overflowed=True), LEVEL, True, Step.READ),
        (backlog({"g": None}, {"g": 4}), LEVEL, False, Step.READ),
        (backlog({"d": 9}, {"g": 4}, claims=True), LEVEL, True, Step.CHECK_CLAIMS),
        (backlog(positions={"g": 5, "h": 9}), [*LEVEL, Hub("h", 10)], False, Step.NOTE_MOVED_HUBS),
    ],
)
def test_next_step_follows_this_order(state: Backlog, hubs: list[Hub], unflushed: bool, step: Step) -> None:
    assert next_step(state, hubs, unflushed) is step


def test_more_moved_conversations_than_the_bound_overflow_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation that is noted already takes no further room, and its position only rises."""
    monkeypatch.setattr(module, "MAX_MOVED", 2)
    made = Backlog()
    for conversation, seq in (("a", 5), ("b", 3), ("a", 4), ("b", 9)):
        made.moved(conversation, seq)
    assert (made.todo, made.overflowed) == ({"a": 5, "b": 9}, False)
    made.moved("c", 1)
    assert (made.todo, made.overflowed) == ({"a": 5, "b": 9}, True)
