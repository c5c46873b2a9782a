"""Which router keeps the index of which partition: the one among the living ones that the partition ranks first.

This is rendezvous hashing (Thaler and Ravishankar, 1998): if a router comes or goes, only its own partitions move, and
all routers that know the same leases agree. For the seconds in which they do not, two may keep one partition, which
costs work and harms nothing, because the index is derived.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from time import monotonic
from typing import Final

from router.contract.errors import LinnetError
from router.contract.keys import PARTITIONS
from router.store.searchers import Searchers

RENEW_S: Final = 3.0


class Owners:
    """The owners as this router knows them. `urls`: where the owner of each partition answers; "" if that is this
    router, None if it has no owner."""

    def __init__(self, searchers: Searchers, node: str, url: str) -> None:
        """`url` is where this router answers others; "" if it keeps no part of the index."""
        self._searchers = searchers
        self._node = node
        self._url = url
        self._renewed_at = float("-inf")
        self.urls: list[str | None] = [None] * PARTITIONS

    @property
    def own(self) -> frozenset[int]:
        """The partitions that are this router's."""
        return frozenset(part for part, url in enumerate(self.urls) if url == "")

    async def follow(self) -> bool:
        """Every RENEW_S: renew the own lease, and read all of them; return whether this was done."""
        now = monotonic()
        if now < self._renewed_at + RENEW_S:
            return False
        if self._url:
            await self._searchers.renew(self._node, self._url)
        living = await self._searchers.living()
        if self._url:
            living[self._node] = ""
        self.urls = [None if node is None else living[node] for node in owners(living)]
        self._renewed_at = now
        return True

    async def end(self) -> None:
        """End the own lease, so that others take the partitions at once; without Redis it ends by itself."""
        if self._url:
            with suppress(LinnetError):
                await self._searchers.end(self._node)


def owners(nodes: Iterable[str]) -> list[str | None]:
    """The node that owns each partition; None for all if there is no node."""
    nodes = list(nodes)
    return [max(nodes, key=lambda node: _rank(node, part), default=None) for part in range(PARTITIONS)]


def _rank(node: str, part: int) -> bytes:
    return blake2b(f"{part} {node}".encode(), digest_size=8).digest()
