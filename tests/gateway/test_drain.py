"""Draining: told, spread, finished, and in no time when hurried."""

from __future__ import annotations

import asyncio
import re

import pytest

from deploy.embedded import EmbeddedValkey
from gateway import drain
from gateway.delivery.feed import State
from gateway.delivery.session import RETURN_S
from router.contract import errors, metrics
from tests import support
from tests.gateway.world import token, world


async def test_every_client_gets_a_retry_time_and_is_closed(valkey: EmbeddedValkey) -> None:
    """`drain` first, then 1012 with the same seconds; the wait differs from client to client."""
    async with world(valkey, drain_accept_s=0.0, drain_window_s=0.0) as of:
        clients = [await of.client(f"user{i}").connected() for i in range(10)]
        greeting = of.client("late")
        stopped: list[bool] = []
        await of.node.drain.run(lambda: stopped.append(of.node.drain.draining))
        waits = set()
        for client in clients:
            (told,) = client.of("drain")
            assert client.events[-1] == told
            assert client.connection.closed == (1012, errors.retry_reason(told["retry_after"]))
            assert 0.05 <= told["retry_after"] <= RETURN_S
            waits.add(told["retry_after"])
        assert len(waits) > 5
        assert greeting.events == []
        assert greeting.connection.closed is not None
        assert re.fullmatch(r"retry_after=0\.\d+|retry_after=1", greeting.connection.closed[1])
        assert (stopped, of.node.sessions.all) == ([True], {})


async def test_gateway_accepts_for_a_while_and_then_stops(valkey: EmbeddedValkey) -> None:
    """Load balancers need that time; a client that still connects is served, and closed with the others."""
    async with world(valkey, drain_accept_s=30.0, drain_window_s=0.0) as of:
        stopped: list[bool] = []
        draining = asyncio.ensure_future(of.node.drain.run(lambda: stopped.append(True)))
        await support.eventually(lambda: of.node.drain.draining)
        late = await of.client("late").connected()
        assert (stopped, late.session.state, metrics.DRAINING._value.get()) == ([], State.READY, 1)
        of.node.drain.hurry()
        await draining
        assert (stopped, len(late.of("drain"))) == ([True], 1)


async def test_closes_are_spread_over_the_window(valkey: EmbeddedValkey) -> None:
    """Some at once, the others later, so that the other gateways get no storm of connects."""
    async with world(valkey, drain_accept_s=0.0, drain_window_s=30.0) as of:
        clients = [await of.client(f"user{i}").connected() for i in range(40)]
        draining = asyncio.ensure_future(of.node.drain.run(lambda: None))
        await support.eventually(lambda: len(of.node.sessions) < 40)
        assert len(of.node.sessions) > 30
        clients[7].end()
        of.node.drain.hurry()
        await draining
        assert of.node.sessions.all == {}
        assert all(len(client.of("drain")) == 1 for client in clients if client.connection.closed)


async def test_commands_under_way_are_finished(valkey: EmbeddedValkey) -> None:
    """The event is in the log before the process ends, although the sender can no longer receive the ack."""
    async with world(valkey, drain_accept_s=0.0, drain_window_s=0.0) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        with valkey.client() as redis:
            redis.client_pause(20_000, all=False)  # so that the drain overtakes the commands on every machine
            ann.say("send", to=group, n=1, body="last")
            ann.say("send", to="@bob", n=2, body="last")
            draining = asyncio.ensure_future(of.node.drain.run(lambda: None))
            await support.eventually(lambda: not of.node.sessions.all)
            redis.client_unpause()
        await draining
        assert (of.node.sends.in_flight, of.redis.busy) == (0, False)
        bob = await of.client("bob").connected()
        assert sorted(event["n"] for event in bob.of("message")) == [1, 2]
        assert ann.of("ack") == []
        again = await of.client("ann").connected()
        assert (await again.ask("send", "ack", to=group, n=1, body="last"))["duplicate"]


async def test_drain_waits_for_commands_under_way(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as a working Redis may take."""
    monkeypatch.setattr(drain, "FINISH_S", 60.0)
    async with world(valkey, drain_accept_s=0.0, drain_window_s=0.0) as of:
        of.node.sends.in_flight += 1
        draining = asyncio.ensure_future(of.node.drain.run(lambda: None))
        await support.eventually(lambda: of.node.drain.draining)
        for _ in range(3):
            await of.settled()
        assert not draining.done()
        of.node.sends.in_flight -= 1
        await draining


async def test_connection_of_the_maximum_age_is_drained_the_same_way(valkey: EmbeddedValkey) -> None:
    """For a client a drain is normal rotation. A session that is not ready gets no `drain` event."""
    async with world(valkey) as of:
        old = await of.client("old").connected()
        old.session.rotate(errors.CLOSE_MAX_AGE)
        assert (old.events[-1]["type"], (await old.closed())[0]) == ("drain", 4003)
        connecting = of.client("new")
        connecting.say("hello", token=token(of.node, "new"))
        connecting.session.rotate(errors.CLOSE_MAX_AGE)
        assert (connecting.events, (await connecting.closed())[0]) == ([], 4003)


async def test_session_that_raises_does_not_end_a_drain(valkey: EmbeddedValkey) -> None:
    """The other sessions are notified and closed, and the drain ends."""
    async with world(valkey, drain_accept_s=0.0, drain_window_s=0.0) as of:
        clients = [await of.client(f"user{i}").connected() for i in range(5)]

        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        clients[2].connection.write = broken  # type: ignore[method-assign,assignment]
        await of.node.drain.run(lambda: None)
        assert [len(client.of("drain")) for client in clients] == [1, 1, 0, 1, 1]
        clients[2].end()
