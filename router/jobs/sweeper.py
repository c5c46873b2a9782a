"""Removes files to which nothing refers, and what broken uploads left: only what Redis itself names.

The due lists of files (functions/prelude_file.lua) say what to look at. A claimed item is one of

file                 nothing has referred to it for a day: its uploaders' rows and its record go, its objects are due
file conversation    whether the conversation still refers to the file is asked in the conversation's slot
object               is deleted from the store, then its name from the list
upload               a resumable one ends a day after its last byte: its parts are due then
?                    the objects of the store are counted that Redis does not know

Invariants
- Nothing is deleted that Redis does not name: an empty or wrong Redis deletes nothing, and what only the store has is
  counted, never deleted. A server that is new to its data, as after a failover or a restored backup, names nothing for
  a time (`file_claim`).
- Nothing is written or deleted unless the store's marker is the id of the deployment in Redis.
- Every step may run twice, late, or beside another router's: a name of an object is never used again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from router.contract import keys, metrics
from router.contract.errors import StartupError, Unavailable
from router.jobs.rounds import Rounds, every
from router.media import names
from router.media.receiving import Spool
from router.store.files import COUNT, Files
from router.store.objects import Foreign, Objects
from router.store.resumable import Resumables

LIMIT: Final = 8
LEASE_MS: Final = 60_000
EVERY_S: Final = 10.0
TIDY_S: Final = 600.0
COUNT_MS: Final = 86_400_000
COUNT_AGAIN_MS: Final = 3_600_000  # of a count that did not end
COUNTED_AT_ONCE: Final = 500

log = logging.getLogger("linnet.media")


class Sweeper:
    """`ident`: the deployment's id in Redis; `marked`, `mark`: whether it has marked a store, and that it has now."""

    def __init__(
        self,
        files: Files,
        resumables: Resumables,
        objects: Objects,
        spool: Spool,
        ident: Callable[[], Awaitable[str]],
        marked: Callable[[], Awaitable[bool]],
        mark: Callable[[], Awaitable[None]],
        deployment: str,
    ) -> None:
        self._files = files
        self._resumables = resumables
        self._objects = objects
        self._spool = spool
        self._ident = ident
        self._marked = marked
        self._mark = mark
        self._deployment = deployment
        self._claimed = False
        self._rounds = Rounds(
            "files", files.claims, self.work, metrics.MEDIA_SWEEPS_FAILED, limit=LIMIT, lease_ms=LEASE_MS
        )
        self.round = self._rounds.round

    async def start(self) -> None:
        """Mark the store as this deployment's; StartupError if it is another's. One that is down is asked again."""
        try:
            await self.claim()
        except Unavailable:
            log.warning("the store of files cannot be reached; uploads and downloads wait for it")

    async def claim(self) -> None:
        try:
            await self._objects.claim(await self._marked())
        except Foreign as error:
            raise StartupError(str(error)) from None
        await self._mark()
        self._claimed = True

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(every(stop, EVERY_S, self.sweep), every(stop, TIDY_S, self.tidy))

    async def sweep(self) -> None:
        """Work on everything that is due, if the store and Redis belong together."""
        if not self._claimed:
            try:
                await self.claim()
            except StartupError as error:
                log.error("%s", error)
                return
        if await self._ident() != self._deployment:
            log.error("Redis has another deployment than the store of files: nothing is removed")
            return
        await self._files.count_later()
        while (done := await self.round()).full and not (done.failed or done.unavailable):
            pass

    async def tidy(self) -> None:
        """Remove what killed processes left on this machine."""
        drafts = await asyncio.to_thread(self._objects.sweep_staged)
        folders = await asyncio.to_thread(self._spool.sweep)
        metrics.MEDIA_SWEPT.labels("draft").inc(drafts + folders)

    async def work(self, item: str) -> None:
        """Look at one claimed item."""
        if item == COUNT:
            await self._count()
        elif item[0] == "!":
            await self._delete(item)
        elif item[0] == "+":
            await self._end(item[1:])
        elif " " in item:
            name, _, conv = item.partition(" ")
            await self._settle(keys.sha256_of(name), conv)
        else:
            await self._sweep(keys.sha256_of(item))

    async def _end(self, upload: str) -> None:
        user = await self._resumables.end(upload)
        if user is not None:
            metrics.MEDIA_SWEPT.labels("upload").inc()
        if user:
            await self._files.release(user, upload)

    async def _sweep(self, sha256: str) -> None:
        await self._files.forget_uploads(sha256)
        if await self._files.sweep(sha256, names.stem(sha256)):
            metrics.MEDIA_SWEPT.labels("file").inc()

    async def _settle(self, sha256: str, conv: str) -> None:
        found = await self._files.refers(sha256, conv)
        left = await self._files.settle(sha256, conv, found)
        if left < 0:
            metrics.MEDIA_LOST_REFERENCES.inc()
            log.error("a message refers to a file of which Redis has no record: %s in %s", sha256, conv)
        if found != "refers":
            metrics.MEDIA_SWEPT.labels("reference").inc()

    async def _delete(self, item: str) -> None:
        name = item[1:]
        await self._objects.delete(name)
        await self._files.deleted(names.partition_of(name), item)
        metrics.MEDIA_SWEPT.labels("object").inc()

    async def _count(self) -> None:
        """Count what only the store has. It may take longer than a lease, so no other router begins meanwhile."""
        await self._files.count_later(COUNT_AGAIN_MS)
        unknown = 0
        found: list[str] = []
        for prefix in (names.FILES, names.UPLOADS):
            async for name in self._objects.names(prefix):
                found.append(name)
                if len(found) == COUNTED_AT_ONCE:
                    unknown += await self._unknown(found)
                    found.clear()
        unknown += await self._unknown(found)
        metrics.MEDIA_UNKNOWN_OBJECTS.set(unknown)
        if unknown:
            log.warning("the store has %d objects that Redis does not know; they are kept", unknown)
        await self._files.count_later(COUNT_MS)

    async def _unknown(self, found: list[str]) -> int:
        """How many of these Redis does not name; without those that were deleted since they were listed."""
        known = await asyncio.gather(*map(self._known, found))
        others = [name for name, is_known in zip(found, known, strict=True) if not is_known]
        sizes = [await self._objects.size(name) for name in others]
        return len(others) - sizes.count(None)

    async def _known(self, name: str) -> bool:
        upload = names.upload_of(name)
        if upload is not None:
            return await self._resumables.named(upload, name)
        file = names.file_of(name)
        return file is not None and await self._files.named(*file, f"!{name}")
