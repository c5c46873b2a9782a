"""Typing: passed on to the other members, at most once a second."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import ephemeral
from router.store.pairs import Pairs
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


async def test_typing_without_a_conversation_is_dropped(valkey: EmbeddedValkey) -> None:
    """Otherwise any user could notify any other user, and probe for users."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        ann.say("typing", to="@bob")
        await of.settled()
        assert bob.of("typing") == []
