"""The processes of a chaos run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.chaos.clocks import FAKETIME
from loadtest.chaos.cluster import ManagedProcess


@pytest.mark.processes
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
async def test_clock_steps_for_one_process_only(tmp_path: Path) -> None:
    """The wall clock is wrong as told, at once in a new process; the monotonic clock is not."""
    part = ManagedProcess("gateway-0", tmp_path, (), {}, clocks=True)
    for by_s in (0.0, 37.5, -20.0):
        part.set_clock(by_s)
        before = time.time(), time.monotonic()
        told = subprocess.check_output(
            [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"], env=part.env
        )
        wall, monotonic = map(float, told.split())
        assert before[0] - 1 < wall - by_s < time.time() + 1
        assert before[1] < monotonic < time.monotonic()
