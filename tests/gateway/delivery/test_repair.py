"""Repair: a hub's gap is read from the log, once for all sessions, in pages."""

from __future__ import annotations

import asyncio

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery import repair
from router.contract import metrics, stamp
from tests.gateway.world import world


async def test_missed_event_of_a_group_is_read_from_the_log_once_for_all_sessions(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        clients = [await of.client(user).connected() for user in ("ann", "bob")]
        await of.say("ann", group, 0)
        await clients[1].event("message", body=0)
        with of.deaf():
            for i in (1, 2):
                await of.say("ann", group, i)
            await of.settled()
        asked, counted = of.calls("range"), metrics.REPAIRED_EVENTS._value.get()
        await of.say("ann", group, 3)
        for client in clients:
            await client.event("message", body=3)
            assert client.bodies(group) == [0, 1, 2, 3]
        assert of.calls("range") == asked + 1
        assert metrics.REPAIRED_EVENTS._value.get() == counted + 3


async def test_rolled_back_group_is_announced_before_the_events_that_replaced_it(valkey: EmbeddedValkey) -> None:
    """A hub writes events at once, so the gap must be written before them."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        kept = await of.say("ann", group, "kept")
        photograph = await of.photographed(group)
        void = await of.say("ann", group, "void")
        await bob.event("message", body="void")
        await of.failed_over(group, photograph)
        await of.say("ann", group, "new", seen=void.seq)
        await bob.event("message", body="new")
        assert [event["type"] for event in bob.events] == ["welcome", "message", "message", "gap", "message"]
        assert [(gap["from"], gap["to"]) for gap in bob.of("gap")] == [(kept.seq + 1, void.seq)]


async def test_long_repair_is_read_in_pages(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live events that arrive meanwhile are delivered in their order, once."""
    monkeypatch.setattr(repair, "REPAIR_EVENTS", 3)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            for i in range(10):
                await of.say("ann", group, i)
            await of.settled()
        await asyncio.gather(*(of.say("ann", group, i) for i in range(10, 30)))
        await bob.until(lambda: len(bob.bodies(group)) >= 30)
        assert sorted(bob.bodies(group)) == list(range(30))
        assert bob.seqs(group) == sorted(bob.seqs(group))


async def test_failed_repair_is_retried(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "RETRY_S", 0.0)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "lost")
            await of.settled()
        refusals = of.unavailable(3)
        await of.say("ann", group, "after")
        await bob.event("message", body="after")
        assert bob.bodies(group) == ["lost", "after"]
        assert not refusals


async def test_repair_that_raises_goes_on_behind_the_event_that_raised(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub whose repair never ended would take no live event again."""
    monkeypatch.setattr(repair, "RETRY_S", 0.0)
    faults = [RuntimeError("a bug")]
    known = stamp.is_message

    def fails_once(event: bytes) -> bool:
        if faults:
            raise faults.pop()
        return known(event)

    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "lost")
            await of.settled()
        monkeypatch.setattr(stamp, "is_message", fails_once)
        for body in ("after", "live"):
            await of.say("ann", group, body)
            await bob.event("message", body=body)
        assert bob.bodies(group) == ["lost", "after", "live"]
        assert not faults
