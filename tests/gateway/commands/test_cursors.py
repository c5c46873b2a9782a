"""Acks and reads: limited to positions that exist, and notified to the right sessions."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import cursors
from router.contract.packing import MAX_INTEGER
from router.store.answers import reply_of
from tests.gateway.world import world


async def test_ack_counts_only_up_to_the_received_position(valkey: EmbeddedValkey) -> None:
    """An event that a client acks without having received it is delivered at the next resume."""
    async with world(valkey) as of:
        group, direct, other = await of.group("ann", "bob"), await of.direct("ann", "bob"), await of.group("ann")
        bob = await of.client("bob").connected()
        first, second = await of.say("ann", group), await of.say("ann", group)
        private = await of.say("ann", direct)
        await of.say("ann", other)
        await bob.until(lambda: len(bob.of("message")) == 3)
        bob.say("ack", conversation=group, seq=first.seq)
        assert bob.session.acks
        assert dict(bob.session.acks) == {group: first.seq}
        bob.say("ack", cursors={group: MAX_INTEGER, direct: MAX_INTEGER, other: 5, "nonsense": 5})
        assert dict(bob.session.acks) == {group: second.seq, direct: private.seq}
        bob.say("ack", conversation=group, seq=first.seq)
        assert bob.session.acks[group] == second.seq
        of.node.marks.write(bob.session)
        assert not bob.session.acks
        assert await reply_of(of.node.users.cursor, "bob", "phone", group) == second.seq


async def test_read_notifies_own_devices_and_small_groups(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is limited to the head, and notified once for each advance; in larger groups only to the user's own
    devices."""
    async with world(valkey) as of:
        small, large, direct = (
            await of.group("ann", "bob"),
            await of.group("ann", "bob", "cid"),
            await of.direct("ann", "bob"),
        )
        monkeypatch.setattr(cursors, "RECEIPT_MEMBERS", 2)
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        laptop = await of.client("bob", "laptop").connected()
        for conv in (small, large, direct):
            said = await of.say("ann", conv)
            bob.say("read", conversation=conv, seq=said.seq + 1000)
            bob.say("read", conversation=conv, seq=said.seq)
            await laptop.event("receipt", conversation=conv, user="bob", read=said.seq)
        await ann.event("receipt", conversation=small, user="bob")
        await ann.event("receipt", conversation=direct, user="bob")
        await of.settled()
        assert [len(ann.of("receipt", conversation=conv, user="bob")) for conv in (small, large, direct)] == [1, 0, 1]
