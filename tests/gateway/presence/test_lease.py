"""The lease: this node lives while it says so, and does not take its own blindness for the death of others."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.node import now_ms
from gateway.presence import departures
from gateway.presence.departures import Departures
from gateway.presence.lease import MEMORY_LIMIT, Lease
from gateway.presence.redis_clock import RedisClock
from router.contract import metrics
from router.contract.errors import Unavailable
from router.store.presence import LEASE_S, Gateway
from tests import support
from tests.gateway.world import settings, world


class Dial:
    """A node whose time is turned by hand, and a Redis that can be away."""

    def __init__(self, **changes: Any) -> None:
        self.now = 100.0
        self.rows: dict[str, Gateway] = {}
        self.down = False
        self.redis_ahead = 0.0
        self.answer_takes = 0.0
        self.ratio = 0.0
        self.renewed: list[tuple[str, float]] = []
        self.started: set[int] = set()
        self.aways: list[tuple[str, float]] = []
        self.refused = 0
        self.judged = 0
        node: Any = self
        self.clock = RedisClock(self.clock_ms, int(self.now * 1000), self.time)
        self.lease = Lease("self", "ws://self/ws", node, node, self.clock, (), self.spawn, node)
        self.lease.renewed = self.judge
        self.departures = Departures(node, self.clock.now_ms, self.time, settings(**changes).max_connections)

    def time(self) -> float:
        return self.now

    async def clock_ms(self) -> int:
        if self.down:
            raise Unavailable
        said = int((self.now + self.redis_ahead) * 1000)
        self.now += self.answer_takes
        return said

    def row(self, name: str, until: float, *, draining: bool = False) -> None:
        self.rows[name] = Gateway("", int(until * 1000), 0, 0, draining)

    def renew(
        self, name: str, url: str, connections: int, started: int, now: int, reply: Any, *, draining: bool
    ) -> None:
        if not self.down:
            self.renewed.append((url, self.now))
            self.started.add(started)
            self.row(name, now / 1000 + LEASE_S, draining=draining)
        reply(Unavailable() if self.down else None)

    async def gateways(self) -> dict[str, Gateway]:
        if self.down:
            raise Unavailable
        return dict(self.rows)

    async def memory_ratio(self) -> float:
        return self.ratio

    def away(self, user: str, device: str, session: str, now: int, reply: Any) -> None:
        self.refused += self.down
        if not self.down:
            self.aways.append((user, self.now))
        reply(Unavailable() if self.down else True)

    def ends(self, *users: str) -> None:
        for user in users:
            session: Any = SimpleNamespace(user=user, device="phone", id="s", user_hub=user)
            self.departures.add(session)

    def judge(self) -> None:
        self.judged += 1

    def spawn(self, work: Any) -> None:
        with pytest.raises(StopIteration):
            work.send(None)  # nothing in here really waits

    def turn_to(self, when: float) -> None:
        """A turn each second."""
        while self.now < when:
            self.now += 1
            self.departures.turn()
            self.lease.turn()

    def alive(self) -> set[str]:
        return {name for name, row in self.lease.alive().items() if row.alive(self.clock.now_ms())}


def test_the_lease_is_renewed_well_before_it_runs_out() -> None:
    dial = Dial()
    dial.turn_to(130)
    times = [at for _, at in dial.renewed]
    assert max(later - sooner for sooner, later in pairwise(times)) <= LEASE_S / 3
    assert dial.lease.held
    assert dial.alive() == {"self"}


def test_a_lease_that_could_not_be_written_is_not_held() -> None:
    """Such a node is not ready: nobody would find its users. Once held, a failure later does not take that back."""
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


def test_a_gateway_joins_when_no_other_one_is_draining() -> None:
    """Not before the leases were read; a dead gateway's row and its own drain hold up nothing."""
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


def test_a_gateway_joins_at_once_when_its_place_is_needed() -> None:
    """The only other one drains, or several do at once: waiting would leave their clients without a gateway."""
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


def test_a_node_that_drains_lives_and_has_no_url_to_be_sent_to() -> None:
    dial = Dial()
    dial.turn_to(103)
    dial.lease.drain()
    assert [url for url, _ in dial.renewed] == ["ws://self/ws", ""]


def test_a_gateway_that_dies_is_dead_after_its_lease() -> None:
    dial = Dial()
    dial.row("other", 112)
    dial.turn_to(110)
    assert dial.alive() == {"self", "other"}
    dial.turn_to(113)
    assert dial.alive() == {"self"}
    assert dial.judged >= 4


def test_a_node_that_was_blind_trusts_no_missing_lease_for_a_while() -> None:
    """They could not renew either. Those that have not done so a lease length later are dead."""
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


def test_who_was_dead_before_the_blindness_stays_dead() -> None:
    """The rows of dead gateways stand for days: their users must not flicker online after each outage."""
    dial = Dial()
    dial.row("long dead", 50)
    dial.row("other", 112)
    dial.turn_to(103)
    dial.down = True
    dial.turn_to(140)
    dial.down = False
    dial.turn_to(144)
    assert dial.alive() == {"self", "other"}


def test_a_session_is_marked_away_after_the_grace() -> None:
    """Within it the device may come back without a flicker."""
    dial = Dial()
    dial.turn_to(101)
    dial.ends("bob")
    dial.turn_to(103)
    assert dial.aways == []
    dial.turn_to(105)
    assert dial.aways == [("bob", 104.0)]
    assert not len(dial.departures)


def test_a_session_that_ended_while_redis_was_away_is_marked_when_it_is_back() -> None:
    """This gateway lives and goes on renewing its lease: else its user would be online until the device comes again."""
    dial = Dial()
    dial.down = True
    dial.ends("bob")
    dial.turn_to(120)
    assert dial.refused > 2
    dial.down = False
    dial.turn_to(120 + departures.AWAY_GRACE_S)
    assert [user for user, _ in dial.aways] == ["bob"]
    assert not len(dial.departures)


def test_sessions_that_end_all_at_once_are_marked_some_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A balancer drops thousands: the commands of others need room among these calls."""
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
    """Two for every connection; it is the latest that are dropped, and counted: those hardly got as far as a row."""
    dial = Dial(max_connections=5)
    dropped = metrics.AWAYS_DROPPED._value.get()
    dial.ends(*(f"user{i}" for i in range(12)))
    dial.turn_to(105)
    assert [user for user, _ in dial.aways] == [f"user{i}" for i in range(10)]
    assert metrics.AWAYS_DROPPED._value.get() - dropped == 2


def test_a_gateway_has_started_when_redis_says_that_it_has() -> None:
    """Like all times in the rows; and it stays that."""
    dial = Dial()
    dial.redis_ahead = 3600
    dial.turn_to(120)
    assert len(dial.renewed) > 2
    assert dial.started == {3600_000 + 101_000}


def test_a_store_that_is_nearly_full_is_full_until_it_is_not() -> None:
    dial = Dial()
    dial.ratio = MEMORY_LIMIT
    dial.turn_to(101)
    assert dial.lease.full
    dial.ratio = MEMORY_LIMIT - 0.01
    dial.turn_to(105)
    assert not bool(dial.lease.full)


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


@pytest.mark.parametrize("step", [-3600, -90, 90, 3600])
def test_a_clock_of_redis_that_jumps_kills_nobody(step: int) -> None:
    """Gateways need a moment to renew by the new time. Those that have not done so a lease length later are dead."""
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


async def test_the_row_of_a_real_node_is_found_by_others(valkey: EmbeddedValkey) -> None:
    async with world(valkey, gateway_url="wss://a/ws") as of, world(valkey) as other:
        await of.client("bob").connected()
        began = now_ms()
        of.node.lease.turn()
        await support.eventually(lambda: of.node.lease.held)
        await other.node.lease._round()
        row = other.node.lease.gateways[of.node.name]
        assert (row.url, row.connections) == ("wss://a/ws", 1)
        assert row.lease_until > began + 8000


def test_an_end_that_raises_keeps_neither_the_others_nor_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end of a turn has its own try, and the lease is renewed in the same turn."""
    dial = Dial()
    away = dial.away

    def raising(user: str, *rest: Any) -> None:
        if user == "broken":
            raise RuntimeError("broken")
        away(user, *rest)

    monkeypatch.setattr(dial, "away", raising)
    dial.turn_to(101)
    for user in ("ann", *["broken"] * 10, "bob"):
        dial.ends(user)
    renewed = len(dial.renewed)
    dial.turn_to(101 + departures.AWAY_GRACE_S + 1)
    assert [user for user, _ in dial.aways] == ["ann", "bob"]
    assert len(dial.renewed) > renewed
