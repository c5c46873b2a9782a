"""Signals: hints that processes publish on the same channels as events.

A signal may be lost: the change that it announces is also stored in Redis, and the next audit finds it. A signal is a
msgpack array and an event is a map, so a receiver distinguishes them by the first byte.
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
    """The user was added to or removed from a group or channel, or the row of it changed: read it with `sync`."""

    conversation: str


class Taken(Signal, frozen=True, tag="x"):
    """A device has registered a new session, so its older session ends (`instance` decides the close code)."""

    device: str
    session: str
    instance: str


class Kick(Signal, frozen=True, tag="k"):
    """Sessions of this device (of all, if it is empty) that started before now end: check with `sync`."""

    device: str


class State(Signal, frozen=True, tag="s"):
    """A key of the user's state has changed; `write_state` puts the numbers behind `state_signal`. `value` is msgpack;
    `prev` is the version of the user's state before this one."""

    key: str
    value: msgspec.Raw
    version: int
    prev: int


class Touched(Signal, frozen=True, tag="p"):
    """The user's presence may have changed: read it again."""

    user: str


class Hidden(Signal, frozen=True, tag="h"):
    """The users from whom this user is hidden, or the user's contacts, have changed: read them again."""

    user: str


class Profile(Signal, frozen=True, tag="f"):
    """The user's profile has changed."""

    user: str


class Discreet(Signal, frozen=True, tag="d"):
    """Typing (`read` 0) or a receipt of a user who is hidden from somebody: ask from whom before passing it on."""

    conversation: str
    user: str
    read: int


Signals = Typing | Receipt | Moved | Taken | Kick | State | Touched | Hidden | Profile | Discreet

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Signals).decode


def state_signal(key: str) -> bytes:
    """The beginning of the `State` signal of a key, up to its value."""
    return b"\x95\xa1s" + encode(key)


def decode(payload: bytes) -> Signals | None:
    """The signal; None if this version does not know it, because a newer one may publish on the same channels."""
    try:
        signal: Signals = _decode(payload)
    except msgspec.DecodeError:
        return None
    return signal
