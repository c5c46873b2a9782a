"""The client protocol: both codecs accept and refuse the same values."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, get_args

import jsonschema_rs
import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.contract import codecs, packing, stamp, wire
from router.contract.errors import BadCommand, BadFrame
from tests.contract.codecs import GROUP, as_json, both, decoded, encoded, packed_body, refused

# Each command with all its fields; `type` and `id` are common to them.
COMMANDS: dict[str, dict[str, Any]] = {
    "hello": {"token": "a.b.c", "device": "phone", "instance": "tab-1", "cursors": {GROUP: 7}},
    "auth": {"token": "a.b.c"},
    "send": {
        "to": "@bob",
        "n": 1,
        "body": {"text": "hi"},
        "media": "text",
        "reply_to": 3,
        "done": 0,
        "files": ["ab" * 32],
    },
    "edit": {"conversation": GROUP, "seq": 4, "n": 2, "body": "hi!", "done": 1},
    "delete": {"conversation": GROUP, "seq": 4, "n": 3, "done": 1},
    "react": {"conversation": GROUP, "seq": 4, "n": 4, "emoji": "👍", "remove": True, "done": 1},
    "ack": {"conversation": GROUP, "seq": 9, "cursors": {"d:ann:bob": 5}},
    "read": {"conversation": GROUP, "seq": 9},
    "typing": {"to": GROUP},
    "history": {"conversation": GROUP, "before": 100, "after": None, "limit": 200},
    "presence": {"users": ["bob", "cid"], "watch": True},
    "state": {"key": "draft/a", "value": {"text": "hi"}, "expect": 0},
    "ping": {},
}
KINDS: dict[str, type[wire.Command]] = {kind.__struct_config__.tag: kind for kind in get_args(wire.Commands)}

# -- commands


def test_examples_cover_every_command_and_field() -> None:
    """A new command or field must be added to the examples."""
    fields = {tag: {field.name for field in msgspec.structs.fields(kind)} for tag, kind in KINDS.items()}
    assert fields == {tag: {"id", *example} for tag, example in COMMANDS.items()}


@both
@pytest.mark.parametrize("tag", COMMANDS)
def test_every_command_is_decoded_in_both_codecs(codec: codecs.Codec, tag: str) -> None:
    """All fields arrive as they were sent, in the struct that `type` names."""
    command = decoded(codec, type=tag, id="x", **COMMANDS[tag])
    assert type(command) is KINDS[tag]
    assert msgspec.structs.asdict(command) == {"id": "x", **COMMANDS[tag]}


@both
@pytest.mark.parametrize("tag", COMMANDS)
def test_unknown_fields_are_ignored(codec: codecs.Codec, tag: str) -> None:
    """A newer client may send fields that this server does not know."""
    assert decoded(codec, type=tag, **COMMANDS[tag], later=[{"a": 1}]) == decoded(codec, type=tag, **COMMANDS[tag])


@both
@pytest.mark.parametrize(("tag", "field"), [(tag, field) for tag, example in COMMANDS.items() for field in example])
def test_field_of_the_wrong_type_is_bad_command(codec: codecs.Codec, tag: str, field: str) -> None:
    """Decoding checks all fields, so no handler does; only `body` and `value` are free."""
    wrong = encoded(codec, {"type": tag, **COMMANDS[tag], field: [[1]]})
    if field in ("body", "value"):
        assert getattr(codec.decode(wrong), field) == [[1]]
    else:
        assert refused(codec, wrong) == "bad_command"


@both
@pytest.mark.parametrize(
    ("tag", "missing"),
    [("auth", "token"), ("send", "to"), ("send", "n"), ("send", "body"), ("edit", "seq"), ("edit", "body"),
     ("delete", "conversation"), ("react", "emoji"), ("read", "seq"), ("typing", "to"), ("history", "conversation"),
     ("presence", "users"), ("state", "key"), ("state", "value")],
)  # fmt: skip
def test_missing_field_is_bad_command(codec: codecs.Codec, tag: str, missing: str) -> None:
    """A null body is a body; a missing one is an error."""
    rest = {name: value for name, value in COMMANDS[tag].items() if name != missing}
    assert refused(codec, encoded(codec, {"type": tag, **rest})) == "bad_command"
    assert decoded(codec, type="send", to="@bob", n=1, body=None).body is None


@both
@pytest.mark.parametrize(
    ("tag", "field", "value"),
    [
        *(("hello", "device", name) for name in ("", "a" * 65, "a b", "a\n", "ü", "a/b", "a:b", "{a}", "a\0")),
        ("hello", "token", "a" * 8193),
        ("hello", "instance", "a" * 65),
        ("hello", "cursors", {GROUP: -1}),
        ("hello", "cursors", {GROUP: 2**53}),
        ("hello", "cursors", {"": 1}),
        ("hello", "cursors", {f"g:{i}": 1 for i in range(10_001)}),
        ("ack", "cursors", {f"g:{i}": 1 for i in range(1001)}),
        *(("send", "n", n) for n in (0, -1, 2**53, 1.5, "1", True)),
        ("send", "done", -1),
        ("send", "to", ""),
        ("send", "to", "@" * 161),
        ("send", "media", ""),
        ("react", "emoji", "x" * 65),
        ("read", "seq", -1),
        ("history", "limit", 0),
        ("history", "limit", 201),
        ("history", "after", 1),  # beside `before`
        ("presence", "users", ["a b"]),
        ("presence", "users", [f"u{i}" for i in range(201)]),
    ],
)
def test_field_beyond_its_bounds_is_bad_command(codec: codecs.Codec, tag: str, field: str, value: Any) -> None:
    """Names, counts and sizes are bounded at decoding."""
    assert refused(codec, encoded(codec, {"type": tag, **COMMANDS[tag], field: value})) == "bad_command"


@both
@pytest.mark.parametrize("value", ["", "x" * 256, "ü", 0, -5, 2**53 - 1, 1 - 2**53, None])
def test_answer_repeats_the_id_of_its_command(codec: codecs.Codec, value: str | int | None) -> None:
    """Strings and integers; if the command has no id, the answer has none."""
    command = decoded(codec, type="ping", id=value)
    answer = codec.encode(wire.Pong(id=command.id, at=1))
    told = json.loads(answer) if codec.text else msgpack.unpackb(answer)
    assert told.get("id") == value


@both
@pytest.mark.parametrize("value", ["x" * 257, 2**53, -(2**53), 2**64 - 1, 1.5, True, [], {}, b"x"])
def test_id_of_another_type_or_size_is_refused(codec: codecs.Codec, value: Any) -> None:
    """Ids that JavaScript clients cannot read back exactly, and ids that are too long."""
    assert refused(codec, encoded(codec, {"type": "ping", "id": value})) == "bad_command"


# -- frames


@both
@pytest.mark.parametrize("value", [{}, {"type": "nope"}, {"type": 1}, {"type": None}, [], "ping", 1, None])
def test_value_that_is_no_command_is_bad_command(codec: codecs.Codec, value: Any) -> None:
    """It parses, but its type is not known."""
    assert refused(codec, encoded(codec, value)) == "bad_command"


@both
def test_frame_that_does_not_parse_is_bad_frame(codec: codecs.Codec) -> None:
    """An empty frame, half a value, and two values."""
    whole = encoded(codec, {"type": "ping", "id": "x"})
    for data in (b"", whole + whole, *(whole[:cut] for cut in range(1, len(whole)))):
        assert refused(codec, data) == "bad_frame", data


@pytest.mark.parametrize(
    "body", [b"NaN", b"Infinity", b"-Infinity", b"'x'", b"01", b"1.", b"[1,]", b"{1:2}", b'"\xff"', b'"\xed\xa0\x80"',
             b'"\\ud800"', b'"\\udc00\\ud800"', b'"\n"', b"\xef\xbb\xbf1", b"// x\n1"]
)  # fmt: skip
def test_json_outside_of_the_standard_is_bad_frame(body: bytes) -> None:
    """NaN, lone surrogates, invalid UTF-8 and comments are not allowed by RFC 8259."""
    assert refused(codecs.JSON, b'{"type":"send","to":"@bob","n":1,"body":' + body + b"}") == "bad_frame"


@pytest.mark.parametrize(
    "field", [b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_msgpack_outside_of_the_standard_is_bad_frame(field: bytes) -> None:
    """Strings of invalid UTF-8, the byte that is never used, lengths beyond the frame."""
    assert refused(codecs.MSGPACK, packed_body(field)) == "bad_frame"


@both
def test_frame_of_nested_containers_is_refused(codec: codecs.Codec) -> None:
    """Without a recursion error, in a body or in an unknown field."""
    deep = b"[" * 60_000 + b"]" * 60_000 if codec.text else b"\x91" * 120_000 + b"\x90"
    for field in ("body", "later"):
        whole = encoded(codec, {"type": "send", "to": "@bob", "n": 1, "body": 1, field: "HERE"})
        assert refused(codec, whole.replace(encoded(codec, "HERE"), deep)) == "bad_command"


@settings(max_examples=3 * settings().max_examples)
@given(
    st.binary(max_size=40), st.sampled_from([b"", b"\x81\xa4type\xa4ping", packed_body(b""), b'{"type":"send","n":'])
)
def test_arbitrary_bytes_raise_only_the_two_refusals(data: bytes, start: bytes) -> None:
    """Decoding returns a command or raises one of the two errors."""
    for codec in codecs.CODECS.values():
        with suppress(BadFrame, BadCommand):
            packing.pack_body(getattr(codec.decode(start + data), "body", None))


# -- events

COMMON = {"conversation": GROUP, "from": "ann", "device": "phone", "n": 3}
LOGGED: dict[str, dict[str, Any]] = {
    "message": {
        "media": "text",
        "body": {"a": [b"\0\xff", None, 1.5]},
        "reply_to": 2,
        "server": True,
        "files": [{"sha256": "ab" * 32, "type": "image/png", "kind": "image", "size": 3, "width": 2}],
    },
    "edit": {"target": 5, "body": "x"},
    "delete": {"target": 5},
    "react": {"target": 5, "emoji": "👍", "remove": False},
    "member": {"user": "bob", "action": "remove", "role": None, "banned": True, "until": 1_700_000_000_000},
    "title": {
        "title": "Größe",
        "reacting": "members",
        "avatar": "ab" * 32,
        "posting": "all",
        "adding": "all",
        "slow_s": 5,
    },
}
STATE = wire.ConversationState(
    conversation="d:ann:bob", kind="direct", title="", head=9, cursor=7, read=8, unread=1, with_="bob"
)
OTHERS: list[wire.Event] = [
    wire.Welcome(
        id=1, user="ann", device="phone", session="s", gateway="g", heartbeat_s=30.0, expires_at=1,
        limits=wire.Limits(131_072, 65_536, 200.0, 1000), state=0, conversations=[STATE], more=False,
    ),
    wire.ConversationsEvent(conversations=[STATE], more=True),
    wire.AckEvent(id="x", n=1, conversation=GROUP, seq=5, at=6, duplicate=False),
    wire.ReceiptEvent(conversation=GROUP, user="bob", read=4),
    wire.TypingEvent(conversation=GROUP, from_="bob"),
    wire.PresenceEvent(users={"bob": wire.PresenceState(True, 5), "cid": wire.PresenceState(False, None)}),
    wire.StateEvent(id=5, key="draft/a", value=None, version=9, prev=8),
    wire.StateEvent(version=9),
    wire.ProfileEvent(user="bob"),
    wire.GapEvent(conversation=GROUP, from_=3, to=7, reason="expired"),
    wire.DrainEvent(retry_after=0.25),
    wire.Ok(id=2, expires_at=7),
    wire.HistoryEvent(id=3, conversation=GROUP, events=[], more=True),
    wire.Pong(at=9),
    wire.ErrorEvent(id=4, code="rate_limited", message="wait", retry_after=1.5, n=7),
    wire.ErrorEvent(id=4, code="conflict", message="too old", n=7, reason="old", next=40),
    wire.ErrorEvent(id=4, code="conflict", message="other", version=0),
]  # fmt: skip
DECODERS: dict[str, Any] = {
    codecs.JSON.subprotocol: msgspec.json.Decoder(wire.Events),
    codecs.MSGPACK.subprotocol: msgspec.msgpack.Decoder(wire.Events),
}


def stamped(kind: str) -> bytes:
    packed = {name: packing.pack(value) for name, value in LOGGED[kind].items()}
    return stamp.fill(stamp.tail(kind, GROUP, "ann", "phone", 3, packed), stamp.Slots(8, 7, 6, 1_700_000_000_000))


def test_examples_cover_every_event() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(wire.Events)}
    assert kinds == {*LOGGED, *(event.__struct_config__.tag for event in OTHERS)}


@both
@pytest.mark.parametrize("kind", LOGGED)
def test_logged_event_equals_its_struct(codec: codecs.Codec, kind: str) -> None:
    """The log's bytes are stamped, not encoded from the struct: both must have the same fields."""
    payload = codec.logged(stamped(kind))
    event = DECODERS[codec.subprotocol].decode(payload)
    assert (event.seq, event.prev, event.count, event.at) == (8, 7, 6, 1_700_000_000_000)
    told = json.loads(payload) if codec.text else msgpack.unpackb(payload)
    fields = {"type": kind, "seq": 8, "prev": 7, "count": 6, "at": 1_700_000_000_000, **COMMON, **LOGGED[kind]}
    assert told == (as_json(fields) if codec.text else fields)
    assert {field.encode_name for field in msgspec.structs.fields(type(event))} == told.keys() - {"type"}


@both
@pytest.mark.parametrize("event", OTHERS, ids=lambda event: event.__struct_config__.tag)
def test_every_other_event_is_decoded_as_it_was_encoded(codec: codecs.Codec, event: wire.Event) -> None:
    assert DECODERS[codec.subprotocol].decode(codec.encode(event)) == event


# -- the schema


def test_schema_accepts_every_command_and_event_and_refuses_others() -> None:
    """The schema for client authors matches the codecs."""
    schema = json.loads(msgspec.json.encode(codecs.schema()))
    validator = jsonschema_rs.validator_for(schema)
    for tag, example in COMMANDS.items():
        assert validator.is_valid({"command": {"type": tag, "id": 1, **example}}), tag
    for kind in LOGGED:
        assert validator.is_valid({"event": json.loads(codecs.JSON.logged(stamped(kind)))}), kind
    for event in OTHERS:
        assert validator.is_valid({"event": json.loads(codecs.JSON.encode(event))}), event
    assert not validator.is_valid({"command": {"type": "nope"}})
    assert not validator.is_valid({"command": {"type": "send", "to": "@bob", "n": 0, "body": 1}})
    assert not validator.is_valid({"event": {"type": "pong"}})
