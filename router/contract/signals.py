"""What processes tell each other on a channel beside events: hints, never truth.

A signal may be lost: whatever it announces also stands in Redis and is found by the next audit. It is a msgpack array
(an event is a map), so a receiver tells them apart by the first byte.
"""

from __future__ import annotations

from typing import Final

import msgspec

RECEIPT_MEMBERS: Final = 32  # a conversation with more has no receipts but for one's own devices


class Signal(msgspec.Struct, array_like=True, frozen=True, tag_field="t"):
    """Base of all signals."""


class Typing(Signal, frozen=True, tag="t"):
    conversation: str
    user: str


class Receipt(Signal, frozen=True, tag="r"):
    """`user` has read `conversation` up to `read`."""

    conversation: str
    user: str
    read: int


class Moved(Signal, frozen=True, tag="m"):
    """The user came into, or fell out of, a group or channel, or its row changed otherwise: look with `sync`."""

    conversation: str


class Taken(Signal, frozen=True, tag="x"):
    """A device has registered a new session; an older one of it ends (`instance` decides the close code)."""

    device: str
    session: str
    instance: str


class Kick(Signal, frozen=True, tag="k"):
    """Sessions of this device (all when empty) that started before now end: ask `sync`."""

    device: str


class Touched(Signal, frozen=True, tag="p"):
    """The user's presence may have changed: read it again."""

    user: str


Signals = Typing | Receipt | Moved | Taken | Kick | Touched

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Signals).decode


def decode(payload: bytes) -> Signals | None:
    """None for what this version does not know: while a new one is rolled out, both are on the same channels."""
    try:
        signal: Signals = _decode(payload)
    except msgspec.DecodeError:
        return None
    return signal
