"""Values of the wire in JSON: bytes are `{"$b64": …}`, and only what every other client can read is sent."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, Final

from linnet_client.errors import InvalidValue

MAX_INTEGER: Final = 2**53 - 1
MAX_DEPTH: Final = 32
MAX_COMMAND_BYTES: Final = 130_000  # the server closes a connection that sends a frame of more than 128 KiB


def jsonable(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a copy that `json` encodes; raise `InvalidValue` for what the wire cannot carry."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidValue("strings must be valid UTF-8") from None
        return value
    if isinstance(value, int):
        if -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        raise InvalidValue("integers must be within ±(2^53-1)")
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        raise InvalidValue("numbers must be finite")
    if isinstance(value, (bytes, bytearray)):
        return {"$b64": base64.b64encode(value).decode()}
    return _container(value, depth)


def _container(value: Any, depth: int) -> Any:
    if depth == 0:
        raise InvalidValue(f"values may be {MAX_DEPTH} deep")
    if isinstance(value, (list, tuple)):
        return [jsonable(item, depth - 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidValue("keys of maps must be strings")
        return {key: jsonable(item, depth - 1) for key, item in value.items()}
    raise InvalidValue(f"the wire cannot carry a {type(value).__name__}")


def _bytes(found: dict[str, Any]) -> Any:
    encoded = found.get("$b64")
    if len(found) != 1 or not isinstance(encoded, str):
        return found
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return found


def decode(text: str | bytes) -> Any:
    """Return the value of a JSON text of the wire."""
    return json.loads(text, object_hook=_bytes)


def encode(value: Any) -> str:
    """Return the JSON text of a value that is `jsonable` already."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
