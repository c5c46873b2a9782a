"""The bytes of one event, as log, bus and msgpack clients all carry them.

An event is a msgpack map that begins with four fixed-width slots, so that `append` can write seq, prev, count and at
without encoding msgpack, and every reader finds them at fixed offsets without decoding:

    8x  a3 seq cf <8>  a4 prev cf <8>  a5 count cf <8>  a2 at cf <8>  <tail: a4 type …>

The writer makes `tail` once; the event is not encoded again for the live path, the log or a replay (JSON text is made
once per node). A resend is compared by its `fingerprint`. It covers the client's own content and nothing that depends
on the codec, the gateway's version or the form of `to`: otherwise a rolling deploy would turn resends into conflicts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from struct import Struct as Packing
from typing import Any, Final, cast

import msgpack
import msgspec

from router.contract.errors import TooLarge
from router.contract.files import MAX_FILES
from router.contract.packing import MAX_BODY_BYTES, pack

_SLOTS: Final = Packing(">c5sQ6sQ7sQ4sQ")
_READ: Final = Packing(">6xQ6xQ7xQ4xQ")
_SEQ: Final = (b"\xa3seq\xcf", b"\xa4prev\xcf", b"\xa5count\xcf", b"\xa2at\xcf")
TAIL_AT: Final = _SLOTS.size
_MESSAGE: Final = b"\xa4type\xa7message"
_MEMBER: Final = b"\xa4type\xa6member"
_TITLE: Final = b"\xa4type\xa5title"
MAX_EVENT_BYTES: Final = MAX_BODY_BYTES + 2048 + MAX_FILES * 1024


class Slots(msgspec.Struct, frozen=True):
    seq: int
    prev: int
    count: int
    at: int


class Author(msgspec.Struct, frozen=True):
    """The fields of an event that say where it is and which users it concerns: `from`, and `user` of a member event."""

    type: str
    conversation: str
    from_: str = msgspec.field(name="from", default="")
    device: str = ""
    user: str = ""
    action: str = ""
    role: str | None = None
    target: int = 0
    server: bool = False

    @property
    def marks(self) -> bool:
        """Whether the event moves the author's read mark: a message of the user does, one of a backend does not."""
        return self.type == "message" and not self.server

    @property
    def deletes(self) -> int:
        """The seq of the message that this event deletes, else 0."""
        return self.target if self.type == "delete" else 0


author: Final = msgspec.msgpack.Decoder(Author).decode


class Tail(msgspec.Struct, frozen=True):
    """An event without its slots: `first` is the map's header byte, `rest` the bytes behind the slots."""

    first: bytes
    rest: bytes


def tail(kind: str, conversation: str, user: str, device: str, n: int, packed: dict[str, bytes]) -> Tail:
    """Make the event's bytes without the slots; `packed` contains its further fields, already in msgpack."""
    parts = [_head(kind, conversation, user, device), pack(n)]
    for name, value in packed.items():
        parts += (_name(name), value)
    rest = b"".join(parts)
    if len(rest) > MAX_EVENT_BYTES:
        raise TooLarge(f"an event must have at most {MAX_EVENT_BYTES} bytes")
    return Tail(bytes((0x80 | (9 + len(packed)),)), rest)


_name = lru_cache(maxsize=64)(pack)  # of the few fields that events have


@lru_cache(maxsize=1 << 14)
def _head(kind: str, conversation: str, user: str, device: str) -> bytes:
    """The bytes that all events of one device in one conversation begin with, up to the name of `n`."""
    named = {"type": kind, "conversation": conversation, "from": user, "device": device}
    return b"".join([pack(part) for pair in named.items() for part in pair]) + pack("n")


def fill(tail: Tail, slots: Slots) -> bytes:
    """The event's final bytes, the same as `append` wrote to the log."""
    a, b, c, d = _SEQ
    return _SLOTS.pack(tail.first, a, slots.seq, b, slots.prev, c, slots.count, d, slots.at) + tail.rest


# (seq, prev, count, at) of an event's bytes. It and `author` are called for every event, so they are no functions here.
slots: Final = cast("Callable[[bytes], tuple[int, int, int, int]]", _READ.unpack_from)


def is_event(payload: bytes) -> bool:
    """Whether a channel's payload is an event; any other payload is a signal (a msgpack array)."""
    return payload[0] & 0xF0 == 0x80


def is_message(event: bytes) -> bool:
    return event.startswith(_MESSAGE, TAIL_AT)


def is_member(event: bytes) -> bool:
    return event.startswith(_MEMBER, TAIL_AT)


def is_title(event: bytes) -> bool:
    return event.startswith(_TITLE, TAIL_AT)


def fingerprint(*content: bytes) -> bytes:
    """An eight-byte digest of a command's content; each part is msgpack, so the parts are self-delimiting."""
    return blake2b(b"".join(content), digest_size=8).digest()


def decode(event: bytes) -> dict[str, Any]:
    """The whole event as a map, for `history` answers and tests."""
    value: dict[str, Any] = msgpack.unpackb(event)
    return value
