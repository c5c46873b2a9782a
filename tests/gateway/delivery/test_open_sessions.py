"""The node's sessions: one write per turn of the loop, and nothing left of a session after its end."""

from __future__ import annotations

import asyncio

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery.open_sessions import KNOWN_CODES
from router.contract import errors, metrics
from tests.gateway.world import world


def closes(code: str) -> float:
    return float(metrics.CLOSES.labels(code)._value.get())


async def test_sessions_with_frames_are_flushed_at_the_end_of_the_turn(valkey: EmbeddedValkey) -> None:
    """Once each; frames that are written during the flush leave with the next turn."""
    async with world(valkey) as of:
        clients = [await of.client(user).connected() for user in ("ann", "bob")]
        before = [len(client.connection.written) for client in clients]
        for i in range(3):
            for client in clients:
                client.say("ping", id=i)
        await asyncio.sleep(0)
        assert [len(client.connection.written) for client in clients] == [count + 1 for count in before]


async def test_end_of_a_session_leaves_nothing_and_counts_once(valkey: EmbeddedValkey) -> None:
    """In every state, and however often it is reported."""
    async with world(valkey) as of:
        await of.group("ann", "bob")
        gauges = [metric._value.get() for metric in (metrics.SESSIONS_LIVE, metrics.SESSIONS_BEHIND)]
        ready, behind, fresh = await of.client("ann").connected(), await of.client("bob").connected(), of.client("cid")
        behind.connection.paused = True
        behind.session.writing_paused()
        assert (metrics.CONNECTIONS._value.get(), len(of.node.sessions)) == (3, 3)
        counted = closes("1006")
        for client in (ready, behind, fresh):
            client.end()
            client.end()
            client.session.close(1000)
        assert closes("1006") == counted + 3
        assert [metric._value.get() for metric in (metrics.SESSIONS_LIVE, metrics.SESSIONS_BEHIND)] == gauges
        assert metrics.CONNECTIONS._value.get() == 0
        assert (of.node.sessions.all, of.node.subscriptions.hubs, of.node.subscriptions.users) == ({}, {}, {})


async def test_marks_of_a_session_are_written_at_its_end(valkey: EmbeddedValkey) -> None:
    """Cursors and read marks of the last second, and after the grace that its device is away."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        said = await of.say("ann", direct)
        await bob.event("message")
        bob.say("ack", conversation=direct, seq=said.seq)
        bob.end()
        assert len(of.node.departures) == 1
        await of.settled()
        again = await of.client("bob").connected()
        assert again.bodies(direct) == []


@pytest.mark.parametrize("code", [1000, 1006, 4409, 4503])
async def test_close_codes_are_counted_by_their_number(valkey: EmbeddedValkey, code: int) -> None:
    async with world(valkey) as of:
        counted = closes(str(code))
        of.client("bob").session.connection_closed(code, "")
        assert closes(str(code)) == counted + 1


async def test_close_code_invented_by_a_client_is_counted_as_other(valkey: EmbeddedValkey) -> None:
    """A client chooses its close code, but not the values of a label."""
    async with world(valkey) as of:
        counted = closes("other")
        for code in (3000, 4999, 1004, 1100):
            of.client("bob").session.connection_closed(code, "")
        assert closes("other") == counted + 4
    published = {value for name, value in vars(errors).items() if name.startswith("CLOSE_") and name != "CLOSE_OF"}
    assert published <= KNOWN_CODES
