"""router/store/observe.py: the plain counts of the connections are added to the counters, once."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics
from router.store.observe import RedisObserver
from router.store.redis.client import Client
from router.store.redis.pubsub import Bus
from tests import support
from tests.store.calling import store


def calls(function: str) -> float:
    return float(metrics.REDIS_CALLS.labels(function)._value.get())


def errors(kind: str) -> float:
    return float(metrics.REDIS_ERRORS.labels(kind)._value.get())


def raises(_: object) -> None:
    raise ValueError("a caller's bug")


async def test_each_scrape_adds_the_difference(valkey: EmbeddedValkey) -> None:
    """No count is added twice or lost, for any number of scrapes; a counter begins at its present value."""
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


async def test_bus_is_counted_beside_the_commands(valkey: EmbeddedValkey) -> None:
    """It has its own reconnects; a router has no bus."""
    async with AsyncExitStack() as stack:
        client = (await stack.enter_async_context(store(valkey.url))).client
        bus = Bus(client, keys.Channels().echo("test"), lambda _: None, lambda: None, lambda: None, lambda _: None)
        stack.push_async_callback(bus.close)
        await bus.connect(5)
        observer, counted = RedisObserver(client, bus), metrics.REDIS_RECONNECTS.labels("bus")
        observer.observe()
        before = counted._value.get()
        bus.subscribe([keys.Channels().user("ann"), keys.Channels().user("bob")])
        bus.drop("a test")
        await support.eventually(lambda: bus.statistics().reconnects == 1 and bus.restored)
        observer.observe()
        observer.observe()
        assert (counted._value.get() - before, metrics.CHANNELS._value.get()) == (1, 3)


async def test_errors_without_a_caller_are_counted(valkey: EmbeddedValkey) -> None:
    """Callbacks that raise, on either connection; a missing library; a channel unsubscribed by the server."""
    kinds = ("callback", "no_library", "taken_away")
    client = await Client.connect(valkey.url)
    bus = Bus(client, keys.Channels().echo("test"), raises, lambda: None, lambda: None, lambda _: None)
    try:
        await bus.connect(5)
        observer = RedisObserver(client, bus)
        observer.observe()
        before = [errors(kind) for kind in kinds]
        client.command("PING", reply=raises)
        await client.fetch("FUNCTION", "FLUSH")
        await client.fcall("claim", (keys.dirty(0),), (0, 1, 1))
        channel = keys.Channels().user("ann")
        subscribed = asyncio.get_running_loop().create_future()
        bus.subscribe([channel], subscribed.set_result)
        assert await subscribed
        client.publish(channel, b"for a callback that raises")
        await support.eventually(lambda: bus.statistics().callback_errors == 1)
        bus._taken_away(channel.encode())
        observer.observe()
        assert [errors(kind) - was for kind, was in zip(kinds, before, strict=True)] == [2, 1, 1]
    finally:
        await bus.close()
        await client.close()
