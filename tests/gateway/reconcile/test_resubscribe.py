"""After a lost subscription, hubs and sessions are compared with Redis until it answers."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.reconcile import sync
from router.contract import keys
from router.contract.errors import Unavailable
from tests import support
from tests.gateway.world import world


async def test_lost_events_are_asked_for_until_redis_answers(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection for commands may return after the bus, which may be lost again meanwhile: one question waits."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", direct, "lost")
            await of.settled()
        asked: list[Any] = []
        waiting: list[Any] = []

        def refuse(_: Any, reply: Any) -> None:
            asked.append(reply)
            of.node.loop.call_soon(reply, Unavailable())

        with monkeypatch.context() as patch:
            patch.setattr(of.node.users, "sync", refuse)
            patch.setattr(of.node.syncs, "_later", lambda _, *call: waiting.append(call))
            for questions in range(1, 4):
                for _ in range(3):
                    of.node.resubscribe.restored()
                    await of.settled()
                ((again, *args),) = waiting
                waiting.clear()
                assert len(asked) == questions
                again(*args)
                await of.settled()
        assert bob.of("message") == []
        ((again, *args),) = waiting
        again(*args)
        await bob.event("message", body="lost")


async def test_lost_events_are_asked_for_although_an_audit_was_under_way(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit's answer would be too old, and it fails."""
    monkeypatch.setattr(sync, "ASK_AGAIN_S", 0.0)
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        replies: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(of.node.users, "sync", lambda _, reply: replies.append(reply))
            of.node.syncs.ask(bob.session, "audit")
            with of.deaf():
                await of.say("ann", direct, "lost")
                await of.settled()
            of.node.resubscribe.restored()
            await of.settled()
        (reply,) = replies
        reply(Unavailable())
        await bob.event("message", body="lost")


async def test_events_during_a_bus_outage_are_found(valkey: EmbeddedValkey) -> None:
    """In groups by their heads, in direct conversations and memberships by `sync`; sessions stay open."""
    async with world(valkey) as of:
        group, direct, joined = await of.group("ann", "bob"), await of.direct("ann", "bob"), await of.group("ann")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "in the group")
            await of.say("ann", direct, "direct")
            await of.put(joined, "bob")
            await of.say("ann", joined, "in the new group")
            await of.settled()
        of.node.resubscribe.lost()
        of.bus.drop("a test")
        await support.eventually(lambda: of.bus.statistics().reconnects == 1 and of.bus.restored)
        await bob.until(lambda: len(bob.of("message")) == 4)
        assert (bob.bodies(group), bob.bodies(direct), bob.bodies(joined)) == (
            ["in the group"], ["before", "direct"], ["in the new group"],
        )  # fmt: skip
        await of.say("ann", group, "live again")
        await bob.event("message", body="live again")
        assert bob.connection.closed is None


async def test_lost_channel_is_compared_alone(valkey: EmbeddedValkey) -> None:
    """Its slot moved: only the events of this channel can be missing."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "in the group")
            await of.say("ann", direct, "direct")
            await of.settled()
        of.node.resubscribe.channels_restored([keys.Channels().conversation(group).encode()])
        await bob.event("message", body="in the group")
        assert bob.bodies(direct) == ["before"]
        of.node.resubscribe.channels_restored([keys.Channels().user("bob").encode()])
        await bob.event("message", body="direct")
        of.node.resubscribe.channels_restored([b"a channel that nobody has any more"])


async def test_hub_whose_conversation_was_deleted_during_a_bus_outage_is_dropped(valkey: EmbeddedValkey) -> None:
    """A session that waits for it is answered."""
    async with world(valkey) as of:
        told: list[bool] = []
        await of.cut_off()
        of.node.subscriptions.hub("g:0123456789012345678901", told.append)
        await support.eventually(lambda: told)
        assert told == [False]
        assert of.node.subscriptions.hubs == {}
