"""G5, resume never expires: a device that reconnects receives every event since its position, however many."""

from __future__ import annotations

import asyncio

import pytest

from tests import support
from tests.flow.client import ChatClient, Event
from tests.flow.conftest import Names, Start, System
from tests.flow.store import Store, store

CONVERSATIONS = 50
MESSAGES = 200


async def group(world: Store, serial: int, *members: str) -> str:
    """A group as the API makes it."""
    conversation = f"g:{serial:022}"
    await world.conversations.create(conversation, "g", "", dict.fromkeys(members, "m"), 5000, 5_000_000)
    for user in members:
        await world.accounts.ensure(user)
        await world.users.join(user, conversation, "", 0, 0, 0, "m")
    return conversation


def order_of_arrival(client: ChatClient, since: int) -> list[str]:
    """Conversations by when their first message came."""
    return list(dict.fromkeys(event["conversation"] for event in client.events[since:] if event["type"] == "message"))


async def test_g5_device_resumes_with_ten_thousand_messages(start: Start) -> None:
    """In 50 conversations: all of them arrive, in order, the newest conversation first."""
    system = await start()
    devices = [ChatClient("ann", "phone"), ChatClient("ann", "tablet", codec="msgpack")]
    async with store(system.valkey.url) as world:
        talks = [await world.direct("ann", f"user-{i}") for i in range(0, CONVERSATIONS, 2)]
        talks += [await group(world, i, "ann", f"user-{i}") for i in range(1, CONVERSATIONS, 2)]
        talks.sort(key=lambda conversation: conversation[-2:])
        last = {talk: await world.say(talk, talk.split(":")[-1] if talk[0] == "d" else "ann", 0) for talk in talks}
        for i, device in enumerate(devices):
            await device.connect(system.urls[i])
            for talk in talks:
                await device.has(talk, 1)
            await device.ack_all()
            await device.disconnect()
        for talk in talks:
            author = talk.split(":")[-1] if talk[0] == "d" else "ann"
            last[talk] = (await world.say_all(talk, author, range(1, MESSAGES)))[-1]
            last[talk] = await world.say(talk, author, MESSAGES)
    newest_first = talks[::-1]
    for i, device in enumerate(devices):
        here = device.here
        welcome = await device.connect(system.urls[1 - i])
        assert [state["conversation"] for state in welcome["conversations"]] == newest_first
        assert [state["head"] for state in welcome["conversations"]] == [last[talk] for talk in newest_first]
        await device.reaches(last, 40)
        assert order_of_arrival(device, here) == newest_first
        for talk in talks:
            assert device.bodies(talk) == list(range(MESSAGES + 1))
            assert device.whole(talk)
        assert device.duplicates == 0
        assert not device.gaps()


async def test_g5_two_devices_resume_from_their_own_cursors(chat: System, names: Names) -> None:
    """The acks of one device do not count for the other."""
    ann_, ben_ = names("ann", "ben")
    talk = await chat.group(ann_, ben_)
    ben = ChatClient(ben_)
    phone, tablet = ChatClient(ann_), ChatClient(ann_, "tablet", codec="msgpack")
    for client in (ben, phone, tablet):
        await client.connect(chat.urls[0])
    direct = (await ben.sent(f"@{ann_}", 0))["conversation"]
    await ben.sent(talk, 0)
    for device in (phone, tablet):
        await device.has(talk, 1)
        await device.has(direct, 1)
        await device.ack_all()
    await tablet.disconnect()
    for i in range(1, 10):
        await ben.sent(talk, i)
        await ben.sent(direct, i)
    await phone.has(talk, 10)
    await phone.has(direct, 10)
    await phone.ack_all()
    await phone.disconnect()
    for i in range(10, 15):
        await ben.sent(talk, i)
        await ben.sent(direct, i)
    for device, first in ((phone, 10), (tablet, 1)):
        again = ChatClient(ann_, device.device, codec=device.codec)
        await again.connect(chat.urls[1])
        for conversation in (talk, direct):
            assert await again.has(conversation, 15 - first) == list(range(first, 15))
            assert again.conversation(conversation)["cursor"] == max(device.received[conversation])


async def test_hello_cursors_replace_the_stored_cursors(chat: System, names: Names) -> None:
    """For a device that lost part of its data, and for one that has more than it acked."""
    ann_, ben_ = names("ann", "ben")
    talk = await chat.group(ann_, ben_)
    ann = ChatClient(ann_)
    await ann.connect(chat.urls[0])
    acks = [await ann.sent(talk, i) for i in range(10)]
    await ann.has(talk, 10)
    await ann.ack_all()
    await ann.disconnect()
    for url, cursor, wanted in ((0, 3, [4, 5, 6, 7, 8, 9]), (1, 7, [8, 9])):
        again = ChatClient(ann_)
        await again.connect(chat.urls[url], cursors={talk: acks[cursor]["seq"]})
        assert await again.has(talk, len(wanted)) == wanted
        await again.disconnect()


async def test_ack_beyond_the_received_position_does_not_count(chat: System, names: Names) -> None:
    """The next events are delivered all the same."""
    ann_, ben_ = names("ann", "ben")
    talk = await chat.group(ann_, ben_)
    ann, ben = ChatClient(ann_), ChatClient(ben_)
    await ann.connect(chat.urls[0])
    await ben.connect(chat.urls[1])
    await ben.sent(talk, "one")
    await ann.has(talk, 1)
    await ann.say("ack", conversation=talk, seq=2**53 - 1)
    await ann.ask("ping")
    await ann.disconnect()
    await ben.sent(talk, "two")
    again = ChatClient(ann_)
    await again.connect(chat.urls[0])
    assert await again.has(talk, 1) == ["two"]


@pytest.mark.parametrize(("said", "read", "first"), [(250, 250, 150), (250, 50, 50), (1250, 0, 250), (30, 30, 0)])
async def test_new_device_starts_near_the_end(chat: System, names: Names, said: int, read: int, first: int) -> None:
    """100 events back, or at the read mark if that is earlier, but at most 1000 back."""
    ann_, ben_ = names("ann", "ben")
    async with store(chat.valkey.url) as world:
        talk = await world.direct(ann_, ben_)
        seqs = await world.say_all(talk, ben_, range(said))
        if read:
            await mark_read(world, ann_, talk, seqs[read - 1], read)
    device = ChatClient(ann_, codec="msgpack")
    await device.connect(chat.urls[0])
    await device.reaches({talk: seqs[-1]})
    assert device.bodies(talk) == list(range(first, said))
    assert device.whole(talk)
    assert not device.gaps()


async def mark_read(world: Store, user: str, conversation: str, seq: int, count: int) -> None:
    done = asyncio.get_running_loop().create_future()
    world.users.read(user, conversation, seq, count, done.set_result)
    assert await done is True


async def test_conversations_beyond_two_hundred_follow_the_welcome(start: Start) -> None:
    """`welcome` lists the 200 newest with `more`; the others follow, newest first, with all their messages."""
    system = await start(gateways=1)
    ends: dict[str, int] = {}
    async with store(system.valkey.url) as world:
        for i in range(450):
            direct = i % 3 == 0
            talk = await world.direct("ann", f"user-{i}") if direct else await group(world, i, "ann")
            ends[talk] = await world.say(talk, f"user-{i}" if direct else "ann", i)
    talks = list(ends)
    await support.eventually(lambda: not system.unfinished(), 30.0)  # what moves meanwhile may be listed again
    for device in (ChatClient("ann"), ChatClient("ann", "tablet", codec="msgpack")):
        welcome = await device.connect(system.urls[0])
        assert len(welcome["conversations"]) == 200
        assert welcome["more"] is True
        await device.reaches(ends)
        lists: list[Event] = [event for event in device.events if event["type"] == "conversations"]
        assert [event["more"] for event in lists] == [True] * (len(lists) - 1) + [False]
        named = [state["conversation"] for event in (welcome, *lists) for state in event["conversations"]]
        assert sorted(named) == sorted(talks), "each is listed once"
        directs = [name for name in named if name[0] == "d"]
        assert directs == [talk for talk in reversed(talks) if talk[0] == "d"]
        for i, talk in enumerate(talks):
            assert device.bodies(talk) == [i]
        assert device.duplicates == 0


async def test_resume_under_traffic_loses_and_repeats_nothing(chat: System, names: Names) -> None:
    """The device gets the missed events, and then the live ones."""
    ann_, ben_, cem_ = names("ann", "ben", "cem")
    talk = await chat.group(ann_, ben_, cem_)
    ann, ben, cem = ChatClient(ann_), ChatClient(ben_), ChatClient(cem_, codec="msgpack")
    for client in (ann, ben, cem):
        await client.connect(chat.urls[0])
    direct = (await ben.sent(f"@{ann_}", "start"))["conversation"]
    await ann.has(direct, 1)

    async def talking() -> None:
        for i in range(150):
            await asyncio.gather(ben.sent(talk, i), ben.sent(direct, i), cem.sent(talk, i))

    async def coming_and_going() -> None:
        for i in range(8):
            await ann.more(20)
            await ann.ack_all()
            ann.abort()
            await ann.gone()
            await ann.connect(chat.urls[i % 2])

    await asyncio.gather(talking(), coming_and_going())
    await ann.has(talk, 300)
    await cem.has(talk, 300)
    await ann.has(direct, 151)
    assert ann.whole(talk)
    assert ann.whole(direct)
    assert ann.bodies(talk) == cem.bodies(talk)
    assert not ann.gaps()
