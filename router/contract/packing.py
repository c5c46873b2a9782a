"""Canonical values: the values that bodies may contain, and their bytes in msgpack and JSON.

`body` and every other free value must be canonical, even where msgpack or JSON allows more, so that every client can
read the values of every other client: one NaN in a body would break each JSON client at every resume.
"""

from __future__ import annotations

import base64
import binascii
from math import isfinite
from typing import Any, Final

import msgspec

from router.contract.errors import BadCommand, TooLarge

MAX_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 32
MAX_BODY_BYTES: Final = 65_536

_CONTAINERS: Final = frozenset((dict, list, bytes))

unpack = msgspec.msgpack.Decoder().decode  # of any value
from_json = msgspec.json.Decoder().decode  # of any value
to_json = msgspec.json.Encoder().encode  # of a value without bytes, or of an event struct
pack = msgspec.msgpack.Encoder().encode  # of a canonical value, or of an event struct


def canonical(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The value as all codecs carry it: `{"$b64": …}` becomes bytes. `BadCommand` if the value is not canonical.

    Canonical are null, bool, integers within ±(2⁵³-1), finite floats, strings, bytes, lists, and maps with string keys,
    at most 32 deep. Lists and maps are changed in place.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is bytes:
        return value
    if kind is int:
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        raise BadCommand("integers must be within ±(2^53-1)")
    if kind is float:
        if isfinite(value):
            return value
        raise BadCommand("numbers must be finite")
    if depth == 0:
        raise BadCommand(f"values must be at most {MAX_DEPTH} deep")
    if kind is list:
        for i, item in enumerate(value):
            value[i] = canonical(item, depth - 1)
        return value
    if kind is dict:
        if "$b64" in value:
            return _from_base64(value)
        for key, item in value.items():
            if type(key) is not str:
                raise BadCommand("keys of maps must be strings")
            value[key] = canonical(item, depth - 1)
        return value
    raise BadCommand("a value has a type that JSON and msgpack do not share")


def _from_base64(value: dict[Any, Any]) -> bytes:
    if len(value) != 1 or type(value["$b64"]) is not str:
        raise BadCommand('bytes must be {"$b64": "<base64>"} without further keys')
    try:
        return base64.b64decode(value["$b64"], validate=True)
    except (binascii.Error, ValueError):
        raise BadCommand("`$b64` must be base64") from None


def jsonable(value: Any) -> Any:
    """A canonical value with its bytes as `{"$b64": …}`; lists and maps are changed in place."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():
            if type(item) in _CONTAINERS:
                value[key] = jsonable(item)
    elif kind is list:
        for i, item in enumerate(value):
            if type(item) in _CONTAINERS:
                value[i] = jsonable(item)
    elif kind is bytes:
        return {"$b64": base64.b64encode(value).decode()}
    return value


def json_of_value(packed: bytes) -> bytes:
    """The JSON text of a canonical value's msgpack bytes."""
    return to_json(jsonable(unpack(packed)))


def pack_body(body: Any) -> bytes:
    """msgpack of a decoded body; `BadCommand` if it is not canonical, `TooLarge` if it has too many bytes."""
    packed = pack(body if type(body) is str else canonical(body))
    if len(packed) > MAX_BODY_BYTES:
        raise TooLarge(f"a body must have at most {MAX_BODY_BYTES} bytes")
    return packed


def json_of_packed(packed: bytes) -> bytes:
    """The JSON text of a logged event's msgpack bytes; only its field `body` can contain bytes."""
    event = unpack(packed)
    if type(body := event.get("body")) in _CONTAINERS:
        event["body"] = jsonable(body)
    return to_json(event)
