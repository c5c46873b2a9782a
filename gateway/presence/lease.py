"""This node's lease, and the leases of the other gateways.

The lease says that this gateway lives. A reader of presence compares it with Redis's clock, so a gateway that dies
takes its users offline by writing nothing.

A node that has just lost Redis cannot tell a dead gateway from its own blindness: a gateway that lived when the leases
were last read counts as alive until the leases have been read for a whole lease length again. The same holds when
Redis's clock has jumped, as a failover may make it: the other gateways have to learn of that before they can renew by
it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sized
from typing import Any, Final

from msgspec.structs import replace

from gateway.presence.redis_clock import RedisClock
from router.contract import metrics
from router.contract.errors import LinnetError
from router.store.presence import LEASE_S, Gateway, Presence
from router.store.redis.client import Client

RENEW_S: Final = 3.0
MEMORY_LIMIT: Final = 0.9


class Lease:
    """Turned by the clock. `node.py` connects the attribute once."""

    renewed: Callable[[], None]  # the leases were read: a gateway may have died, or come

    def __init__(
        self,
        name: str,
        url: str,
        presence: Presence,
        client: Client,
        clock: RedisClock,
        sessions: Sized,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._name = name
        self._url = url
        self._presence = presence
        self._client = client
        self._clock = clock
        self._sessions = sessions
        self._spawn = spawn
        self._time = loop.time
        self._draining = False
        self._started = 0
        self._renew_at = 0.0
        self._blind_until = 0.0
        self._read_at = loop.time()
        self._sighted = self._read_ms = clock.now_ms()  # before the last blindness; now
        self.gateways: dict[str, Gateway] = {}
        self.acquired = asyncio.Event()  # `held`, to be waited for
        self.held = False  # a lease was written, so that other processes find this node
        self.full = False  # Redis is so full that nothing new is taken

    async def set_clock(self) -> None:
        """Ask Redis what time it is."""
        moved_ms = await self._clock.set()
        if self.gateways and abs(moved_ms) > RENEW_S * 1000:
            self._blind()

    def _blind(self) -> None:
        self._blind_until = self._time() + LEASE_S
        self._sighted = self._read_ms

    def alive(self) -> dict[str, Gateway]:
        """Return the leases to judge presence by."""
        if self._time() >= self._blind_until:
            return self.gateways
        horizon = self._clock.now_ms() + LEASE_S * 1000
        return {
            node: replace(row, lease_until=horizon) if row.lease_until > self._sighted else row
            for node, row in self.gateways.items()
        }

    def turn(self) -> None:
        now = self._time()
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self._spawn(self._round())

    def joins(self) -> bool:
        """Return whether a gateway that starts is to take clients: not while one gateway drains and others serve.

        If several drain at once, nothing paces them any more, and if none serves, their clients need this one.
        """
        now_ms = self._clock.now_ms()
        others = [row for node, row in self.gateways.items() if node != self._name and row.alive(now_ms)]
        draining = sum(row.draining for row in others)
        return self._name in self.gateways and (draining != 1 or len(others) == 1)

    def renew(self) -> None:
        """Hold the lease for LEASE_S more."""
        now_ms = self._clock.now_ms()
        self._started = self._started or now_ms
        self._presence.renew(
            self._name,
            self._url,
            len(self._sessions),
            self._started,
            now_ms,
            self._renewed,
            draining=self._draining,
        )

    def drain(self) -> None:
        """The node drains: it is alive, and has no URL for clients to be sent to."""
        self._url, self._draining = "", True
        self.renew()

    def drained(self) -> None:
        """The node has drained: a gateway that starts now need not wait until this lease runs out."""
        self._draining = False
        self.renew()

    def _renewed(self, error: LinnetError | None) -> None:
        if error is None:
            self.held = True
            self.acquired.set()

    async def _round(self) -> None:
        try:
            await self.set_clock()
            self.renew()
            gateways = await self._presence.gateways()
            memory = await self._client.memory_ratio()
        except LinnetError:
            return
        now, now_ms = self._time(), self._clock.now_ms()
        if now - self._read_at > LEASE_S:
            self._blind()
        self._read_at, self._read_ms = now, now_ms
        self.gateways = gateways
        self.full = memory >= MEMORY_LIMIT
        metrics.REDIS_MEMORY_RATIO.set(memory)
        metrics.GATEWAYS_ALIVE.set(sum(1 for row in gateways.values() if row.alive(now_ms)))
        self.renewed()
