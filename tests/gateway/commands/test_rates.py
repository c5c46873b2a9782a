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
    """Close no flood, for tests with rates so low that no command becomes due again within the test."""
    monkeypatch.setattr(commands, "FLOOD_S", 10_000.0)


def test_heavy_commands_are_those_that_cost_redis_most() -> None:
    assert set(HEAVY) == {wire.Send, wire.Edit, wire.Delete, wire.React, wire.History, wire.Presence, wire.State}


@pytest.mark.usefixtures("patient")
async def test_burst_passes_and_further_commands_are_refused(valkey: EmbeddedValkey) -> None:
    """`send_burst` sends pass at once; a refusal contains the time to retry, and other sessions are not delayed."""
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


async def test_flood_that_continues_after_refusals_is_closed(valkey: EmbeddedValkey) -> None:
    """4008 with the seconds to wait; commands that cannot be decoded count, too."""
    async with world(valkey, sends_per_s=1, send_burst=2) as of:
        for data in (b'{"type":"history","conversation":"x"}', b"nonsense"):
            ann = await of.client("ann").connected()
            for _ in range(30):
                ann.session.message_received(data, True)
            assert ann.connection.closed == (4008, "retry_after=10")
