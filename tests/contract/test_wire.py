"""The wire: both codecs read and refuse the same, and what one client sends every other can read."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from copy import deepcopy
from typing import Any, get_args

import jsonschema_rs
import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.contract import stamp, wire
from router.contract.errors import BadCommand, BadFrame, LinnetError, TooLarge

GROUP = "g:0123456789012345678901"

# Each command with all its fields; `type` and `id` are common to them.
COMMANDS: dict[str, dict[str, Any]] = {
    "hello": {"token": "a.b.c", "device": "phone", "instance": "tab-1", "cursors": {GROUP: 7}},
    "auth": {"token": "a.b.c"},
    "send": {"to": "@bob", "n": 1, "body": {"text": "hi"}, "media": "text", "reply_to": 3, "done": 0},
    "edit": {"conversation": GROUP, "seq": 4, "n": 2, "body": "hi!", "done": 1},
    "delete": {"conversation": GROUP, "seq": 4, "n": 3, "done": 1},
    "react": {"conversation": GROUP, "seq": 4, "n": 4, "emoji": "👍", "remove": True, "done": 1},
    "ack": {"conversation": GROUP, "seq": 9, "cursors": {"d:ann:bob": 5}},
    "read": {"conversation": GROUP, "seq": 9},
    "typing": {"to": GROUP},
    "history": {"conversation": GROUP, "before": 100, "after": None, "limit": 200},
    "presence": {"users": ["bob", "cid"], "watch": True},
    "ping": {},
}
KINDS: dict[str, type[wire.Command]] = {kind.__struct_config__.tag: kind for kind in get_args(wire.Commands)}

both = pytest.mark.parametrize("codec", wire.CODECS.values(), ids=lambda codec: codec.subprotocol)


def as_json(value: Any) -> Any:
    """A canonical value as a JSON client writes it."""
    match value:
        case bytes():
            return {"$b64": base64.b64encode(value).decode()}
        case list():
            return [as_json(item) for item in value]
        case dict():
            return {key: as_json(item) for key, item in value.items()}
    return value


def encoded(codec: wire.Codec, value: Any) -> bytes:
    """As a client in another language would write it: by no code of ours."""
    packed: bytes = json.dumps(as_json(value)).encode() if codec.text else msgpack.packb(value)
    return packed


def decoded(codec: wire.Codec, **command: Any) -> Any:
    return codec.decode(encoded(codec, command))


def refused(codec: wire.Codec, data: bytes) -> str:
    """The code with which a frame, or the body of the command in it, is refused."""
    with pytest.raises(LinnetError) as caught:
        wire.pack_body(getattr(codec.decode(data), "body", None))
    return caught.value.code


# -- commands


def test_the_examples_cover_every_command_and_field() -> None:
    """Whoever adds a command or a field has to show it here."""
    fields = {tag: {field.name for field in msgspec.structs.fields(kind)} for tag, kind in KINDS.items()}
    assert fields == {tag: {"id", *example} for tag, example in COMMANDS.items()}


@both
@pytest.mark.parametrize("tag", COMMANDS)
def test_every_command_is_read_in_both_codecs(codec: wire.Codec, tag: str) -> None:
    """All fields arrive as they were sent, in the struct that `type` names."""
    command = decoded(codec, type=tag, id="x", **COMMANDS[tag])
    assert type(command) is KINDS[tag]
    assert msgspec.structs.asdict(command) == {"id": "x", **COMMANDS[tag]}


@both
@pytest.mark.parametrize("tag", COMMANDS)
def test_unknown_fields_are_ignored(codec: wire.Codec, tag: str) -> None:
    """A newer client may say more than this server knows."""
    assert decoded(codec, type=tag, **COMMANDS[tag], later=[{"a": 1}]) == decoded(codec, type=tag, **COMMANDS[tag])


@both
@pytest.mark.parametrize(("tag", "field"), [(tag, field) for tag, example in COMMANDS.items() for field in example])
def test_a_field_of_the_wrong_type_is_bad_command(codec: wire.Codec, tag: str, field: str) -> None:
    """No handler ever sees a field that it would have to check; only `body` is free."""
    wrong = encoded(codec, {"type": tag, **COMMANDS[tag], field: [[1]]})
    if field == "body":
        assert codec.decode(wrong).body == [[1]]  # type: ignore[union-attr]  # the commands that have one
    else:
        assert refused(codec, wrong) == "bad_command"


@both
@pytest.mark.parametrize(
    ("tag", "missing"),
    [("auth", "token"), ("send", "to"), ("send", "n"), ("send", "body"), ("edit", "seq"), ("edit", "body"),
     ("delete", "conversation"), ("react", "emoji"), ("read", "seq"), ("typing", "to"), ("history", "conversation"),
     ("presence", "users")],
)  # fmt: skip
def test_a_missing_field_is_bad_command(codec: wire.Codec, tag: str, missing: str) -> None:
    """A null body is a body; none at all is a mistake."""
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
        *(("send", "n", n) for n in (0, -1, 2**53, 1.0, "1", True)),
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
def test_a_field_beyond_its_bounds_is_bad_command(codec: wire.Codec, tag: str, field: str, value: Any) -> None:
    """Names, counts and sizes are bounded where they come in."""
    assert refused(codec, encoded(codec, {"type": tag, **COMMANDS[tag], field: value})) == "bad_command"


@both
@pytest.mark.parametrize("value", ["", "x" * 256, "ü", 0, -5, 2**53 - 1, 1 - 2**53, None])
def test_an_id_comes_back_as_it_was(codec: wire.Codec, value: str | int | None) -> None:
    """Strings and integers, in the direct answer; without one the answer has none."""
    command = decoded(codec, type="ping", id=value)
    answer = codec.encode(wire.Pong(id=command.id, at=1))
    told = json.loads(answer) if codec.text else msgpack.unpackb(answer)
    assert told.get("id") == value


@both
@pytest.mark.parametrize("value", ["x" * 257, 2**53, -(2**53), 2**64 - 1, 1.5, 1.0, True, [], {}, b"x"])
def test_no_other_id_is_taken(codec: wire.Codec, value: Any) -> None:
    """An id that a JavaScript client could not read again, or that is longer than what it names."""
    assert refused(codec, encoded(codec, {"type": "ping", "id": value})) == "bad_command"


# -- frames


@both
@pytest.mark.parametrize("value", [{}, {"type": "nope"}, {"type": 1}, {"type": None}, [], "ping", 1, None])
def test_a_value_that_is_no_command_is_bad_command(codec: wire.Codec, value: Any) -> None:
    """It parses, and names nothing we know."""
    assert refused(codec, encoded(codec, value)) == "bad_command"


@both
def test_what_does_not_parse_is_bad_frame(codec: wire.Codec) -> None:
    """Nothing, half a value, and two of them; whatever of the rest is left out."""
    whole = encoded(codec, {"type": "ping", "id": "x"})
    for data in (b"", whole + whole, *(whole[:cut] for cut in range(1, len(whole)))):
        assert refused(codec, data) == "bad_frame", data


@pytest.mark.parametrize(
    "body", [b"NaN", b"Infinity", b"-Infinity", b"'x'", b"01", b"1.", b"[1,]", b"{1:2}", b'"\xff"', b'"\xed\xa0\x80"',
             b'"\\ud800"', b'"\\udc00\\ud800"', b'"\n"', b"\xef\xbb\xbf1", b"// x\n1"]
)  # fmt: skip
def test_what_json_does_not_have_is_bad_frame(body: bytes) -> None:
    """No NaN, no lone surrogate, no UTF-8 that is none, no comments: as RFC 8259 says."""
    assert refused(wire.JSON, b'{"type":"send","to":"@bob","n":1,"body":' + body + b"}") == "bad_frame"


@pytest.mark.parametrize(
    "field", [b"\xa1\xff", b"\xa3\xed\xa0\x80", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_what_msgpack_does_not_have_is_bad_frame(field: bytes) -> None:
    """Strings that are no UTF-8, the byte that is never used, lengths beyond the frame."""
    assert refused(wire.MSGPACK, packed_body(field)) == "bad_frame"


def packed_body(body: bytes) -> bytes:
    return b"\x84\xa4type\xa4send\xa2to\xa4@bob\xa1n\x01\xa4body" + body


@both
def test_a_frame_as_deep_as_it_is_long_is_refused_quietly(codec: wire.Codec) -> None:
    """No recursion error, in a body or in a field that nobody reads."""
    deep = b"[" * 60_000 + b"]" * 60_000 if codec.text else b"\x91" * 120_000 + b"\x90"
    for field in ("body", "later"):
        whole = encoded(codec, {"type": "send", "to": "@bob", "n": 1, "body": 1, field: "HERE"})
        assert refused(codec, whole.replace(encoded(codec, "HERE"), deep)) == "bad_command"


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=40), st.sampled_from([b"", b"\x81\xa4type\xa4ping", packed_body(b""), b'{"type":"send","n":'])
)
def test_no_bytes_make_decoding_fail_otherwise(data: bytes, start: bytes) -> None:
    """Whatever comes is a command or one of two refusals."""
    for codec in wire.CODECS.values():
        with suppress(BadFrame, BadCommand):
            wire.pack_body(getattr(codec.decode(start + data), "body", None))


# -- canonical values

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-wire.MAX_INTEGER, wire.MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(max_size=60),
)
KEYS = st.text(max_size=8).filter(lambda key: key != "$b64")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5))


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_what_goes_in_through_either_codec_comes_out_of_both(value: Any) -> None:
    """One canonical value has one form in the log, whoever sent it, and every client reads it as it was sent."""
    bodies = [
        wire.pack_body(decoded(codec, type="send", to="@b", n=1, body=value).body) for codec in wire.CODECS.values()
    ]
    assert bodies[0] == bodies[1] == msgspec.msgpack.encode(value)  # bytes, for 1 == 1.0 == True
    event = stamp.fill(stamp.tail("message", GROUP, "ann", "phone", 1, {"body": bodies[0]}), stamp.Slots(1, 0, 1, 1))
    from_json = json.loads(wire.JSON.logged(event))["body"]
    from_msgpack = msgpack.unpackb(wire.MSGPACK.logged(event))["body"]
    assert wire.pack(wire.canonical(from_json)) == wire.pack(from_msgpack) == bodies[0]


NOT_CANONICAL: dict[str, bytes] = {
    "nan": b"\xcb\x7f\xf8\0\0\0\0\0\0",
    "nan of 32 bits": b"\xca\x7f\xc0\0\0",
    "infinity": b"\xcb\x7f\xf0\0\0\0\0\0\0",
    "minus infinity": b"\xcb\xff\xf0\0\0\0\0\0\0",
    "2^53": b"\xcf\0\x20\0\0\0\0\0\0",
    "2^64-1": b"\xcf" + b"\xff" * 8,
    "-2^63": b"\xd3\x80" + b"\0" * 7,
    "extension": b"\xd4\x05\x01",
    "timestamp": b"\xd6\xff\0\0\0\1",
    "timestamp that is none": b"\xd7\xff" + b"\xff" * 8,
    "key 1": b"\x81\x01\x02",
    "key null": b"\x81\xc0\x02",
    "key of bytes": b"\x81\xc4\x01a\x02",
    "key of a list": b"\x81\x91\x01\x02",
    "key nan": b"\x81\xcb\x7f\xf8\0\0\0\0\0\0\x02",
    "$b64 of a number": b"\x81\xa4$b64\x01",
    "$b64 of bytes": b"\x81\xa4$b64\xc4\x01a",
    "$b64 and more": b"\x82\xa4$b64\xa4AA==\xa1x\x01",
    "$b64 without padding": b"\x81\xa4$b64\xa2AA",
    "$b64 with a space": b"\x81\xa4$b64\xa5AA== ",
    "$b64 of the other alphabet": b"\x81\xa4$b64\xa4-_==",
    "$b64 of no ASCII": b"\x81\xa4$b64\xa2\xc3\xbc",
}


@pytest.mark.parametrize("bad", NOT_CANONICAL.values(), ids=NOT_CANONICAL)
@pytest.mark.parametrize("around", [b"", b"\x92\x01", b"\x81\xa1a", b"\x91\x81\xa1a\x91"])
def test_what_msgpack_lets_through_and_json_does_not_have_is_bad_command(bad: bytes, around: bytes) -> None:
    """At any depth: one such body would break every JSON client at every resume."""
    assert refused(wire.MSGPACK, packed_body(around + bad)) == "bad_command"


@pytest.mark.parametrize(
    "bad", [b"9007199254740992", b"-9007199254740992", b"1" * 400, b"1e999", b'{"$b64":1}', b'{"$b64":"AA"}',
            b'{"$b64":"AA==","x":1}', b'[{"a":{"$b64":"A A="}}]', b'{"$b64":null}']
)  # fmt: skip
def test_json_that_is_not_canonical_is_bad_command(bad: bytes) -> None:
    """Integers that lose digits elsewhere, and bytes that are none."""
    assert refused(wire.JSON, b'{"type":"send","to":"@bob","n":1,"body":' + bad + b"}") == "bad_command"


@both
@pytest.mark.parametrize("value", ["", "AA==", base64.b64encode(bytes(range(256))).decode()])
def test_b64_is_bytes_in_both_codecs(codec: wire.Codec, value: str) -> None:
    """Else a msgpack client could send a map that JSON clients read as bytes."""
    body = decoded(codec, type="send", to="@b", n=1, body=[{"$b64": value}]).body
    assert wire.canonical(body) == [base64.b64decode(value)]


@both
def test_values_may_be_32_deep(codec: wire.Codec) -> None:
    """32 containers around a scalar, of either kind; not one more."""
    for inner in (lambda value: [value], lambda value: {"a": value}):
        value: Any = 1
        for _ in range(32):
            value = inner(value)
        wire.pack_body(decoded(codec, type="send", to="@b", n=1, body=deepcopy(value)).body)
        assert (
            refused(codec, encoded(codec, {"type": "send", "to": "@b", "n": 1, "body": inner(value)})) == "bad_command"
        )


def test_a_body_is_as_large_as_it_is_packed() -> None:
    """65,536 bytes of msgpack, in whichever form it came."""
    assert len(wire.pack_body("x" * (wire.MAX_BODY_BYTES - 3))) == wire.MAX_BODY_BYTES
    with pytest.raises(TooLarge):
        wire.pack_body("x" * (wire.MAX_BODY_BYTES - 2))


# -- events

COMMON = {"conversation": GROUP, "from": "ann", "device": "phone", "n": 3}
LOGGED: dict[str, dict[str, Any]] = {
    "message": {"media": "text", "body": {"a": [b"\0\xff", None, 1.5]}, "reply_to": 2},
    "edit": {"target": 5, "body": "x"},
    "delete": {"target": 5},
    "react": {"target": 5, "emoji": "👍", "remove": False},
    "member": {"user": "bob", "action": "add", "role": "admin"},
    "title": {"title": "Größe"},
}
STATE = wire.ConversationState(
    conversation="d:ann:bob", kind="direct", title="", head=9, cursor=7, read=8, unread=1, with_="bob"
)
OTHERS: list[wire.Event] = [
    wire.Welcome(
        id=1, user="ann", device="phone", session="s", gateway="g", heartbeat_s=30.0, expires_at=1,
        limits=wire.Limits(131_072, 65_536, 200.0, 1000), conversations=[STATE], more=False,
    ),
    wire.ConversationsEvent(conversations=[STATE], more=True),
    wire.AckEvent(id="x", n=1, conversation=GROUP, seq=5, at=6, duplicate=False),
    wire.ReceiptEvent(conversation=GROUP, user="bob", read=4),
    wire.TypingEvent(conversation=GROUP, from_="bob"),
    wire.PresenceEvent(users={"bob": wire.PresenceState(True, 5), "cid": wire.PresenceState(False, None)}),
    wire.GapEvent(conversation=GROUP, from_=3, to=7, reason="expired"),
    wire.DrainEvent(retry_after=0.25),
    wire.Ok(id=2, expires_at=7),
    wire.HistoryEvent(id=3, conversation=GROUP, events=[], more=True),
    wire.Pong(at=9),
    wire.ErrorEvent(id=4, code="rate_limited", message="wait", retry_after=1.5, n=7),
]  # fmt: skip
DECODERS: dict[str, Any] = {
    wire.JSON.subprotocol: msgspec.json.Decoder(wire.Events),
    wire.MSGPACK.subprotocol: msgspec.msgpack.Decoder(wire.Events),
}


def stamped(kind: str) -> bytes:
    packed = {name: wire.pack(value) for name, value in LOGGED[kind].items()}
    return stamp.fill(stamp.tail(kind, GROUP, "ann", "phone", 3, packed), stamp.Slots(8, 7, 6, 1_700_000_000_000))


def test_the_events_cover_every_event() -> None:
    kinds = {kind.__struct_config__.tag for kind in get_args(wire.Events)}
    assert kinds == {*LOGGED, *(event.__struct_config__.tag for event in OTHERS)}


@both
@pytest.mark.parametrize("kind", LOGGED)
def test_every_logged_event_is_what_its_struct_says(codec: wire.Codec, kind: str) -> None:
    """The log's bytes are stamped, not encoded from the struct: both must tell the same, and nothing beside it."""
    payload = codec.logged(stamped(kind))
    event = DECODERS[codec.subprotocol].decode(payload)
    assert (event.seq, event.prev, event.count, event.at) == (8, 7, 6, 1_700_000_000_000)
    told = json.loads(payload) if codec.text else msgpack.unpackb(payload)
    fields = {"type": kind, "seq": 8, "prev": 7, "count": 6, "at": 1_700_000_000_000, **COMMON, **LOGGED[kind]}
    assert told == (as_json(fields) if codec.text else fields)
    assert {field.encode_name for field in msgspec.structs.fields(type(event))} == told.keys() - {"type"}


@both
@pytest.mark.parametrize("event", OTHERS, ids=lambda event: event.__struct_config__.tag)
def test_every_other_event_is_read_as_it_was_written(codec: wire.Codec, event: wire.Event) -> None:
    assert DECODERS[codec.subprotocol].decode(codec.encode(event)) == event


def test_json_of_an_event_leaves_nothing_of_msgpack() -> None:
    """Bytes are `$b64` wherever they stand, and the text is UTF-8."""
    packed = wire.pack({"body": [b"\0", {"a": b"\xff"}, b""], "ü": "ü"})
    assert json.loads(wire.json_of_packed(packed)) == {
        "body": [{"$b64": "AA=="}, {"a": {"$b64": "/w=="}}, {"$b64": ""}],
        "ü": "ü",
    }


# -- the schema


def test_the_schema_accepts_every_command_and_event_and_refuses_others() -> None:
    """What is served to client authors is what the codecs do."""
    schema = json.loads(msgspec.json.encode(wire.schema()))
    validator = jsonschema_rs.validator_for(schema)
    for tag, example in COMMANDS.items():
        assert validator.is_valid({"command": {"type": tag, "id": 1, **example}}), tag
    for kind in LOGGED:
        assert validator.is_valid({"event": json.loads(wire.JSON.logged(stamped(kind)))}), kind
    for event in OTHERS:
        assert validator.is_valid({"event": json.loads(wire.JSON.encode(event))}), event
    assert not validator.is_valid({"command": {"type": "nope"}})
    assert not validator.is_valid({"command": {"type": "send", "to": "@bob", "n": 0, "body": 1}})
    assert not validator.is_valid({"event": {"type": "pong"}})
