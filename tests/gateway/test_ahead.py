"""A device that comes with more than this node has: the node lags behind the log, or the log was rolled back."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from tests.gateway.world import world


async def test_what_a_device_brings_is_not_given_to_it_again(valkey: EmbeddedValkey) -> None:
    """The hub has lost events that the device got elsewhere: it is repaired, and only then goes on for the device."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        first = await of.say("ann", group, "seen by all")
        await ann.event("message", seq=first.seq)
        with of.deaf():
            missed = [await of.say("ann", group, body) for body in ("missed", "missed too")]
            await of.settled()
        bob = await of.client("bob").connected(cursors={group: missed[-1].seq})
        assert bob.seqs(group) == []
        await ann.event("message", seq=missed[-1].seq)
        after = await of.say("ann", group, "after")
        await bob.event("message", seq=after.seq)
        assert bob.seqs(group) == [after.seq]
        assert bob.of("gap") == []
        assert ann.bodies(group) == ["seen by all", "missed", "missed too", "after"]


async def test_what_a_device_brings_and_no_log_has_is_announced_as_void(valkey: EmbeddedValkey) -> None:
    """It is told at once, and gets what is new."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        last = await of.say("ann", group, "kept")
        bob = await of.client("bob").connected(cursors={group: last.seq + 5})
        gap = await bob.event("gap", conversation=group)
        assert (gap["from"], gap["to"], gap["reason"]) == (last.seq + 1, last.seq + 5, "failover")
        new = await of.say("ann", group, "new")
        await bob.event("message", seq=new.seq)
        assert bob.seqs(group) == [new.seq]
        assert len(bob.of("gap")) == 1
