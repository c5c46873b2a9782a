"""Departures: a device is marked away a grace after its session ended."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.presence import departures
from router.contract import metrics
from tests.gateway.presence.dial import Dial


def test_session_is_marked_away_after_the_grace() -> None:
    """Within the grace the device can reconnect without a change of presence."""
    dial = Dial()
    dial.turn_to(101)
    dial.ends("bob")
    dial.turn_to(103)
    assert dial.aways == []
    dial.turn_to(105)
    assert dial.aways == [("bob", 104.0)]
    assert not len(dial.departures)


def test_session_that_ended_while_redis_was_down_is_marked_away_afterwards() -> None:
    """Its gateway lives and renews the lease, so without the mark the user would stay online."""
    dial = Dial()
    dial.down = True
    dial.ends("bob")
    dial.turn_to(120)
    assert dial.refused > 2
    dial.down = False
    dial.turn_to(120 + departures.AWAY_GRACE_S)
    assert [user for user, _ in dial.aways] == ["bob"]
    assert not len(dial.departures)


def test_sessions_that_end_at_once_are_marked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load balancer may drop thousands, and commands need room among these calls."""
    monkeypatch.setattr(departures, "MARKS_PER_TURN", 10)
    dial = Dial()
    users = [f"user{i}" for i in range(35)]
    dial.ends(*users)
    marked = []
    for second in range(103, 107):
        dial.turn_to(second)
        marked.append(len(dial.aways))
    assert marked == [10, 20, 30, 35]
    assert [user for user, _ in dial.aways] == users


def test_sessions_that_wait_to_be_marked_are_bounded() -> None:
    """By two for every connection; the latest are dropped and counted, because they have rarely registered."""
    dial = Dial(max_connections=5)
    dropped = metrics.AWAYS_DROPPED._value.get()
    dial.ends(*(f"user{i}" for i in range(12)))
    dial.turn_to(105)
    assert [user for user, _ in dial.aways] == [f"user{i}" for i in range(10)]
    assert metrics.AWAYS_DROPPED._value.get() - dropped == 2


def test_mark_that_raises_costs_neither_other_marks_nor_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other marks of the turn are written, and the lease is renewed in the same turn."""
    dial = Dial()
    away = dial.mark_away

    def raising(user: str, *rest: Any) -> None:
        if user == "broken":
            raise RuntimeError("broken")
        away(user, *rest)

    monkeypatch.setattr(dial, "mark_away", raising)
    dial.turn_to(101)
    for user in ("ann", *["broken"] * 10, "bob"):
        dial.ends(user)
    renewed = len(dial.renewed)
    dial.turn_to(101 + departures.AWAY_GRACE_S + 1)
    assert [user for user, _ in dial.aways] == ["ann", "bob"]
    assert len(dial.renewed) > renewed
