"""router/process/loop.py: how late the loop runs is seen while it runs."""

from __future__ import annotations

import asyncio
import time

import pytest

from router.contract.metrics import LOOP_LAG_SECONDS
from router.process import loop
from tests import support


def observed() -> tuple[float, float]:
    """How many times, and the sum of all lags."""
    samples = {sample.name: sample.value for sample in next(iter(LOOP_LAG_SECONDS.collect())).samples}
    return samples["linnet_loop_lag_seconds_count"], samples["linnet_loop_lag_seconds_sum"]


async def test_whoever_holds_the_loop_up_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the probe ends only when it is told to."""
    monkeypatch.setattr(loop, "PERIOD_S", 0.001)
    count, total = observed()
    probe = asyncio.ensure_future(loop.probe())
    await support.eventually(lambda: observed()[0] > count)
    busy_until = time.monotonic() + 0.05
    while time.monotonic() < busy_until:
        pass
    before = observed()[0]
    await support.eventually(lambda: observed()[0] > before)
    assert observed()[1] - total > 0.04
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
