"""Beats: finer than a millisecond, and nothing left of them afterwards."""

from __future__ import annotations

import asyncio
import os
import time

from loadtest.load.ticks import ticks


async def test_beats_are_finer_than_the_timers_of_a_loop() -> None:
    """Fifty beats of half a millisecond, in less time than fifty turns of a timer that knows milliseconds only."""
    fastest = 1.0
    for _ in range(200):  # until the machine has once had nothing else to do
        fastest = min(fastest, await _fifty())
        if fastest < 0.05:
            break
    assert 0.02 <= fastest < 0.05


async def _fifty() -> float:
    with ticks(0.0005) as tick:
        began = time.perf_counter()
        for _ in range(50):
            await tick.wait()
            tick.clear()
        return time.perf_counter() - began


async def test_nothing_is_left_of_beats_that_are_over() -> None:
    """Neither a file nor a reader."""
    before = os.listdir("/proc/self/fd")
    with ticks(0.0005) as tick:
        await tick.wait()
    await asyncio.sleep(0)
    assert os.listdir("/proc/self/fd") == before
