"""Commands: the table of states, rates, refusals, and what each does to the log and to others."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from deploy.embedded import EmbeddedValkey
from gateway import commands
from gateway.commands import HEAVY, TABLE
from gateway.session import State
from router.answers import ask
from router.contract import keys, wire
from router.contract.errors import NotFound, Unavailable
from router.store.client import Client as StoreClient
from router.store.conversations import Append
from tests.contract.test_wire import COMMANDS as EXAMPLES
from tests.gateway.world import Client, token, world

COMMANDS = set(get_args(wire.Commands))

# -- the table


def test_the_table_says_everything() -> None:
    """Every command is handled in exactly one state: hello alone in HELLO, all others in READY, none anywhere else."""
    assert TABLE.keys() == set(State)
    assert set(TABLE[State.HELLO]) == {wire.Hello}
    assert set(TABLE[State.READY]) == COMMANDS - {wire.Hello}
    assert not TABLE[State.CONNECTING]
    assert not TABLE[State.CLOSED]
    assert {kind.__name__.lower(): handler.__name__ for kind, handler in TABLE[State.READY].items()} == {
        kind.__name__.lower(): kind.__name__.lower() for kind in COMMANDS - {wire.Hello}
    }


def test_what_costs_redis_more_costs_a_client_more() -> None:
    assert set(HEAVY) == {wire.Send, wire.Edit, wire.Delete, wire.React, wire.History, wire.Presence}


@pytest.mark.parametrize("kind", sorted(kind.__name__.lower() for kind in COMMANDS - {wire.Hello}))
async def test_nothing_but_hello_opens_a_session(valkey: EmbeddedValkey, kind: str) -> None:
    """An error that says so, and 4503."""
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.say(kind, id=1, **EXAMPLES[kind])
        assert (await bob.event("error", id=1))["code"] == "bad_command"
        assert bob.connection.closed == (4503, "bad_command")


async def test_a_second_hello_is_refused_and_harmless(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.say("hello", id=2, token=token(of.node, "ann"))
        assert (await bob.event("error", id=2))["code"] == "bad_command"
        assert (bob.session.state, bob.session.user, bob.connection.closed) == (State.READY, "bob", None)


# -- refusals


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"type":"send","id":"x","n":7,"to":"@a"}', {"id": "x", "n": 7, "code": "bad_command"}),
        (b'{"type":"send","id":1,"n":"7","to":"@a","body":1}', {"id": 1, "code": "bad_command"}),
        (b'{"type":"nope","id":-3}', {"id": -3, "code": "bad_command"}),
        (b'{"type":"ping","id":[1]}', {"code": "bad_command"}),
        (b'{"type":"ping","id":true}', {"code": "bad_command"}),
        (b'{"type":"ping","id":1.5,"n":9007199254740992}', {"code": "bad_command"}),
        (b'{"type":"ping","id":9007199254740992,"n":5}', {"n": 5, "code": "bad_command"}),
        (b'{"type":"ping","id":"' + b"x" * 257 + b'"}', {"code": "bad_command"}),
        (b'{"type":"ping","id":1', {"code": "bad_frame"}),
        (b"[" * 50_000, {"code": "bad_frame"}),
        (b"", {"code": "bad_frame"}),
        (b'{"type":"send","id":3,"to":"@ann","n":1,"body":{"$b64":1}}', {"id": 3, "n": 1, "code": "bad_command"}),
        (
            b'{"type":"send","id":4,"to":"@ann","n":1,"body":"' + b"x" * 65_536 + b'"}',
            {"id": 4, "n": 1, "code": "too_large"},
        ),
    ],
)
async def test_a_refusal_names_what_it_refuses(valkey: EmbeddedValkey, data: bytes, told: dict[str, Any]) -> None:
    """As much of `id` and `n` as can be made out; the session goes on."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.session.message_received(data, True)
        error = await bob.event("error")
        expected = told if told["code"] != "bad_frame" or not data.startswith(b"[") else {"code": error["code"]}
        assert {name: value for name, value in error.items() if name not in ("type", "message")} == expected
        assert "traceback" not in error["message"].lower()
        await bob.ask("ping", "pong")


async def test_a_bug_of_ours_is_internal_and_costs_one_command(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns nothing of it, the log has the trace, the session goes on."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()

        def broken(*_: Any) -> None:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(of.node.watches, "presence", broken)
        error = await bob.ask("presence", "error", users=[])
        assert (error["code"], "secret" in error["message"]) == ("internal", False)
        assert "ZeroDivisionError" in caplog.text
        await bob.ask("ping", "pong")


# -- rates


async def test_a_burst_is_let_through_and_then_refused_for_a_while(valkey: EmbeddedValkey) -> None:
    """`send_burst` sends at once; whoever is refused is told when to come again, and others are not held up."""
    async with world(valkey, sends_per_s=0.5, send_burst=4) as of:
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for i in range(8):
            ann.say("history", id=i, conversation=keys.direct("ann", "bob"))
        codes = [event["code"] for event in (await ann.until(lambda: len(ann.of("error")) == 8 and ann.of("error")))]
        assert sorted(codes) == ["not_found"] * 3 + ["rate_limited"] * 5  # the hello was one
        assert all(0 < event["retry_after"] <= 9 for event in ann.of("error", code="rate_limited"))
        assert ann.connection.closed is None
        await bob.ask("ping", "pong")


async def test_light_commands_cost_a_quarter(valkey: EmbeddedValkey) -> None:
    async with world(valkey, sends_per_s=0.1, send_burst=4) as of:
        ann = await of.client("ann").connected()
        for i in range(20):
            ann.say("ping", id=i)
        await ann.until(lambda: len(ann.of("pong")) + len(ann.of("error")) == 20)
        assert len(ann.of("pong")) == 15


async def test_a_flood_that_goes_on_while_it_is_refused_is_cut_off(valkey: EmbeddedValkey) -> None:
    """4008 with the seconds to stay away; commands that do not even parse count like any other."""
    async with world(valkey, sends_per_s=1, send_burst=2) as of:
        for data in (b'{"type":"history","conversation":"x"}', b"nonsense"):
            ann = await of.client("ann").connected()
            for _ in range(30):
                ann.session.message_received(data, True)
            assert ann.connection.closed == (4008, "retry_after=10")


# -- sending


async def sent(client: Client, to: str, n: int, **fields: Any) -> dict[str, Any]:
    client.say("send", to=to, n=n, **({"body": n} | fields))
    return await client.event("ack", n=n)


async def test_a_send_is_acked_seen_by_all_and_counted_as_read(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob", codec=wire.MSGPACK).connected()
        ack = await sent(ann, group, 7, body={"$b64": "AAE="}, media="x", reply_to=0)
        assert (ack["conversation"], ack["duplicate"]) == (group, False)
        mine, his = await ann.event("message"), await bob.event("message")
        assert his["body"] == b"\0\1"
        assert mine["body"] == {"$b64": "AAE="}
        assert {name: value for name, value in mine.items() if name not in ("body", "prev", "at")} == {
            "type": "message", "conversation": group, "seq": ack["seq"], "count": 1, "from": "ann", "device": "phone",
            "n": 7, "media": "x", "reply_to": 0,
        }  # fmt: skip
        assert ann.session.reads == {group: (ack["seq"], 1)}
        again = await ann.ask("send", "ack", to=group, n=7, body={"$b64": "AAE="}, media="x", reply_to=0)
        assert (again["seq"], again["duplicate"]) == (ack["seq"], True)
        conflict = await ann.ask("send", "error", to=group, n=7, body="other")
        assert conflict["code"] == "conflict"


@pytest.mark.parametrize(
    ("command", "fingerprint"),
    [
        ({"type": "send", "body": {"text": "hi", "raw": {"$b64": "AAE="}}, "reply_to": 2}, "79caa52678c94e3a"),
        ({"type": "send", "body": "hi", "done": 3, "id": 9}, "cde7f861b37a3a97"),
        ({"type": "edit", "seq": 4, "body": "hi"}, "e2e2a0d4962328dd"),
        ({"type": "delete", "seq": 4}, "90fa57cf920472d1"),
        ({"type": "react", "seq": 4, "emoji": "+"}, "7b3bc64546d4d3f0"),
    ],
)
async def test_a_resend_is_one_through_any_codec_version_and_name(
    valkey: EmbeddedValkey, command: dict[str, Any], fingerprint: str
) -> None:
    """Golden: the fingerprint covers the client's content and nothing that may be said otherwise tomorrow."""
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        appends: list[Append] = []
        of.node.conversations.append = lambda a, reply: appends.append(a)  # type: ignore[method-assign]
        named = {"to": conv} if command["type"] == "send" else {"conversation": conv}
        for codec in (wire.JSON, wire.MSGPACK):
            ann = await of.client("ann", codec.subprotocol[-4:], codec).connected()
            value = {"n": 5, **named, **command}
            if command["type"] == "send":
                ann.say(**value | {"kind": value.pop("type"), "to": "@bob"})
                value["type"] = "send"
            ann.say(value.pop("type"), **value)
        assert {append.fingerprint.hex() for append in appends} == {fingerprint}
        tails = {append.tail.rest.replace(append.device.encode(), b"") for append in appends}
        assert len(tails) == 1


async def test_what_a_session_was_given_goes_along_as_seen(valkey: EmbeddedValkey) -> None:
    """So that a server that lost the end of the log gives no seq again."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        ack = await sent(ann, group, 1)
        await ann.event("message")
        appends: list[Append] = []
        of.node.conversations.append = lambda a, reply: appends.append(a)  # type: ignore[method-assign]
        ann.say("send", to=group, n=2, body=1)
        assert [append.seen for append in appends] == [ack["seq"]]


async def test_a_first_message_makes_the_conversation_and_pipelined_ones_keep_their_order(
    valkey: EmbeddedValkey,
) -> None:
    """Those that come while it is made, before and after the first refusals, stand in the log by n."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for n in range(1, 11):
            ann.say("send", to="@bob", n=n, body=n)
        await asyncio.sleep(0)
        for n in range(11, 21):
            ann.say("send", to=keys.direct("ann", "bob"), n=n, body=n)
            await asyncio.sleep(0)
        await ann.event("ack", n=20)
        await bob.event("message", n=20)
        assert bob.bodies(keys.direct("ann", "bob")) == list(range(1, 21))
        assert [event["n"] for event in ann.of("ack")] == list(range(1, 21))
        assert (of.node.commands.in_flight, of.node.commands._opening) == (0, {})


async def test_a_send_that_overtakes_the_refusal_of_an_earlier_one_does_not_stand_before_it(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins those that wait while an earlier one has yet to be told that there is no conversation."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann = await of.client("ann").connected()
        append, held = of.node.conversations.append, []
        monkeypatch.setattr(of.node.conversations, "append", lambda a, reply: held.append(reply))
        ann.say("send", to="@bob", n=1, body=1)
        ann.say("send", to="@bob", n=2, body=2)
        monkeypatch.setattr(of.node.conversations, "append", append)
        held[0](NotFound())
        ann.say("send", to="@bob", n=3, body=3)
        held[1](NotFound())
        await ann.until(lambda: len(ann.of("message")) == 3)
        assert ann.bodies(keys.direct("ann", "bob")) == [1, 2, 3]


async def test_sends_that_wait_for_their_conversation_are_bounded(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both ways in: refused by the log before, or come while it is made."""
    monkeypatch.setattr(commands, "MAX_OPENING", 3)
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann = await of.client("ann").connected()
        held: list[Any] = []
        exists = of.node.users.exists
        monkeypatch.setattr(of.node.users, "exists", lambda *args: held.append(args))
        for n in range(1, 6):
            ann.say("send", to="@bob", n=n, body=n)
        await ann.until(lambda: len(ann.of("error")) == 2)
        for n in range(6, 10):
            ann.say("send", to="@bob", n=n, body=n)
        await ann.until(lambda: len(ann.of("error")) == 6)
        assert {event["code"] for event in ann.of("error")} == {"rate_limited"}
        exists(*held[0])
        await ann.until(lambda: len(ann.of("ack")) == 3)
        assert of.node.commands.in_flight == 0


@pytest.mark.parametrize(
    "to",
    [
        "@nobody",
        "@",
        "@a b",
        "@" + "x" * 65,
        "nonsense",
        "g:0123456789012345678901",
        "d:bob:cid",
        "d:bob:ann",
        "{c1}:x",
    ],
)
async def test_what_a_user_may_not_see_is_not_found(valkey: EmbeddedValkey, to: str) -> None:
    """Nobody's name, somebody else's conversation, an id that is none: the same answer, and nothing is made."""
    async with world(valkey) as of:
        await of.direct("bob", "cid")
        ann = await of.client("ann").connected()
        assert (await ann.ask("send", "error", to=to, n=1, body=1))["code"] == "not_found"
        conv = to if to[0] != "@" else keys.direct("ann", "zed")
        assert (await ann.ask("history", "error", conversation=conv))["code"] == "not_found"
        assert (await ann.ask("read", "error", conversation=conv, seq=1))["code"] == "not_found"
        ann.say("typing", to=to)
        await of.settled()
        for other in ("nobody", "bob", "cid"):
            assert await of.redis.fetch("EXISTS", keys.conversation(keys.direct("ann", other))) == 0
        assert await of.redis.fetch("EXISTS", keys.user("nobody")) == 0


async def test_a_full_store_takes_nothing_new(valkey: EmbeddedValkey) -> None:
    """`unavailable`, with a wait; what reads or frees goes on."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        of.node.lease.full = True
        for kind, fields in (
            ("send", {"to": group, "n": 1, "body": 1}),
            ("react", {"conversation": group, "seq": 1, "n": 2, "emoji": "+"}),
        ):
            error = await ann.ask(kind, "error", **fields)
            assert (error["code"], error["retry_after"]) == ("unavailable", 10)
        await ann.ask("history", "history", conversation=group)
        of.node.lease.full = False
        await sent(ann, group, 3)


async def test_an_edit_delete_and_reaction_stand_in_the_log(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        seq = (await sent(ann, group, 1))["seq"]
        await ann.ask("edit", "ack", conversation=group, seq=seq, n=2, body="x")
        await bob.ask("react", "ack", conversation=group, seq=seq, n=1, emoji="+", remove=True)
        assert (await bob.ask("edit", "error", conversation=group, seq=seq, n=2, body="x"))["code"] == "read_only"
        await ann.ask("delete", "ack", conversation=group, seq=seq, n=3)
        await bob.event("edit", target=seq, body="x")
        await bob.event("react", target=seq, emoji="+", remove=True, **{"from": "bob"})
        await bob.event("delete", target=seq)


async def test_an_answer_that_nobody_waits_for_any_more_does_no_harm(valkey: EmbeddedValkey) -> None:
    """The event stands, and no count is left over."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        ann.say("send", to=group, n=1, body=1)
        ann.say("send", to="@bob", n=2, body=2)
        ann.end()
        await of.settled()
        await of.settled()
        page = await ask(of.node.conversations.range, group, None, 0, wire.MAX_INTEGER, 10)
        assert len(page.events) == 1
        assert of.node.commands.in_flight == 0


# -- ack, read, typing


async def test_an_ack_counts_up_to_what_was_given(valkey: EmbeddedValkey) -> None:
    """Whatever a client claims: an event it was not given is not lost to it at the next resume."""
    async with world(valkey) as of:
        group, direct, other = await of.group("ann", "bob"), await of.direct("ann", "bob"), await of.group("ann")
        bob = await of.client("bob").connected()
        first, second = await of.say("ann", group), await of.say("ann", group)
        private = await of.say("ann", direct)
        await of.say("ann", other)
        await bob.until(lambda: len(bob.of("message")) == 3)
        bob.say("ack", conversation=group, seq=first.seq)
        assert bob.session.acks
        assert dict(bob.session.acks) == {group: first.seq}
        bob.say("ack", cursors={group: wire.MAX_INTEGER, direct: wire.MAX_INTEGER, other: 5, "nonsense": 5})
        assert dict(bob.session.acks) == {group: second.seq, direct: private.seq}
        bob.say("ack", conversation=group, seq=first.seq)
        assert bob.session.acks[group] == second.seq
        of.node.clock.write_marks(bob.session)
        assert not bob.session.acks
        assert await ask(of.node.users.cursor, "bob", "phone", group) == second.seq


async def test_reading_tells_own_devices_and_small_groups(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clamped to the head, once for each advance; in larger groups only one's own devices."""
    async with world(valkey) as of:
        small, large, direct = (
            await of.group("ann", "bob"),
            await of.group("ann", "bob", "cid"),
            await of.direct("ann", "bob"),
        )
        monkeypatch.setattr(commands, "RECEIPT_MEMBERS", 2)
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        laptop = await of.client("bob", "laptop").connected()
        for conv in (small, large, direct):
            said = await of.say("ann", conv)
            bob.say("read", conversation=conv, seq=said.seq + 1000)
            bob.say("read", conversation=conv, seq=said.seq)
            await laptop.event("receipt", conversation=conv, user="bob", read=said.seq)
        await ann.event("receipt", conversation=small, user="bob")
        await ann.event("receipt", conversation=direct, user="bob")
        await of.settled()
        assert [len(ann.of("receipt", conversation=conv)) for conv in (small, large, direct)] == [1, 0, 1]


async def test_typing_is_passed_on_once_a_second(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the others only, per session and conversation; what is remembered for that is let go of."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        await of.say("ann", direct)
        for _ in range(5):
            ann.say("typing", to=group)
            ann.say("typing", to="@bob")
        await bob.event("typing", conversation=direct, **{"from": "ann"})
        await bob.event("typing", conversation=group, **{"from": "ann"})
        await of.settled()
        assert (len(bob.of("typing")), len(ann.of("typing"))) == (2, 0)
        assert len(of.node.commands._typed) == 2
        monkeypatch.setattr(commands, "TYPING_EVERY_S", -1.0)
        of.node.commands._typed.clear()
        for i in range(100):
            ann.say("typing", to=f"@user{i}")
        assert len(of.node.commands._typed) == 1


async def test_typing_to_somebody_without_the_conversation_reaches_nobody(valkey: EmbeddedValkey) -> None:
    """Else anybody could tell, and bother, anybody."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        ann.say("typing", to="@bob")
        await of.settled()
        assert bob.of("typing") == []


# -- auth, history


async def test_auth_extends_a_session_of_the_same_user_only(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        was = bob.session.expires_at
        fresh = await bob.ask("auth", "ok", token=token(of.node, "bob", ttl_s=7200))
        assert fresh["expires_at"] == bob.session.expires_at > was
        for bad, code in ((token(of.node, "ann"), "unauthorized"), ("nonsense", "unauthorized")):
            assert (await bob.ask("auth", "error", token=bad))["code"] == code
        assert (bob.session.expires_at, bob.connection.closed) == (fresh["expires_at"], None)


async def test_history_pages_both_ways(valkey: EmbeddedValkey) -> None:
    """Ascending, the log's own events, `more` while there are."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob", codec=wire.MSGPACK).connected()
        seqs = [(await of.say("ann", group, i)).seq for i in range(5)]
        await bob.until(lambda: len(bob.of("message")) == 5)
        back = await bob.ask("history", "history", conversation=group, limit=2)
        assert (back["events"], back["more"]) == (bob.of("message")[3:], True)
        rest = await bob.ask("history", "history", conversation=group, before=seqs[3])
        assert (rest["events"], rest["more"]) == (bob.of("message")[:3], False)
        after = await bob.ask("history", "history", conversation=group, after=seqs[0], limit=3)
        assert (after["events"], after["more"]) == (bob.of("message")[1:4], True)


async def test_what_redis_cannot_do_now_is_unavailable(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked: an error that says when to try again, and a session that goes on."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()

        def down(_function: str, _keys: Any, _args: Any, reply: Any) -> None:
            of.node.soon(reply, Unavailable(retry_after=1.0))

        monkeypatch.setattr(of.redis, "call", down)
        for kind, fields in (
            ("send", {"to": group, "n": 1, "body": 1}),
            ("send", {"to": "@bob", "n": 2, "body": 1}),
            ("read", {"conversation": group, "seq": 1}),
            ("history", {"conversation": group}),
        ):
            error = await ann.ask(kind, "error", **fields)
            assert (error["code"], error["retry_after"]) == ("unavailable", 1)
        assert of.node.commands.in_flight == 0
        assert ann.connection.closed is None


async def test_where_slots_are_on_several_servers_the_gateway_delivers(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`append` then touches its own slot alone; the event reaches both users by `deliver`, once and as it stands."""
    monkeypatch.setattr(StoreClient, "one_server", property(lambda _: False))
    async with world(valkey) as of:
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for n in (1, 2):
            await ann.ask("send", "ack", to="@bob", n=n, body=n)
        conversation = keys.direct("ann", "bob")
        await bob.until(lambda: len(bob.bodies(conversation)) == 2)
        await ann.until(lambda: len(ann.bodies(conversation)) == 2)
        assert ann.bodies(conversation) == bob.bodies(conversation) == [1, 2]
        assert of.calls("deliver") == 4
