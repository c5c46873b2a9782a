"""Commands: the table of states, rates, refusals, and what those do that put no event into a log."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import cursors, ephemeral
from gateway.commands import dispatch as commands
from gateway.commands.dispatch import HEAVY
from gateway.delivery.feed import State
from router.contract import keys, wire
from router.contract.errors import Unavailable
from router.contract.packing import MAX_INTEGER
from router.store.answers import ask
from tests.contract.test_wire import COMMANDS as EXAMPLES
from tests.gateway.world import token, world

COMMANDS = set(get_args(wire.Commands))

# -- the table


async def test_the_table_says_everything(valkey: EmbeddedValkey) -> None:
    """Every command is handled in exactly one state: hello alone in HELLO, all others in READY, none anywhere else."""
    async with world(valkey) as of:
        table = of.node.dispatch._table
    assert table.keys() == set(State)
    assert set(table[State.HELLO]) == {wire.Hello}
    assert set(table[State.READY]) == COMMANDS - {wire.Hello}
    assert not table[State.CONNECTING]
    assert not table[State.CLOSED]


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

        ready: Any = of.node.dispatch._table[State.READY]
        monkeypatch.setitem(ready, wire.Presence, broken)
        error = await bob.ask("presence", "error", users=[])
        assert (error["code"], "secret" in error["message"]) == ("internal", False)
        assert "ZeroDivisionError" in caplog.text
        await bob.ask("ping", "pong")


# -- rates


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For rates so low that nothing is due again within a test: nobody is cut off for what he will owe for long."""
    monkeypatch.setattr(commands, "FLOOD_S", 10_000.0)


@pytest.mark.usefixtures("patient")
async def test_a_burst_is_let_through_and_then_refused_for_a_while(valkey: EmbeddedValkey) -> None:
    """`send_burst` sends at once; whoever is refused is told when to come again, and others are not held up."""
    async with world(valkey, sends_per_s=0.05, send_burst=4) as of:
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for i in range(8):
            ann.say("history", id=i, conversation=keys.direct("ann", "bob"))
        codes = [event["code"] for event in (await ann.until(lambda: len(ann.of("error")) == 8 and ann.of("error")))]
        assert sorted(codes) == ["not_found"] * 3 + ["rate_limited"] * 5  # the hello was one
        assert all(0 < event["retry_after"] <= 90 for event in ann.of("error", code="rate_limited"))
        assert ann.connection.closed is None
        await bob.ask("ping", "pong")


@pytest.mark.usefixtures("patient")
async def test_light_commands_cost_a_quarter(valkey: EmbeddedValkey) -> None:
    async with world(valkey, sends_per_s=0.01, send_burst=4) as of:
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
        bob.say("ack", cursors={group: MAX_INTEGER, direct: MAX_INTEGER, other: 5, "nonsense": 5})
        assert dict(bob.session.acks) == {group: second.seq, direct: private.seq}
        bob.say("ack", conversation=group, seq=first.seq)
        assert bob.session.acks[group] == second.seq
        of.node.marks.write(bob.session)
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
        monkeypatch.setattr(cursors, "RECEIPT_MEMBERS", 2)
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
        assert [len(ann.of("receipt", conversation=conv, user="bob")) for conv in (small, large, direct)] == [1, 0, 1]


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
        assert len(of.node.ephemeral._typed) == 2
        monkeypatch.setattr(ephemeral, "TYPING_EVERY_S", -1.0)
        of.node.ephemeral._typed.clear()
        for i in range(100):
            ann.say("typing", to=f"@user{i}")
        assert len(of.node.ephemeral._typed) == 1


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

        def down(_function: str, _form_or_keys: Any, _args: Any, reply: Any) -> None:
            of.node.loop.call_soon(reply, Unavailable(retry_after=1.0))

        monkeypatch.setattr(of.redis, "call", down)
        monkeypatch.setattr(of.redis, "call_form", down)
        for kind, fields in (
            ("send", {"to": group, "n": 1, "body": 1}),
            ("send", {"to": "@bob", "n": 2, "body": 1}),
            ("read", {"conversation": group, "seq": 1}),
            ("history", {"conversation": group}),
        ):
            error = await ann.ask(kind, "error", **fields)
            assert (error["code"], error["retry_after"]) == ("unavailable", 1)
        assert of.node.sends.in_flight == 0
        assert ann.connection.closed is None
