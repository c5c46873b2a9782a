"""Conversations that have moved, for those who follow all logs: the index of search.

The set `moved` of each partition has the conversations that routers finished within KEEP_MS, written by `mark_routed`
where search is on. `dirty` has those that they have still to finish, so a follower that looks there too sees most
events before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from router.contract import keys
from router.contract.errors import LinnetError, from_function
from router.store.redis.client import Client

KEEP_MS: Final = 86_400_000  # as mark_routed.lua has it
AHEAD_MS: Final = 10_000
YOUNG_MS: Final = 2500  # what is due by then was marked 1.5 s ago if `append` delivered it, else just now


class Moved:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def finished(self, parts: Sequence[int], within_ms: int) -> list[list[str] | LinnetError]:
        """The conversations of each partition that routers finished within this time, at most KEEP_MS."""
        return await self._look([keys.moved(part) for part in parts], -within_ms, AHEAD_MS)

    async def marked(self, parts: Sequence[int], within_ms: int) -> list[list[str] | LinnetError]:
        """Those that were marked as not finished within this time."""
        return await self._look([keys.dirty(part) for part in parts], YOUNG_MS - within_ms, YOUNG_MS)

    async def _look(self, lists: Sequence[str], first_ms: int, last_ms: int) -> list[list[str] | LinnetError]:
        try:
            found = await self._client.fcall_each("moved", lists, (first_ms, last_ms))
        except LinnetError as error:
            raise from_function(error) from None
        return [
            from_function(one) if isinstance(one, LinnetError) else [conv.decode() for conv in one] for one in found
        ]
