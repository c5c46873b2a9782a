"""Canonical values: every client can read the values of every other, whichever codec either uses."""

from __future__ import annotations

import base64
import json
from copy import deepcopy
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.contract import codecs, packing, stamp
from router.contract.errors import TooLarge
from tests.contract.codecs import GROUP, both, decoded, encoded, packed_body, refused

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-packing.MAX_INTEGER, packing.MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.binary(max_size=60),
)
KEYS = st.text(max_size=8).filter(lambda key: key != "$b64")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5))


@settings(max_examples=3 * settings().max_examples)
@given(VALUES)
def test_value_sent_in_either_codec_is_received_in_both(value: Any) -> None:
    """A canonical value has one form in the log for both codecs, and every client reads it unchanged."""
    bodies = [
        packing.pack_body(decoded(codec, type="send", to="@b", n=1, body=value).body)
        for codec in codecs.CODECS.values()
    ]
    assert bodies[0] == bodies[1] == msgspec.msgpack.encode(value)  # bytes, for 1 == 1.0 == True
    event = stamp.fill(stamp.tail("message", GROUP, "ann", "phone", 1, {"body": bodies[0]}), stamp.Slots(1, 0, 1, 1))
    from_json = json.loads(codecs.JSON.logged(event))["body"]
    from_msgpack = msgpack.unpackb(codecs.MSGPACK.logged(event))["body"]
    assert packing.pack(packing.canonical(from_json)) == packing.pack(from_msgpack) == bodies[0]


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
def test_msgpack_value_that_json_lacks_is_bad_command(bad: bytes, around: bytes) -> None:
    """At any depth: one such body would break every JSON client at every resume."""
    assert refused(codecs.MSGPACK, packed_body(around + bad)) == "bad_command"


@pytest.mark.parametrize(
    "bad", [b"9007199254740992", b"-9007199254740992", b"1" * 400, b"1e999", b'{"$b64":1}', b'{"$b64":"AA"}',
            b'{"$b64":"AA==","x":1}', b'[{"a":{"$b64":"A A="}}]', b'{"$b64":null}']
)  # fmt: skip
def test_json_value_that_is_not_canonical_is_bad_command(bad: bytes) -> None:
    """Integers that lose digits in other clients, and `$b64` that is no base64."""
    assert refused(codecs.JSON, b'{"type":"send","to":"@bob","n":1,"body":' + bad + b"}") == "bad_command"


@both
@pytest.mark.parametrize("value", ["", "AA==", base64.b64encode(bytes(range(256))).decode()])
def test_b64_is_bytes_in_both_codecs(codec: codecs.Codec, value: str) -> None:
    """Otherwise a msgpack client could send a map that JSON clients read as bytes."""
    body = decoded(codec, type="send", to="@b", n=1, body=[{"$b64": value}]).body
    assert packing.canonical(body) == [base64.b64decode(value)]


@both
def test_values_are_at_most_32_deep(codec: codecs.Codec) -> None:
    """32 containers around a scalar are accepted, 33 are not, for lists and maps."""
    for inner in (lambda value: [value], lambda value: {"a": value}):
        value: Any = 1
        for _ in range(32):
            value = inner(value)
        packing.pack_body(decoded(codec, type="send", to="@b", n=1, body=deepcopy(value)).body)
        assert (
            refused(codec, encoded(codec, {"type": "send", "to": "@b", "n": 1, "body": inner(value)})) == "bad_command"
        )


def test_body_is_limited_by_its_packed_size() -> None:
    """65,536 bytes of msgpack, whichever codec it was sent in."""
    assert len(packing.pack_body("x" * (packing.MAX_BODY_BYTES - 3))) == packing.MAX_BODY_BYTES
    with pytest.raises(TooLarge):
        packing.pack_body("x" * (packing.MAX_BODY_BYTES - 2))


def test_json_of_an_event_contains_no_msgpack_types() -> None:
    """Bytes become `$b64` at every depth, and the text is UTF-8."""
    packed = packing.pack({"body": [b"\0", {"a": b"\xff"}, b""], "ü": "ü"})
    assert json.loads(packing.json_of_packed(packed)) == {
        "body": [{"$b64": "AA=="}, {"a": {"$b64": "/w=="}}, {"$b64": ""}],
        "ü": "ü",
    }
