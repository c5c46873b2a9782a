"""The rate of one connection: bursts pass, then commands are refused, then the connection is closed."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import dispatch as commands
from gateway.commands.dispatch import HEAVY
from router.contract import keys, wire
from tests.gateway.world import world


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For rates so low that nothing is due again within a test: nobody is cut off for what he will owe for long."""
    monkeypatch.setattr(commands, "FLOOD_S", 10_000.0)


def test_what_costs_redis_more_costs_a_client_more() -> None:
    assert set(HEAVY) == {wire.Send, wire.Edit, wire.Delete, wire.React, wire.History, wire.Presence}


@pytest.mark.usefixtures("patient")
async def test_a_burst_is_let_through_and_then_refused_for_a_while(valkey: EmbeddedValkey) -> None:
    """`send_burst` sends at once; whoever is refused is told when to come again, and others are not held up."""
    async with world(valkey, sends_per_s=0.05, send_burst=4) as of:
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for i in range(8):
            ann.say("history", id=i, conversation=keys.direct("ann", "bob"))
        codes = [event["code"] for event in (await ann.until(lambda: len(ann.of("error")) == 8 and ann.of("error")))]
        assert sorted(codes) == ["not_found"] * 3 + ["rate_limited"] * 5  # the hello was one
        assert all(0 < event["retry_after"] <= 90 for event in ann.of("error", code="rate_limited"))
        assert ann.connection.closed is None
        await bob.ask("ping", "pong")


@pytest.mark.usefixtures("patient")
async def test_light_commands_cost_a_quarter(valkey: EmbeddedValkey) -> None:
    async with world(valkey, sends_per_s=0.01, send_burst=4) as of:
        ann = await of.client("ann").connected()
        for i in range(20):
            ann.say("ping", id=i)
        await ann.until(lambda: len(ann.of("pong")) + len(ann.of("error")) == 20)
        assert len(ann.of("pong")) == 15


async def test_a_flood_that_goes_on_while_it_is_refused_is_cut_off(valkey: EmbeddedValkey) -> None:
    """4008 with the seconds to stay away; commands that do not even parse count like any other."""
    async with world(valkey, sends_per_s=1, send_burst=2) as of:
        for data in (b'{"type":"history","conversation":"x"}', b"nonsense"):
            ann = await of.client("ann").connected()
            for _ in range(30):
                ann.session.message_received(data, True)
            assert ann.connection.closed == (4008, "retry_after=10")
