"""Redis's clock: leases and sessions are judged by it, even if the host's clock is wrong."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from router.store.presence import LEASE_S
from tests import support
from tests.gateway.presence.dial import Dial
from tests.gateway.world import world


def test_start_of_a_gateway_is_a_time_of_redis() -> None:
    """Like all times in the rows; later renewals keep it."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.turn_to(120)
    assert len(dial.renewed) > 2
    assert dial.started == {3600_000 + 101_000}


def test_lease_is_judged_by_redis_clock() -> None:
    """If this host's clock is wrong, neither its users nor those of other gateways look offline."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.row("other", 3600 + 112)
    dial.turn_to(103)
    assert dial.rows["self"].lease_until == round((3600 + 101 + LEASE_S) * 1000)
    assert dial.alive() == {"self", "other"}
    dial.turn_to(113)
    assert dial.alive() == {"self"}


def test_slow_answer_does_not_move_a_correct_clock() -> None:
    """Otherwise two busy gateways would disagree about the order of a device's sessions."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.turn_to(101)
    dial.answer_takes = 0.8
    dial.turn_to(105)
    assert dial.clock.now_ms() == round((3600 + dial.now) * 1000)


async def test_sessions_are_ordered_by_redis_clock(valkey: EmbeddedValkey) -> None:
    """A device that leaves a gateway whose clock is ahead is accepted by another one at once."""
    async with world(valkey) as fast, world(valkey) as right:
        fast.node.redis_clock._ahead_ms += 60_000  # as of a wall clock that is ahead
        for of in (fast, right):
            await of.node.lease.set_clock()
        first = await fast.client("bob").connected()
        await support.eventually(lambda: right.node.redis_clock.now_ms() > first.session.started)
        second = await right.client("bob").connected()
        assert second.session.started > first.session.started
