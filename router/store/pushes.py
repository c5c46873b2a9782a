"""Pushes: deadlines by user, the newest waiting seq of each conversation, and the results of idempotency keys.

A push is due if no device's cursor has passed the event by its deadline, independent of presence. `waiting` reads all
data for this decision in one step; `router/jobs/webhooks.py` decides.

Invariants
- A user's deadline is set by the first event that waits; later events do not move it, nor a claim or a retry.
- Callers give times from now on. The function adds them to its server's clock, because each server of a cluster has its
  own.
- `clear` removes the given seqs and keeps all events that were added since.
- The claim of a router that dies runs out, so its work may be done twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, LinnetError, from_function
from router.store.cursor_keys import naming_devices
from router.store.due import parts_due
from router.store.redis.client import Client
from router.store.redis.connection import RedisArg

_MARKS: Final = 10**15  # as in functions/prelude.lua: scores from here on are no deadlines


class Wait(Struct, frozen=True):
    """The newest waiting seq of a conversation, when its push is due (ms, by the clock of the user's server), and the
    user's read mark."""

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

    async def schedule(self, user: str, conv: str, seq: int, delay_ms: int) -> bool:
        """Set a deadline: a push is due after `delay_ms`, unless a device has `seq` then. False if there is no user."""
        where = (keys.user(user), *_where(user))
        return bool(await self._fcall("schedule_push", where, (user, conv, seq, delay_ms)))

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
        """Claim up to `limit` users of each partition whose deadline has passed, for `lease_ms`."""
        try:
            found = await self._client.fcall_each("claim_push", list(map(keys.push, parts)), (limit, lease_ms))
        except FunctionError as error:
            raise from_function(error) from None
        return [
            from_function(users) if isinstance(users, LinnetError) else [user.decode() for user in users]
            for users in found
        ]

    async def due(self) -> Sequence[int]:
        """The partitions with users whose deadline has passed."""
        return await parts_due(self._client, [keys.push(part) for part in range(keys.PARTITIONS)])

    async def waiting(self, user: str) -> Waiting:
        """The user's waiting events, and how far the user and their devices have come."""

        async def ask(devices: list[str], cursors: list[str]) -> Any:
            where = (keys.pushes(user), keys.convs(user), keys.devices(user), keys.recent(user), *cursors)
            return await self._fcall("waiting_pushes", where, devices)

        attempts, *flat = await naming_devices(self._client, user, ask)
        parts = iter(flat)
        rows = [(conv.decode(), *map(int, rest)) for conv, *rest in zip(parts, parts, parts, parts, parts, strict=True)]
        waits = {conv: Wait(seq, due, read) for conv, seq, due, read, _ in rows}
        return Waiting(waits, {conv: cursor for conv, _, _, _, cursor in rows}, int(attempts))

    async def clear(self, user: str, upto: dict[str, int], delay_ms: int | None = None) -> None:
        """Remove waiting events up to these seqs, which were pushed or have reached a device; end the claim.

        If other events still wait, they are due after `delay_ms`, or when they were due if it is None.
        """
        pairs = [part for conv, seq in upto.items() for part in (conv, seq)]
        await self._fcall("clear_pushes", _where(user), (user, "" if delay_ms is None else delay_ms, *pairs))

    async def retry(self, user: str, delay_ms: int) -> None:
        """Schedule another attempt after `delay_ms`, count the failed one, and end the claim."""
        await self._fcall("retry_push", _where(user), (user, delay_ms))

    async def backlog(self, part: int) -> tuple[int, int | None]:
        """The number of waiting users, and the earliest deadline (ms)."""
        waiting = await self.users(part)
        first = await self._client.fetch("ZRANGE", keys.push(part), 0, 0, "WITHSCORES")
        return waiting, int(float(first[1])) if waiting and first else None

    async def hold_tenures(self, parts: Sequence[int]) -> None:
        """Begin the tenures of the servers in these partitions, which claims begin, too: functions/prelude.lua."""
        if not self._client.one_server:
            await self.claims(parts, 0, 0)

    async def users(self, part: int) -> int:
        """The number of waiting users."""
        return int(await self._client.fetch("ZCOUNT", keys.push(part), "-inf", f"({_MARKS}"))

    async def claim_idempotency_key(self, user: str, key_hash: str, value: str) -> bytes | None:
        """Claim an idempotency key and store `value` for it; None if it was free, else the value stored before."""
        found: bytes | None = await self._client.fetch(
            "SET", keys.idempotency(user, key_hash), value, "NX", "GET", "EX", keys.IDEMPOTENCY_S
        )
        return found

    async def set_idempotency_answer(self, user: str, key_hash: str, value: str) -> None:
        """Replace the value of an idempotency key for the rest of its time."""
        await self._client.fetch("SET", keys.idempotency(user, key_hash), value, "XX", "KEEPTTL")

    async def _fcall(self, function: str, names: Sequence[str], args: Sequence[RedisArg]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            raise from_function(error) from None


def _where(user: str) -> tuple[str, str]:
    """The deadlines of the user's partition, and what waits for the user."""
    return keys.push(keys.partition(user)), keys.pushes(user)
