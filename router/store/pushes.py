"""Who waits for a push, and what an idempotency key stood for.

What lives here: deadlines by user, and per conversation the newest seq that waits. What never does: the decision.
A push is due when no device's cursor has passed the event by its deadline, whatever presence says; `waiting` reads
all that this takes in one step, and the plan is made from it elsewhere.

Invariants
- The deadline of a user is set by what she waited for first; what comes later neither moves it nor a claim or retry.
- `settled` removes what it was told of and nothing that came since.
- A claim that dies runs out; what it did may be done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, from_function
from router.store.redis.client import Client


class Wait(Struct, frozen=True):
    """The newest seq that waits in a conversation, since when a push is due (ms), and what the user has read there."""

    seq: int
    due: int
    read: int


class Waiting(Struct, frozen=True):
    """`cursors`: per conversation the furthest cursor of any device, 0 without one."""

    waits: dict[str, Wait]
    cursors: dict[str, int]
    attempts: int


class Pushes:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def clock_ms(self) -> int:
        """Redis's clock, by which deadlines are claimed."""
        return await self._client.clock_ms()

    async def arm(self, user: str, conv: str, seq: int, due_ms: int) -> bool:
        """Push unless a device has `seq` by `due_ms`; False if there is no such user."""
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        return bool(await self._fcall("arm", (keys.user(user),), (*names, user, conv, seq, due_ms)))

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str]]:
        """Up to `limit` users of each partition whose deadline has passed, ours for `lease_ms`."""
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
        """Nothing up to these seqs waits any more: it was pushed, or a device has it. Ends the claim."""
        pairs = [part for conv, seq in upto.items() for part in (conv, seq)]
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        await self._fcall("settled", names[:1], (names[1], user, *pairs))

    async def retry(self, user: str, due_ms: int) -> None:
        """Could not be pushed: once more at `due_ms`. Ends the claim and counts an attempt."""
        names = (keys.push(keys.partition(user)), keys.pushes(user))
        await self._fcall("retry_push", names[:1], (names[1], user, due_ms))

    async def postpone(self, user: str, due_ms: int) -> None:
        """It was too early: look again at `due_ms`. Ends the claim and counts nothing."""
        await self._client.fetch("ZADD", keys.push(keys.partition(user)), "XX", due_ms, user)

    async def backlog(self, part: int) -> tuple[int, int | None]:
        """How many users wait, and the earliest deadline (ms)."""
        size = await self._client.fetch("ZCARD", keys.push(part))
        first = await self._client.fetch("ZRANGE", keys.push(part), 0, 0, "WITHSCORES")
        waiting = bool(first) and first[0] != b"!"
        return max(0, size - 1), int(float(first[1])) if waiting else None

    async def claim_idempotency_key(self, user: str, key_hash: str, value: str) -> bytes | None:
        """Take an idempotency key for `value`; None if it was free, else what it already stands for."""
        found: bytes | None = await self._client.fetch(
            "SET", keys.idempotency(user, key_hash), value, "NX", "GET", "EX", keys.IDEMPOTENCY_S
        )
        return found

    async def set_idempotency_answer(self, user: str, key_hash: str, value: str) -> None:
        """What the key stands for from now on, for the rest of its time."""
        await self._client.fetch("SET", keys.idempotency(user, key_hash), value, "XX", "KEEPTTL")

    async def _fcall(self, function: str, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            raise from_function(error) from None
