"""A session's question to Redis: sessions that were replaced or kicked end, and missed events arrive."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from gateway.delivery.feed import Asking, State
from gateway.node import now_ms
from gateway.reconcile import audits, sync
from router.contract import keys, metrics
from router.contract.errors import Unavailable
from router.store.sync import Synced
from tests import support
from tests.gateway.world import world


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every recheck immediate."""
    monkeypatch.setattr(audits, "RECHECK_S", 0.0)
    monkeypatch.setattr(sync, "RECHECK_S", 0.0)


def repairs(cause: str) -> float:
    return float(metrics.REPAIRS.labels(cause)._value.get())


async def test_event_that_arrives_before_the_recheck_is_no_loss(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit and the event travel on two connections, and either may be first."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        await of.say("ann", direct, "before")
        bob = await of.client("bob").connected()
        looks: list[Any] = []
        monkeypatch.setattr(of.node.syncs, "_later", lambda after, *call: looks.append(call))
        counted = repairs("audit")
        with of.deaf():
            said = await of.say("ann", direct, "late")
            await of.settled()
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        bob.session.note_received(direct, said.seq)  # here it comes
        assert looks
        for function, *args in looks:
            function(*args)
        assert (repairs("audit"), bob.session.backlog) == (counted, None)


@pytest.mark.parametrize(("instance", "code"), [("tab-1", 4000), ("tab-2", 4409), ("", 4409)])
async def test_later_session_of_the_device_ends_the_earlier(valkey: EmbeddedValkey, instance: str, code: int) -> None:
    """The same client process may reconnect; another process must not take turns with it."""
    async with world(valkey) as of, world(valkey) as elsewhere:
        old = await of.client("bob").connected(instance="tab-1")
        await support.eventually(lambda: elsewhere.node.redis_clock.now_ms() > old.session.started, every_s=0)
        new = await elsewhere.client("bob").connected(**({"instance": instance} if instance else {}))
        assert (await old.closed())[0] == code
        assert new.session.state is State.READY


async def test_sessions_without_an_instance_are_different_processes(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        old = await of.client("bob").connected()
        await of.client("bob").connected()
        assert await old.closed() == (4409, "this device is connected elsewhere")


async def test_older_session_that_registers_late_does_not_end_a_newer(valkey: EmbeddedValkey) -> None:
    """Its registration was delayed on the way."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        assert (await of.register("bob", "phone", now_ms() - 60_000)).status == "replaced"
        await of.settled()
        assert bob.session.state is State.READY


@pytest.mark.parametrize("device", [None, "phone"])
async def test_kick_ends_the_session(valkey: EmbeddedValkey, device: str | None) -> None:
    async with world(valkey) as of:
        phone, laptop = await of.client("bob").connected(), await of.client("bob", "laptop").connected()
        await of.node.users.kick("bob", device)
        assert await phone.closed() == (4504, "ended")
        await of.settled()
        assert (laptop.connection.closed is None) == (device is not None)


async def test_online_device_outlasts_ended_sessions_of_newer_devices(valkey: EmbeddedValkey) -> None:
    """The seventeenth device replaces a session that ended with its gateway, although the phone is older."""
    async with world(valkey) as of:
        phone = await of.client("bob").connected()
        for number in range(15):
            await of.register(
                "bob", f"tab-{number}", phone.session.started + 1 + number
            )  # on a gateway without a lease
        await of.client("bob", "laptop").connected()
        await of.settled()
        assert phone.session.state is State.READY
        assert await of.redis.fetch("HEXISTS", keys.devices("bob"), "tab-0") == 0


async def test_device_evicted_while_online_gets_the_reason(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        phone = await of.client("bob").connected()
        for number in range(15):
            await of.client("bob", f"tab-{number}").connected()
        await of.client("bob", "laptop").connected()
        assert await phone.closed() == (4409, "another device took the place of this one: a user has at most 16")


async def test_hint_during_an_audit_is_asked_about_afterwards(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer under way may be older than the reason for the hint: a kick must not wait for the next heartbeat."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        sync, held = of.node.users.sync, []

        def hold(question: Any, reply: Any) -> None:
            sync(question, lambda answer: held.append((reply, answer)))

        monkeypatch.setattr(of.node.users, "sync", hold)
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        await of.node.users.kick("bob")
        await of.settled()
        monkeypatch.setattr(of.node.users, "sync", sync)
        ((reply, answer),) = held
        assert answer.status == "ok"
        reply(answer)
        assert (await bob.closed())[0] == 4504


async def test_failed_audit_ends_no_session(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is repeated with the next heartbeat."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        monkeypatch.setattr(of.node.users, "sync", lambda _, reply: of.node.loop.call_soon(reply, Unavailable()))
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        assert (bob.session.asking, bob.session.state, bob.connection.closed) == (Asking.NOTHING, State.READY, None)


async def test_moved_conversations_are_read_in_pages(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit asks on from its position until there is no more."""
    async with world(valkey) as of:
        directs = [await of.direct("bob", f"user{i}") for i in range(7)]
        bob = await of.client("bob").connected()
        question = of.node.syncs.question
        monkeypatch.setattr(of.node.syncs, "question", lambda session: replace(question(session), limit=2))
        with of.deaf():
            for i, direct in enumerate(directs):
                await of.say(f"user{i}", direct, i)
            await of.settled()
        asked = of.calls("sync")
        of.node.syncs.ask(bob.session, "audit")
        await bob.until(lambda: len(bob.of("message")) == 7)
        assert of.calls("sync") - asked == 4


async def test_answer_after_the_sessions_end_is_ignored(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        of.node.syncs.ask(bob.session, "audit")
        bob.end()
        await of.settled()
        of.node.syncs._answered(bob.session, "", "", Synced("kicked", [], b"", False, 0, False))
        assert bob.connection.closed is None
