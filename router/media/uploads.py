"""From received bytes to a file that can be sent: prepare, put, record.

The order keeps two promises. An object is named in Redis before it is put, so what a killed process leaves is found and
deleted; and the record says `stored` only after the bytes are safe in the store, so no message refers to a file that is
not there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from msgspec import Struct

from router.contract import metrics
from router.contract.errors import LinnetError, TooLarge, Unavailable
from router.contract.files import FileInfo, Kind
from router.contract.settings import Settings
from router.media import names
from router.media.receiving import hash_of
from router.media.serving import PREVIEW_TYPE, TYPES, disposition
from router.media.types import OCTETS, Prepare, Prepared, Received
from router.store.file_records import Record
from router.store.files import Files
from router.store.objects import Objects

MB: Final = 1_000_000
TRIES: Final = 3


class Limits(Struct, frozen=True):
    """Bytes of one file, by kind."""

    image: int
    voice: int
    video: int
    file: int

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        sizes = settings.media_image_mb, settings.media_voice_mb, settings.media_video_mb, settings.media_file_mb
        return cls(*(round(MB * size) for size in sizes))

    def bytes_of(self, kind: Kind | None) -> int:
        """The bound of a kind; of a kind that is not known yet, that of the largest."""
        sizes: dict[Kind | None, int] = {
            "image": self.image, "voice": self.voice, "video": self.video, "file": self.file
        }  # fmt: skip
        return sizes.get(kind) or max(sizes.values())


async def as_it_is(received: Received) -> Prepared:
    """Keep a file as it was sent; for kinds that no check is made of."""
    known = received.declared_type in TYPES
    kind: Kind = received.declared_kind or "file"
    return Prepared("file" if kind == "image" else kind, received.declared_type if known else OCTETS, received.size,
                    duration_ms=received.duration_ms, waveform=received.waveform)  # fmt: skip


class Uploads:
    def __init__(self, files: Files, objects: Objects, prepare: Prepare, limits: Limits, quota: int) -> None:
        self._files = files
        self._objects = objects
        self._prepare = prepare
        self.limits = limits
        self._quota = quota

    async def accept(self, user: str, received: Received) -> FileInfo:
        """Make a file of received bytes; it is the user's own upload then."""
        kind = received.declared_kind or "unknown"
        try:
            info, new = await self._accept(user, received)
        except LinnetError as error:
            metrics.MEDIA_UPLOADS.labels(kind, error.code).inc()
            raise
        metrics.MEDIA_UPLOADS.labels(info.kind, "ok").inc()
        metrics.MEDIA_BYTES.labels("received").inc(received.size)
        if not new:
            metrics.MEDIA_DEDUPED.inc()
        return info

    async def _accept(self, user: str, received: Received) -> tuple[FileInfo, bool]:
        prepared = await self._prepare(received)
        if received.size > self.limits.bytes_of(prepared.kind):
            limit = self.limits.bytes_of(prepared.kind)
            raise TooLarge(f"a file of the kind {prepared.kind} must have at most {limit} bytes")
        sha256 = received.sha256
        if prepared.main is not None:
            await self._files.allowed(received.sha256)
            sha256 = await asyncio.to_thread(hash_of, prepared.main)
        record, new = await self._store(user, sha256, prepared.main or received.path, prepared)
        waveform = list(prepared.waveform) if prepared.waveform is not None else None
        info = FileInfo(sha256=sha256, type=prepared.type, kind=prepared.kind, size=prepared.size, name=received.name,
                        width=prepared.width, height=prepared.height, duration=prepared.duration_ms, waveform=waveform,
                        previews=list(record.previews))  # fmt: skip
        await self._files.own(user, info, self._quota)
        return info, new

    async def _store(self, user: str, sha256: str, main: Path, prepared: Prepared) -> tuple[Record, bool]:
        """Put the objects of a file unless the store has them. If the file was swept meanwhile, begin anew."""
        for last in (False,) * (TRIES - 1) + (True,):
            record = await self._files.intent(sha256, names.new_generation())
            name = names.object_of(sha256, record.gen)
            there = record.stored and await self._objects.size(name) == record.size
            known = record.previews if there else ()
            if not there:
                await self._objects.put(
                    name, main, prepared.size, prepared.type, disposition(prepared.type, prepared.kind)
                )
            # The same bytes may have been stored as a file, which has no previews.
            missing = [preview for preview in prepared.previews if preview.edge not in known]
            for preview in missing:
                await self._objects.put(
                    names.object_of(sha256, record.gen, preview.edge),
                    preview.path,
                    preview.size,
                    PREVIEW_TYPE,
                    "inline",
                )
            previews = tuple(sorted((*known, *(preview.edge for preview in missing))))
            picture = prepared.type if prepared.kind == "image" else ""
            made = Record(True, record.gen, prepared.size, previews, picture)
            try:
                new = await self._files.stored(sha256, made, user)
            except Unavailable:
                if last:
                    raise
                continue
            if new:
                metrics.MEDIA_BYTES.labels("stored").inc(prepared.size)
            return made, new
        raise AssertionError("not reached")
