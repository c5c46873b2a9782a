"""router/store/observe.py: what the connections count in plain integers goes onto the counters, once."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from router.contract import metrics
from router.store.bus import Bus
from router.store.client import Client
from router.store.observe import RedisObserver
from tests import support


def calls(function: str) -> float:
    return float(metrics.REDIS_CALLS.labels(function)._value.get())


async def test_each_scrape_adds_what_was_new(valkey: EmbeddedValkey) -> None:
    """Nothing twice and nothing lost, however often somebody scrapes; a series begins where it was."""
    client = await Client.connect(valkey.url)
    observer, before = RedisObserver(client), calls("claim")
    for expected in (0, 2, 2, 3):
        while client.statistics().functions.get("claim", 0) < expected:
            await client.fcall("claim", ("{c0}:dirty",), (0, 1, 1))
        observer.observe()
        assert calls("claim") == before + expected
    assert (metrics.REDIS_UP._value.get(), metrics.REDIS_IN_FLIGHT._value.get()) == (1, 0)
    await client.close()
    observer.observe()
    assert metrics.REDIS_UP._value.get() == 0


async def test_a_bus_is_counted_beside_the_commands(valkey: EmbeddedValkey) -> None:
    """Its reconnects are its own; a router has none."""
    client = await Client.connect(valkey.url)
    bus = Bus(client, "{c0}:echo:test", lambda _: None, lambda: None, lambda: None, lambda _: None)
    await bus.connect(5)
    observer, counted = RedisObserver(client, bus), metrics.REDIS_RECONNECTS.labels("bus")
    observer.observe()
    before = counted._value.get()
    bus.subscribe(["{c0}:ch:a", "{c0}:ch:b"])
    bus.drop("a test")
    await support.eventually(lambda: bus.statistics().reconnects == 1 and bus.restored)
    observer.observe()
    observer.observe()
    assert (counted._value.get() - before, metrics.CHANNELS._value.get()) == (1, 3)
    await bus.close()
    await client.close()
