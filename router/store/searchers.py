"""The routers that keep the index of search, by their leases: who they are, and where others ask them.

A lease is a field of the hash `keys.SEARCHERS`: node → packed row. It counts until a time on Redis's clock. Where
partitions belong follows from the living nodes alone (`search/owners.py`).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from router.contract import keys
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

LEASE_MS: Final = 10_000
KEEP_MS: Final = 60_000


class SearcherLease(Struct, frozen=True, array_like=True):
    """A router that keeps a part of the index, until `lease_until` (ms); `url` is where it answers other routers."""

    lease_until: int
    url: str


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(SearcherLease).decode


class Searchers:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def renew(self, node: str, url: str) -> None:
        """Renew a router's own lease for LEASE_MS."""
        until = await self._client.clock_ms(keys.SEARCHERS) + LEASE_MS
        await self._client.fetch("HSET", keys.SEARCHERS, node, _encode(SearcherLease(until, url)))

    async def end(self, node: str) -> None:
        """End a router's own lease, so that others take its partitions at once."""
        await self._client.fetch("HDEL", keys.SEARCHERS, node)

    async def living(self) -> dict[str, str]:
        """The URL of each router whose lease runs; the rows of those that ended long ago are removed."""
        now = await self._client.clock_ms(keys.SEARCHERS)
        flat: list[bytes] = await self._client.fetch("HGETALL", keys.SEARCHERS)
        found: dict[str, str] = {}
        for node, row in zip(flat[::2], flat[1::2], strict=True):
            try:
                lease = _decode(row)
            except ValueError as error:  # msgspec's errors
                unreadable(error)
                continue
            if now < lease.lease_until <= now + 2 * LEASE_MS:
                found[node.decode(errors="replace")] = lease.url
            elif abs(now - lease.lease_until) > KEEP_MS:
                await self._client.fetch("HDEL", keys.SEARCHERS, node)
        return found
