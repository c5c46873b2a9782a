"""Audits: events that the bus lost are found by comparing sessions and hubs with Redis."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.delivery.feed import Asking
from gateway.node import now_ms
from gateway.reconcile import audits, sync
from router.contract import metrics
from router.store.redis.client import Client
from tests.gateway.world import world


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every recheck immediate."""
    monkeypatch.setattr(audits, "RECHECK_S", 0.0)
    monkeypatch.setattr(sync, "RECHECK_S", 0.0)


def repairs(cause: str) -> float:
    return float(metrics.REPAIRS.labels(cause)._value.get())


async def test_audit_finds_events_that_the_bus_lost(valkey: EmbeddedValkey) -> None:
    """In groups and direct conversations, without a later event that would show the gap; the repairs count as
    audits."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        counted = repairs("audit")
        with of.deaf():
            await of.say("ann", group, "in the group")
            await of.say("ann", direct, "direct")
            await of.settled()
        of.node.audits.hubs()
        await bob.event("message", body="in the group")
        of.node.syncs.ask(bob.session, "audit")
        await bob.event("message", body="direct")
        assert repairs("audit") == counted + 2
        await bob.caught_up()


async def test_audit_without_a_loss_repairs_nothing(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        bob = await of.client("bob").connected()
        for conv in (group, direct):
            await of.say("ann", conv)
        await bob.until(lambda: len(bob.of("message")) == 2)
        counted, asked = repairs("audit"), of.calls("range")
        of.node.audits.hubs()
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        await of.settled()
        assert (repairs("audit"), of.calls("range")) == (counted, asked)
        assert len(bob.of("message")) == 2


@pytest.mark.parametrize("one_server", [True, False])
async def test_quiet_sessions_are_audited_by_one_call(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, one_server: bool
) -> None:
    """Only the session with a lost event is synced; if users are on several servers, there is a call for each."""
    monkeypatch.setattr(Client, "one_server", property(lambda _: one_server))
    async with world(valkey) as of:
        direct = await of.direct("eve", "bob")
        ann, bob, carl = [await of.client(user).connected() for user in ("ann", "bob", "carl")]
        with of.deaf():
            await of.say("eve", direct, "lost")
            await of.settled()
        asked, looked, counted = of.calls("sessions_to_sync"), of.calls("sync"), repairs("audit")
        of.node.audits.sessions([ann.session, bob.session, carl.session])
        await bob.event("message", body="lost")
        assert (of.calls("sessions_to_sync") - asked, of.calls("sync") - looked) == (1 if one_server else 3, 1)
        assert repairs("audit") == counted + 1


async def test_audit_finds_a_replacement_whose_signal_was_lost(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.register("bob", "phone", now_ms() + 1000)
            await of.settled()
        of.node.syncs.ask(bob.session, "audit")
        assert (await bob.closed())[0] == 4409


async def test_first_audit_comes_soon_after_the_welcome(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missed event is most likely then. Sessions that connected together are one call, ended sessions none."""
    async with world(valkey) as of:
        welcomed: list[Any] = []
        monkeypatch.setattr(of.node.audits, "first", welcomed.append)
        ann, bob, gone = [await of.client(user).connected() for user in ("ann", "bob", "cem")]
        assert welcomed == [ann.session, bob.session, gone.session]
        now = of.node.loop.time()
        for client in (ann, bob, gone):
            audits.Audits.first(of.node.audits, client.session)
        gone.end()
        asked = []
        monkeypatch.setattr(
            of.node.users, "sessions_to_sync", lambda questions, reply: asked.append([q.user for q in questions])
        )
        of.node.audits.new_sessions(now)
        assert asked == []
        of.node.audits.new_sessions(now + audits.FIRST_AUDIT_S + 1)
        of.node.audits.new_sessions(now + audits.FIRST_AUDIT_S + 2)
        assert asked == [["ann", "bob"]]


async def test_entry_that_raises_ends_no_round_of_audits(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that raises costs only its own audit, a hub that raises only its own."""
    monkeypatch.setattr(audits, "HUBS_PER_CALL", 1)
    async with world(valkey) as of:
        groups = [await of.group("ann", "bob") for _ in range(3)]
        direct = await of.direct("eve", "bob")
        ann, bob = [await of.client(user).connected() for user in ("ann", "bob")]
        with of.deaf():
            await of.say("eve", direct, "direct")
            for group in groups:
                await of.say("ann", group, "in a group")
            await of.settled()
        question, heads = of.node.syncs.question, of.node.conversations.heads

        def ask(session: Any) -> Any:
            if session is ann.session:
                raise RuntimeError("broken")
            return question(session)

        def read(conversations: list[str], reply: Any) -> None:
            if groups[0] in conversations:
                raise RuntimeError("broken")
            heads(conversations, reply)

        monkeypatch.setattr(of.node.syncs, "question", ask)
        monkeypatch.setattr(of.node.conversations, "heads", read)
        of.node.audits.sessions([ann.session, bob.session])
        of.node.audits.hubs()
        await bob.event("message", body="direct")
        await bob.until(lambda: len(bob.of("message", body="in a group")) >= 2)
        assert ann.session.asking is Asking.NOTHING
