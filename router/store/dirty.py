"""Dirty conversations, which routers still have to finish: claims, progress, and the trimming of logs.

The `dirty` set of each partition is used only here. `router/jobs/finisher.py` decides when a conversation is finished.

Invariants
- A claim is a lease: if a router dies, other routers can claim its conversations when the lease has run out. So a
  conversation may be worked on twice, and all work on it is idempotent.
- `routed` only rises, and events above it are never trimmed here.
- Logs are not trimmed by age while the server's clock is more than a day ahead of this process's.
- A log that has events stays marked for the day on which its oldest event reaches the retention time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import time_ns
from typing import Any, Final

import msgspec

from router.contract import keys
from router.contract.errors import LinnetError, from_function
from router.store.due import Overdue, look_due, parts_due
from router.store.redis.client import Client, RedisArg

AHEAD_MS: Final = 86_400_000  # as mark_routed.lua has it


def wall_ms() -> int:
    return time_ns() // 1_000_000


class Routed(msgspec.Struct, frozen=True):
    """The state of a conversation after `mark_routed`: finished if `routed` = `head`."""

    routed: int
    head: int
    floor: int
    trimmed: int


class Backlog(msgspec.Struct, frozen=True):
    """The number of due conversations, and how long the oldest has been due (ms; 0 if none).

    `held`: logs are not trimmed by age, because the server's clock is more than a day ahead of this process's.
    """

    count: int
    overdue_ms: int
    held: bool = False


class Dirty:
    def __init__(self, client: Client, own_ms: Callable[[], int] | None = wall_ms, *, followed: bool = False) -> None:
        """`own_ms` is this process's clock; None to trim by the server's clock alone. `followed`: note what has moved
        (`store/moved.py`)."""
        self._client = client
        self._own_ms = own_ms
        self._followed = followed

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
        """Claim up to `limit` due conversations of each partition for `lease_ms`; one call if one server has them."""
        try:
            found = await self._client.fcall_each("claim", list(map(keys.dirty, parts)), (limit, lease_ms))
        except LinnetError as error:
            raise from_function(error) from None
        return [
            from_function(convs) if isinstance(convs, LinnetError) else [conv.decode() for conv in convs]
            for convs in found
        ]

    async def due(self) -> Sequence[int]:
        """The partitions with due conversations."""
        return await parts_due(self._client, [keys.dirty(part) for part in range(keys.PARTITIONS)])

    async def mark_routed(self, conv: str, upto: int, retention_events: int, retention_age_ms: int) -> Routed:
        """Record that all events up to `upto` are delivered, trim the log, and unmark the conversation if it is done.

        `NotFound` if the conversation is removed or lost.
        """
        own = self._own_ms() if self._own_ms else 0
        args = (conv, upto, retention_events, retention_age_ms, own)
        return Routed(*await self._fcall("mark_routed", self._where(conv), args))

    async def forget_conversation(self, conv: str) -> None:
        """Delete the keys of a removed conversation, after it was removed from all members' rows."""
        await self._fcall("forget_conversation", self._where(conv), (conv,))

    async def backlog(self, parts: Iterable[int]) -> Backlog:
        """How much is due in these partitions together, by their server's clock: the deadlines are of that.

        Partitions whose server does not answer are left out.
        """
        now = await self._client.clock_ms()
        found = [one for one in await look_due(self._client, list(map(keys.dirty, parts))) if isinstance(one, Overdue)]
        held = self._own_ms is not None and now > self._own_ms() + AHEAD_MS
        return Backlog(sum(one.count for one in found), max((one.ms for one in found), default=0), held)

    async def _fcall(self, function: str, where: Sequence[str], args: Sequence[RedisArg]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except LinnetError as error:
            raise from_function(error) from None

    def _where(self, conv: str) -> tuple[str, ...]:
        part = keys.partition(conv)
        where = keys.conversation(conv), keys.log(conv), keys.dirty(part)
        return (*where, keys.moved(part)) if self._followed else where
