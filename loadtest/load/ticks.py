"""Beats finer than a loop's timers, which know milliseconds only: a timer of the kernel that the loop listens to.

At 2000 messages a second, a pace of milliseconds sends two at a time; they share every wake-up of whoever serves them
and make it look cheaper than it is. (Python has timerfd_create(2) since 3.13; until then libc is asked for it.)
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FINEST_S: Final = 0.0002  # with less the loop would turn idly and take the servers' CPU

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def ticks(every_s: float) -> Iterator[asyncio.Event]:
    """An event that is set every so many seconds; `FINEST_S` at the least."""
    timer, tick = _timer(max(every_s, FINEST_S)), asyncio.Event()
    loop = asyncio.get_running_loop()

    def text_received() -> None:
        os.read(timer, 8)  # how many beats it were: whoever waits looks at the clock anyway
        tick.set()

    loop.add_reader(timer, text_received)
    try:
        yield tick
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _timer(every_s: float) -> int:
    """A file that can be read once a period."""
    seconds, rest = divmod(round(every_s * 1e9), 1_000_000_000)
    spec = (ctypes.c_long * 4)(seconds, rest, seconds, rest)  # struct itimerspec: interval, first
    timer: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0 or _libc.timerfd_settime(timer, 0, spec, None) != 0:
        raise OSError(ctypes.get_errno(), "no timer to be had")
    return timer
