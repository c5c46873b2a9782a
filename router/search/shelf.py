"""The index files of the partitions that this router keeps, and the thread in which they are used.

Invariants
- SQLite's calls block, so all of them run in this one thread, in the order in which they were given.
- A file that is found damaged is deleted, and whoever used it hears of it (`Damaged`): it has to be built again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time
from typing import TypeVar

import apsw

from router.search.index import Index, delete

T = TypeVar("T")


class Damaged(Exception):
    """The file of a partition was damaged, and is deleted."""


class Shelf:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[int, Index] = {}
        self._thread = ThreadPoolExecutor(1, "search")

    async def use(self, part: int, work: Callable[[Index], T]) -> T:
        """What `work` returns for the index of a partition; `Damaged` if its file is of no use."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._use, part, work)

    async def forget(self, kept: frozenset[int], older_s: float) -> None:
        """Delete the files of other partitions that were not written for this long."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget, kept, older_s)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def size(self) -> int:
        """The bytes of all files."""
        return sum(path.stat().st_size for path in self._folder.glob("*.db*"))

    def _use(self, part: int, work: Callable[[Index], T]) -> T:
        index = self._open.get(part)
        if index is None:
            index = self._open[part] = Index(self._path(part))
        try:
            return work(index)
        except (apsw.CorruptError, apsw.NotADBError):
            self._delete(part)
            raise Damaged from None

    def _forget(self, kept: frozenset[int], older_s: float) -> None:
        for path in self._folder.glob("*.db"):
            part = int(path.stem) if path.stem.isdecimal() else -1
            if part >= 0 and part not in kept and path.stat().st_mtime < time() - older_s:
                self._delete(part)

    def _delete(self, part: int) -> None:
        if part in self._open:
            self._open.pop(part).close()
        delete(self._path(part))

    def _close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:03}.db"
