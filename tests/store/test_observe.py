"""router/store/observe.py: what the connections count in plain integers goes onto the counters, once."""

from __future__ import annotations

from contextlib import AsyncExitStack

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics
from router.store.bus import Bus
from router.store.observe import RedisObserver
from tests import support
from tests.store.calling import store


def calls(function: str) -> float:
    return float(metrics.REDIS_CALLS.labels(function)._value.get())


async def test_each_scrape_adds_what_was_new(valkey: EmbeddedValkey) -> None:
    """Nothing twice and nothing lost, however often somebody scrapes; a series begins where it was."""
    async with store(valkey.url) as of:
        observer, before = RedisObserver(of.client), calls("claim")
        for expected in (0, 2, 2, 3):
            while of.client.statistics().functions.get("claim", 0) < expected:
                await of.client.fcall("claim", (keys.dirty(0),), (0, 1, 1))
            observer.observe()
            assert calls("claim") == before + expected
        assert (metrics.REDIS_UP._value.get(), metrics.REDIS_IN_FLIGHT._value.get()) == (1, 0)
    observer.observe()
    assert metrics.REDIS_UP._value.get() == 0


async def test_a_bus_is_counted_beside_the_commands(valkey: EmbeddedValkey) -> None:
    """Its reconnects are its own; a router has none."""
    async with AsyncExitStack() as stack:
        client = (await stack.enter_async_context(store(valkey.url))).client
        bus = Bus(client, keys.echo_channel("test"), lambda _: None, lambda: None, lambda: None, lambda _: None)
        stack.push_async_callback(bus.close)
        await bus.connect(5)
        observer, counted = RedisObserver(client, bus), metrics.REDIS_RECONNECTS.labels("bus")
        observer.observe()
        before = counted._value.get()
        bus.subscribe([keys.user_channel("ann"), keys.user_channel("bob")])
        bus.drop("a test")
        await support.eventually(lambda: bus.statistics().reconnects == 1 and bus.restored)
        observer.observe()
        observer.observe()
        assert (counted._value.get() - before, metrics.CHANNELS._value.get()) == (1, 3)
