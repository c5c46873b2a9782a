"""This node's lease, the leases of the others, and the sessions that have just gone.

The lease says that this gateway lives; whoever asks who is online compares it with the clock, so a gateway that dies
takes its users offline by saying nothing. A session that ends is marked away only after a grace, within which the
device may come back anywhere without a flicker; and again until Redis has taken the mark, for the row names a gateway
that lives, and nothing else would end it before the device comes back.

All times here and in the rows are Redis's: each node carries its clock on by its own monotonic one and asks again with
every renewal. So a wall clock that is wrong or steps makes no living gateway look dead, and no session look older than
the one it replaces. (Tokens are judged by the wall clock, as their issuer's are, as long as Redis's agrees.)

A node that has just lost Redis cannot tell a dead gateway from its own blindness: of gateways that lived when it last
saw them it trusts no missing lease until it has read the leases for a whole lease length again. Nor does it when
Redis's clock has jumped, as a failover may make it: the others have to hear of that before they can renew by it.

Bound: two sessions that have ended for every connection that this gateway takes, `STEP` of them marked in a turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from math import ceil, floor
from time import monotonic
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.delivery.session import Session
from router.contract import metrics
from router.contract.errors import LinnetError, Unavailable
from router.process.isolate import each
from router.store.presence import LEASE_S, Gateway

if TYPE_CHECKING:
    from gateway.node import Node

RENEW_S: Final = 3.0
AWAY_GRACE_S: Final = 3.0
STEP: Final = 1000  # a balancer may drop all sessions at once, and the commands of others need room among these calls
MEMORY_LIMIT: Final = 0.9

Who = tuple[str, str, str]  # user, device, session
Gone = tuple[float, Who]  # and when it is to be marked


class Lease:
    """Turned by the clock."""

    def __init__(self, node: Node, clock: Callable[[], float] = monotonic) -> None:
        self._node = node
        self._clock = clock
        # How far Redis's is; until it has said, the wall clock's.
        self._ahead_ms = node.now_ms() - round(clock() * 1000)
        self._started = 0
        self._renew_at = 0.0
        self._away: deque[Gone] = deque()
        self._most_away = 2 * node.settings.max_connections
        self._blind_until = 0.0
        self._read_at = node.loop.time()
        self._sighted = self._read_ms = node.now_ms()  # before the last blindness; now
        self.gateways: dict[str, Gateway] = {}
        self.acquired = asyncio.Event()  # `held`, to be waited for
        self.held = False  # a lease was written, so that whoever looks finds this node
        self.full = False  # Redis is so full that nothing new is taken

    def now_ms(self) -> int:
        """Redis's clock."""
        return self._ahead_ms + round(self._clock() * 1000)

    async def set_clock(self) -> None:
        """Asks Redis what time it is, and moves no further than the answer proves: a slow one proves little."""
        was_ms = self._ahead_ms
        asked = self._clock()
        now_ms = await self._node.presence.clock_ms()
        answered = self._clock()
        least, most = now_ms - ceil(answered * 1000), now_ms + 1 - floor(asked * 1000)
        self._ahead_ms = min(max(was_ms, least), most)
        if self.gateways and abs(self._ahead_ms - was_ms) > RENEW_S * 1000:
            self._blind()

    def _blind(self) -> None:
        self._blind_until = self._node.loop.time() + LEASE_S
        self._sighted = self._read_ms

    def away(self, session: Session) -> None:
        """The session has ended."""
        self._away_later((session.user, session.device, session.id))

    def _away_later(self, who: Who) -> None:
        """One for which there is no room is not marked: its user looks online until the device comes again or this
        gateway ends. It is the latest, as those that come and go while Redis is away have hardly been registered."""
        if len(self._away) < self._most_away:
            self._away.append((self._node.loop.time() + AWAY_GRACE_S, who))
        else:
            metrics.AWAYS_DROPPED.inc()

    def alive(self) -> dict[str, Gateway]:
        """The leases to judge presence by."""
        if self._node.loop.time() >= self._blind_until:
            return self.gateways
        horizon = self.now_ms() + LEASE_S * 1000
        return {
            node: replace(row, lease_until=horizon) if row.lease_until > self._sighted else row
            for node, row in self.gateways.items()
        }

    def turn(self) -> None:
        now = self._node.loop.time()
        for _ in range(STEP):
            if not self._away or self._away[0][0] > now:
                break
            _, who = self._away.popleft()
            each("away", self._mark_away, (who,))
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self._node.spawn(self._round())

    def _mark_away(self, who: Who) -> None:
        self._node.users.away(*who, self.now_ms(), partial(self._marked_away, who))

    def _marked_away(self, who: Who, answer: bool | LinnetError) -> None:
        if isinstance(answer, Unavailable):
            self._away_later(who)

    def joins(self) -> bool:
        """Whether a gateway that starts is to take clients: not while one gateway drains and others serve.

        If several drain at once, nothing paces them any more, and if none serves, their clients need this one.
        """
        now_ms, name = self.now_ms(), self._node.name
        others = [row for node, row in self.gateways.items() if node != name and row.lease_until > now_ms]
        draining = sum(row.draining for row in others)
        return name in self.gateways and (draining != 1 or len(others) == 1)

    def renew(self, *, drained: bool = False) -> None:
        """Once more for `LEASE_S`; a node that drains, or has drained, is alive and has no URL to be sent to."""
        node = self._node
        self._started = self._started or self.now_ms()
        url = "" if node.draining else node.url
        node.presence.renew(
            node.name,
            url,
            len(node.sessions),
            self._started,
            self.now_ms(),
            self._renewed,
            draining=node.draining and not drained,
        )

    def _renewed(self, error: LinnetError | None) -> None:
        if error is None:
            self.held = True
            self.acquired.set()

    async def _round(self) -> None:
        try:
            await self.set_clock()
            self.renew()
            gateways = await self._node.presence.gateways()
            memory = await self._node.client.memory_ratio()
        except LinnetError:
            return
        now, now_ms = self._node.loop.time(), self.now_ms()
        if now - self._read_at > LEASE_S:
            self._blind()
        self._read_at, self._read_ms = now, now_ms
        self.gateways = gateways
        self.full = memory >= MEMORY_LIMIT
        metrics.REDIS_MEMORY_RATIO.set(memory)
        metrics.GATEWAYS_ALIVE.set(sum(1 for row in gateways.values() if row.alive(now_ms)))
        self._node.watches.judge()
