"""The lease: it is renewed in time, and a node that lost Redis takes no other gateway for dead."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.node import now_ms
from gateway.presence.lease import MEMORY_LIMIT
from router.store.presence import LEASE_S
from tests import support
from tests.gateway.presence.dial import Dial
from tests.gateway.world import world


def test_lease_is_renewed_well_before_it_runs_out() -> None:
    dial = Dial()
    dial.turn_to(130)
    times = [at for _, at in dial.renewed]
    assert max(later - sooner for sooner, later in pairwise(times)) <= LEASE_S / 3
    assert dial.lease.held
    assert dial.alive() == {"self"}


def test_lease_that_could_not_be_written_is_not_held() -> None:
    """Such a node is not ready, because other processes cannot find its users. Once held, a lease stays held."""
    dial = Dial()
    dial.down = True
    dial.turn_to(110)
    assert not dial.lease.held
    dial.down = False
    dial.turn_to(115)
    assert bool(dial.lease.held)
    dial.down = True
    dial.turn_to(140)
    assert dial.lease.held


def test_gateway_joins_when_no_other_one_is_draining() -> None:
    """Not before the leases were read; neither a dead gateway's row nor its own drain delays it."""
    dial = Dial()
    dial.row("serving", 114)
    dial.row("leaving", 108, draining=True)
    assert not dial.lease.joins()
    dial.turn_to(101)
    assert not dial.lease.joins()
    dial.turn_to(109)
    assert dial.lease.joins()
    dial.row("leaving", 130, draining=True)
    dial.turn_to(113)
    assert not dial.lease.joins()
    dial.row("leaving", 130, draining=False)  # it has drained, and its lease runs out
    dial.turn_to(117)
    assert dial.lease.joins()
    dial.lease.drain()
    assert dial.rows["self"].draining
    dial.turn_to(121)
    assert dial.lease.joins()
    dial.lease.drained()
    assert not dial.rows["self"].draining


def test_gateway_joins_at_once_if_clients_need_it() -> None:
    """If the only other gateway drains, or several drain at once, waiting would leave their clients without a
    gateway."""
    dial = Dial()
    dial.row("leaving", 114, draining=True)
    dial.turn_to(101)
    assert dial.lease.joins()
    dial.row("serving", 114)
    dial.turn_to(105)
    assert not dial.lease.joins()
    dial.row("leaving too", 114, draining=True)
    dial.turn_to(109)
    assert dial.lease.joins()


def test_draining_node_is_alive_without_a_url() -> None:
    dial = Dial()
    dial.turn_to(103)
    dial.lease.drain()
    assert [url for url, _ in dial.renewed] == ["ws://self/ws", ""]


def test_gateway_that_dies_counts_as_dead_after_its_lease() -> None:
    dial = Dial()
    dial.row("other", 112)
    dial.turn_to(110)
    assert dial.alive() == {"self", "other"}
    dial.turn_to(113)
    assert dial.alive() == {"self"}
    assert dial.judged >= 4


def test_node_that_lost_redis_trusts_no_missing_lease_for_a_while() -> None:
    """The other gateways could not renew either. Those that have not renewed a lease length later are dead."""
    dial = Dial()
    for name in ("other", "dies"):
        dial.row(name, 112)
    dial.turn_to(103)
    dial.down = True
    dial.turn_to(140)
    dial.down = False
    dial.turn_to(144)
    assert dial.alive() == {"self", "other", "dies"}
    dial.row("other", 165)
    dial.turn_to(160)
    assert dial.alive() == {"self", "other"}


def test_gateway_that_was_dead_before_an_outage_stays_dead() -> None:
    """Rows of dead gateways are kept for days; their users must not flicker online after each outage."""
    dial = Dial()
    dial.row("long dead", 50)
    dial.row("other", 112)
    dial.turn_to(103)
    dial.down = True
    dial.turn_to(140)
    dial.down = False
    dial.turn_to(144)
    assert dial.alive() == {"self", "other"}


def test_store_is_full_while_its_memory_is_over_the_limit() -> None:
    dial = Dial()
    dial.ratio = MEMORY_LIMIT
    dial.turn_to(101)
    assert dial.lease.full
    dial.ratio = MEMORY_LIMIT - 0.01
    dial.turn_to(105)
    assert not bool(dial.lease.full)


@pytest.mark.parametrize("step", [-3600, -90, 90, 3600])
def test_jump_of_redis_clock_makes_no_gateway_dead(step: int) -> None:
    """Gateways need a moment to renew by the new time. Those that have not renewed a lease length later are dead."""
    dial = Dial()
    for name in ("other", "dies"):
        dial.row(name, 112)
    dial.turn_to(103)
    dial.redis_ahead = step
    dial.turn_to(104)
    assert dial.alive() == {"self", "other", "dies"}
    dial.row("other", step + 125)
    dial.turn_to(120)
    assert dial.alive() == {"self", "other"}


async def test_row_of_a_real_node_is_read_by_others(valkey: EmbeddedValkey) -> None:
    async with world(valkey, gateway_url="wss://a/ws") as of, world(valkey) as other:
        await of.client("bob").connected()
        began = now_ms()
        of.node.lease.turn()
        await support.eventually(lambda: of.node.lease.held)
        await other.node.lease._round()
        row = other.node.lease.gateways[of.node.name]
        assert (row.url, row.connections) == ("wss://a/ws", 1)
        assert row.lease_until > began + 8000
