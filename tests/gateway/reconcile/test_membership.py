"""Sessions enter and leave groups as their rows say, even if no hub received the change."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.reconcile import audits, sync
from router.contract import keys
from router.contract.errors import Unavailable
from tests import support
from tests.gateway.world import world


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every recheck immediate."""
    monkeypatch.setattr(audits, "RECHECK_S", 0.0)
    monkeypatch.setattr(sync, "RECHECK_S", 0.0)


async def test_removal_that_no_hub_received_is_found_by_the_version(valkey: EmbeddedValkey) -> None:
    """If the head has another membership version, the hub asks for the roles of its users. The removed user receives
    the events up to the removal, and nothing after."""
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


async def test_member_without_a_role_is_removed_from_the_hub(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer may come while the log is still being read: the session is fed up to its removal."""
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


async def test_roles_that_could_not_be_read_are_read_in_the_next_round(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member is removed even if the log no longer contains the removal."""
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
        hub.seq = removal.seq  # as if the hub were up to date, so that only the version differs
        of.node.audits.hubs()
        await support.eventually(lambda: bob.session not in hub.members)


async def test_session_enters_and_leaves_a_group_by_its_rows(valkey: EmbeddedValkey) -> None:
    """A row that changed for another reason changes nothing."""
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


async def test_repeated_join_enters_the_group_once(valkey: EmbeddedValkey) -> None:
    """The second may come while the group's channel is being subscribed for the first."""
    async with world(valkey) as of:
        group = await of.group("ann")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.put(group, "bob")
            await of.settled()
        row = await of.node.users.row("bob", group)
        assert row is not None
        for _ in range(3):
            of.node.membership.enter(bob.session, row)
        await bob.event("member", user="bob", action="add")
        await of.settled()
        assert len(bob.of("conversations")) == 1
        assert [hub.conversation for hub in bob.session.hubs] == [group]


async def test_user_removed_while_their_session_enters_the_group_receives_nothing(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, the user's part of Redis may say that the user has left before the group's part has answered."""
    async with world(valkey) as of:
        group = await of.group("ann", "cid")
        bob, cid = [await of.client(user).connected() for user in ("bob", "cid")]
        held: list[Any] = []
        members = of.node.conversations.members
        mutes = members.mutes
        monkeypatch.setattr(members, "mutes", lambda *given: held.append(given))
        await of.put(group, "bob")
        await support.eventually(lambda: held)
        await of.remove(group, "bob")
        await support.eventually(lambda: not bob.session.entering)
        for given in held:
            mutes(*given)
        await of.settled()
        await of.say("ann", group, "without bob")
        await cid.event("message", body="without bob")
        assert (bob.session.hubs, bob.of("message")) == ([], [])
        monkeypatch.setattr(members, "mutes", mutes)
        await of.put(group, "bob")
        await support.eventually(lambda: [hub.conversation for hub in bob.session.hubs] == [group])


@pytest.mark.parametrize("connected", [True, False])
async def test_member_removed_from_a_group_while_offline_receives_the_events_before(
    valkey: EmbeddedValkey, connected: bool
) -> None:
    """Also if the group had no event while the device was connected; groups that the device never listed are not
    sent."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        if not connected:
            bob.end()
        group = await of.group("ann", "bob")
        if not connected:
            bob = await of.client("bob").connected()
        await bob.until(
            lambda: any(group == one["conversation"] for e in bob.events for one in e.get("conversations", ()))
        )
        await of.settled()
        bob.end()
        never = await of.group("ann", "bob")
        for conversation in (group, never):
            await of.say("ann", conversation, "with bob")
            await of.remove(conversation, "bob")
            await of.say("ann", conversation, "without bob")
        bob = await of.client("bob").connected()
        assert (bob.bodies(group), bob.bodies(never)) == (["with bob"], [])
