"""G7, bounded memory: a client that does not read is neither closed nor buffered for, and is fed from the log later."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import Start, System

MEGABYTE = 1 << 20
BODY = "x" * 4096
MESSAGES = 1500
SLOW = 8
PAGES = 300
# What the gateway would hold for them if it did, and what it may grow by.
BACKLOG = SLOW * MESSAGES * len(BODY)
ALLOWED = 12 * MEGABYTE

pytestmark = pytest.mark.alone

FAST: dict[str, Any] = {"LINNET_SENDS_PER_S": "100000", "LINNET_SEND_BURST": "100000", "LINNET_HEARTBEAT_S": "30"}


async def crowd(system: System) -> tuple[ChatClient, ChatClient, list[ChatClient], str]:
    """A writer on another gateway, a quick reader, and slow ones with a phone of each codec."""
    users = [f"slow-{i}" for i in range(SLOW)]
    group = await system.group("ann", "ben", *users)
    ann, ben = ChatClient("ann"), ChatClient("ben", codec="msgpack")
    slow = [ChatClient(user, codec=("json", "msgpack")[i % 2]) for i, user in enumerate(users)]
    await ann.connect(system.urls[1])
    await ben.connect(system.urls[0])
    return ann, ben, slow, group


async def burst(writer: ChatClient, group: str, start: int, count: int) -> None:
    for i in range(start, start + count, 50):
        await asyncio.gather(*(writer.sent(group, [j, BODY]) for j in range(i, min(i + 50, start + count))))


async def test_g7_readers_that_stop_are_fed_from_the_log(start: Start) -> None:
    """Readers stop under traffic: memory stays, others are not affected; then they get all events, in order, once."""
    system = await start(**FAST)
    ann, ben, slow, group = await crowd(system)
    for client in slow:
        await client.connect(system.urls[0], slow=True)
    await burst(ann, group, 0, 300)
    for client in (ben, *slow):
        await client.has(group, 300)
    before = system.gateways[0].rss_bytes
    for client in slow:
        client.stop_reading()
    await burst(ann, group, 300, MESSAGES)
    await ben.has(group, 300 + MESSAGES)
    grown = system.gateways[0].rss_bytes - before
    assert grown < ALLOWED < BACKLOG / 3, f"grew by {grown} bytes"
    await ann.sent(group, "probe")
    await ben.has(group, 301 + MESSAGES)
    assert await system.metric("linnet_gateway_sessions_fell_behind_total", system.gateways[0]) >= SLOW
    for client in slow:
        client.read_on()
    await burst(ann, group, 300 + MESSAGES, 50)
    for client in (ben, *slow):
        await client.has(group, 351 + MESSAGES)
        assert client.whole(group)
        assert client.duplicates == 0
        assert client.closed is None
        assert not client.gaps()
    await ann.sent(group, "end")
    for client in slow:
        await client.has(group, 352 + MESSAGES)
        assert client.duplicates == 0, "it joined the live set at its position"


async def test_g7_slow_device_with_a_huge_backlog_takes_no_memory(start: Start) -> None:
    """Devices with megabytes to catch up do not read after `welcome`: the events wait in the log, not in memory."""
    system = await start(**FAST)
    ann, ben, slow, group = await crowd(system)
    for client in slow:
        await client.connect(system.urls[0])
        await client.disconnect()
    await burst(ann, group, 0, MESSAGES)
    await ben.has(group, MESSAGES)
    before = system.gateways[0].rss_bytes
    for client in slow:
        await client.connect(system.urls[0], slow=True)
        client.stop_reading()
    await burst(ann, group, MESSAGES, 200)
    await ben.has(group, MESSAGES + 200)
    assert ben.closed is None
    grown = system.gateways[0].rss_bytes - before
    assert grown < ALLOWED, f"grew by {grown} bytes"
    for client in slow:
        client.read_on()
    for client in slow:
        await client.has(group, MESSAGES + 200)
        assert client.bodies(group) == ben.bodies(group)
        assert client.whole(group)
        assert client.duplicates == 0


async def test_slow_reader_of_direct_messages_is_fed_from_the_log(start: Start) -> None:
    """Each session has a position of its own there, and the promise is the same."""
    system = await start(**FAST)
    ann, ben = ChatClient("ann"), ChatClient("ben", codec="msgpack")
    await ben.connect(system.urls[0], slow=True)
    await ann.connect(system.urls[1])
    talk = (await ann.sent("@ben", "first"))["conversation"]
    await ben.has(talk, 1)
    before = system.gateways[0].rss_bytes
    ben.stop_reading()
    await burst(ann, talk, 0, 2 * MESSAGES)
    assert system.gateways[0].rss_bytes - before < ALLOWED / 2
    ben.read_on()
    await ben.has(talk, 1 + 2 * MESSAGES)
    assert ben.whole(talk)
    assert ben.duplicates == 0
    await ann.sent(talk, "end")
    await ben.has(talk, 2 + 2 * MESSAGES)
    assert ben.whole(talk)


async def test_client_that_asks_and_does_not_read_takes_no_memory(start: Start) -> None:
    """Answers are bounded, too: pages are not read for a client that asks for hundreds and reads none."""
    system = await start(gateways=1)
    ann, eve = ChatClient("ann"), ChatClient("eve")
    group = await system.group("ann", "eve")
    await ann.connect(system.urls[0])
    for i in range(20):
        await ann.sent(group, [i, "x" * 60_000])
    await eve.connect(system.urls[0], slow=True)
    await eve.has(group, 20)
    before = system.gateways[0].rss_bytes
    eve.stop_reading()
    for _ in range(PAGES):
        await eve.say("history", conversation=group, limit=200)
    for i in range(100):
        await ann.sent(group, i)
        assert system.gateways[0].rss_bytes - before < 40 * MEGABYTE, i
    eve.read_on()
    await eve.until(lambda: len([e for e in eve.events if e["type"] in ("history", "error")]) == PAGES)
    await eve.has(group, 120)
    assert eve.whole(group)
    assert {event["code"] for event in eve.events if event["type"] == "error"} <= {"rate_limited"}
