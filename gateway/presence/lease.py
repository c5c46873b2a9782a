"""This node's lease, and the leases of the other gateways.

A lease says that its gateway is alive. Readers of presence compare it with Redis's clock, so if a gateway dies, its
users go offline although it writes nothing.

A node that has just lost Redis cannot distinguish a dead gateway from its own blindness. So a gateway that was alive
when the leases were last read counts as alive until the leases have been readable for a whole lease length. The same
holds after Redis's clock has jumped, for example at a failover, because the other gateways must read the new time
before they can renew by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sized
from typing import Any, Final

from msgspec.structs import replace

from gateway.presence.redis_clock import RedisClock
from router.contract import metrics
from router.contract.errors import LinnetError
from router.contract.load import Load
from router.store.deployment import RowFormats
from router.store.presence import LEASE_S, Gateway, Presence
from router.store.redis.client import Client

RENEW_S: Final = 3.0
MEMORY_LIMIT: Final = 0.9


class Lease:
    """The lease, renewed by the turns of the clock. `node.py` connects the attribute once."""

    renewed: Callable[[], None]  # the leases were read: a gateway may have started or died

    def __init__(
        self,
        name: str,
        url: str,
        presence: Presence,
        client: Client,
        row_formats: RowFormats,
        clock: RedisClock,
        sessions: Sized,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        loop: asyncio.AbstractEventLoop,
        load: Callable[[], Load],
    ) -> None:
        self._load = load
        self._name = name
        self._url = url
        self._presence = presence
        self._client = client
        self._row_formats = row_formats
        self._clock = clock
        self._sessions = sessions
        self._spawn = spawn
        self._time = loop.time
        self._draining = False
        self._started = 0
        self._renew_at = 0.0
        self._blind_until = 0.0
        self._read_at = loop.time()
        self._read_ms = clock.now_ms()  # when the leases were last read, by Redis's clock
        self._sighted = self._read_ms  # the same, before the last blindness
        self.gateways: dict[str, Gateway] = {}
        self.acquired = asyncio.Event()  # set once `held`
        self.held = False  # a lease was written, so that other processes find this node
        self.full = False  # Redis is so full that sends are refused

    async def set_clock(self) -> None:
        """Ask Redis for its time; if its clock has jumped, trust no missing lease for a while."""
        moved_ms = await self._clock.set()
        if self.gateways and abs(moved_ms) > RENEW_S * 1000:
            self._blind()

    def _blind(self) -> None:
        self._blind_until = self._time() + LEASE_S
        self._sighted = self._read_ms

    def alive(self) -> dict[str, Gateway]:
        """Return the leases by which presence is decided."""
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
        """Return whether a starting gateway should accept clients: not while one gateway drains and others serve.

        If several gateways drain at once, waiting would pace nothing. If no other one serves, the clients need this
        gateway.
        """
        now_ms = self._clock.now_ms()
        others = [row for node, row in self.gateways.items() if node != self._name and row.alive(now_ms)]
        draining = sum(row.draining for row in others)
        return self._name in self.gateways and (draining != 1 or len(others) == 1)

    def renew(self) -> None:
        """Renew the lease for LEASE_S."""
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
            load=self._load(),
        )

    def drain(self) -> None:
        """Renew the lease without a URL, because this gateway is alive but clients must not be sent to it."""
        self._url, self._draining = "", True
        self.renew()

    def drained(self) -> None:
        """Renew the lease as not draining, so that a starting gateway need not wait until this lease runs out."""
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
            await self._row_formats.follow()
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
