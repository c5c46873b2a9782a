"""Receiving the bytes of an upload into a file of its own, and the folder of such files.

Invariants
- The bytes are never in memory as a whole: at most BUFFER of them, and what the socket delivers at a time.
- Each upload has a folder that is removed at its end; what a killed process left is removed when the next one starts,
  and hourly.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from time import time
from typing import BinaryIO, Final, Literal

from msgspec import Struct

from router.contract.errors import StartupError, TooLarge

BUFFER: Final = 1 << 18
LEFT_S: Final = 3600.0
PREFIX: Final = "linnet-upload-"


class Bytes(Struct, frozen=True):
    size: int
    sha256: str


class Spool:
    """The folder in which uploads wait until they are stored; of this machine, not shared.

    StartupError if this process cannot write there.
    """

    def __init__(self, folder: str = "") -> None:
        try:
            self._folder = Path(folder or gettempdir())
            Path(mkdtemp("", PREFIX, self._folder)).rmdir()
        except OSError as error:
            raise StartupError(f"LINNET_MEDIA_SPOOL must be a folder that the router can write to: {error}") from None

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """A folder of one upload."""
        made = Path(await asyncio.to_thread(mkdtemp, "", PREFIX, self._folder))
        try:
            yield made
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, made, True))

    def sweep(self) -> int:
        """Remove the folders that killed processes have left: in which nothing was written for LEFT_S.

        A folder's own time is that of its newest name, so a long upload is known by the time of its file.
        """
        removed = 0
        for left in self._folder.glob(f"{PREFIX}*"):
            try:
                written = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            except OSError:
                continue
            if written < time() - LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
                removed += 1
        return removed


@asynccontextmanager
async def opened(path: Path, mode: Literal["wb", "xb"]) -> AsyncIterator[BinaryIO]:
    """A file to write to in threads, because the disk may be slow. It is opened here: if opening it in a thread is
    cancelled, no caller has the file that is to be closed."""
    file = path.open(mode)
    try:
        yield file
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


async def receive(
    stream: AsyncIterator[bytes], path: Path, limit: int, progress: Callable[[], Awaitable[None]]
) -> Bytes:
    """Write the stream to a new file; TooLarge beyond `limit`. `progress` is called whenever bytes come."""
    digest, size, waiting = hashlib.sha256(), 0, bytearray()

    def write(file: BinaryIO, data: bytes) -> None:
        digest.update(data)
        file.write(data)

    async with opened(path, "xb") as file:
        async for part in stream:
            size += len(part)
            if size > limit:
                raise TooLarge(f"a file of this kind must have at most {limit} bytes")
            waiting += part
            if len(waiting) >= BUFFER:
                await asyncio.to_thread(write, file, bytes(waiting))
                waiting.clear()
            await progress()
        await asyncio.to_thread(write, file, bytes(waiting))
    return Bytes(size, digest.hexdigest())


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
