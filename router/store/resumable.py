"""Resumable uploads in the slot of files: what has come of each, and who writes to it now.

The parts are objects of the store until all bytes are there. Every router can go on with an upload.

Invariants
- An object is in the due list (`store/files.py`) before it is put, and leaves it as it becomes a part.
- One writer at a time has the lock of an upload; its lease ends within seconds of its death.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, from_function
from router.store.redis.client import Client

KEEP_S: Final = 86_400
PUT_S: Final = 3600


class Resumable(Struct, frozen=True):
    """An upload. `ends` (ms): when it is removed if no more bytes come; `result`: of a finished one."""

    length: int
    offset: int
    ends: int
    meta: bytes
    parts: tuple[str, ...]
    result: bytes

    @property
    def complete(self) -> bool:
        return self.offset == self.length


class Resumables:
    def __init__(self, client: Client, keep_s: int = KEEP_S) -> None:
        self._client = client
        self._keep_s = keep_s

    async def create(self, upload: str, user: str, length: int, meta: bytes) -> int:
        """Begin an upload; return when it ends (ms)."""
        return 1000 * int(await self._fcall("tus_create", upload, user, length, meta, self._keep_s))

    async def read(self, upload: str, user: str) -> Resumable:
        """The user's upload."""
        return await self._lock(upload, user, "", 0)

    async def lock(self, upload: str, user: str, token: str, lease_ms: int) -> Resumable:
        """The user's upload, which only `token` may write to for `lease_ms`; Locked if another one has it."""
        return await self._lock(upload, user, token, lease_ms)

    async def unlock(self, upload: str, user: str, token: str) -> None:
        await self._lock(upload, user, token, -1)

    async def _lock(self, upload: str, user: str, token: str, lease_ms: int) -> Resumable:
        found = await self._call("tus_lock", (keys.tus(upload),), (user, token, lease_ms))
        length, offset, ends, meta, parts, result = found
        return Resumable(length, offset, 1000 * ends, meta or b"", tuple(parts.decode().split()), result)

    async def name(self, upload: str, part: str) -> None:
        """Name an object before it is put, so that it is deleted if it never becomes a part."""
        due = await self._client.clock_ms() + 1000 * PUT_S
        await self._client.fetch("ZADD", keys.file_due(keys.file_partition(upload)), due, f"!{part}")

    async def advance(
        self, upload: str, token: str, offset: int, size: int, part: str, lease_ms: int
    ) -> tuple[int, int]:
        """Enter an object as the part at `offset`; return the new offset, and when the upload ends (ms)."""
        args = (token, offset, size, part, lease_ms, self._keep_s)
        after, ends = await self._fcall("tus_advance", upload, *args)
        return int(after), 1000 * int(ends)

    async def finish(self, upload: str, result: bytes) -> None:
        """Keep the result of an upload whose bytes have become a file."""
        await self._fcall("tus_finish", upload, result, self._keep_s)

    async def end(self, upload: str, user: str = "") -> str | None:
        """Forget an upload of this user or, without a user, one whose time has come.

        Return its user, "" if it was forgotten before; None if its time has not come.
        """
        ended = await self._fcall("tus_end", upload, user)
        return None if ended is None else ended.decode()

    async def named(self, upload: str, part: str) -> bool:
        """Whether Redis knows this object: it is a part of the upload, or is due to be deleted."""
        parts = await self._client.fetch("HGET", keys.tus(upload), "parts")
        if parts is not None and part.encode() in parts.split():
            return True
        due = keys.file_due(keys.file_partition(upload))
        return await self._client.fetch("ZSCORE", due, f"!{part}") is not None

    async def _fcall(self, function: str, upload: str, *args: Any) -> Any:
        where = (keys.tus(upload), keys.file_due(keys.file_partition(upload)))
        return await self._call(function, where, (upload, *args))

    async def _call(self, function: str, where: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, where, args)
        except FunctionError as error:
            raise from_function(error) from None
