"""router/process/clocks.py with a real server: the offset is shown, and said once when it begins and ends."""

import logging
from time import time_ns

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import metrics
from router.process import clocks
from router.process.clocks import ClockWatch
from router.store.redis.client import Client

DAY_NS = 86_400 * 10**9


def offset_s() -> float:
    return next(iter(metrics.CLOCK_OFFSET_SECONDS.collect())).samples[0].value


async def test_wrong_clock_of_a_node_is_shown_and_logged_once(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A day behind: the metric shows it, one line says so; another says when it is over."""
    caplog.set_level(logging.INFO, "linnet.clocks")
    client = await Client.connect(valkey.url)
    try:
        watch = ClockWatch(client)
        await watch.look()
        assert abs(offset_s()) < 1
        assert caplog.messages == []
        monkeypatch.setattr(clocks, "time_ns", lambda: time_ns() - DAY_NS)
        for _ in range(3):
            await watch.look()
        assert -86_401 < offset_s() < -86_399
        (line,) = caplog.messages
        assert "behind Redis's" in line
        monkeypatch.setattr(clocks, "time_ns", time_ns)
        await watch.look()
        assert "agree again" in caplog.messages[-1]
    finally:
        await client.close()


async def test_wrong_clock_is_shown_while_redis_cannot_be_asked(
    own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis's time is carried on, so a node's clock that steps meanwhile is noticed."""
    client = await Client.connect(own_valkey.url)
    try:
        watch = ClockWatch(client)
        await watch.look()
        own_valkey.kill()
        monkeypatch.setattr(clocks, "time_ns", lambda: time_ns() + DAY_NS)
        watch.show()
        assert 86_399 < offset_s() < 86_401
    finally:
        await client.close()
