"""Typing: passed on to the other members, at most once a second."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import ephemeral
from gateway.delivery import subscriptions
from router.store.contacts import Contacts
from router.store.pairs import Pairs
from router.store.state import State
from tests.gateway.world import world
from tests.store.calling import called


async def test_typing_is_passed_on_once_a_second(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only to the other users, per session and conversation; the memory of it is dropped after that second."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        await of.say("ann", direct)
        for _ in range(5):
            ann.say("typing", to=group)
            ann.say("typing", to="@bob")
        await bob.event("typing", conversation=direct, **{"from": "ann"})
        await bob.event("typing", conversation=group, **{"from": "ann"})
        await of.settled()
        assert (len(bob.of("typing")), len(ann.of("typing"))) == (2, 0)
        assert len(of.node.ephemeral._typed) == 2
        monkeypatch.setattr(ephemeral, "TYPING_EVERY_S", -1.0)
        of.node.ephemeral._typed.clear()
        for i in range(100):
            ann.say("typing", to=f"@user{i}")
        assert len(of.node.ephemeral._typed) == 1


async def test_typing_and_receipts_do_not_pass_a_block(valkey: EmbeddedValkey) -> None:
    """Both ways; the one who types is refused."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        said = await of.say("ann", direct)
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        pairs = Pairs(of.node.client)
        await called(pairs.change, "bob", "ann", "block", "", 0)
        for user, other in ((ann, "bob"), (bob, "ann")):
            user.say("typing", to=f"@{other}", id=1)
            assert (await user.event("error", id=1))["code"] == "blocked"
        bob.say("read", conversation=direct, seq=said.seq)
        await of.settled()
        assert not ann.of("typing") + bob.of("typing") + ann.of("receipt")
        await called(pairs.change, "bob", "ann", "unblock", "", 0)
        said = await of.say("ann", direct)
        bob.say("read", conversation=direct, seq=said.seq)
        await ann.event("receipt", user="bob")
        assert [event["read"] for event in ann.of("receipt") if event["user"] == "bob"] == [said.seq]


def has_typing(client: Any, count: int) -> bool:
    return len(client.of("typing")) == count


async def test_group_signals_reach_all_but_those_behind_a_block(valkey: EmbeddedValkey) -> None:
    """Typing and receipts, both ways, from the block on; nobody gets receipts of a user who sends none."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid")
        ann, bob, cid = [await of.client(user).connected() for user in ("ann", "bob", "cid")]
        node = of.node
        contacts = Contacts(Pairs(node.client), node.people, node.profiles, node.users, State(node.client, (1, 10**6)))
        for client in (ann, bob, cid):
            client.say("typing", to=group)
        for client in (ann, bob, cid):
            await client.until(partial(has_typing, client, 2))
        await contacts.change("ann", "bob", "block")
        await of.settled()
        node.ephemeral._typed.clear()
        for client in (ann, bob):
            client.say("typing", to=group)
        await cid.until(lambda: len(cid.of("typing")) == 4)
        said = await of.say("cid", group, backend=True)
        for client in (ann, bob):
            client.say("read", conversation=group, seq=said.seq)
        await cid.until(lambda: {event["user"] for event in cid.of("receipt")} == {"ann", "bob"})
        assert len(ann.of("typing")) == len(bob.of("typing")) == 2
        assert {event["user"] for event in ann.of("receipt")} == {"ann"}
        assert {event["user"] for event in bob.of("receipt")} == {"bob"}
        await node.profiles.change("ann", {"receipts": "nobody"})
        await of.settled()
        said = await of.say("cid", group, backend=True)
        ann.say("read", conversation=group, seq=said.seq)
        await ann.event("receipt", user="ann", read=said.seq)
        await of.settled()
        assert len([event for event in cid.of("receipt") if event["user"] == "ann"]) == 1


async def test_hidden_user_types_unseen_where_too_many_would_be_asked_about(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user with one block must not make each gateway ask about all members of a channel every second."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob", "cid")
        ann, _, cid = [await of.client(user).connected() for user in ("ann", "bob", "cid")]
        node = of.node
        contacts = Contacts(Pairs(node.client), node.people, node.profiles, node.users, State(node.client, (1, 10**6)))
        await contacts.change("ann", "bob", "block")
        await of.settled()
        monkeypatch.setattr(subscriptions, "DISCREET_VIEWERS", 2)
        asked = of.calls("hidden_from")
        ann.say("typing", to=group)
        await of.settled()
        assert (cid.of("typing"), of.calls("hidden_from")) == ([], asked)
        monkeypatch.setattr(subscriptions, "DISCREET_VIEWERS", 3)
        node.ephemeral._typed.clear()
        ann.say("typing", to=group)
        await cid.event("typing", **{"from": "ann"})


async def test_typing_without_a_conversation_is_dropped(valkey: EmbeddedValkey) -> None:
    """Otherwise any user could notify any other user, and probe for users."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        ann.say("typing", to="@bob")
        await of.settled()
        assert bob.of("typing") == []
