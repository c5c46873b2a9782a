"""Redis's clock: leases and sessions are judged by it, whatever the host's clock says."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from router.store.presence import LEASE_S
from tests import support
from tests.gateway.presence.dial import Dial
from tests.gateway.world import world


def test_a_gateway_has_started_when_redis_says_that_it_has() -> None:
    """Like all times in the rows; and it stays that."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.turn_to(120)
    assert len(dial.renewed) > 2
    assert dial.started == {3600_000 + 101_000}


def test_a_lease_is_told_by_the_clock_of_redis() -> None:
    """Whatever this host's clock says: one that is off would make its users, or all others, look offline."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.row("other", 3600 + 112)
    dial.turn_to(103)
    assert dial.rows["self"].lease_until == round((3600 + 101 + LEASE_S) * 1000)
    assert dial.alive() == {"self", "other"}
    dial.turn_to(113)
    assert dial.alive() == {"self"}


def test_a_slow_answer_does_not_spoil_a_clock_that_is_right() -> None:
    """Else two busy gateways would disagree on which session of a device is the later one."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.turn_to(101)
    dial.answer_takes = 0.8
    dial.turn_to(105)
    assert dial.clock.now_ms() == round((3600 + dial.now) * 1000)


async def test_sessions_are_ordered_by_the_clock_of_redis(valkey: EmbeddedValkey) -> None:
    """A device that leaves a gateway whose clock is ahead is taken in by another, however soon."""
    async with world(valkey) as fast, world(valkey) as right:
        fast.node.redis_clock._ahead_ms += 60_000  # as of a wall clock that is ahead
        for of in (fast, right):
            await of.node.lease.set_clock()
        first = await fast.client("bob").connected()
        await support.eventually(lambda: right.node.redis_clock.now_ms() > first.session.started)
        second = await right.client("bob").connected()
        assert second.session.started > first.session.started
