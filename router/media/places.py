"""Places of uploads: how many run at once, of one user on all routers, and on this router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from time import monotonic
from typing import Final

from router.contract import metrics
from router.contract.errors import Unavailable
from router.store.files import Files, UploadRate

UPLOADS: Final = 64
LEASE_MS: Final = 120_000
PROLONG_S: Final = 20.0

Progress = Callable[[], Awaitable[None]]


class Places:
    def __init__(self, files: Files, rate: UploadRate) -> None:
        self._files = files
        self._rate = rate
        self._running = 0

    @asynccontextmanager
    async def taken(self, user: str, size: int, *, new: bool = True, resumable: str = "") -> AsyncIterator[Progress]:
        """A place for an upload of about `size` bytes; the coroutine keeps it while bytes come.

        One that is not `new` (bytes of a resumable upload) is not counted among the uploads of a minute. The size of a
        `resumable` one counts against the quota until `Files.release`.

        Quota, RateLimited, or Unavailable if this router is full. If the router dies, the place is free when its lease
        ends.
        """
        upload = token_hex(8)
        async with self.running():
            await self._files.begin(user, upload, size, LEASE_MS, self._rate, new=new, resumable=resumable)
            try:
                yield self._keeping(user, upload)
            finally:
                with suppress(Unavailable):
                    await asyncio.shield(self._files.end(user, upload))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A place on this router alone."""
        if self._running >= UPLOADS:
            raise Unavailable("this router receives as many files as it can", 2.0)
        self._running += 1
        metrics.MEDIA_RUNNING.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            metrics.MEDIA_RUNNING.set(self._running)

    def _keeping(self, user: str, upload: str) -> Progress:
        prolonged = monotonic()

        async def keep() -> None:
            nonlocal prolonged
            if monotonic() > prolonged + PROLONG_S:
                prolonged = monotonic()
                await self._files.prolong(user, upload, LEASE_MS)

        return keep
