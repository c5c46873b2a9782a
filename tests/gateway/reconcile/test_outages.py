"""Connected sessions learn that a part of Redis does not answer, and that it answers again.

As in `test_held`, the node's client refuses every call about the lost part. Time is passed to `turn`.
"""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.reconcile import outages
from router.contract import codecs, keys
from tests import support
from tests.gateway.reconcile.test_held import two_gateways, two_groups
from tests.gateway.world import Client, World

STEP_S = outages.SILENT_S + 1


def entries(client: Client, conv: str) -> list[dict[str, Any]]:
    """The entries of the conversation since the welcome."""
    return [
        state
        for event in client.of("conversations")
        for state in event["conversations"]
        if state["conversation"] == conv
    ]


class Turns:
    """The turns of this part, in place of those of the node's clock, at times that the test gives."""

    def __init__(self, of: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._turn = of.node.outages.turn
        self._now = 1000.0
        monkeypatch.setattr(of.node.outages, "turn", lambda now: None)

    def after(self, seconds: float) -> None:
        self._now += seconds
        self._turn(self._now)


async def test_members_are_notified_once_and_again_when_the_part_answers(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_gateways(valkey) as (of, other):
        turns = Turns(of, monkeypatch)
        lost, kept = await two_groups(other)
        ann = await of.client("ann").connected()
        bob = await of.client("bob", codec=codecs.MSGPACK).connected()
        held = {"conversation": lost, "kind": "group", "title": "a title", "held": True}
        with of.lost(keys.conversation(lost)):
            turns.after(0)
            turns.after(outages.SILENT_S - 1)
            await of.settled()
            assert not ann.of("conversations")
            for _ in range(3):
                turns.after(STEP_S)
            for client in (ann, bob):
                await client.until(lambda client=client: entries(client, lost))  # type: ignore[misc]
            assert len(of.node.outages) == 1
            missed = await other.say("ann", lost, "meanwhile")
            live = await other.say("ann", kept, "live")
            await bob.event("message", seq=live.seq, conversation=kept)
        turns.after(1)
        for client in (ann, bob):
            await client.event("message", seq=missed.seq, conversation=lost)
            await client.until(lambda client=client: len(entries(client, lost)) == 2)  # type: ignore[misc]
            assert entries(client, lost) == [held, held | {"held": False}]
            assert not entries(client, kept)
        turns.after(1)
        assert len(of.node.outages) == 0


async def test_part_that_is_lost_again_before_it_is_compared_is_shown_as_held(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heads cannot be read, so it is not shown as answering."""
    async with two_gateways(valkey) as (of, other):
        turns = Turns(of, monkeypatch)
        lost, _ = await two_groups(other)
        bob = await of.client("bob").connected()
        with of.lost(keys.conversation(lost)):
            turns.after(0)
            turns.after(STEP_S)
            await bob.until(lambda: entries(bob, lost))
        with of.lost(keys.conversation(lost), deaf=False):
            turns.after(1)
            await of.settled()
            assert [entry["held"] for entry in entries(bob, lost)] == [True]
        with of.lost(keys.conversation(lost)):
            turns.after(1)
            turns.after(STEP_S)
        turns.after(1)
        await bob.until(lambda: entries(bob, lost)[-1]["held"] is False)
        shown = [entry["held"] for entry in entries(bob, lost)]
        assert (shown[0], shown[-1]) == (True, False)
        turns.after(1)
        assert len(of.node.outages) == 0


async def test_short_silence_is_not_shown(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a failover, however often there is one."""
    async with two_gateways(valkey) as (of, other):
        turns = Turns(of, monkeypatch)
        lost, _ = await two_groups(other)
        bob = await of.client("bob").connected()
        for _ in range(5):
            with of.lost(keys.conversation(lost)):
                turns.after(1)
                turns.after(outages.SILENT_S - 1)
            turns.after(1)
        await of.settled()
        assert not bob.of("conversations")


async def test_group_without_members_here_is_forgotten(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_gateways(valkey) as (of, other):
        turns = Turns(of, monkeypatch)
        lost, _ = await two_groups(other)
        bob = await of.client("bob").connected()
        with of.lost(keys.conversation(lost)):
            turns.after(0)
            turns.after(STEP_S)
            await bob.until(lambda: entries(bob, lost))
            bob.end()
            await support.eventually(lambda: lost not in of.node.subscriptions.hubs)
        turns.after(1)
        assert len(of.node.outages) == 0
