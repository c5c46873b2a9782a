"""Audits: what Redis says against what is here; what both other layers lost is found, and sessions that ended end."""

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
from router.store.redis.client import Client
from router.store.users import Synced
from tests import support
from tests.gateway.world import world


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is looked at again is looked at again at once."""
    monkeypatch.setattr(audits, "RECHECK_S", 0.0)
    monkeypatch.setattr(sync, "RECHECK_S", 0.0)


def repairs(cause: str) -> float:
    return float(metrics.REPAIRS.labels(cause)._value.get())


async def test_an_audit_finds_what_the_bus_lost(valkey: EmbeddedValkey) -> None:
    """In groups and direct conversations, without any event that would show it; counted as what it is."""
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


async def test_an_audit_of_what_is_well_repairs_nothing(valkey: EmbeddedValkey) -> None:
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
async def test_quiet_sessions_are_audited_by_one_question(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, one_server: bool
) -> None:
    """Only the one whose news the bus lost is looked at; where users are on several servers, each is asked alone."""
    monkeypatch.setattr(Client, "one_server", property(lambda _: one_server))
    async with world(valkey) as of:
        direct = await of.direct("eve", "bob")
        ann, bob, carl = [await of.client(user).connected() for user in ("ann", "bob", "carl")]
        with of.deaf():
            await of.say("eve", direct, "lost")
            await of.settled()
        asked, looked, counted = of.calls("news"), of.calls("sync"), repairs("audit")
        of.node.audits.sessions([ann.session, bob.session, carl.session])
        await bob.event("message", body="lost")
        assert (of.calls("news") - asked, of.calls("sync") - looked) == (1 if one_server else 3, 1)
        assert repairs("audit") == counted + 1


async def test_an_event_that_comes_before_the_second_look_is_no_loss(
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
        bob.session.note_given(direct, said.seq)  # here it comes
        assert looks
        for function, *args in looks:
            function(*args)
        assert (repairs("audit"), bob.session.backlog) == (counted, None)


@pytest.mark.parametrize(("instance", "code"), [("tab-1", 4000), ("tab-2", 4409), ("", 4409)])
async def test_a_later_session_of_the_device_ends_the_earlier(valkey: EmbeddedValkey, instance: str, code: int) -> None:
    """The same client process may come back; another one must not take turns with this."""
    async with world(valkey) as of, world(valkey) as elsewhere:
        old = await of.client("bob").connected(instance="tab-1")
        await support.eventually(lambda: elsewhere.node.redis_clock.now_ms() > old.session.started, every_s=0)
        new = await elsewhere.client("bob").connected(**({"instance": instance} if instance else {}))
        assert (await old.closed())[0] == code
        assert new.session.state is State.READY


async def test_without_an_instance_two_of_a_device_do_not_count_as_one(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        old = await of.client("bob").connected()
        await of.client("bob").connected()
        assert await old.closed() == (4409, "this device is connected elsewhere")


async def test_an_audit_finds_a_replacement_that_nobody_told(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.register("bob", "phone", now_ms() + 1000)
            await of.settled()
        of.node.syncs.ask(bob.session, "audit")
        assert (await bob.closed())[0] == 4409


async def test_an_older_session_that_registers_late_does_not_end_a_newer(valkey: EmbeddedValkey) -> None:
    """Its register was stuck on the way."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        assert (await of.register("bob", "phone", now_ms() - 60_000)).status == "replaced"
        await of.settled()
        assert bob.session.state is State.READY


@pytest.mark.parametrize("device", [None, "phone"])
async def test_a_kick_ends_the_session(valkey: EmbeddedValkey, device: str | None) -> None:
    async with world(valkey) as of:
        phone, laptop = await of.client("bob").connected(), await of.client("bob", "laptop").connected()
        await of.node.users.kick("bob", device)
        assert await phone.closed() == (4504, "ended")
        await of.settled()
        assert (laptop.connection.closed is None) == (device is not None)


async def test_a_phone_that_is_online_outlasts_tabs_that_have_ended(valkey: EmbeddedValkey) -> None:
    """The seventeenth device takes the place of a session that ended with its gateway, though the phone is older."""
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


async def test_a_device_that_is_evicted_while_online_is_told_why(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        phone = await of.client("bob").connected()
        for number in range(15):
            await of.client("bob", f"tab-{number}").connected()
        await of.client("bob", "laptop").connected()
        assert await phone.closed() == (4409, "another device took the place of this one: a user has at most 16")


async def test_a_hint_that_comes_while_an_audit_is_under_way_is_looked_into_afterwards(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer under way may be older than what the hint is about: a kick must not wait for the next heartbeat."""
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


async def test_redis_that_cannot_answer_ends_no_session(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again with the next heartbeat."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        monkeypatch.setattr(of.node.users, "sync", lambda _, reply: of.node.loop.call_soon(reply, Unavailable()))
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        assert (bob.session.asking, bob.session.state, bob.connection.closed) == (Asking.NOTHING, State.READY, None)


async def test_what_the_lost_bus_said_is_asked_for_until_it_is_told(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands' connection may come up after the bus, which may come and go meanwhile: one question waits."""
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


async def test_what_the_lost_bus_said_is_asked_for_though_an_audit_was_under_way(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit's answer would be too old to tell, and it fails."""
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


async def test_what_moved_comes_in_pages(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit asks on as long as there is more, from where it came to."""
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


async def test_an_answer_to_a_session_that_has_closed_is_nothing(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        of.node.syncs.ask(bob.session, "audit")
        bob.end()
        await of.settled()
        of.node.syncs._answered(bob.session, "", "", Synced("kicked", [], b"", False, 0, False))
        assert bob.connection.closed is None


async def test_a_removal_that_no_hub_saw_is_found_by_the_version(valkey: EmbeddedValkey) -> None:
    """Heads tell the membership version; on another one the hub asks for its users here. The removed one gets what was
    hers, and nothing after."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        with of.deaf():
            await of.say("ann", group, "with bob")
            await of.remove(group, "bob", told=False)
            await of.say("ann", group, "without bob")
            await of.settled()
        of.node.audits.hubs()
        await ann.event("message", body="without bob")
        await bob.event("member", user="bob", action="remove")
        await of.settled()
        assert bob.bodies(group) == ["with bob"]
        assert bob.session not in of.node.subscriptions.hubs[group].members


async def test_a_member_that_the_hub_still_has_is_put_out_when_roles_say_so(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer about roles may come while the log is still being read: she is fed to her own end."""
    monkeypatch.setattr("gateway.delivery.repair.REPAIR_EVENTS", 2)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            for i in range(9):
                await of.say("ann", group, i)
            await of.remove(group, "bob", told=False)
            await of.settled()
        of.node.resubscribe.compare([group], "audit")
        await bob.event("member", user="bob", action="remove")
        assert bob.bodies(group) == list(range(9))


async def test_roles_that_could_not_be_read_are_asked_for_in_the_next_round(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the log itself does not tell any more who was put out."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        with of.deaf():
            removal = await of.remove(group, "bob", told=False)
            await of.redis.fetch("XDEL", keys.log(group), removal.seq)
            await of.settled()
        hub, roles = of.node.subscriptions.hubs[group], of.node.conversations.roles
        monkeypatch.setattr(of.node.conversations, "roles", lambda *args: args[-1](Unavailable()))
        of.node.resubscribe.compare([group], "audit")
        await of.settled()
        assert bob.session in hub.members
        monkeypatch.setattr(of.node.conversations, "roles", roles)
        hub.seq = removal.seq  # as if it were level: the version alone must tell
        of.node.audits.hubs()
        await support.eventually(lambda: bob.session not in hub.members)


async def test_the_first_audit_comes_soon_after_the_welcome(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is when most can have been missed. Of those who came together it is one question, of the gone none."""
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
        monkeypatch.setattr(of.node.users, "news", lambda questions, reply: asked.append([q.user for q in questions]))
        of.node.audits.new_sessions(now)
        assert asked == []
        of.node.audits.new_sessions(now + audits.FIRST_AUDIT_S + 1)
        of.node.audits.new_sessions(now + audits.FIRST_AUDIT_S + 2)
        assert asked == [["ann", "bob"]]


async def test_coming_into_a_group_and_leaving_it_again(valkey: EmbeddedValkey) -> None:
    """Both are found by what moved; a row that moved otherwise changes nothing."""
    async with world(valkey) as of:
        group = await of.group("ann")
        bob = await of.client("bob").connected()
        await of.put(group, "bob")
        told = await bob.event("conversations")
        assert told["conversations"][0]["conversation"] == group
        await of.say("ann", group, "hello bob")
        await bob.event("message", body="hello bob")
        await of.put(group, "bob", "a")
        await of.settled()
        assert len(bob.of("conversations")) == 1
        await of.remove(group, "bob")
        await bob.event("member", user="bob", action="remove")
        await of.settled()
        assert keys.Channels().conversation(group).encode() not in of.node.bus._wanted


async def test_an_entry_that_raises_ends_no_round_of_audits(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that cannot be asked about costs itself only; nor does a hub keep the hubs behind it unread."""
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
