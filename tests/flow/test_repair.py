"""G4, no silent gap: an event that the live path loses is read from the log, in order, on the same connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from router.contract.keys import Channels
from tests import support
from tests.flow.client import ChatClient
from tests.flow.conftest import Start, System
from tests.flow.store import Store, store

ROUNDS = 8
BURST = 25


@contextmanager
def publishing_lost(world: Store) -> Iterator[None]:
    """Publish the messages of this store on channels without a subscriber."""
    with pytest.MonkeyPatch.context() as patch:
        for part in (world.users, world.conversations):
            patch.setattr(part, "_channels", Channels("nobody:"))
        # Without the cache, whose templates contain the former channels.
        patch.setattr(world.conversations, "_template", world.conversations._append_template)
        yield


async def people(system: System) -> tuple[list[ChatClient], str, str]:
    """Three people in a group, two of them in a direct conversation too, on two gateways."""
    clients = [ChatClient("ann"), ChatClient("ben", codec="msgpack"), ChatClient("cem")]
    group = await system.group("ann", "ben", "cem")
    for i, client in enumerate(clients):
        await client.connect(system.urls[i % 2])
    direct = (await clients[0].sent("@ben", "hi"))["conversation"]
    return clients, group, direct


async def test_g4_cut_subscriptions_lose_nothing(start: Start) -> None:
    """Redis closes the gateways' pub/sub connections again and again under traffic: no client misses an event."""
    system = await start()
    clients, group, direct = await people(system)
    ann, ben, cem = clients
    sent = 0
    with system.valkey.client() as redis:
        for _ in range(ROUNDS):
            burst = [client.sent(group, f"{client.user} {sent + i}") for i in range(BURST) for client in clients]
            burst += [client.sent(direct, f"{client.user} {sent + i}") for i in range(BURST) for client in (ann, ben)]
            talking = asyncio.gather(*burst)
            await ann.event("message", since=ann.here)
            await support.eventually(lambda: redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
            await talking
            sent += BURST
    for client in clients:
        await client.has(group, 3 * sent)
        assert client.whole(group)
    for client in (ann, ben):
        await client.has(direct, 2 * sent + 1)
        assert client.whole(direct)
    for client in clients:
        assert not client.gaps()
        assert client.duplicates == 0
        assert client.closed is None
    assert cem.bodies(group) == ann.bodies(group) == ben.bodies(group)
    assert await system.metric("linnet_gateway_repairs_total") > 0


async def test_last_event_lost_on_the_bus_is_found_by_the_audit(start: Start) -> None:
    """No later event shows the gap; the event arrives within a heartbeat or two."""
    system = await start(router=False, LINNET_HEARTBEAT_S="1")
    await ChatClient("ann").connect(system.urls[0])
    async with store(system.valkey.url) as world:
        await world.direct("ann", "ben")
        group = "g:AAAAAAAAAAAAAAAAAAAAAA"
        await world.conversations.create(group, "g", "", {"ann": "o", "ben": "m"}, 1, 1)
        for user in ("ann", "ben"):
            await world.users.join(user, group, "", 0, 0, 0, "m")
        ben = ChatClient("ben", codec="msgpack")
        await ben.connect(system.urls[1])
        await world.say(group, "ann", "heard")
        await ben.has(group, 1)
        with publishing_lost(world):
            for body in ("lost", "lost too"):
                await world.say(group, "ann", body)
        assert await ben.has(group, 3) == ["heard", "lost", "lost too"]
        await world.say(group, "ann", "heard again")
        await ben.has(group, 4)
        assert ben.whole(group)
        assert ben.duplicates == 0
        assert not ben.gaps()
    assert await system.metric("linnet_gateway_repairs_total", system.gateways[1]) > 0


async def test_direct_event_lost_on_the_bus_is_found_by_the_audit(start: Start) -> None:
    """The same for a direct conversation, whose events come on the user's own channel."""
    system = await start(router=False, LINNET_HEARTBEAT_S="1")
    async with store(system.valkey.url) as world:
        direct = await world.direct("ann", "ben")
        ben = ChatClient("ben")
        await ben.connect(system.urls[1])
        await world.say(direct, "ann", "heard")
        await ben.has(direct, 1)
        with publishing_lost(world):
            await world.say(direct, "ann", "lost")
        assert await ben.has(direct, 2) == ["heard", "lost"]
        await world.say(direct, "ann", "heard again")
        await ben.has(direct, 3)
        assert ben.whole(direct)
        assert not ben.gaps()


async def test_missed_event_is_delivered_before_the_event_that_shows_the_gap(start: Start) -> None:
    """It is read from the log as soon as a later event shows the gap."""
    system = await start(router=False)
    async with store(system.valkey.url) as world:
        direct = await world.direct("ann", "ben")
        group = "g:AAAAAAAAAAAAAAAAAAAAAA"
        await world.conversations.create(group, "g", "", {"ann": "o", "ben": "m"}, 1, 1)
        await world.users.join("ben", group, "", 0, 0, 0, "m")
        ben = ChatClient("ben")
        await ben.connect(system.urls[0])
        for conversation in (direct, group):
            await world.say(conversation, "ann", "heard")
            await ben.has(conversation, 1)
            with publishing_lost(world):
                await world.say_all(conversation, "ann", [f"lost {i}" for i in range(300)])
            await world.say(conversation, "ann", "heard again")
            wanted = ["heard", *(f"lost {i}" for i in range(300)), "heard again"]
            assert await ben.has(conversation, 302) == wanted
            assert ben.whole(conversation)
            assert ben.duplicates == 0


async def test_g4_trimmed_events_are_announced(start: Start) -> None:
    """A device that was offline for longer than events are kept gets one gap for the trimmed part, and then the
    rest."""
    system = await start(LINNET_RETENTION_EVENTS="100")
    ann, ben = ChatClient("ann"), ChatClient("ben")
    group = await system.group("ann", "ben")
    await ann.connect(system.urls[0])
    await ben.connect(system.urls[1])
    first = await ann.sent(group, "first")
    await ben.has(group, 1)
    await ben.ack_all()
    await ben.disconnect()
    for i in range(150):
        await ann.sent(group, i)
    with system.valkey.client() as redis:
        key = next(redis.scan_iter(match=f"*:log:{group}"))
        await support.eventually(lambda: redis.xlen(key) <= 100)
        floor = int(redis.xrange(key, count=1)[0][0].split(b"-")[0]) - 1
    await ben.connect(system.urls[0], cursors={group: first["seq"]})
    gap = await ben.event("gap")
    await ben.has(group, 101)
    assert gap == {
        "type": "gap", "conversation": group, "from": first["seq"] + 1, "to": floor, "reason": "expired",
    }  # fmt: skip
    assert ben.gaps() == [gap]
    assert ben.bodies(group)[1:] == list(range(50, 150))
    tablet = ChatClient("ben", "tablet")
    await tablet.connect(system.urls[0])
    await tablet.has(group, 100)
    assert not tablet.gaps(), "a new device begins where there is something"
