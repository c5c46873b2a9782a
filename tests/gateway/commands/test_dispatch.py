"""From a message to its handler: the table of states and commands, and the refusals."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery.feed import State
from router.contract import wire
from router.contract.errors import Unavailable
from tests.contract.test_wire import COMMANDS as EXAMPLES
from tests.gateway.world import token, world

COMMANDS = set(get_args(wire.Commands))

# -- the table


async def test_table_has_every_command_in_exactly_one_state(valkey: EmbeddedValkey) -> None:
    """`hello` alone in HELLO, all others in READY, none in CONNECTING and CLOSED."""
    async with world(valkey) as of:
        table = of.node.dispatch._table
    assert table.keys() == set(State)
    assert set(table[State.HELLO]) == {wire.Hello}
    assert set(table[State.READY]) == COMMANDS - {wire.Hello}
    assert not table[State.CONNECTING]
    assert not table[State.CLOSED]


@pytest.mark.parametrize("kind", sorted(kind.__name__.lower() for kind in COMMANDS - {wire.Hello}))
async def test_command_before_hello_is_refused(valkey: EmbeddedValkey, kind: str) -> None:
    """An error with the reason, and close 4503."""
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.say(kind, id=1, **EXAMPLES[kind])
        assert (await bob.event("error", id=1))["code"] == "bad_command"
        assert bob.connection.closed == (4503, "bad_command")


async def test_second_hello_is_refused_and_changes_nothing(valkey: EmbeddedValkey) -> None:
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
async def test_refusal_contains_the_id_and_n_of_the_command(
    valkey: EmbeddedValkey, data: bytes, told: dict[str, Any]
) -> None:
    """As far as they can be decoded; the session goes on."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.session.message_received(data, True)
        error = await bob.event("error")
        expected = told if told["code"] != "bad_frame" or not data.startswith(b"[") else {"code": error["code"]}
        assert {name: value for name, value in error.items() if name not in ("type", "message")} == expected
        assert "traceback" not in error["message"].lower()
        await bob.ask("ping", "pong")


async def test_handler_that_raises_costs_one_command(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets `internal` without details, the log gets the trace, the session goes on."""
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


async def test_command_is_unavailable_while_redis_does_not_answer(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command gets an error with a time to retry, and the session goes on."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()

        def down(_function: str, _form_or_keys: Any, _args: Any, reply: Any) -> None:
            of.node.loop.call_soon(reply, Unavailable(retry_after=1.0))

        monkeypatch.setattr(of.redis, "call", down)
        monkeypatch.setattr(of.redis, "call_template", down)
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
