"""A hub: one position for all live sessions, repairs from the log, the same bytes for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.delivery import hub as hub_module
from gateway.delivery.hub import Hub, HubPorts
from gateway.delivery.shared_frames import event_frames
from router.contract import stamp
from router.contract.packing import pack
from router.store.heads import Head

CONVERSATION = "g:0123456789012345678901"


class Connection:
    """A connection that records the bytes of a session."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.on_write: Callable[[], None] = lambda: None

    def write(self, frames: bytes) -> None:
        self.written.append(frames)
        self.on_write()


class Member:
    """The part of a session that a hub uses."""

    def __init__(self, user: str = "ann", variant: int = 0) -> None:
        self.user = user
        self.variant = variant
        self.connection = Connection()
        self.out: list[bytes] | None = None
        self.gaps: list[tuple[str, int, int, str]] = []

    def gap(self, conversation: str, first: int, last: int, reason: str) -> None:
        self.gaps.append((conversation, first, last, reason))

    def write(self, frames: bytes) -> None:
        self.connection.write(frames)


class Owner(HubPorts):
    """Ports that record the calls through them."""

    def __init__(self) -> None:
        super().__init__(self.next_turn_runs, lambda: 1000, None)
        self.repair, self.member_left = self.note_repair, self.note_left
        self.repairs: list[str] = []
        self.left: list[str] = []
        self.next_turn: list[Callable[[], None]] = []

    def note_repair(self, hub: Hub, cause: str) -> None:
        self.repairs.append(cause)

    def note_left(self, hub: Hub, user: str) -> None:
        self.left.append(user)

    def next_turn_runs(self, callback: Callable[[], None]) -> None:
        self.next_turn.append(callback)

    def turn(self) -> None:
        callbacks, self.next_turn = self.next_turn, []
        for callback in callbacks:
            callback()


def event(seq: int, prev: int, kind: str = "message", **fields: Any) -> bytes:
    packed = {name: pack(value) for name, value in (fields or {"media": "text", "body": seq}).items()}
    tail = stamp.tail(kind, CONVERSATION, "ann", "phone", seq, packed)
    return stamp.fill(tail, stamp.Slots(seq, prev, seq, 1000))


def confirmed_hub(owner: Owner, *members: Member, seq: int = 10, size: int = 100) -> Any:
    hub: Any = Hub(owner, CONVERSATION, b"channel")  # it gets members that only look like sessions
    hub.start_at(Head(seq, seq, 1000, 1, 0, 0, "g", "title", size))
    for member in members:
        hub.add_member(member)
        hub.go_live(member)
    return hub


def test_events_of_a_batch_are_one_write_with_the_same_bytes_for_all() -> None:
    """They are joined, and every session of a variant gets the same object."""
    members = Member(), Member("bob"), Member("cid", variant=1)
    hub = confirmed_hub(Owner(), *members)
    events = [event(11, 10), event(12, 11)]
    for each in events:
        hub.receive(each)
    assert [member.connection.written for member in members] == [[], [], []]
    hub.flush()
    first, second, json = (member.connection.written for member in members)
    assert first == [event_frames(events, 0)]
    assert first[0] is second[0]
    assert json == [event_frames(events, 1)]


def test_repeated_event_is_dropped() -> None:
    member = Member()
    hub = confirmed_hub(Owner(), member)
    hub.receive(event(10, 9))
    hub.flush()
    assert member.connection.written == []


def test_event_with_an_unknown_prev_starts_a_repair_and_writes_nothing() -> None:
    """No event is held, because the log has it; further live events only raise the seq to read up to."""
    owner, member = Owner(), Member()
    hub = confirmed_hub(owner, member)
    hub.receive(event(12, 11))
    hub.repairing = True
    hub.receive(event(13, 12))
    hub.flush()
    assert (owner.repairs, hub.seq, hub.seen, member.connection.written) == (["hole"], 10, 13, [])


def test_rolled_back_log_is_announced_as_a_gap() -> None:
    """After a failover an event follows an older one than the last seen: the events between no longer exist."""
    member = Member()
    hub = confirmed_hub(Owner(), member)
    hub.receive(event(5000, 8))
    hub.flush()
    assert member.gaps == [(CONVERSATION, 9, 10, "failover")]
    assert (hub.seq, len(member.connection.written)) == (5000, 1)


def test_events_before_the_head_is_known_are_repaired() -> None:
    owner = Owner()
    hub = Hub(owner, CONVERSATION, b"channel")
    hub.receive(event(12, 11))
    hub.start_at(Head(10, 10, 1000, 1, 0, 0, "g", "title"))
    assert owner.repairs == ["subscribe"]


def test_session_that_leaves_during_a_write_has_received_the_batch() -> None:
    """A write can fill the transport; the session then leaves at the end of the batch, and the others receive it
    too."""
    slow, other = Member(), Member("bob")
    hub: Any = confirmed_hub(Owner(), slow, other)
    stood_at: list[int] = []
    slow.connection.on_write = lambda: stood_at.append(hub.stop_live(slow))
    hub.receive(event(11, 10))
    hub.flush()
    hub.receive(event(12, 11))
    hub.flush()
    assert (stood_at, len(slow.connection.written), len(other.connection.written)) == ([11], 1, 2)


def test_pending_events_are_not_counted_as_written() -> None:
    """A session that leaves between a batch and its flush is at the position before the batch."""
    member = Member()
    hub: Any = confirmed_hub(Owner(), member)
    hub.receive(event(11, 10))
    assert hub.stop_live(member) == 10


def test_large_fan_out_yields_and_a_session_that_leaves_is_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part in each turn of the loop; the next batch waits for the end of the one under way."""
    monkeypatch.setattr(hub_module, "CHUNK", 2)
    owner, members = Owner(), [Member(f"user{i}") for i in range(5)]
    hub: Any = confirmed_hub(owner, *members)
    hub.receive(event(11, 10))
    hub.flush()
    assert [len(member.connection.written) for member in members] == [1, 1, 0, 0, 0]
    assert hub.stop_live(members[4]) == 10
    hub.receive(event(12, 11))
    hub.flush()
    while owner.next_turn:
        owner.turn()
    assert [len(member.connection.written) for member in members] == [2, 2, 2, 2, 0]


@pytest.mark.parametrize("what", ["failover", "expired"])
def test_gap_does_not_overtake_a_large_fan_out(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A session that gets a gap has received the events before it, and leaves at the end of the gap."""
    monkeypatch.setattr(hub_module, "CHUNK", 2)
    owner, members = Owner(), [Member(f"user{i}") for i in range(5)]
    hub: Any = confirmed_hub(owner, *members)
    for seq in (11, 12):
        hub.receive(event(seq, seq - 1))
        hub.flush()
    when_told: set[int] = set()
    for member in members:
        member.connection.on_write = lambda member=member: when_told.add(len(member.gaps))  # type: ignore[misc]
    if what == "failover":
        hub.void(10)
    else:
        hub.expired(20)
        assert hub.stop_live(members[4]) == 20
    gap = (11, 12) if what == "failover" else (13, 20)
    assert [member.gaps for member in members] == [[(CONVERSATION, *gap, what)]] * 5
    while owner.next_turn:
        owner.turn()
    assert (when_told, [len(member.connection.written) for member in members]) == ({0}, [2] * 5)


def test_event_is_joined_with_the_frames_of_the_turn() -> None:
    """Usually these are the sender's ack, and the join saves one write to the socket."""
    ann, bob = Member("ann"), Member("bob")
    hub = confirmed_hub(Owner(), ann, bob)
    ann.out = [b"ack"]
    hub.receive(event(11, 10))
    hub.flush()
    frames = event_frames([event(11, 10)], 0)
    assert (ann.out, ann.connection.written, bob.connection.written) == ([b"ack", frames], [], [frames])


def test_removed_member_receives_the_removal_and_nothing_after() -> None:
    """The removal is flushed before the member's sessions leave."""
    owner, member = Owner(), Member("bob")
    hub: Any = confirmed_hub(owner, member)

    def leave(_: Hub, user: str) -> None:
        owner.left.append(user)
        hub.remove_member(member)

    owner.member_left = leave  # this node acts at once
    hub.receive(event(11, 10, "member", user="bob", action="remove", role=None))
    hub.receive(event(12, 11))
    hub.flush()
    assert owner.left == ["bob"]
    assert member.connection.written == [
        event_frames([event(11, 10, "member", user="bob", action="remove", role=None)], 0)
    ]


def test_whisper_goes_to_all_other_users() -> None:
    ann, bob = Member("ann"), Member("bob")
    hub = confirmed_hub(Owner(), ann, bob)
    hub.whisper([b"msgpack", b"json", b"", b""], "ann")
    assert (ann.connection.written, bob.connection.written) == ([], [b"msgpack"])
