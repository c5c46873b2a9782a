"""The clock: every deadline on time, every heartbeat spread, and nothing kept of who has gone. Its loop is a dial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.clock import Clock
from gateway.commands import marks
from gateway.commands.marks import Marks
from gateway.delivery import deadlines, heartbeats
from gateway.delivery.deadlines import Deadlines
from gateway.delivery.feed import Feed, State
from gateway.delivery.heartbeats import Heartbeats
from router.contract.clocks import Clocks
from router.contract.errors import Unavailable
from tests.gateway.world import settings

NOW_MS = 1_700_000_000_000


class Dial:
    """A node and its loop, whose time is turned by hand; it notes what the clock asks for."""

    def __init__(self, **changes: Any) -> None:
        self.settings = settings(**{"heartbeat_s": 10.0, "max_age_s": 1000.0} | changes)
        self.now = 100.0
        self.timer: tuple[float, Any] | None = None
        self.step: Any = None
        self.turns = self.rounds = 0
        self.synced: list[Any] = []
        self.rotated: list[tuple[Any, int]] = []
        self.acked: list[dict[str, int]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.down = False
        self.tries = 0
        self.replies: list[Any] = []
        node: Any = self
        watches: Any = SimpleNamespace(touch_all=lambda: None)
        departures: Any = SimpleNamespace(turn=lambda: None)
        self.heartbeats = Heartbeats(self.settings.heartbeat_s)
        self.clocks = Clocks(self.time)
        self.deadlines = Deadlines(self.settings.max_age_s, lambda: self.clocks.moments(self.now_ms()), self.time)
        self.marks = Marks(node, node)
        self.clock = Clock(self.heartbeats, node, watches, self.deadlines, self.marks, departures, node, node)

    def add(self, session: Any) -> None:
        self.heartbeats.add(session)
        self.deadlines.add(session)

    def remove(self, session: Any) -> None:
        self.heartbeats.remove(session)
        self.deadlines.remove(session)

    # the loop
    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> Dial:
        self.timer = (when, callback)
        return self

    def cancel(self) -> None:
        self.timer = None

    def call_later(self, delay: float, callback: Any) -> None:
        self.step = callback

    def next_step(self) -> None:
        step, self.step = self.step, None
        if step is not None:
            step()

    def turn_to(self, when: float) -> None:
        """All timers that are due until then, each at its time."""
        while self.timer is not None and self.timer[0] <= when:
            self.now, callback = self.timer
            callback()
        self.now = when

    # what the clock asks of a node
    def now_ms(self) -> int:
        return NOW_MS + int((self.now - 100) * 1000)

    def hubs(self) -> None:
        self.rounds += 1

    def turn(self) -> None:
        self.turns += 1

    def new_sessions(self, now: float) -> None:
        """First audits are no business of the wheel."""

    def sessions(self, sessions: list[Any]) -> None:
        self.synced += sessions

    def ack(self, user: str, device: str, session: str, acks: dict[str, int], reply: Any) -> None:
        self._answer(reply, lambda: self.acked.append(acks))

    def read(self, user: str, conversation: str, seq: int, count: int, reply: Any) -> None:
        self._answer(reply, lambda: self.reads.append((conversation, seq, count)))

    def _answer(self, reply: Any, write: Any) -> None:
        self.tries += 1
        if not self.down:
            write()
        self.replies.append(lambda: reply(Unavailable() if self.down else True))

    def answered(self) -> None:
        """The replies come, never before the call has returned."""
        replies, self.replies = self.replies, []
        for reply in replies:
            reply()


class Fake:
    """As much of a session as the clock sees."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.connection = self
        self.state = State.HELLO
        self.deadline = 0
        self.age_deadline = 0.0
        self.expires_at = NOW_MS + 3_600_000
        self.last_received = dial.now
        self.feed = Feed.LIVE
        self.acks: dict[str, int] | None = None
        self.reads: dict[str, tuple[int, int]] | None = None
        self.user, self.device, self.id = "bob", "phone", "s"
        self.closed: Any = ()
        self.pings: list[float] = []
        dial.add(self)

    def ready(self) -> Fake:
        self.state = State.READY
        session: Any = self
        self.dial.deadlines.ready(session)
        return self

    def close(self, code: int, reason: str = "") -> None:
        self.closed = (code, self.dial.now)
        self.dial.remove(self)

    def rotate(self, code: int) -> None:
        self.dial.rotated.append((self, code))

    def ping(self) -> None:
        self.pings.append(self.dial.now)


@pytest.mark.parametrize(("state", "code"), [(State.HELLO, 4001), (State.CONNECTING, 4000)])
def test_who_does_not_get_ready_in_time_is_closed(state: State, code: int) -> None:
    """Ten seconds to say hello, and no more to be let in; a slow client and a slow Redis are told apart."""
    dial = Dial()
    session = Fake(dial)
    session.state = state
    dial.turn_to(109.9)
    assert session.closed == ()
    dial.turn_to(112.0)
    closed_with, at = session.closed
    assert closed_with == code
    assert 110 <= at <= 112


def test_a_token_that_expires_ends_the_session() -> None:
    """At its second, 4501; a new token moves that."""
    dial = Dial()
    first, second = Fake(dial).ready(), Fake(dial).ready()
    for session in (first, second):
        session.expires_at = NOW_MS + 30_000
        session.ready()
        session.last_received = 1e9
    dial.turn_to(120)
    second.expires_at = NOW_MS + 60_000
    second.ready()
    dial.turn_to(132)
    assert first.closed
    assert (first.closed[0], first.closed[1] >= 130) == (4501, True)
    assert not second.closed
    dial.turn_to(162)
    assert second.closed


@pytest.mark.parametrize("step_ms", [-86_400_000, 86_400_000])
def test_token_that_expires_by_one_of_two_clocks_closes_as_unavailable(
    step_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose clock steps does not log its users out, nor keep them beyond their token; both expired is 4501."""
    dial = Dial()
    by_one, by_both = Fake(dial).ready(), Fake(dial).ready()
    dial.clocks.heard(NOW_MS, dial.now, dial.now)
    redis_ms = dial.now_ms
    monkeypatch.setattr(dial, "now_ms", lambda: redis_ms() + step_ms)
    by_one.expires_at = redis_ms() + 30_000 + max(0, step_ms // 2)
    by_both.expires_at = redis_ms() - 2 * 86_400_000
    for session in (by_one, by_both):
        session.ready()
        session.last_received = 1e9
    dial.turn_to(132)
    assert by_one.closed[0] == 4000
    assert by_both.closed[0] == 4501


def test_an_old_connection_is_rotated() -> None:
    """Between three quarters of the largest age and all of it, each at its own time."""
    dial = Dial(max_age_s=400.0)
    sessions = [Fake(dial).ready() for _ in range(50)]
    for session in sessions:
        session.last_received = 1e9
    dial.turn_to(399.9)
    assert dial.rotated == []
    dial.turn_to(450)
    assert 0 < len(dial.rotated) < 50
    dial.turn_to(502)
    assert {code for _, code in dial.rotated} == {4003}
    assert {id(session) for session, _ in dial.rotated} == {id(session) for session in sessions}


def test_heartbeats_are_spread_and_each_session_gets_one_a_round() -> None:
    """Pinged if it was quiet, audited if it is ready; the hubs once a round."""
    dial = Dial()
    sessions = [Fake(dial).ready() for _ in range(20)]
    dial.turn_to(110.5)
    assert all(dial.synced.count(session) == 1 for session in sessions)
    dial.synced.clear()
    most = 0
    for second in range(111, 121):
        before = len(dial.synced)
        for session in sessions:
            session.last_received = dial.now
        dial.turn_to(second + 0.5)
        most = max(most, len(dial.synced) - before)
    assert most == 2
    assert all(dial.synced.count(session) == 1 for session in sessions)
    assert dial.rounds == 2
    assert dial.turns == 20


def test_only_the_quiet_are_pinged() -> None:
    dial = Dial()
    quiet, busy = Fake(dial).ready(), Fake(dial).ready()
    for second in range(101, 116):
        busy.last_received = dial.now
        dial.turn_to(second)
    assert (len(quiet.pings) >= 1, busy.pings) == (True, [])


def test_a_peer_that_is_silent_for_two_heartbeats_is_gone() -> None:
    """4002; one that answers pings stays."""
    dial = Dial()
    silent, there = Fake(dial).ready(), Fake(dial).ready()
    for second in range(101, 160):
        there.last_received = dial.now
        dial.turn_to(second)
    assert silent.closed
    assert silent.closed[0] == 4002
    assert 120 < silent.closed[1] <= 132
    assert there.closed == ()


def test_the_silence_of_who_does_not_read_is_borne_longer() -> None:
    """Nothing is read from it either, so its pongs cannot be seen; but not for ever."""
    dial = Dial()
    stalled = Fake(dial).ready()
    stalled.feed = Feed.FULL
    dial.turn_to(190)
    assert (stalled.closed, stalled.pings) == ((), [])
    dial.turn_to(215)
    assert stalled.closed


def test_a_stalled_loop_skips_no_deadline() -> None:
    """Every second that passed is looked at, however late the turn comes; the turns themselves are not made up for."""
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


def test_marks_are_written_once_a_turn_and_joined() -> None:
    """And at the end of a session by whoever ends it."""
    dial = Dial()
    session: Any = Fake(dial).ready()
    session.acks, session.reads = {"g": 5, "h": 6}, {"g": (5, 2)}
    dial.marks.note(session)
    dial.marks.note(session)
    dial.turn_to(101)
    dial.turn_to(103)
    assert (dial.acked, dial.reads) == ([{"g": 5, "h": 6}], [("g", 5, 2)])
    assert (session.acks, session.reads) == (None, None)


def test_marks_that_redis_could_not_take_are_written_when_it_can() -> None:
    """Else there is a push for what the device has, and what the user wrote herself stays unread. They only go up."""
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


def test_marks_of_a_session_that_has_ended_are_tried_once_more() -> None:
    """When thousands end at once there is no room for all; but none is tried for ever, and none kept."""
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


def test_marks_of_many_are_written_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they came; what comes meanwhile waits for a turn that finds nothing left of them."""
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


def test_nothing_is_kept_of_a_session_that_has_gone() -> None:
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


@pytest.mark.parametrize("heartbeat_s", [0.1, 0.5, 1.0, 2.0, 30.0])
def test_short_heartbeats_turn_the_clock_oftener(heartbeat_s: float) -> None:
    """A session is looked at once per heartbeat, give or take a turn."""
    dial = Dial(heartbeat_s=heartbeat_s)
    session: Any = Fake(dial).ready()
    for _ in range(10):
        session.last_received = dial.now
        dial.turn_to(dial.now + heartbeat_s)
    assert 8 <= dial.synced.count(session) <= 11
    assert dial.heartbeats.turn_s <= 1.0


def test_stopping_is_for_good() -> None:
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


def test_a_session_that_raises_does_not_stop_the_clock() -> None:
    """Deadlines, heartbeats and marks of the sessions before and behind it go on, and so do audits and the lease."""
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
