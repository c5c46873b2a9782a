"""G3, effectively once: a resend after a lost ack neither creates a second event nor loses one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests import support
from tests.flow.client import ChatClient
from tests.flow.conftest import Names, Start, System
from tests.store.conftest import proxied


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_g3_resend_after_a_gateway_died_before_the_ack_is_a_duplicate(start: Start, kind: str) -> None:
    """The gateway is killed after Redis has the event and before the ack; the client resends to another one."""
    system = await start(gateways=1)
    async with proxied(system.valkey.url) as proxy:
        doomed = await system.gateway(LINNET_REDIS_URL=proxy.url).ready()
        alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
        to = "@bob" if kind == "direct" else await system.group("alice", "bob")
        await bob.connect(system.urls[0])
        await alice.connect(doomed.url)
        conversation = (await alice.sent(to, "before"))["conversation"]
        proxy.swallow = True
        n = alice.next_n()
        lost = asyncio.ensure_future(alice.send(to, "once", n=n))
        with system.valkey.client() as redis:
            key = next(redis.scan_iter(match=f"*:log:{conversation}"))
            await support.eventually(lambda: redis.xlen(key) == 2)
        doomed.kill()
        with pytest.raises(ConnectionClosed):
            await lost
        await alice.connect(system.urls[0])
        ack = await alice.sent(to, "once", n=n)
        assert ack["duplicate"] is True
        after = await alice.sent(to, "after")
    for client in (alice, bob):
        await client.event("message", seq=after["seq"])
        assert client.bodies(conversation) == ["before", "once", "after"]
        assert client.in_order(conversation)
        assert client.received[conversation][ack["seq"]]["n"] == n


async def test_router_delivers_the_direct_message_of_a_dead_gateway(start: Start) -> None:
    """It reaches its reader although no client resends or sends anything."""
    system = await start(gateways=1)
    async with proxied(system.valkey.url) as proxy:
        doomed = await system.gateway(LINNET_REDIS_URL=proxy.url).ready()
        alice, bob, late = ChatClient("alice"), ChatClient("bob"), ChatClient("bob", "tablet")
        await bob.connect(system.urls[0])
        await alice.connect(doomed.url)
        conversation = (await alice.sent("@bob", "before"))["conversation"]
        await bob.has(conversation, 1)
        proxy.swallow = True  # the gateway never learns the seq, so it cannot deliver
        await alice.say("send", to="@bob", n=alice.next_n(), body="orphan")
        with system.valkey.client() as redis:
            key = next(redis.scan_iter(match=f"*:log:{conversation}"))
            await support.eventually(lambda: redis.xlen(key) == 2)
        doomed.kill()
    assert await bob.has(conversation, 2) == ["before", "orphan"]
    welcome = await late.connect(system.urls[0])
    assert welcome["conversations"][0]["unread"] == 2
    assert await late.has(conversation, 2) == ["before", "orphan"]


async def test_g3_same_n_again_is_a_duplicate_everywhere(chat: System, names: Names) -> None:
    """A resend gets the first answer, on either gateway, in either codec, with either name of the conversation."""
    alice_, bob_ = names("alice", "bob")
    bob = ChatClient(bob_)
    await bob.connect(chat.urls[1])
    alice = ChatClient(alice_)
    await alice.connect(chat.urls[0])
    n = alice.next_n()
    first = await alice.sent(f"@{bob_}", {"a": 1, "b": 2.5}, n=n)
    assert first["duplicate"] is False
    answers = [await alice.sent(first["conversation"], {"a": 1, "b": 2.5}, n=n)]
    await alice.disconnect()
    packed = ChatClient(alice_, codec="msgpack")
    await packed.connect(chat.urls[1])
    answers.append(await packed.sent(f"@{bob_}", {"a": 1, "b": 2.5}, n=n))
    for again in answers:
        assert {**again, "id": 0} == {**first, "id": 0, "duplicate": True}
    await packed.sent(f"@{bob_}", "end")
    assert await bob.has(first["conversation"], 2) == [{"a": 1, "b": 2.5}, "end"]
    assert bob.whole(first["conversation"])


async def test_n_with_other_content_is_a_conflict(chat: System, names: Names) -> None:
    """A second body, media, target or command with the same n is refused, and changes nothing."""
    alice_, bob_ = names("alice", "bob")
    alice = ChatClient(alice_)
    group = await chat.group(alice_, bob_)
    await alice.connect(chat.urls[0])
    n = alice.next_n()
    seq = (await alice.sent(group, "one", n=n))["seq"]
    others: list[dict[str, Any]] = [
        {"type": "send", "to": group, "body": "two"},
        {"type": "send", "to": group, "body": "one", "media": "image"},
        {"type": "send", "to": group, "body": "one", "reply_to": seq},
        {"type": "edit", "conversation": group, "seq": seq, "body": "one"},
        {"type": "delete", "conversation": group, "seq": seq},
        {"type": "react", "conversation": group, "seq": seq, "emoji": "x"},
    ]
    for other in others:
        kind = other.pop("type")
        answer = await alice.ask(kind, n=n, **other)
        assert (answer["type"], answer.get("code"), answer.get("n")) == ("error", "conflict", n), (kind, other)
    history = await alice.ask("history", conversation=group)
    assert [event["body"] for event in history["events"]] == ["one"]


async def test_resent_edits_deletes_and_reactions_happen_once(chat: System, names: Names) -> None:
    """Every command that appends an event can be resent like `send`, even if its target was deleted meanwhile."""
    (alice_,) = names("alice")
    alice = ChatClient(alice_)
    group = await chat.group(alice_)
    await alice.connect(chat.urls[0])
    seq = (await alice.sent(group, "one"))["seq"]
    commands: list[dict[str, Any]] = [
        {"kind": "edit", "n": alice.next_n(), "body": "two"},
        {"kind": "react", "n": alice.next_n(), "emoji": "x"},
        {"kind": "delete", "n": alice.next_n()},
    ]
    firsts = [await alice.ask(conversation=group, seq=seq, **command) for command in commands]
    agains = [await alice.ask(conversation=group, seq=seq, **command) for command in commands]
    assert [answer["duplicate"] for answer in (*firsts, *agains)] == [False] * 3 + [True] * 3
    assert [answer["seq"] for answer in firsts] == [answer["seq"] for answer in agains]
    await alice.sent(group, "end")
    await alice.has(group, 2)
    assert [event["type"] for event in alice.received[group].values()] == [
        "message",
        "edit",
        "react",
        "delete",
        "message",
    ]


async def test_late_n_is_accepted_once(chat: System, names: Names) -> None:
    """An n below accepted ones (it was lost on another connection) is new once, and then a duplicate."""
    alice_, bob_ = names("alice", "bob")
    alice = ChatClient(alice_)
    group = await chat.group(alice_, bob_)
    await alice.connect(chat.urls[0])
    early, late = alice.next_n(), alice.next_n()
    await alice.sent(group, "late", n=late)
    assert (await alice.sent(group, "early", n=early))["duplicate"] is False
    assert (await alice.sent(group, "early", n=early))["duplicate"] is True
    assert (await alice.sent(group, "late", n=late))["duplicate"] is True
    assert await alice.has(group, 2) == ["late", "early"]


async def test_n_too_old_to_recognize_is_a_conflict(chat: System, names: Names) -> None:
    """Below the last 32 accepted, or at or below `done`, an n may be a resend or not: it is refused."""
    alice_, bob_ = names("alice", "bob")
    alice = ChatClient(alice_)
    group = await chat.group(alice_, bob_)
    await alice.connect(chat.urls[0])
    skipped = alice.next_n()
    numbers = [alice.next_n() for _ in range(33)]
    for n in numbers:
        await alice.sent(group, n, n=n)
    for n in (skipped, numbers[0]):
        assert (await alice.send(group, n, n=n))["code"] == "conflict"
    assert (await alice.sent(group, numbers[1], n=numbers[1]))["duplicate"] is True
    await alice.sent(group, "done", done=numbers[-1])
    for n in numbers:
        assert (await alice.send(group, n, n=n))["code"] == "conflict"
    assert await alice.has(group, 34) == [*numbers, "done"]


async def test_devices_count_n_separately(chat: System, names: Names) -> None:
    """The same n of two devices is two messages."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    for device in ("phone", "tablet"):
        client = ChatClient(alice_, device)
        await client.connect(chat.urls[0])
        assert (await client.sent(group, "hi", n=7))["duplicate"] is False
    assert await client.has(group, 2) == ["hi", "hi"]


async def test_resend_of_a_removed_member_is_a_duplicate(chat: System, names: Names) -> None:
    """If the message was accepted before the removal; a new one is not found."""
    alice_, bob_ = names("alice", "bob")
    bob = ChatClient(bob_)
    group = await chat.group(alice_, bob_)
    await bob.connect(chat.urls[0])
    n = bob.next_n()
    await bob.sent(group, "mine", n=n)
    await chat.api("DELETE", f"/v1/conversations/{group}/members/{bob_}")
    assert (await bob.sent(group, "mine", n=n))["duplicate"] is True
    assert (await bob.send(group, "more"))["code"] == "not_found"
