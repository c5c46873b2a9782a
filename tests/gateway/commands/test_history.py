"""Pages of history, in both directions."""

from __future__ import annotations

from deploy.embedded import EmbeddedValkey
from router.contract import codecs
from tests.gateway.world import world


async def test_history_pages_both_ways(valkey: EmbeddedValkey) -> None:
    """Pages are ascending and contain the events as logged; `more` is true while there are further ones."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob", codec=codecs.MSGPACK).connected()
        seqs = [(await of.say("ann", group, i)).seq for i in range(5)]
        await bob.until(lambda: len(bob.of("message")) == 5)
        back = await bob.ask("history", "history", conversation=group, limit=2)
        assert (back["events"], back["more"]) == (bob.of("message")[3:], True)
        rest = await bob.ask("history", "history", conversation=group, before=seqs[3])
        assert (rest["events"], rest["more"]) == (bob.of("message")[:3], False)
        after = await bob.ask("history", "history", conversation=group, after=seqs[0], limit=3)
        assert (after["events"], after["more"]) == (bob.of("message")[1:4], True)


async def test_history_with_a_damaged_event_is_answered_without_it(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        bob = await of.client("bob").connected()
        seqs = [(await of.say("ann", group, i)).seq for i in range(3)]
        await bob.until(lambda: len(bob.of("message")) == 3)
        await of.damage(group, seqs[1])
        page = await bob.ask("history", "history", conversation=group)
        assert page["events"] == [bob.of("message")[0], bob.of("message")[2]]
