"""One user's channel: direct events and signals reach every session of the user, even if one of them raises."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.delivery.user_hub import UserHub
from router.contract import signals, stamp
from router.contract.packing import pack


class Recorder:
    """The part of a session that its user's hub calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def direct_event(self, conversation: str, seq: int, prev: int, event: bytes) -> None:
        self.calls.append(("event", conversation, seq, prev))

    def author_has_read(self, about: stamp.Author, seq: int, prev: int) -> None:
        self.calls.append(("read", about.from_, seq, prev))

    def signal(self, signal: signals.Signals) -> None:
        self.calls.append(("signal", signal))


class Broken(Recorder):
    """A session that raises on every event."""

    def direct_event(self, conversation: str, seq: int, prev: int, event: bytes) -> None:
        raise RuntimeError("broken")


def hub_of(*sessions: Any) -> UserHub:
    hub = UserHub("bob", b"a channel")
    hub.sessions += sessions
    return hub


def event(kind: str = "message") -> bytes:
    fields = {"media": pack("text"), "body": pack("hi")} if kind == "message" else {"target": pack(1)}
    return stamp.fill(stamp.tail(kind, "d:ann:bob", "ann", "phone", 1, fields), stamp.Slots(7, 5, 3, 1000))


@pytest.mark.parametrize(("kind", "marks"), [("message", True), ("delete", False)])
def test_direct_event_reaches_every_session(kind: str, marks: bool) -> None:
    """A message is followed by its author's read mark; other events have none."""
    phone, laptop = Recorder(), Recorder()
    hub_of(phone, laptop).receive(event(kind))
    expected: list[tuple[object, ...]] = [("event", "d:ann:bob", 7, 5)]
    assert phone.calls == laptop.calls == expected + [("read", "ann", 7, 5)] * marks


def test_session_that_raises_costs_no_other_session_a_direct_event() -> None:
    phone = Recorder()
    hub_of(Broken(), phone).receive(event())
    assert [name for name, *_ in phone.calls] == ["event", "read"]


def test_signal_reaches_every_session() -> None:
    phone, laptop = Recorder(), Recorder()
    hub_of(phone, laptop).receive(signals.encode(signals.Moved("g:a")))
    assert phone.calls == laptop.calls == [("signal", signals.Moved("g:a"))]


def test_signal_of_an_unknown_kind_is_ignored() -> None:
    """A newer node may send it during a rolling upgrade."""
    phone = Recorder()
    hub_of(phone).receive(signals.encode(signals.Moved("g:a")).replace(b"\xa1m", b"\xa1?"))
    assert phone.calls == []
