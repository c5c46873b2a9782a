"""Chat between users: direct and in groups, across gateways and codecs, with every kind of event.

G1 (acked messages reach all members), G2 (one order for all), G10 (encoded once).
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.flow.client import SUBPROTOCOLS, ChatClient, token
from tests.flow.conftest import Names, System


async def test_direct_messages_cross_gateways_and_codecs(chat: System, names: Names) -> None:
    """A direct message reaches both users on different gateways, in both codecs; bytes stay bytes."""
    alice_, bob_ = names("alice", "bob")
    alice, bob = ChatClient(alice_), ChatClient(bob_, codec="msgpack")
    await bob.connect(chat.urls[1])
    await alice.connect(chat.urls[0])
    sent = await alice.sent(f"@{bob_}", {"text": "hé", "raw": {"$b64": "+/8="}, "deep": [1, 2.5, None, True]})
    got = await bob.event("message", seq=sent["seq"])
    assert got["body"] == {"text": "hé", "raw": b"\xfb\xff", "deep": [1, 2.5, None, True]}
    assert (got["from"], got["device"], got["n"], got["at"]) == (alice_, "phone", sent["n"], sent["at"])
    await alice.event("message", 3.5, seq=sent["seq"])  # her own, before a router would see to it
    back = await bob.sent(sent["conversation"], b"\xfb\xff")
    assert (await alice.event("message", seq=back["seq"]))["body"] == {"$b64": "+/8="}
    assert alice.whole(sent["conversation"])
    assert bob.whole(sent["conversation"])


async def test_g2_group_has_one_order_for_all(chat: System, names: Names) -> None:
    """Four members on two gateways send at once: each receives all messages, its own included, in one order."""
    users = names("ann", "ben", "cem", "dee")
    group = await chat.group(*users)
    clients = [ChatClient(user, codec=codec) for user, codec in zip(users, itertools.cycle(("json", "msgpack")))]
    for client, url in zip(clients, (chat.urls[0], chat.urls[0], chat.urls[1], chat.urls[1]), strict=True):
        await client.connect(url)
    sends = [client.sent(group, f"{client.user} {i}") for i in range(40) for client in clients]
    acks = await asyncio.gather(*sends)
    for client in clients:
        await client.has(group, 160)
        assert client.whole(group)
        assert list(client.received[group]) == sorted(ack["seq"] for ack in acks)
    assert len({tuple(client.bodies(group)) for client in clients}) == 1
    assert [event["count"] for event in clients[0].received[group].values()] == list(range(1, 161))


async def test_burst_of_one_device_keeps_its_order(chat: System, names: Names) -> None:
    """Messages that one device sends without waiting for acks are logged, acked and delivered in their order."""
    alice_, bob_ = names("alice", "bob")
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await bob.connect(chat.urls[1])
    await alice.connect(chat.urls[0])
    acks = await asyncio.gather(*(alice.sent(f"@{bob_}", i) for i in range(30)))
    conversation = acks[0]["conversation"]
    assert await bob.has(conversation, 30) == list(range(30))
    assert [ack["seq"] for ack in acks] == sorted(ack["seq"] for ack in acks)
    assert bob.whole(conversation)


@pytest.mark.parametrize("kind", ["direct", "group"])
async def test_g10_event_is_encoded_once(chat: System, names: Names, kind: str) -> None:
    """A live event in msgpack has the same bytes as in the log and in a replay."""
    alice_, bob_ = names("alice", "bob")
    alice, bob = ChatClient(alice_), ChatClient(bob_, codec="msgpack")
    to = f"@{bob_}" if kind == "direct" else await chat.group(alice_, bob_)
    await bob.connect(chat.urls[1])
    await alice.connect(chat.urls[0])
    ack = await alice.sent(to, {"b": [1.5, "x", None], "a": {"$b64": "AA=="}})
    place = ack["conversation"], ack["seq"]
    await bob.event("message", seq=ack["seq"])
    again = ChatClient(bob_, "tablet", codec="msgpack")
    await again.connect(chat.urls[0])
    await again.event("message", seq=ack["seq"])
    with chat.valkey.client() as redis:
        key = next(redis.scan_iter(match=f"*:log:{ack['conversation']}"))
        ((_, fields),) = redis.xrange(key, ack["seq"], ack["seq"])
    assert bob.frames[place] == again.frames[place] == [fields[b"e"]]


async def test_compressed_connection_receives_the_same_events(chat: System, names: Names) -> None:
    """Live and replayed, with permessage-deflate."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await alice.open(chat.urls[0], compression="deflate")
    await alice.hello()
    await bob.connect(chat.urls[1])
    text = "the same words again and again " * 100
    await bob.sent(group, text)
    await alice.sent(group, text)
    assert await alice.has(group, 2) == await bob.has(group, 2) == [text, text]
    tablet = ChatClient(alice_, "tablet", codec="msgpack")
    await tablet.open(chat.urls[1], compression="deflate")
    await tablet.hello()
    assert await tablet.has(group, 2) == [text, text]


async def test_message_to_oneself_reaches_all_own_devices(chat: System, names: Names) -> None:
    """Once."""
    (alice_,) = names("alice")
    phone, tablet = ChatClient(alice_), ChatClient(alice_, "tablet", codec="msgpack")
    await phone.connect(chat.urls[0])
    await tablet.connect(chat.urls[1])
    ack = await phone.sent(f"@{alice_}", "note")
    await phone.sent(ack["conversation"], "another")
    for client in (phone, tablet):
        assert await client.has(ack["conversation"], 2) == ["note", "another"]
        assert client.whole(ack["conversation"])
        assert client.duplicates == 0


async def test_unknown_user_is_not_found(chat: System, names: Names) -> None:
    """Sending to a user does not create the user; an invalid name is not found either."""
    (alice_,) = names("alice")
    alice = ChatClient(alice_)
    await alice.connect(chat.urls[0])
    for to in (
        f"@{alice_}-nobody",
        f"@{alice_}-nobody",
        "@",
        "@not a name",
        "@a:b",
        "x",
        f"d:{alice_}:{alice_}-nobody",
    ):
        n = alice.next_n()
        answer = await alice.send(to, "hello?", n=n)
        assert (answer["type"], answer["code"], answer["n"]) == ("error", "not_found", n), (to, answer)


async def test_offline_user_receives_the_first_message_on_reconnect(chat: System, names: Names) -> None:
    """A user finds a direct conversation that was created while the user was offline, with its messages."""
    alice_, bob_ = names("alice", "bob")
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await bob.connect(chat.urls[0])
    await bob.disconnect()
    await alice.connect(chat.urls[1])
    ack = await alice.sent(f"@{bob_}", "first")
    welcome = await bob.connect(chat.urls[0])
    (state,) = welcome["conversations"]
    assert (state["conversation"], state["kind"], state["with"], state["unread"], state["head"]) == (
        ack["conversation"], "direct", alice_, 1, ack["seq"],
    )  # fmt: skip
    assert await bob.has(ack["conversation"], 1) == ["first"]


async def test_edit_delete_react_and_reply_are_events_of_the_conversation(chat: System, names: Names) -> None:
    """Each has its own seq and names its target; only messages count."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, bob = ChatClient(alice_), ChatClient(bob_, codec="msgpack")
    await alice.connect(chat.urls[0])
    await bob.connect(chat.urls[1])
    first = await alice.sent(group, "frist")
    reply = await bob.sent(group, "you mean first", reply_to=first["seq"])
    edit = await alice.ask("edit", conversation=group, seq=first["seq"], n=alice.next_n(), body="first")
    react = await bob.ask("react", conversation=group, seq=first["seq"], n=bob.next_n(), emoji="👍")
    unreact = await bob.ask("react", conversation=group, seq=first["seq"], n=bob.next_n(), emoji="👍", remove=True)
    delete = await alice.ask("delete", conversation=group, seq=first["seq"], n=alice.next_n())
    for client in (alice, bob):
        await client.event("delete", seq=delete["seq"])
        events = list(client.received[group].values())
        assert [event["type"] for event in events] == ["message", "message", "edit", "react", "react", "delete"]
        assert [event["count"] for event in events] == [1, 2, 2, 2, 2, 2]
        assert events[1]["reply_to"] == first["seq"]
        assert "reply_to" not in events[0] or events[0]["reply_to"] is None
        assert (events[2]["target"], events[2]["body"], events[2]["from"]) == (first["seq"], "first", alice_)
        assert (events[3]["target"], events[3]["emoji"], events[3]["remove"]) == (first["seq"], "👍", False)
        assert (events[4]["emoji"], events[4]["remove"]) == ("👍", True)
        assert events[5]["target"] == first["seq"]
        assert client.whole(group)
    assert [reply["seq"], edit["seq"], react["seq"], unreact["seq"], delete["seq"]] == list(alice.received[group])[1:]
    late = ChatClient(bob_, "tablet")
    await late.connect(chat.urls[0])
    await late.event("delete", seq=delete["seq"])
    assert first["seq"] not in late.received[group], "a deleted message leaves the log"
    assert late.in_order(group)


async def test_member_cannot_change_messages_of_others(chat: System, names: Names) -> None:
    """Members may not edit or delete each other's messages, owners may delete any; a deleted message is not found."""
    owner_, alice_, bob_ = names("owner", "alice", "bob")
    group = await chat.group(owner_, alice_, bob_)
    owner, alice, bob = ChatClient(owner_), ChatClient(alice_), ChatClient(bob_)
    for client in (owner, alice, bob):
        await client.connect(chat.urls[0])
    seq = (await alice.sent(group, "mine"))["seq"]

    async def code(client: ChatClient, kind: str, **fields: Any) -> str:
        answer = await client.ask(kind, conversation=group, n=client.next_n(), **{"seq": seq, **fields})
        return str(answer.get("code", answer["type"]))

    assert await code(bob, "edit", body="his") == "read_only"
    assert await code(owner, "edit", body="hers") == "read_only"
    assert await code(bob, "delete") == "read_only"
    assert await code(bob, "react", emoji="x", seq=seq + 1000) == "not_found"
    assert await code(owner, "delete") == "ack"
    assert await code(alice, "edit", body="again") == "not_found"
    assert await code(alice, "delete") == "not_found"
    assert await bob.has(group, 1) == ["mine"]


async def test_typing_reaches_only_the_other_members(chat: System, names: Names) -> None:
    """In direct conversations and groups, at most once a second; other users receive nothing."""
    alice_, bob_, eve_ = names("alice", "bob", "eve")
    group = await chat.group(alice_, bob_)
    alice, bob, eve = ChatClient(alice_), ChatClient(bob_, codec="msgpack"), ChatClient(eve_)
    for client, url in ((alice, chat.urls[0]), (bob, chat.urls[1]), (eve, chat.urls[0])):
        await client.connect(url)
    direct = (await alice.sent(f"@{bob_}", "hi"))["conversation"]
    await bob.has(direct, 1)
    for _ in range(5):
        await alice.say("typing", to=group)
        await alice.say("typing", to=f"@{bob_}")
    await eve.say("typing", to=group)
    await eve.say("typing", to=f"@{bob_}")  # they have no conversation
    await eve.ask("ping")
    assert await bob.event("typing", conversation=group) == {"type": "typing", "conversation": group, "from": alice_}
    await bob.event("typing", conversation=direct, from_=alice_)
    await alice.sent(group, "end")
    await eve.sent(f"@{bob_}", "end")
    await bob.until(lambda: len([body for log in bob.received for body in bob.bodies(log) if body == "end"]) == 2)
    # One of each, and another if a second has passed between the first and the last.
    assert 2 <= len([event for event in bob.events if event["type"] == "typing"]) <= 4
    assert not [event for event in (*alice.events, *eve.events) if event["type"] == "typing"]


async def test_history_pages_both_ways(chat: System, names: Names) -> None:
    """`history` returns events ascending, before or after a seq, and whether there are more."""
    alice_, bob_, eve_ = names("alice", "bob", "eve")
    group = await chat.group(alice_, bob_)
    for user, codec in ((alice_, "json"), (bob_, "msgpack")):
        client = ChatClient(user, codec=codec)
        await client.connect(chat.urls[0])
        for i in range(5):
            await client.sent(group, f"{user} {i}")
    await client.has(group, 5)
    seqs = list(client.received[group])
    everything = await client.ask("history", conversation=group)
    assert everything["conversation"] == group
    events = everything["events"]
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    assert [event["body"] for event in events] == [f"{user} {i}" for user in (alice_, bob_) for i in range(5)]
    assert everything["more"] is False
    assert set(seqs) <= {event["seq"] for event in events}
    all_seqs = [event["seq"] for event in events]
    pages = {
        (("limit", 3),): (all_seqs[-3:], True),
        (("before", all_seqs[3]), ("limit", 2)): (all_seqs[1:3], True),
        (("before", all_seqs[3]), ("limit", 3)): (all_seqs[:3], False),
        (("before", all_seqs[3]), ("limit", 50)): (all_seqs[:3], False),
        (("before", all_seqs[0]),): ([], False),
        (("after", all_seqs[3]), ("limit", 2)): (all_seqs[4:6], True),
        (("after", all_seqs[3]), ("limit", 6)): (all_seqs[4:], False),
        (("after", all_seqs[-1]),): ([], False),
        (("after", 0), ("limit", 200)): (all_seqs, False),
    }
    for asked, (wanted, more) in pages.items():
        page = await client.ask("history", conversation=group, **dict(asked))
        assert ([event["seq"] for event in page["events"]], page["more"]) == (wanted, more), asked
    eve = ChatClient(eve_)
    await eve.connect(chat.urls[1])
    assert (await eve.ask("history", conversation=group))["code"] == "not_found"
    for bad in ({"before": 1, "after": 1}, {"limit": 0}, {"limit": 201}, {"before": -1}):
        assert (await client.ask("history", conversation=group, **bad))["code"] == "bad_command"


async def test_token_may_be_sent_with_the_upgrade(chat: System, names: Names) -> None:
    """In the Authorization header, in a subprotocol, or in `hello`; JSON is the default codec."""
    (alice_,) = names("alice")
    ways: list[dict[str, Any]] = [
        {"additional_headers": {"Authorization": f"Bearer {token(alice_)}"}, "subprotocols": None},
        {"subprotocols": [f"bearer.{token(alice_)}"]},
        {"subprotocols": [f"bearer.{token(alice_)}", SUBPROTOCOLS["json"]]},
    ]
    for way, options in enumerate(ways):
        client = ChatClient(alice_, f"device-{way}")
        await client.open(chat.urls[0], **options)
        welcome = await client.ask("hello", device=client.device)
        assert (welcome["type"], welcome["user"], welcome["device"]) == ("welcome", alice_, client.device)
    async with connect(
        chat.urls[0], subprotocols=[SUBPROTOCOLS["msgpack"], SUBPROTOCOLS["json"]], proxy=None
    ) as socket:
        assert socket.subprotocol == SUBPROTOCOLS["msgpack"]


async def test_welcome_has_every_documented_field(chat: System, names: Names) -> None:
    """With its type; `ok` and `pong`, too."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_, title="Friends")
    alice = ChatClient(alice_)
    welcome = await alice.connect(chat.urls[0])
    kinds = {name: type(value) for name, value in welcome.items()}
    assert kinds == {
        "type": str, "id": int, "user": str, "device": str, "session": str, "gateway": str, "heartbeat_s": float,
        "expires_at": int, "limits": dict, "conversations": list, "more": bool, "state": int,
    }  # fmt: skip
    assert set(welcome["limits"]) == {"frame_bytes", "body_bytes", "sends_per_s", "send_burst"}
    assert welcome["conversations"] == [
        {
            "conversation": group,
            "kind": "group",
            "title": "Friends",
            "head": 0,
            "cursor": 0,
            "read": 0,
            "unread": 0,
            "role": "owner",
            "posting": "all",
        }
    ]
    assert {"type", "id", "at"} == set(await alice.ask("ping"))
    refreshed = await alice.ask("auth", token=token(alice_, 7200))
    assert refreshed["type"] == "ok"
    assert refreshed["expires_at"] > welcome["expires_at"]
