"""G9, read state converges: marks only rise, on all of a user's devices, and other members are notified."""

from __future__ import annotations

import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import Names, System
from tests.support import eventually


async def people(chat: System, names: Names, kind: str) -> tuple[ChatClient, ChatClient, ChatClient, str]:
    """Ann's phone and tablet, Ben, and a conversation in which Ben has said five things."""
    ann_, ben_ = names("ann", "ben")
    phone, tablet, ben = ChatClient(ann_), ChatClient(ann_, "tablet", codec="msgpack"), ChatClient(ben_)
    await phone.connect(chat.urls[0])
    await tablet.connect(chat.urls[1])
    await ben.connect(chat.urls[1])
    to = f"@{ann_}" if kind == "direct" else await chat.group(ann_, ben_)
    for i in range(5):
        conversation = (await ben.sent(to, i))["conversation"]
    for client in (phone, tablet):
        await client.has(conversation, 5)
    return phone, tablet, ben, conversation


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_g9_read_on_one_device_reaches_own_devices_and_other_members(
    chat: System, names: Names, kind: str
) -> None:
    """Live by a receipt; the next welcome contains the mark and the number of unread messages."""
    phone, tablet, ben, talk = await people(chat, names, kind)
    seqs = list(phone.received[talk])
    await phone.say("read", conversation=talk, seq=seqs[2])
    for client in (tablet, ben):
        receipt = await client.event("receipt", conversation=talk, user=phone.user)
        assert receipt["read"] == seqs[2]
    laptop = ChatClient(phone.user, "laptop")
    await laptop.connect(chat.urls[0])
    state = laptop.conversation(talk)
    assert (state["read"], state["unread"], state["head"]) == (seqs[2], 2, seqs[-1])


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_g9_read_mark_only_rises(chat: System, names: Names, kind: str) -> None:
    """A lower mark, late or from another device, changes nothing and sends nothing; a mark beyond the head is the
    head."""
    phone, tablet, ben, talk = await people(chat, names, kind)
    seqs = list(phone.received[talk])
    await phone.say("read", conversation=talk, seq=seqs[3])
    await ben.event("receipt", user=phone.user, read=seqs[3])
    await tablet.say("read", conversation=talk, seq=seqs[1])
    await tablet.say("read", conversation=talk, seq=seqs[3])
    await tablet.ask("history", conversation=talk)
    await tablet.say("read", conversation=talk, seq=2**53 - 1)
    await ben.event("receipt", user=phone.user, read=seqs[4])
    receipts = [event for event in ben.events if event["type"] == "receipt" and event["user"] == phone.user]
    assert [event["read"] for event in receipts] == [seqs[3], seqs[4]]  # his own sends are receipts too
    laptop = ChatClient(phone.user, "laptop")
    await laptop.connect(chat.urls[0])
    assert (laptop.conversation(talk)["read"], laptop.conversation(talk)["unread"]) == (seqs[4], 0)


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_sending_marks_as_read(chat: System, names: Names, kind: str) -> None:
    """A user who answers has read the earlier messages; after a reconnect they have no unread ones."""
    phone, tablet, ben, talk = await people(chat, names, kind)
    ack = await phone.sent(talk, "answer")
    await tablet.has(talk, 6)
    if kind == "group":
        assert (await tablet.event("receipt", conversation=talk, user=phone.user))["read"] == ack["seq"]
        await ben.event("receipt", conversation=talk, user=ben.user, read=list(ben.received[talk])[4])

    async def unread(user: str) -> int:
        laptop = ChatClient(user, "laptop")
        await laptop.connect(chat.urls[0])
        count: int = laptop.conversation(talk)["unread"]
        await laptop.disconnect()
        return count

    async def all_marks_are_kept() -> bool:
        return (await unread(phone.user), await unread(ben.user)) == (0, 1)

    await eventually(all_marks_are_kept, every_s=0.3)  # the receipt leaves with the message, the mark within a second


async def test_reads_of_a_large_group_stay_private(chat: System, names: Names) -> None:
    """In a group of more than 32 other members get no receipts, which would be a message to all for each reader."""
    ann_, ben_, *others = names("ann", "ben", *(f"user-{i}" for i in range(40)))
    talk = await chat.group(ann_, ben_, *others)
    phone, tablet, ben = ChatClient(ann_), ChatClient(ann_, "tablet"), ChatClient(ben_)
    for client, url in ((phone, 0), (tablet, 1), (ben, 1)):
        await client.connect(chat.urls[url])
    ack = await ben.sent(talk, "hi")
    await phone.say("read", conversation=talk, seq=ack["seq"])
    await tablet.event("receipt", conversation=talk, user=ann_, read=ack["seq"])
    await phone.sent(talk, "end")
    await ben.has(talk, 2)
    assert not [event for event in ben.events if event["type"] == "receipt" and event["user"] == ann_]


async def test_offline_device_gets_the_read_mark_in_its_welcome(chat: System, names: Names) -> None:
    """The device that was away finds the mark in its welcome."""
    phone, tablet, _, talk = await people(chat, names, "direct")
    await tablet.disconnect()
    seq = max(phone.received[talk])
    await phone.say("read", conversation=talk, seq=seq)
    await phone.event("receipt", conversation=talk, read=seq)
    await tablet.connect(chat.urls[0])
    assert (tablet.conversation(talk)["read"], tablet.conversation(talk)["unread"]) == (seq, 0)
