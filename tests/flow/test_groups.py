"""Membership that changes while members are online: the conversation's slot decides, and every session follows."""

from __future__ import annotations

import asyncio
from functools import partial

from tests.flow.client import ChatClient
from tests.flow.conftest import Names, System
from tests.support import eventually


async def test_added_member_receives_the_conversation_live(chat: System, names: Names) -> None:
    """A member who is added while online gets the conversation and its events from then on, and none from before."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, title="Plans")
    alice, bob = ChatClient(alice_), ChatClient(bob_, codec="msgpack")
    await alice.connect(chat.urls[0])
    await bob.connect(chat.urls[1])
    await alice.sent(group, "before")
    await chat.api("PUT", f"/v1/conversations/{group}/members/{bob_}", {"role": "member"}, user=alice_)
    await bob.event("conversations")
    state = bob.conversation(group)
    assert (state["kind"], state["title"]) == ("group", "Plans")
    added = await alice.event("member", conversation=group, user=bob_)
    assert (added["action"], added["role"], added["from"]) == ("add", "member", alice_)
    await alice.sent(group, "welcome")
    await bob.sent(group, "thanks")
    assert await bob.has(group, 2) == ["welcome", "thanks"]
    assert await alice.has(group, 3) == ["before", "welcome", "thanks"]
    assert bob.whole(group)
    assert min(bob.received[group]) >= added["seq"]


async def test_new_role_is_in_the_next_welcome(chat: System, names: Names) -> None:
    """Also the one of a member who becomes owner because the last owner was deleted."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    bob = ChatClient(bob_)
    await bob.connect(chat.urls[0])
    assert bob.conversation(group)["role"] == "member"
    await bob.disconnect()
    await chat.api("PUT", f"/v1/conversations/{group}/members/{bob_}", {"role": "admin"}, user=alice_)
    await bob.connect(chat.urls[1])
    assert bob.conversation(group)["role"] == "admin"
    await bob.disconnect()
    await chat.api("DELETE", f"/v1/accounts/{alice_}")
    await bob.connect(chat.urls[0])
    assert bob.conversation(group)["role"] == "owner"


async def test_removed_member_receives_the_removal_and_nothing_after(chat: System, names: Names) -> None:
    """It is the last event of the member's devices; afterwards the conversation is not found."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, phone, away = ChatClient(alice_), ChatClient(bob_), ChatClient(bob_, "tablet", codec="msgpack")
    await away.connect(chat.urls[0])
    await away.disconnect()
    await alice.connect(chat.urls[0])
    await phone.connect(chat.urls[1])
    await alice.sent(group, "hello")
    await phone.has(group, 1)
    await chat.api("DELETE", f"/v1/conversations/{group}/members/{bob_}", user=alice_)
    removal = await phone.event("member", conversation=group, user=bob_, action="remove")
    await alice.sent(group, "now that he is gone")
    answer = await phone.send(group, "am I?")
    assert answer["code"] == "not_found"
    await away.connect(chat.urls[1])
    assert away.conversation(group) == {"conversation": group, "kind": "group", "gone": True, "reason": "removed"}
    await away.event("member", conversation=group, user=bob_, action="remove")
    direct = (await alice.sent(f"@{bob_}", "sorry"))["conversation"]
    for client in (phone, away):
        await client.has(direct, 1)
        assert max(client.received[group]) == removal["seq"]
        assert client.bodies(group) == ["hello"]


async def test_member_added_again_receives_both_memberships(chat: System, names: Names) -> None:
    """Removed and added again while online: the events of both memberships are delivered, those between are not."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await alice.connect(chat.urls[0])
    await bob.connect(chat.urls[1])
    await alice.sent(group, "one")
    await bob.has(group, 1)
    member = f"/v1/conversations/{group}/members/{bob_}"
    await chat.api("DELETE", member)
    await bob.event("member", action="remove", user=bob_)
    await alice.sent(group, "two")
    await chat.api("PUT", member, {"role": "reader"})
    await bob.event("conversations")
    await alice.sent(group, "three")
    assert await bob.has(group, 2) == ["one", "three"]
    assert bob.in_order(group)
    assert (await bob.send(group, "?"))["code"] == "read_only"
    await chat.api("PUT", member, {"role": "member"})
    await bob.event("member", action="role", user=bob_, role="member")
    await bob.sent(group, "four")
    assert await alice.has(group, 4) == ["one", "two", "three", "four"]
    assert alice.whole(group)


async def test_new_title_is_an_event_and_in_the_welcome(chat: System, names: Names) -> None:
    """Members who are online get the event, members who connect later get it in the welcome."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_, title="Old")
    bob = ChatClient(bob_)
    await bob.connect(chat.urls[1])
    await chat.api("PATCH", f"/v1/conversations/{group}", {"title": "New"}, user=alice_)
    assert (await bob.event("title", conversation=group))["title"] == "New"
    for url in chat.urls:
        tablet = ChatClient(bob_, "tablet")
        await tablet.connect(url)
        assert tablet.conversation(group)["title"] == "New"


async def test_channel_readers_receive_and_cannot_write(chat: System, names: Names) -> None:
    """Any user can join a channel; all members read it, and its owner writes."""
    owner_, reader_ = names("owner", "reader")
    channel = await chat.group(owner_, kind="channel", title="News")
    owner, reader = ChatClient(owner_), ChatClient(reader_)
    await owner.connect(chat.urls[0])
    await reader.connect(chat.urls[1])
    first = await owner.sent(channel, "old news")
    await chat.api("POST", f"/v1/conversations/{channel}/join", user=reader_)
    await reader.event("conversations")
    await owner.sent(channel, "fresh news")
    await reader.until(lambda: "fresh news" in reader.bodies(channel))
    assert (await reader.send(channel, "me too"))["code"] == "read_only"
    history = await reader.ask("history", conversation=channel)
    assert first["seq"] in [event["seq"] for event in history["events"]]


async def test_deleted_conversation_is_not_found_for_all_members(chat: System, names: Names) -> None:
    """Live and after a reconnect."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    bob = ChatClient(bob_)
    await bob.connect(chat.urls[1])
    await bob.sent(group, "hello")
    await chat.api("DELETE", f"/v1/conversations/{group}", user=alice_)
    assert (await bob.send(group, "anybody?"))["code"] == "not_found"
    assert (await bob.ask("history", conversation=group))["code"] == "not_found"
    tablet = ChatClient(bob_, "tablet")
    welcome = await tablet.connect(chat.urls[0])
    assert group not in [state["conversation"] for state in welcome["conversations"]]


async def test_each_device_is_notified_of_gone_conversations_until_it_acks(chat: System, names: Names) -> None:
    """A deleted group, and the direct conversation with a deleted user: live, and after a reconnect."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    bob, tablet, alice = ChatClient(bob_), ChatClient(bob_, "tablet"), ChatClient(alice_)
    await bob.connect(chat.urls[0])
    await alice.connect(chat.urls[1])
    direct = (await alice.sent(f"@{bob_}", "hello"))["conversation"]
    await bob.has(direct, 1)
    await tablet.connect(chat.urls[1])
    await tablet.has(direct, 1)
    await tablet.disconnect()
    await chat.api("DELETE", f"/v1/conversations/{group}", user=alice_)
    await chat.api("DELETE", f"/v1/accounts/{alice_}", user=alice_)
    entries = {
        group: {"conversation": group, "kind": "group", "gone": True, "reason": "deleted"},
        direct: {"conversation": direct, "kind": "direct", "gone": True, "reason": "user_deleted"},
    }

    def told(conversation: str, entry: dict[str, object]) -> bool:
        lists = [event["conversations"] for event in bob.events if event["type"] == "conversations"]
        return entry in [state for states in lists for state in states if state["conversation"] == conversation]

    for conversation, entry in entries.items():
        await bob.until(partial(told, conversation, entry))
    for _ in range(2):
        welcome = await tablet.connect(chat.urls[0])
        assert {state["conversation"]: state for state in welcome["conversations"]} == entries
        await tablet.disconnect()
    await tablet.connect(chat.urls[1])
    for conversation in entries:
        await tablet.say("ack", conversation=conversation, seq=0)
    await tablet.ask("ping")
    await tablet.disconnect()

    async def acked() -> bool:
        welcome = await tablet.connect(chat.urls[0])
        await tablet.disconnect()
        return bool(welcome["conversations"] == [])

    await eventually(acked)
    answer = await bob.ask("history", conversation=direct)
    assert [event["body"] for event in answer["events"]] == ["hello"]


async def test_membership_changes_under_traffic_lose_nothing(chat: System, names: Names) -> None:
    """While three members send, others are added and removed: each remaining member has all events, in one order."""
    users = names("ann", "ben", "cem")
    guests = names("x", "y", "z")
    group = await chat.group(*users)
    clients = [ChatClient(user) for user in users]
    visitors = [ChatClient(guest, codec="msgpack") for guest in guests]
    for i, client in enumerate([*clients, *visitors]):
        await client.connect(chat.urls[i % 2])

    async def talk(client: ChatClient) -> None:
        for i in range(60):
            await client.sent(group, f"{client.user} {i}")

    async def come_and_go(guest: str) -> None:
        for _ in range(5):
            await chat.api("PUT", f"/v1/conversations/{group}/members/{guest}", {"role": "member"})
            await chat.api("DELETE", f"/v1/conversations/{group}/members/{guest}")
        await chat.api("PUT", f"/v1/conversations/{group}/members/{guest}", {"role": "member"})

    await asyncio.gather(*map(talk, clients), *map(come_and_go, guests))
    last = await clients[0].sent(group, "last")
    for client in clients:
        await client.event("message", seq=last["seq"])
        assert client.whole(group)
        assert len(client.bodies(group)) == 181
    for visitor in visitors:
        await visitor.event("message", seq=last["seq"])
        assert visitor.in_order(group)


async def test_acked_removal_is_not_sent_again(chat: System, names: Names) -> None:
    """Neither to the device that acked it nor to a new device."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, live, away = ChatClient(alice_), ChatClient(bob_), ChatClient(bob_, "tablet")
    await alice.connect(chat.urls[0])
    await live.connect(chat.urls[0])
    await away.connect(chat.urls[1])
    for i in range(5):
        await alice.sent(group, i)
    await away.has(group, 5)
    await away.disconnect()
    await chat.api("DELETE", f"/v1/conversations/{group}/members/{bob_}")
    await live.event("member", action="remove", user=bob_)
    await away.connect(chat.urls[1])
    await away.event("member", action="remove", user=bob_)
    new = ChatClient(bob_, "laptop")
    for device, url in ((live, chat.urls[0]), (away, chat.urls[1]), (new, chat.urls[0])):
        if device is not new:
            await device.ack_all()
            await device.disconnect()
        again = ChatClient(bob_, device.device)
        await again.connect(url)  # which wrote what was acked before it greets
        note = await again.sent(f"@{bob_}", device.device)
        await again.event("message", seq=note["seq"])
        assert group not in again.received


async def test_acks_of_a_member_added_again_count(chat: System, names: Names) -> None:
    """Removed and added again on one connection: its acks are the position at which the next connection starts."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await alice.connect(chat.urls[0])
    await bob.connect(chat.urls[1])
    await alice.sent(group, "one")
    await bob.has(group, 1)
    member = f"/v1/conversations/{group}/members/{bob_}"
    await chat.api("DELETE", member)
    await bob.event("member", action="remove", user=bob_)
    await bob.ack_all()
    await chat.api("PUT", member, {"role": "member"})
    await bob.event("conversations")
    await alice.sent(group, "two")
    await bob.has(group, 2)
    await bob.ack_all()
    await bob.disconnect()
    await alice.sent(group, "three")
    again = ChatClient(bob_)
    await again.connect(chat.urls[1])
    assert await again.has(group, 1) == ["three"]


async def test_large_group_receives_everything_once_in_order(chat: System, names: Names) -> None:
    """It has more members on a gateway than one turn of the event loop writes to."""
    writer_, *users = names("writer", *(f"user-{i}" for i in range(700)))
    group = await chat.group(writer_, *users)
    writer = ChatClient(writer_)
    await writer.connect(chat.urls[1])
    members = [ChatClient(user, codec=("json", "msgpack")[i % 10 == 0]) for i, user in enumerate(users)]
    for start in range(0, len(members), 50):
        await asyncio.gather(*(member.connect(chat.urls[0]) for member in members[start : start + 50]))

    async def come_and_go(member: ChatClient) -> None:
        for _ in range(3):
            member.abort()
            await member.gone()
            await member.connect(chat.urls[0])

    bursts = (asyncio.gather(*(writer.sent(group, j) for j in range(i, i + 10))) for i in range(0, 60, 10))
    for burst in bursts:
        await burst
        await asyncio.gather(*map(come_and_go, members[:3]))
    for member in members:
        await member.has(group, 60)
        assert member.bodies(group) == list(range(60))
        assert member.whole(group)
    assert all(member.duplicates == 0 for member in members[3:])
