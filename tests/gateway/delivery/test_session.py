"""A session's own decisions: the messages it handles in each state, its positions, and the order of its writes."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery import session as session_module
from gateway.delivery.feed import State
from router.contract import codecs, keys, stamp
from router.contract.packing import pack
from router.contract.signals import Kick, Moved, Receipt, Taken, Touched, Typing
from tests.gateway.world import Client, token, world

DIRECT = keys.direct("ann", "bob")


def event(seq: int, prev: int) -> bytes:
    tail = stamp.tail("message", DIRECT, "ann", "phone", seq, {"media": pack("text"), "body": pack(seq)})
    return stamp.fill(tail, stamp.Slots(seq, prev, seq, 1000))


def live(client: Client, seq: int, prev: int) -> None:
    client.session.direct_event(DIRECT, seq, prev, event(seq, prev))


async def test_frames_of_one_turn_are_one_write(valkey: EmbeddedValkey) -> None:
    """Answers and direct events of one turn of the event loop are joined, in their order."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        before = len(bob.connection.written)
        bob.say("ping", id=1)
        live(bob, 7, 0)
        bob.say("ping", id=2)
        assert len(bob.connection.written) == before
        await bob.event("pong", id=2)
        assert len(bob.connection.written) == before + 1
        assert [event["type"] for event in bob.events[-3:]] == ["pong", "message", "pong"]


async def test_commands_during_connect_wait_for_the_welcome(valkey: EmbeddedValkey) -> None:
    """They are answered after it, in order, each once."""
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        assert (bob.session.state, bob.connection.reading) == (State.CONNECTING, False)
        for i in range(3):
            bob.say("ping", id=i)
        await bob.event("pong", id=2)
        assert [(event["type"], event.get("id")) for event in bob.events] == [
            ("welcome", None), ("pong", 0), ("pong", 1), ("pong", 2),
        ]  # fmt: skip
        assert (bob.connection.reading, bob.session.early) == (True, None)


async def test_frames_of_the_wrong_type_end_the_connection(valkey: EmbeddedValkey) -> None:
    """Binary frames in JSON and text in msgpack: 1003, also if the frame came during the connect."""
    async with world(valkey) as of:
        for codec in codecs.CODECS.values():
            bob = of.client("bob", codec=codec)
            bob.session.message_received(b"{}", not codec.text)
            expected = "text" if codec.text else "binary"
            told = f"wrong frame type: {codec.subprotocol} expects {expected} frames"
            assert bob.connection.closed == (1003, told)
        early = of.client("bob")
        early.say("hello", token=token(of.node, "bob"))
        early.session.message_received(b"\x80", False)
        early.say("ping")
        assert (await early.closed())[0] == 1003
        assert early.of("pong") == []


async def test_closed_session_writes_its_last_frames_and_nothing_after(valkey: EmbeddedValkey) -> None:
    """The close flushes; afterwards the session neither writes nor handles messages."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.say("ping", id=1)
        bob.session.close(1000, "enough")
        assert [event["id"] for event in bob.of("pong")] == [1]
        bob.say("ping", id=2)
        bob.session.close(1001)
        live(bob, 7, 0)
        await of.settled()
        assert (len(bob.of("pong")), bob.connection.closed, bob.session.state) == (1, (1000, "enough"), State.CLOSED)
        assert bob.session not in of.node.sessions.all


async def test_session_closes_within_the_write_that_fills_the_transport(valkey: EmbeddedValkey) -> None:
    """The last flush may call `writing_paused` on the session that is ending."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.connection.room = 1
        bob.say("ping")
        bob.session.close(1000)
        assert (bob.session.state, bob.session.backlog) == (State.CLOSED, None)


# -- direct conversations


async def test_first_event_of_a_direct_conversation_needs_no_log(valkey: EmbeddedValkey) -> None:
    """Its `prev` is 0, so there is nothing before it. Repeats are dropped."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        for seq, prev in ((5, 0), (6, 5), (6, 5), (5, 0), (9, 6)):
            live(bob, seq, prev)
        await bob.event("message", seq=9)
        assert bob.seqs(DIRECT) == [5, 6, 9]
        assert of.calls("range") == 0


async def test_live_event_that_follows_an_older_one_announces_a_gap(valkey: EmbeddedValkey) -> None:
    """After a failover: the gap first, then the event that replaced the lost ones."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        live(bob, 5, 0)
        live(bob, 6, 5)
        live(bob, 1000, 5)
        await bob.event("message", seq=1000)
        assert [(event["type"], event.get("from")) for event in bob.events[-2:]] == [("gap", 6), ("message", "ann")]
        assert bob.of("gap") == [{"type": "gap", "conversation": DIRECT, "from": 6, "to": 6, "reason": "failover"}]


async def test_positions_of_direct_conversations_are_bounded(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is dropped; if the conversation moves, it is read from the log again."""
    monkeypatch.setattr(session_module, "MAX_DIRECT", 3)
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        for i in range(5):
            bob.session.note_received(f"d:bob:user{i}", i)
        bob.session.note_received("d:bob:user2", 9)
        assert bob.session.direct == {"d:bob:user2": 9, "d:bob:user3": 3, "d:bob:user4": 4}


async def test_newest_positions_are_kept_beyond_the_bound(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest conversations are the most likely to move."""
    monkeypatch.setattr(session_module, "MAX_DIRECT", 2)
    async with world(valkey) as of:
        directs = [await of.direct("bob", f"user{i}") for i in range(4)]
        for i in (2, 0, 3, 1):
            await of.say(f"user{i}", directs[i])
        bob = await of.client("bob").connected()
        assert set(bob.session.direct) == {directs[1], directs[3]}


async def test_received_position_follows_hubs_while_live_and_the_backlog_while_behind(valkey: EmbeddedValkey) -> None:
    """It is 0 for a conversation that is not the user's."""
    async with world(valkey) as of:
        group, other = await of.group("ann", "bob"), await of.group("ann", "cid")
        bob = await of.client("bob").connected()
        await of.client("cid").connected()
        said = await of.say("ann", group)
        await of.say("ann", other)
        await bob.event("message")
        assert [bob.session.received_upto(conv) for conv in (group, other, DIRECT, "nonsense")] == [said.seq, 0, 0, 0]
        bob.connection.paused = True
        bob.session.writing_paused()
        await of.say("ann", group)
        await of.settled()
        assert bob.session.received_upto(group) == said.seq


# -- signals


async def test_typing_and_receipts_are_passed_on(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        bob.session.signal(Typing(DIRECT, "ann"))
        bob.session.signal(Receipt(DIRECT, "ann", 7))
        await bob.event("typing", conversation=DIRECT, **{"from": "ann"})
        await bob.event("receipt", conversation=DIRECT, user="ann", read=7)


@pytest.mark.parametrize(
    ("signal", "asks"),
    [
        (Taken("phone", "another", ""), True),
        (Taken("laptop", "another", ""), False),
        (Kick(""), True),
        (Kick("phone"), True),
        (Kick("laptop"), False),
        (Moved(DIRECT), True),
        (Touched("bob"), False),
    ],
)
async def test_hint_leads_to_a_question_to_redis(valkey: EmbeddedValkey, signal: Any, asks: bool) -> None:
    """Redis decides whether the session was replaced or kicked; a valid session goes on."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        asked = of.calls("sync")
        bob.session.signal(signal)
        await of.settled()
        assert of.calls("sync") == asked + asks
        assert bob.session.state is State.READY


async def test_own_registration_does_not_end_the_session(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        asked = of.calls("sync")
        bob.session.signal(Taken("phone", bob.session.id, ""))
        assert of.calls("sync") == asked


async def test_session_that_is_not_ready_ignores_signals(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.session.signal(Typing(DIRECT, "ann"))
        await of.settled()
        assert bob.events == []
