"""router/process/loop.py: the lag of the loop is measured while it runs."""

from __future__ import annotations

import asyncio
import time

import pytest

from router.contract.metrics import LOOP_LAG_SECONDS
from router.process import loop
from tests import support


def observed() -> tuple[float, float]:
    """The number of observations, and the sum of all lags."""
    samples = {sample.name: sample.value for sample in next(iter(LOOP_LAG_SECONDS.collect())).samples}
    return samples["linnet_loop_lag_seconds_count"], samples["linnet_loop_lag_seconds_sum"]


async def test_blocked_loop_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe runs until it is cancelled."""
    monkeypatch.setattr(loop, "PERIOD_S", 0.001)
    count, total = observed()
    meter = loop.Meter()
    probe = asyncio.ensure_future(loop.probe(meter))
    await support.eventually(lambda: observed()[0] > count)
    busy_until = time.monotonic() + 0.05
    while time.monotonic() < busy_until:
        pass
    before = observed()[0]
    await support.eventually(lambda: observed()[0] > before)
    assert observed()[1] - total > 0.04
    assert (load := meter.load()).lag_ms > 40
    assert load.cpu > 0
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
