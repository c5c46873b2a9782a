"""Invalid and hostile input: each client gets the code that the interface names, and no other client is affected.

Every test has a `witness`, another user's session on the same gateway that goes on chatting. The processes of the
shared system must not log a traceback.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.flow.client import ChatClient, token
from tests.flow.conftest import Names, Start, System
from tests.gateway.websocket.client import UPGRADE, RawClient, client_frame

TEXT, BINARY = 1, 2


@asynccontextmanager
async def witness(chat: System, names: Names, gateway: int = 0) -> AsyncIterator[tuple[ChatClient, str]]:
    """Somebody on the same gateway, with a group of hers; after all of it she is as well as before."""
    walter_, wanda_ = names("walter", "wanda")
    walter, wanda = ChatClient(walter_), ChatClient(wanda_, codec="msgpack")
    group = await chat.group(walter_, wanda_)
    await walter.connect(chat.urls[gateway])
    await wanda.connect(chat.urls[gateway])
    await walter.sent(group, "before")
    yield walter, group
    await walter.sent(group, "after")
    await wanda.has(group, 2)
    assert wanda.bodies(group) == ["before", "after"]
    assert walter.closed is None
    assert wanda.closed is None
    assert walter.whole(group)
    assert not [event for event in (*walter.events, *wanda.events) if event["type"] == "error"]


JSON_BAD: list[tuple[str, str]] = [
    ("bad_frame", ""),
    ("bad_frame", "{"),
    ("bad_frame", "not json"),
    ("bad_frame", '{"type":"ping"} {"type":"ping"}'),
    ("bad_frame", '{"type":"send","to":"@bob","n":1,"body":NaN}'),
    ("bad_frame", '{"type":"send","to":"@bob","n":1,"body":Infinity}'),
    ("bad_frame", '{"type":"send","to":"@bob","n":1,"body":"\\ud800"}'),
    ("bad_command", "[]"),
    ("bad_command", "null"),
    ("bad_command", "17"),
    ("bad_command", '"ping"'),
    ("bad_command", "{}"),
    ("bad_command", '{"type":"nonsense"}'),
    ("bad_command", '{"type":null}'),
    ("bad_command", '{"type":["send"]}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":"1","body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1.5,"body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":true,"body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":0,"body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":-1,"body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":9007199254740992,"body":1}'),
    ("bad_command", '{"type":"send","to":7,"n":1,"body":1}'),
    ("bad_command", '{"type":"send","to":"","n":1,"body":1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":9007199254740992}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":-9007199254740992}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":1e999}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":{"$b64":"*"}}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":{"$b64":7}}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":1,"media":""}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":1,"reply_to":-1}'),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":' + "[" * 40 + "]" * 40 + "}"),
    ("bad_command", '{"type":"send","to":"@bob","n":1,"body":' + "[" * 5000 + "]" * 5000 + "}"),
    ("bad_command", '{"type":"react","conversation":"x","seq":1,"n":1,"emoji":"' + "x" * 65 + '"}'),
    ("bad_command", '{"type":"hello","token":"x"}'),
    ("bad_command", '{"type":"presence","users":["a b"]}'),
    ("bad_command", '{"type":"presence","users":"bob"}'),
    ("bad_command", json.dumps({"type": "presence", "users": [f"u{i}" for i in range(201)]})),
    ("bad_command", '{"type":"ack","cursors":{"x":"1"}}'),
    ("bad_command", json.dumps({"type": "ack", "cursors": {f"g:{i}": 1 for i in range(1001)}})),
    ("bad_command", '{"type":"ping","id":1.5}'),
    ("bad_command", '{"type":"ping","id":{}}'),
]

_SEND = {"type": "send", "to": "@bob", "n": 1}

MSGPACK_BAD: list[tuple[str, bytes]] = [
    ("bad_frame", b""),
    ("bad_frame", b"\xc1"),
    ("bad_frame", b"\x81"),
    ("bad_frame", msgpack.packb({"type": "ping"}) * 2),
    ("bad_frame", b"\xdf\xff\xff\xff\xff"),
    ("bad_frame", b"\x81\xa4type\xdb\xff\xff\xff\xff"),
    ("bad_command", b"\x90"),
    ("bad_command", b"\xc0"),
    ("bad_command", b"\x80"),
    ("bad_command", b"\x81\x01\x02"),
    ("bad_command", msgpack.packb({"type": b"ping"})),
    ("bad_command", msgpack.packb({**_SEND, "body": float("nan")})),
    ("bad_command", msgpack.packb({**_SEND, "body": float("inf")})),
    ("bad_command", msgpack.packb({**_SEND, "body": [{"a": float("-inf")}]})),
    ("bad_command", msgpack.packb({**_SEND, "body": msgpack.ExtType(5, b"x")})),
    ("bad_command", msgpack.packb({**_SEND, "body": msgpack.Timestamp(1, 0)})),
    ("bad_command", msgpack.packb({**_SEND, "body": {1: 2}})),
    ("bad_command", msgpack.packb({**_SEND, "body": {b"k": 2}})),
    ("bad_command", msgpack.packb({**_SEND, "body": {None: 2}})),
    ("bad_command", msgpack.packb({**_SEND, "body": 2**53})),
    ("bad_command", msgpack.packb({**_SEND, "body": 2**64 - 1})),
    ("bad_command", msgpack.packb({**_SEND, "body": -(2**63)})),
    ("bad_command", msgpack.packb({**_SEND, "n": 2**63, "body": 1})),
    ("bad_command", msgpack.packb({"type": "send", "to": b"@bob", "n": 1, "body": 1})),
    ("bad_command", b"\x84\xa4type\xa4send\xa2to\xa4@bob\xa1n\x01\xa4body" + b"\x91" * 40 + b"\xc0"),
    ("bad_command", b"\x84\xa4type\xa4send\xa2to\xa4@bob\xa1n\x01\xa4body" + b"\x91" * 50_000 + b"\xc0"),
]


async def test_invalid_json_is_answered_and_changes_nothing(chat: System, names: Names) -> None:
    """Every malformed or invalid JSON frame gets one error with its code, and the session goes on."""
    (eve_,) = names("eve")
    async with witness(chat, names):
        eve = ChatClient(eve_)
        await eve.connect(chat.urls[0])
        for code, frame in JSON_BAD:
            here = eve.here
            await eve.raw(frame)
            answer = await eve.event("error", since=here)
            assert answer["code"] == code, (frame[:80], answer)
            assert "retry_after" not in answer
        assert (await eve.ask("ping"))["type"] == "pong"


async def test_invalid_msgpack_is_answered_and_changes_nothing(chat: System, names: Names) -> None:
    """The same in msgpack, with what only msgpack can contain: extension types, NaN, keys that are no strings,
    bombs."""
    (eve_,) = names("eve")
    async with witness(chat, names):
        eve = ChatClient(eve_, codec="msgpack")
        await eve.connect(chat.urls[0])
        for code, frame in MSGPACK_BAD:
            here = eve.here
            await eve.raw(frame)
            answer = await eve.event("error", since=here)
            assert answer["code"] == code, (frame[:80], answer)
        assert (await eve.ask("ping"))["type"] == "pong"


async def test_msgpack_text_that_is_not_utf8_is_refused(chat: System, names: Names) -> None:
    """A msgpack string must be UTF-8, in commands and deep in bodies, because JSON clients must be able to read it."""
    eve_, bob_ = names("eve", "bob")
    bob, eve = ChatClient(bob_), ChatClient(eve_, codec="msgpack")
    await bob.connect(chat.urls[1])
    await eve.connect(chat.urls[0])
    conversation = (await eve.sent(f"@{bob_}", "before"))["conversation"]
    for text in (b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xa2\xc0\x80"):
        for body in (text, b"\x91" + text, b"\x81" + text + b"\x01"):
            here = eve.here
            to = msgpack.packb(f"@{bob_}")
            await eve.raw(
                b"\x84\xa4type\xa4send\xa1n" + msgpack.packb(eve.next_n()) + b"\xa2to" + to + b"\xa4body" + body
            )
            assert (await eve.event("error", since=here))["code"] in ("bad_frame", "bad_command")
    await eve.sent(conversation, "after")
    assert await bob.has(conversation, 2) == ["before", "after"]


async def test_error_contains_the_id_and_n_of_its_command(chat: System, names: Names) -> None:
    """Even if the rest of the command is invalid; an invalid `id` or `n` is left out."""
    (eve_,) = names("eve")
    eve = ChatClient(eve_)
    await eve.connect(chat.urls[0])
    for sent, wanted in (
        ({"type": "send", "id": "a", "n": 7}, {"id": "a", "n": 7}),
        ({"type": "nonsense", "id": 5}, {"id": 5}),
        ({"type": "send", "id": [1], "n": "x"}, {}),
        ({"type": "edit", "conversation": "g:x", "seq": 1, "n": 9, "body": 1, "id": "b"}, {"id": "b", "n": 9}),
    ):
        here = eve.here
        await eve.raw(json.dumps(sent))
        answer = await eve.event("error", since=here)
        assert {name: answer[name] for name in ("id", "n") if answer.get(name) is not None} == wanted


async def test_unknown_fields_are_ignored(chat: System, names: Names) -> None:
    """A newer client may send fields that this server does not know."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice = ChatClient(alice_)
    await alice.connect(chat.urls[0], colour="blue")
    ack = await alice.sent(group, "hi", colour={"deep": [1]})
    assert (await alice.event("message", seq=ack["seq"])).get("colour") is None


@pytest.mark.parametrize("size", [65_530, 65_537, 70_000])
async def test_body_up_to_the_limit_is_accepted(chat: System, names: Names, size: int) -> None:
    """A body of 64 KiB passes in both codecs, a larger one is `too_large` and changes nothing."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    for codec in ("json", "msgpack"):
        alice = ChatClient(alice_, codec, codec=codec)
        await alice.connect(chat.urls[0])
        answer = await alice.send(group, "x" * size)
        assert answer.get("code", answer["type"]) == ("ack" if size < 65_536 else "too_large")
        assert (await alice.ask("ping"))["type"] == "pong"
    assert len((await alice.ask("history", conversation=group))["events"]) == (2 if size < 65_536 else 0)


@pytest.mark.parametrize("size", [131_073, 5_000_000])
async def test_frame_beyond_the_limit_closes_with_1009(chat: System, names: Names, size: int) -> None:
    """A frame, or a message in fragments, beyond the limits of `welcome` ends its own connection only."""
    (eve_,) = names("eve")
    async with witness(chat, names):
        for frames in (
            client_frame(b"x" * size, TEXT),
            client_frame(b"x" * 100_000, TEXT, fin=False) + client_frame(b"x" * (size - 100_000), 0),
        ):
            raw = await upgraded(chat)
            raw.send(hello(eve_))
            await raw.frame()
            raw.send(frames)
            assert (await closing(raw))[0] == 1009


async def test_compressed_bomb_closes_with_1009(chat: System, names: Names) -> None:
    """A small frame that inflates to ten megabytes is stopped at the limit."""
    (eve_,) = names("eve")
    async with witness(chat, names):
        eve = ChatClient(eve_)
        await eve.open(chat.urls[0], compression="deflate")
        await eve.hello()
        with pytest.raises(ConnectionClosed):
            await eve.ask("send", to="@x", n=1, body="x" * 10_000_000)
        assert (await eve.gone())[0] == 1009


async def test_pages_of_large_events_reach_a_reader(chat: System, names: Names) -> None:
    """Many bodies of full size are replayed and paged without breaking a limit of the interface."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice, bob = ChatClient(alice_), ChatClient(bob_)
    await alice.connect(chat.urls[0])
    for i in range(40):
        await alice.sent(group, f"{i:02}" + "x" * 60_000)
    await bob.connect(chat.urls[1])
    await alice.has(group, 40)
    await bob.until(lambda: group in bob.received and max(bob.received[group]) == max(alice.received[group]))
    assert bob.in_order(group)
    seqs: list[int] = []
    page = await bob.ask("history", conversation=group, limit=200)
    while True:
        seqs = [event["seq"] for event in page["events"]] + seqs
        if not page["more"]:
            break
        page = await bob.ask("history", conversation=group, before=seqs[0], limit=200)
    assert seqs == list(alice.received[group])


async def test_command_before_hello_is_refused(chat: System) -> None:
    """Any first command but `hello` is `bad_command` or `bad_frame`, and the connection is closed (4503)."""
    for frame, code in (
        ('{"type":"ping"}', "bad_command"),
        ('{"type":"send","to":"@bob","n":1,"body":1}', "bad_command"),
        ("garbage", "bad_frame"),
        ('{"type":"hello","token":7}', "bad_command"),
        ('{"type":"hello","device":"a b"}', "bad_command"),
        ('{"type":"hello","device":"x\\n"}', "bad_command"),
        (json.dumps({"type": "hello", "device": "x" * 65}), "bad_command"),
        ('{"type":"hello","cursors":{"x":-1}}', "bad_command"),
    ):
        eve = ChatClient("eve")
        await eve.open(chat.urls[0])
        await eve.raw(frame)
        assert (await eve.event("error"))["code"] == code, frame
        assert (await eve.gone())[0] == 4503, frame


async def test_commands_pipelined_after_hello_are_answered(chat: System, names: Names) -> None:
    """They are sent without waiting for `welcome`, and answered after it, in order."""
    alice_, bob_ = names("alice", "bob")
    group = await chat.group(alice_, bob_)
    alice = ChatClient(alice_)
    await alice.open(chat.urls[0])
    await alice.say("hello", token=token(alice_), device="phone")
    answers = await asyncio.gather(*(alice.sent(group, i) for i in range(5)), alice.ask("ping"))
    assert [answer["type"] for answer in answers] == ["ack"] * 5 + ["pong"]
    assert alice.events[0]["type"] == "welcome"
    assert await alice.has(group, 5) == list(range(5))


async def test_silent_connection_is_closed_with_4001(start: Start) -> None:
    """A client that upgrades and sends no `hello` within ten seconds is closed, and may reconnect later."""
    system = await start(gateways=1, router=False)
    eve = ChatClient("eve")
    await eve.open(system.urls[0])
    code, reason = await eve.gone()
    assert code == 4001
    assert reason.startswith("retry_after=")


async def test_flood_is_refused_and_then_closed(start: Start) -> None:
    """Beyond its rate a client gets `rate_limited` and a time to wait; if it continues, 4008."""
    system = await start(gateways=1, LINNET_SENDS_PER_S="100", LINNET_SEND_BURST="50")
    async with witness(system, lambda *given: list(given)):
        eve = ChatClient("eve")
        await eve.connect(system.urls[0])
        await flood(eve, json.dumps({"type": "send", "to": "@eve", "n": 1, "body": "spam"}))
        code, reason = await eve.gone()
        assert code == 4008
        assert reason.startswith("retry_after=")
        limited = [event for event in eve.events if event["type"] == "error"]
        assert {event["code"] for event in limited} == {"rate_limited"}
        assert all(0 < event["retry_after"] < 30 for event in limited)
        patient = ChatClient("eve")
        await patient.connect(system.urls[0])
        await patient.ask("ping")


async def test_history_is_charged_by_its_bytes(start: Start) -> None:
    """Pages of a megabyte cost sixteen sends of the rate each: a burst of them is served, then a connection reads no
    faster than it could write. Small pages cost one send."""
    system = await start(gateways=1, LINNET_SENDS_PER_S="25", LINNET_SEND_BURST="100")
    eve = ChatClient("eve")
    await eve.connect(system.urls[0])
    large, small = await system.group("eve"), await system.group("eve")
    await eve.sent(small, "x")
    for _ in range(20):
        await eve.sent(large, "x" * 65_000)

    async def pages(conversation: str, count: int) -> int:
        client = ChatClient("eve", f"of-{conversation[2:20]}")
        await client.connect(system.urls[0])
        answers = [await client.ask("history", conversation=conversation, limit=200) for _ in range(count)]
        refused = [answer for answer in answers if answer["type"] == "error"]
        assert {(answer["code"], 0 < answer["retry_after"] < 5) for answer in refused} <= {("rate_limited", True)}
        return count - len(refused)

    assert await pages(small, 60) == 60
    began = time.monotonic()
    served = await pages(large, 60)
    assert 5 <= served < 10 + (time.monotonic() - began) * 25 / 16


async def test_flood_of_invalid_frames_is_closed(start: Start) -> None:
    """An invalid frame costs as much as a command."""
    system = await start(gateways=1, LINNET_SENDS_PER_S="100", LINNET_SEND_BURST="50")
    eve = ChatClient("eve")
    await eve.connect(system.urls[0])
    await flood(eve, "garbage")
    assert (await eve.gone())[0] == 4008


async def test_origin_that_is_not_allowed_is_refused(start: Start, chat: System) -> None:
    """A page of another site may not connect unless the operator allows it; a page of the same host may."""
    for origin, welcome in (("https://evil.example", False), (f"http://127.0.0.1:{chat.gateways[0].port}", True)):
        eve = ChatClient("eve")
        if welcome:
            await eve.open(chat.urls[0], origin=origin)
            continue
        with pytest.raises(InvalidStatus) as refused:
            await eve.open(chat.urls[0], origin=origin)
        assert refused.value.response.status_code == 403
    system = await start(gateways=1, router=False, LINNET_ORIGINS="https://chat.example, https://other.example")
    await ChatClient("eve").open(system.urls[0], origin="https://other.example")
    with pytest.raises(InvalidStatus):
        await ChatClient("eve").open(system.urls[0], origin="https://evil.example")


async def test_unknown_subprotocol_and_path_are_refused(chat: System) -> None:
    """At the upgrade, with an HTTP status."""
    with pytest.raises(InvalidStatus) as refused:
        await ChatClient("eve").open(chat.urls[0], subprotocols=["linnet.v9.json"])
    assert refused.value.response.status_code == 400
    for path in ("/other", "/"):
        with pytest.raises(InvalidStatus) as refused:
            await ChatClient("eve").open(chat.urls[0].replace("/ws", path))
        assert refused.value.response.status_code == 404


FRAMES: list[tuple[int, bytes]] = [
    (1002, client_frame(b'{"type":"ping"}', TEXT, mask=None)),
    (1002, client_frame(b"x", TEXT, reserved=0x40)),
    (1002, client_frame(b"x", TEXT, reserved=0x10)),
    (1002, client_frame(b"x", TEXT, reserved=0x20)),
    (1002, client_frame(b"x", 9, reserved=0x40)),
    *((1002, client_frame(b"x", opcode)) for opcode in (*range(3, 8), *range(11, 16))),
    # lengths: with the high bit (negative in a signed integer), beyond all memory, and longer written than they are
    *(
        (1002, b"\x81\xff" + struct.pack("!Q", length) + b"mask")
        for length in (2**64 - 1, 2**63, 2**63 + 5, 125, 65_535)
    ),
    *((1009, b"\x81\xff" + struct.pack("!Q", length) + b"mask") for length in (2**63 - 1, 2**53, 2**32, 2**31)),
    (1002, b"\x81\xfe" + struct.pack("!H", 125) + b"mask"),
    (1002, b"\x89\xff" + struct.pack("!Q", 2**62)),
    (1002, client_frame(b"x", 0)),
    (1002, client_frame(b"x", TEXT, fin=False) + client_frame(b"x", TEXT)),
    (1002, client_frame(b"x" * 126, 9)),
    (1002, client_frame(b"x", 9, fin=False)),
    (1002, client_frame(b"\x03", 8)),
    (1002, client_frame(struct.pack("!H", 999), 8)),
    (1002, client_frame(struct.pack("!H", 1005), 8)),
    (1007, client_frame(b"\xff\xfe", TEXT)),
    (1007, client_frame(b"\xed\xa0\x80", TEXT)),
    (1007, client_frame(struct.pack("!H", 1000) + b"\xff", 8)),
    (1003, client_frame(b"\x81\xa4type\xa4ping", BINARY)),
]


async def test_protocol_violations_close_with_their_code(chat: System, names: Names) -> None:
    """Unmasked, reserved, fragmented, over-long or invalid frames close with the code of RFC 6455."""
    (eve_,) = names("eve")
    async with witness(chat, names):
        for i, (code, frame) in enumerate(FRAMES):
            raw = await upgraded(chat)
            raw.send(hello(f"{eve_}.{i // 8}", f"device-{i}"))  # one user may not connect so often
            await raw.frame()
            raw.send(frame)
            assert (await closing(raw))[0] == code, frame[:20]


async def test_pings_and_fragments_are_accepted(chat: System, names: Names) -> None:
    """Control frames between the fragments of a message, each as small as possible, as a proxy may send them."""
    (eve_,) = names("eve")
    raw = await upgraded(chat)
    raw.send(hello(eve_))
    await raw.frame()
    parts = [b'{"type"', b':"pin', b"", b'g"}']
    for i, part in enumerate(parts):
        raw.send(client_frame(part, TEXT if i == 0 else 0, fin=i == len(parts) - 1), client_frame(b"p", 9))
    answers = [await raw.frame() for _ in range(5)]
    assert sorted(first for first, _ in answers) == [0x81, 0x8A, 0x8A, 0x8A, 0x8A]
    raw.send(client_frame(struct.pack("!H", 1000) + b"bye", 8))
    assert (await raw.close_frame())[0] == 1000
    assert await raw.eof() == b""
    raw.writer.close()


async def test_conversations_of_other_users_are_not_found(chat: System, names: Names) -> None:
    """Every command on a conversation of which the user is no member gets `not_found`, as if it did not exist."""
    (eve_,) = names("eve")
    alice_, bob_ = names("alice", "bob")
    async with witness(chat, names) as (walter, group):
        alice = ChatClient(alice_)
        await alice.connect(chat.urls[1])
        await ChatClient(bob_).connect(chat.urls[1])
        direct = (await alice.sent(f"@{bob_}", "secret"))["conversation"]
        seq = max(walter.received[group])
        eve = ChatClient(eve_)
        await eve.connect(chat.urls[0], cursors={group: 1, direct: 1})
        for conversation in (group, direct, "g:" + "A" * 22, "nonsense", "{c1}:dirty", f"d:{eve_}:{bob_}:x", "d:b:a"):
            on = {"conversation": conversation}
            for kind, fields in (
                ("send", {"to": conversation, "n": eve.next_n(), "body": "hi"}),
                ("edit", {**on, "seq": seq, "n": eve.next_n(), "body": "hi"}),
                ("delete", {**on, "seq": seq, "n": eve.next_n()}),
                ("react", {**on, "seq": seq, "n": eve.next_n(), "emoji": "x"}),
                ("history", on),
                ("read", {**on, "seq": seq}),
            ):
                answer = await eve.ask(kind, **fields)
                assert (answer["type"], answer.get("code")) == ("error", "not_found"), (kind, conversation, answer)
            await eve.say("ack", **on, seq=2**53 - 1)
            if conversation in (group, direct):
                await eve.say("typing", to=conversation)
        await eve.ask("ping")
        assert not eve.received
        tablet = ChatClient(eve_, "tablet")
        assert (await tablet.connect(chat.urls[0]))["conversations"] == []
    assert not [event for event in walter.events if event["type"] == "typing"]


async def test_commands_to_a_deleted_user_are_not_found(chat: System, names: Names) -> None:
    """After the deletion of an account every command in an existing direct conversation with it gets `not_found`; its
    history stays readable."""
    eve_, bob_ = names("eve", "bob")
    eve, bob = ChatClient(eve_), ChatClient(bob_)
    await bob.connect(chat.urls[1])
    await eve.connect(chat.urls[0])
    ack = await eve.sent(f"@{bob_}", "before")
    on = {"conversation": ack["conversation"]}
    await chat.api("DELETE", f"/v1/accounts/{bob_}")
    for kind, fields in (
        ("send", {"to": f"@{bob_}", "n": eve.next_n(), "body": "hi"}),
        ("send", {"to": ack["conversation"], "n": eve.next_n(), "body": "hi"}),
        ("edit", {**on, "seq": ack["seq"], "n": eve.next_n(), "body": "hi"}),
    ):
        answer = await eve.ask(kind, **fields)
        assert (answer["type"], answer.get("code")) == ("error", "not_found"), (kind, answer)
    assert [event["body"] for event in (await eve.ask("history", **on))["events"]] == ["before"]


async def flood(client: ChatClient, frame: str) -> None:
    """The same again and again, until the connection ends."""
    with suppress(ConnectionClosed):
        while client.closed is None:
            await client.raw(frame)
            await asyncio.sleep(0)


def hello(user: str, device: str = "phone") -> bytes:
    return client_frame(json.dumps({"type": "hello", "token": token(user), "device": device}).encode(), TEXT)


async def upgraded(chat: System, headers: Mapping[str, str] = MappingProxyType({})) -> RawClient:
    raw = await RawClient.connect(chat.gateways[0].port)
    key = base64.b64encode(b"sixteen bytes ok").decode()
    assert (await raw.request({**UPGRADE, "Sec-WebSocket-Key": key, **headers}, target="/ws"))[0] == 101
    return raw


async def closing(raw: RawClient, answered: bool = True) -> tuple[int, bytes]:
    """Code and reason of the close frame, which must come; answered as a client should, or left to the caller."""
    answer: tuple[int, bytes] | None = None
    while answer is None:
        first, payload = await raw.frame()
        if first == 0x88:
            answer = int.from_bytes(payload[:2], "big"), payload[2:]
    if not answered:
        return answer
    raw.send(client_frame(payload[:2], 8))
    raw.writer.close()
    return answer
