"""Pushes: deadlines by user, the newest waiting seq of each conversation, and the results of idempotency keys.

A push is due if no device's cursor has passed the event by its deadline, independent of presence. `waiting` reads all
data for this decision in one step; `router/jobs/webhooks.py` decides.

Invariants
- A user's deadline is set by the first event that waits; later events do not move it, nor a claim or a retry.
- `settled` removes the given seqs and keeps all events that were added since.
- The claim of a router that dies runs out, so its work may be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, from_function
from router.store.redis.client import Client


class Wait(Struct, frozen=True):
    """The newest waiting seq of a conversation, the time (ms) at which its push is due, and the user's read mark."""

    seq: int
    due: int
    read: int


class Waiting(Struct, frozen=True):
    """The waiting events of a user; `cursors` has each conversation's furthest cursor of any device, 0 without one."""

    waits: dict[str, Wait]
    cursors: dict[str, int]
    attempts: int


class Pushes:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def clock_ms(self) -> int:
        """The time of Redis's clock, by which deadlines are claimed."""
        return await self._client.clock_ms()

    async def arm(self, user: str, conv: str, seq: int, due_ms: int) -> bool:
        """Set a deadline: a push is due unless a device has `seq` by `due_ms`. False if the user does not exist."""
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        return bool(await self._fcall("arm", (keys.user(user),), (*names, user, conv, seq, due_ms)))

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str]]:
        """Claim up to `limit` users of each partition whose deadline has passed, for `lease_ms`."""
        try:
            found = await self._client.fcall_each("claim_push", list(map(keys.push, parts)), (limit, lease_ms))
        except FunctionError as error:
            raise from_function(error) from None
        return [[user.decode() for user in users] for users in found]

    async def waiting(self, user: str) -> Waiting:
        attempts, *flat = await self._fcall(
            "waiting", (keys.pushes(user),), (keys.convs(user), keys.devices(user), keys.cursor(user, ""))
        )
        parts = iter(flat)
        rows = [(conv.decode(), *map(int, rest)) for conv, *rest in zip(parts, parts, parts, parts, parts, strict=True)]
        waits = {conv: Wait(seq, due, read) for conv, seq, due, read, _ in rows}
        return Waiting(waits, {conv: cursor for conv, _, _, _, cursor in rows}, int(attempts))

    async def settled(self, user: str, upto: dict[str, int]) -> None:
        """Remove waiting events up to these seqs, which were pushed or have reached a device; end the claim."""
        pairs = [part for conv, seq in upto.items() for part in (conv, seq)]
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        await self._fcall("settled", names[:1], (names[1], user, *pairs))

    async def retry(self, user: str, due_ms: int) -> None:
        """Schedule another attempt at `due_ms`, count the failed one, and end the claim."""
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        await self._fcall("retry_push", names[:1], (names[1], user, due_ms))

    async def postpone(self, user: str, due_ms: int) -> None:
        """Move a deadline that was too early to `due_ms` and end the claim; no attempt is counted."""
        await self._client.fetch("ZADD", keys.push(keys.partition(user)), "XX", due_ms, user)

    async def backlog(self, part: int) -> tuple[int, int | None]:
        """The number of waiting users, and the earliest deadline (ms)."""
        size = await self._client.fetch("ZCARD", keys.push(part))
        first = await self._client.fetch("ZRANGE", keys.push(part), 0, 0, "WITHSCORES")
        waiting = bool(first) and first[0] != b"!"
        return max(0, size - 1), int(float(first[1])) if waiting else None

    async def claim_idempotency_key(self, user: str, key_hash: str, value: str) -> bytes | None:
        """Claim an idempotency key and store `value` for it; None if it was free, else the value stored before."""
        found: bytes | None = await self._client.fetch(
            "SET", keys.idempotency(user, key_hash), value, "NX", "GET", "EX", keys.IDEMPOTENCY_S
        )
        return found

    async def set_idempotency_answer(self, user: str, key_hash: str, value: str) -> None:
        """Replace the value of an idempotency key for the rest of its time."""
        await self._client.fetch("SET", keys.idempotency(user, key_hash), value, "XX", "KEEPTTL")

    async def _fcall(self, function: str, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            raise from_function(error) from None
