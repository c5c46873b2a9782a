"""Heartbeats: spread over their interval, and a silent peer is closed after two of them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.delivery.feed import Feed
from tests.gateway.dial import Dial, Fake


def test_heartbeats_are_spread_over_a_round() -> None:
    """In each round every quiet session is pinged, every ready session is audited once, and the hubs once."""
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


def test_only_quiet_sessions_are_pinged() -> None:
    dial = Dial()
    quiet, busy = Fake(dial).ready(), Fake(dial).ready()
    for second in range(101, 116):
        busy.last_received = dial.now
        dial.turn_to(second)
    assert (len(quiet.pings) >= 1, busy.pings) == (True, [])


def test_peer_that_is_silent_for_two_heartbeats_is_closed() -> None:
    """With 4002; a peer that answers pings stays."""
    dial = Dial()
    silent, there = Fake(dial).ready(), Fake(dial).ready()
    for second in range(101, 160):
        there.last_received = dial.now
        dial.turn_to(second)
    assert silent.closed
    assert silent.closed[0] == 4002
    assert 120 < silent.closed[1] <= 132
    assert there.closed == ()


def test_stalled_reader_is_closed_later() -> None:
    """The gateway reads nothing from it either, so its pongs cannot arrive; after ten heartbeats it is closed."""
    dial = Dial()
    stalled = Fake(dial).ready()
    stalled.feed = Feed.FULL
    dial.turn_to(190)
    assert (stalled.closed, stalled.pings) == ((), [])
    dial.turn_to(215)
    assert stalled.closed


@pytest.mark.parametrize("heartbeat_s", [0.1, 0.5, 1.0, 2.0, 30.0])
def test_short_heartbeats_turn_the_clock_more_often(heartbeat_s: float) -> None:
    """Each session is checked once per heartbeat, give or take a turn."""
    dial = Dial(heartbeat_s=heartbeat_s)
    session: Any = Fake(dial).ready()
    for _ in range(10):
        session.last_received = dial.now
        dial.turn_to(dial.now + heartbeat_s)
    assert 8 <= dial.synced.count(session) <= 11
    assert dial.heartbeats.turn_s <= 1.0
