"""Deadlines: a late hello, an expired token and an old connection end a session in time."""

from __future__ import annotations

import pytest

from gateway.delivery.feed import State
from tests.gateway.dial import NOW_MS, Dial, Fake


@pytest.mark.parametrize(("state", "code"), [(State.HELLO, 4001), (State.CONNECTING, 4000)])
def test_session_that_is_not_ready_in_time_is_closed(state: State, code: int) -> None:
    """After ten seconds; the code distinguishes a slow client (no `hello`) from a slow Redis (no welcome)."""
    dial = Dial()
    session = Fake(dial)
    session.state = state
    dial.turn_to(109.9)
    assert session.closed == ()
    dial.turn_to(112.0)
    closed_with, at = session.closed
    assert closed_with == code
    assert 110 <= at <= 112


def test_expired_token_ends_the_session() -> None:
    """With 4501, in the second of its expiry; a new token moves the deadline."""
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
    """A node whose clock jumps neither logs its users out nor keeps them beyond their token; expired by both is
    4501."""
    dial = Dial()
    by_one, by_both = Fake(dial).ready(), Fake(dial).ready()
    dial.clocks.received(NOW_MS, dial.now, dial.now)
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


def test_old_connection_is_rotated() -> None:
    """Between three quarters of the maximum age and all of it, at a random time."""
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
