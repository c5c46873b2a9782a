"""Ticks more precise than the timers of an event loop, which have a resolution of one millisecond.

At 2000 messages a second, a timer of the loop would send two messages at a time. Both would share each wake-up of the
server, which would then look cheaper than it is. So the kernel's timerfd wakes the loop. (Python has timerfd_create(2)
since 3.13; until then libc is called.)
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FINEST_S: Final = 0.0002  # a shorter period would make the loop use the CPU of the servers

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def ticks(every_s: float) -> Iterator[asyncio.Event]:
    """Yield an event that is set every `every_s` seconds, but at most every `FINEST_S` seconds."""
    timer, tick = _timer(max(every_s, FINEST_S)), asyncio.Event()
    loop = asyncio.get_running_loop()

    def text_received() -> None:
        os.read(timer, 8)  # the number of elapsed periods; the waiting task looks at the clock
        tick.set()

    loop.add_reader(timer, text_received)
    try:
        yield tick
    finally:
        loop.remove_reader(timer)
        os.close(timer)


def _timer(every_s: float) -> int:
    """Return a file descriptor that becomes readable once per period."""
    seconds, rest = divmod(round(every_s * 1e9), 1_000_000_000)
    spec = (ctypes.c_long * 4)(seconds, rest, seconds, rest)  # struct itimerspec: interval, first
    timer: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0 or _libc.timerfd_settime(timer, 0, spec, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot create a timer")
    return timer
