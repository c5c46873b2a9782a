"""The clock: one timer, and no session or part that raises stops it."""

from __future__ import annotations

from typing import Any

from gateway.delivery import deadlines, heartbeats
from tests.gateway.dial import Dial, Fake


def test_stalled_loop_skips_no_deadline() -> None:
    """Every second that passed is checked, however late the turn comes; missed turns are not repeated."""
    dial = Dial()
    sessions = []
    for i in range(5):
        dial.turn_to(100.0 + i)
        sessions.append(Fake(dial))
    assert dial.timer is not None
    dial.now = 140.0
    dial.timer[1]()
    assert all(session.closed for session in sessions)
    turns = dial.turns
    dial.turn_to(143)
    assert dial.turns - turns == 4


def test_ended_session_is_removed_everywhere() -> None:
    dial = Dial()
    for _ in range(30):
        session: Any = Fake(dial)
        if dial.now % 2:
            session.ready()
        dial.turn_to(dial.now + 0.7)
        dial.remove(session)
    assert dial.heartbeats._bucket_of == {}
    assert not any(dial.heartbeats._wheel)
    assert not any(dial.deadlines._due.values())


def test_stopped_clock_does_not_turn() -> None:
    dial = Dial()
    dial.clock.stop()
    assert dial.timer is None
    assert heartbeats.LOST_AFTER_HEARTBEATS < heartbeats.STALLED_FOR_HEARTBEATS


class Broken(Fake):
    """A session that raises wherever the clock looks at it."""

    @property
    def last_received(self) -> float:
        raise RuntimeError("broken")

    @last_received.setter
    def last_received(self, _: float) -> None: ...

    def close(self, code: int, reason: str = "") -> None:
        raise RuntimeError("broken")


def test_session_that_raises_does_not_stop_the_clock() -> None:
    """Deadlines, heartbeats and marks of the other sessions go on, and so do audits and the lease."""
    dial = Dial()
    one, broken, other = (make(dial) for make in (Fake, Broken, Fake))
    sessions: list[Any] = [one, broken, other]
    for session in sessions:
        session.acks = {"g": 1}
        dial.marks.note(session)
    broken.acks = [1]  # type: ignore[assignment]  # no cursors can be read from it
    dial.hubs = lambda: 1 / 0  # type: ignore[method-assign,assignment]  # a round of audits that raises
    dial.new_sessions = lambda now: 1 / 0  # type: ignore[method-assign,assignment]
    dial.ack = _ack_unless_broken(dial)  # type: ignore[method-assign]
    dial.turn_to(dial.now + deadlines.HELLO_S + 2)
    assert one.closed
    assert other.closed
    assert dial.acked == [{"g": 1}, {"g": 1}]
    assert dial.turns == 12
    late: Any = Fake(dial)
    late.ready()
    late.last_received = dial.now
    dial.turn_to(dial.now + 10)
    assert dial.synced.count(late) == 1


def _ack_unless_broken(dial: Dial) -> Any:
    def ack(user: str, device: str, session: str, acks: Any, reply: Any) -> None:
        if not isinstance(acks, dict):
            raise TypeError("broken")
        dial.acked.append(acks)

    return ack
