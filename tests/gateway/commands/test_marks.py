"""Acks and read marks: joined, written a few at a time, and written again if Redis did not take them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands import marks
from gateway.delivery.feed import State
from tests.gateway.dial import Dial, Fake


def test_marks_are_written_once_a_turn_and_joined() -> None:
    """Acks and read marks of a session that are noted in one turn are written together."""
    dial = Dial()
    session: Any = Fake(dial).ready()
    session.acks, session.reads = {"g": 5, "h": 6}, {"g": (5, 2)}
    dial.marks.note(session)
    dial.marks.note(session)
    dial.turn_to(101)
    dial.turn_to(103)
    assert (dial.acked, dial.reads) == ([{"g": 5, "h": 6}], [("g", 5, 2)])
    assert (session.acks, session.reads) == (None, None)


def test_marks_that_redis_refused_are_written_again() -> None:
    """Otherwise a push is sent for received events, and the user's own messages stay unread. Marks only rise."""
    dial = Dial()
    session: Any = Fake(dial).ready()
    session.acks, session.reads = {"g": 5, "h": 6}, {"g": (5, 2), "h": (6, 6)}
    dial.marks.note(session)
    dial.down = True
    dial.turn_to(101)
    session.acks, session.reads = {"g": 7, "h": 4, "i": 1}, {"g": (7, 3), "h": (4, 4)}
    dial.answered()
    for second in (102, 103):
        dial.turn_to(second)
        dial.answered()
    dial.down = False
    dial.turn_to(104)
    dial.answered()
    dial.turn_to(106)
    assert dial.acked == [{"g": 7, "h": 6, "i": 1}]
    assert sorted(dial.reads) == [("g", 7, 3), ("h", 6, 6)]


def test_marks_of_an_ended_session_are_written_once_more() -> None:
    """One retry, because thousands of sessions may end at once; after it nothing is kept."""
    dial = Dial()
    lost, late = Fake(dial).ready(), Fake(dial).ready()
    dial.down = True
    for session in (lost, late):
        ended: Any = session
        ended.state, ended.acks, ended.reads = State.CLOSED, {"g": 5}, {"g": (5, 2)}
        dial.marks.write(ended)
        dial.answered()
        dial.down = session is lost
        dial.turn_to(dial.now + 1)
        dial.answered()
        dial.down = True
    assert (dial.acked, dial.reads, dial.tries) == ([{"g": 5}], [("g", 5, 2)], 8)
    dial.turn_to(110)
    assert (dial.tries, dial.marks._noted, dial.marks._writing) == (8, {}, {})


def test_marks_of_many_sessions_are_written_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they were noted; later marks wait until all earlier ones are written."""
    monkeypatch.setattr(marks, "MARKS_AT_ONCE", 2)
    dial = Dial()
    sessions: list[Any] = [Fake(dial).ready() for _ in range(5)]
    for seq, session in enumerate(sessions):
        session.acks = {"g": seq}
        dial.marks.note(session)
    dial.turn_to(101)
    written = [[acks["g"] for acks in dial.acked]]
    sessions[0].acks = {"g": 9}
    dial.marks.note(sessions[0])
    for second in (102, 103, 104):
        dial.turn_to(second)
        dial.next_step()
        written.append([acks["g"] for acks in dial.acked])
    assert written == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 9]]
    assert dial.step is None
