"""A node's presence on a clock that a test turns, and a Redis that can be unavailable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.presence.departures import Departures
from gateway.presence.lease import Lease
from gateway.presence.redis_clock import RedisClock
from router.contract import keys
from router.contract.errors import Unavailable
from router.contract.load import Load
from router.store.presence import LEASE_S, Gateway
from tests.gateway.world import settings


class Dial:
    """A node whose time a test sets, and a Redis that can be unavailable."""

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
        self.lease = Lease("self", "ws://self/ws", node, node, node, self.clock, (), self.spawn, node, Load)
        self.lease.renewed = self.judge
        self.departures = Departures(node, self.time, settings(**changes).max_connections)

    def time(self) -> float:
        return self.now

    async def clock_ms(self) -> int:
        if self.down:
            raise Unavailable
        said = int((self.now + self.redis_ahead) * 1000)
        self.now += self.answer_takes
        return said

    async def follow(self) -> str:
        return keys.NEWEST

    def row(self, name: str, until: float, *, draining: bool = False) -> None:
        self.rows[name] = Gateway("", int(until * 1000), 0, 0, draining)

    def renew(
        self, name: str, url: str, connections: int, started: int, now: int, reply: Any, *, draining: bool, load: Load
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

    def mark_away(self, user: str, device: str, session: str, reply: Any) -> None:
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
        """Take a turn each second."""
        while self.now < when:
            self.now += 1
            self.departures.turn()
            self.lease.turn()

    def alive(self) -> set[str]:
        return {name for name, row in self.lease.alive().items() if row.alive(self.clock.now_ms())}
