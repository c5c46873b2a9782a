"""Signals: hints between processes of this version and the next."""

from __future__ import annotations

from typing import get_args

import msgpack
import msgspec
import pytest

from router.contract import signals, stamp
from router.contract.packing import pack

GROUP = "g:0123456789012345678901"
ALL: list[signals.Signals] = [
    signals.Typing(GROUP, "ann"),
    signals.Receipt(GROUP, "ann", 7),
    signals.Moved(GROUP),
    signals.Taken("phone", "session", "instance"),
    signals.Kick(""),
    signals.State("draft/a", msgspec.Raw(pack({"text": "x"})), 8, 7),
    signals.Touched("ann"),
    signals.Hidden("ann"),
    signals.Profile("ann"),
    signals.Discreet(GROUP, "ann", 7),
]


def test_every_signal_is_decoded_as_it_was_encoded() -> None:
    assert {type(signal) for signal in ALL} == set(get_args(signals.Signals))
    assert [signals.decode(signals.encode(signal)) for signal in ALL] == ALL


def test_bytes_of_signals_never_change() -> None:
    """Golden: gateways of two versions, and the functions that publish signals, share the channels. `sync` replaces the
    second element of a Taken by another device's name."""
    assert [msgpack.unpackb(signals.encode(signal)) for signal in ALL] == [
        ["t", GROUP, "ann"],
        ["r", GROUP, "ann", 7],
        ["m", GROUP],
        ["x", "phone", "session", "instance"],
        ["k", ""],
        ["s", "draft/a", {"text": "x"}, 8, 7],
        ["p", "ann"],
        ["h", "ann"],
        ["f", "ann"],
        ["d", GROUP, "ann", 7],
    ]


def test_signal_differs_from_an_event_in_its_first_byte() -> None:
    """Both are published on the same channels."""
    event = stamp.fill(stamp.tail("title", GROUP, "ann", "phone", 1, {"title": pack("x")}), stamp.Slots(1, 0, 1, 1))
    assert stamp.is_event(event)
    assert not any(stamp.is_event(signals.encode(signal)) for signal in ALL)


@pytest.mark.parametrize("payload", [["z", 1], ["t"], ["t", 1, 2], [], "x", 7])
def test_signal_of_a_later_version_is_ignored(payload: object) -> None:
    """The rest of the batch must be delivered: during a rollout both versions publish on the same channels."""
    assert signals.decode(msgpack.packb(payload)) is None


def test_fields_of_a_later_version_are_ignored() -> None:
    assert signals.decode(msgpack.packb(["m", GROUP, "more"])) == signals.Moved(GROUP)
