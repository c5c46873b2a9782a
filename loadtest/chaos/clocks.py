"""Wall clocks that step, for one process each, by libfaketime (Debian: `libfaketime`).

A process reads its wall clock from a file of its own; its monotonic clock and every other process stay as they are. If
libfaketime is not installed, `FAKETIME` is None and no clock can step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

FAKETIME: Final = next(iter(sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))), None)
SHARED: Final = Path("/dev/shm")  # noqa: S108 - only files that libfaketime made for our own pids are removed there


class Clock:
    """The wall clock of one process, in all its lives; the offset is read again once a second."""

    def __init__(self, path: Path) -> None:
        assert FAKETIME is not None
        self._path = path
        self.set(0)
        self.env = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",  # else every call that asks for the time reads the file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset_s: float) -> None:
        """Make the clock wrong by `offset_s`, from about a second from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{offset_s:+.3f}\n")
        new.replace(self._path)


def forget(pid: int) -> None:
    """Remove what libfaketime shares among the threads of a process: it outlives a process that is killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (SHARED / name).unlink(missing_ok=True)
