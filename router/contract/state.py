"""The keys of a user's state, which clients and the API name, and which of them only the server writes."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

from router.contract.errors import BadCommand, ReadOnly, TooLarge
from router.contract.packing import canonical, pack, unpack

MAX_KEY: Final = 128
MAX_VALUE_BYTES: Final = 4096
CONTACT: Final = "contact/"
BLOCK: Final = "block/"
ME: Final = "me"
NOTIFY: Final = "notify/"

NULL: Final = b"\xc0"  # msgpack

_CHARACTERS: Final = "[A-Za-z0-9._:@/-]"
# No segment is empty, `.` or `..`. In Python `$` alone accepts a newline at the end, so the lookahead refuses it.
KEY_PATTERN: Final = rf"^(?!(?:.*/)?\.{{0,2}}(?:/|$)){_CHARACTERS}{{1,{MAX_KEY}}}$(?!\n)"
StateKey = Annotated[str, Meta(pattern=KEY_PATTERN, description="1-128 of A-Z a-z 0-9 . _ : @ / -, in segments")]
StatePrefix = Annotated[str, Meta(pattern=rf"^{_CHARACTERS}{{0,{MAX_KEY}}}$(?!\n)")]

_key = re.compile(KEY_PATTERN)


def check_key(key: str) -> str:
    """The key; `BadCommand` if it is none."""
    if _key.match(key) is None:
        raise BadCommand(f"a key must have 1-{MAX_KEY} of A-Z a-z 0-9 . _ : @ / -, and no empty segment, . or ..")
    return key


def require_writable(key: str) -> None:
    """Raise `ReadOnly` if only the server writes the key."""
    if key == ME or key.startswith((CONTACT, BLOCK)):
        raise ReadOnly(f"only the server writes {ME}, {CONTACT}… and {BLOCK}…")


def is_silent(packed: bytes | None, now_ms: int) -> bool:
    """Whether the value of a key `notify/<conversation>` silences its pushes now. Clients may write anything there."""
    value = None if packed is None else unpack(packed)
    if not isinstance(value, dict) or value.get("push") != "none":
        return False
    until = value.get("until")
    return until is None or (isinstance(until, int | float) and until > now_ms)


def pack_value(value: object) -> bytes | None:
    """msgpack of a decoded value, None for null; `BadCommand` if it is not canonical, `TooLarge` beyond the limit."""
    if value is None:
        return None
    packed = pack(canonical(value))
    if len(packed) > MAX_VALUE_BYTES:
        raise TooLarge(f"a value must have at most {MAX_VALUE_BYTES} bytes")
    return packed
