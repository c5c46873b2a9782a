"""router/process/clocks.py with a real server: the offset is a metric, and is logged when it begins and ends."""

import asyncio
import logging
from time import time_ns

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import metrics
from router.process import clocks
from router.process.clocks import ClockWatch
from router.store.redis.client import Client
from tests import support

DAY_NS = 86_400 * 10**9


def offset_s() -> float:
    return next(iter(metrics.CLOCK_OFFSET_SECONDS.collect())).samples[0].value


async def test_wrong_clock_of_a_node_is_measured_and_logged_once(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a day behind: the metric shows it, one line reports it, and another line its end."""
    caplog.set_level(logging.INFO, "linnet.clocks")
    client = await Client.connect(valkey.url)
    try:
        watch = ClockWatch(client)
        await watch.compare()
        assert abs(offset_s()) < 1
        assert caplog.messages == []
        monkeypatch.setattr(clocks, "time_ns", lambda: time_ns() - DAY_NS)
        for _ in range(3):
            await watch.compare()
        assert -86_430 < offset_s() < -86_370
        (line,) = caplog.messages
        assert "behind Redis's" in line
        monkeypatch.setattr(clocks, "time_ns", time_ns)
        await watch.compare()
        assert "agree again" in caplog.messages[-1]
    finally:
        await client.close()


async def test_wrong_clock_is_measured_during_an_outage_of_redis(
    own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis's time is computed from the last reading, so a step of the node's clock is noticed."""
    client = await Client.connect(own_valkey.url)
    try:
        watch = ClockWatch(client)
        await watch.compare()
        own_valkey.kill()
        monkeypatch.setattr(clocks, "time_ns", lambda: time_ns() + DAY_NS)
        watch.show()
        assert 86_370 < offset_s() < 86_430
    finally:
        await client.close()


async def test_reading_that_raises_does_not_end_the_comparison(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clocks, "EVERY_S", 0.0)
    client = await Client.connect(valkey.url)
    watch = ClockWatch(client)
    faults, compared = [ValueError("no time")], asyncio.Event()

    async def clock_ms() -> int:
        if faults:
            raise faults.pop()
        compared.set()
        return time_ns() // 1_000_000

    monkeypatch.setattr(client, "clock_ms", clock_ms)
    running = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(support.DEADLINE_S):
            await compared.wait()
        assert not running.done()
    finally:
        running.cancel()
        await client.close()
