"""Typing: passed on to the others, once a second."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import ephemeral
from tests.gateway.world import world


async def test_typing_is_passed_on_once_a_second(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the others only, per session and conversation; what is remembered for that is let go of."""
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


async def test_typing_to_somebody_without_the_conversation_reaches_nobody(valkey: EmbeddedValkey) -> None:
    """Else anybody could tell, and bother, anybody."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        ann.say("typing", to="@bob")
        await of.settled()
        assert bob.of("typing") == []
