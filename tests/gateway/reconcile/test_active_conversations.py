"""Active direct conversations, whose messages do not raise the rows of their users one by one. No router runs here."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.reconcile import sync
from router.contract import keys
from tests.gateway.world import Client, World, world


async def burst(of: World, ann: Client, conv: str, n: int = 1) -> list[int]:
    """Messages of ann, the last four of which have raised no row; their numbers, which are their bodies."""
    first = n
    while not await of.redis.fetch("HEXISTS", keys.conversation(conv), "lagging"):
        await ann.ask("send", "ack", to=conv, n=n, body=n)
        n += 1
    for following in range(n, n + 4):
        await ann.ask("send", "ack", to=conv, n=following, body=following)
    return list(range(first, n + 4))


async def test_device_that_connects_receives_all_messages_of_a_burst(valkey: EmbeddedValkey) -> None:
    """A new device, and one that comes back; each once and in order."""
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        ann, tablet = await of.client("ann").connected(), await of.client("bob", "tablet").connected()
        said = await burst(of, ann, conv)
        await tablet.until(lambda: tablet.bodies(conv) == said)
        tablet.say("ack", cursors={conv: tablet.seqs(conv)[-1]})
        tablet.end()
        more = await burst(of, ann, conv, said[-1] + 1)
        phone = await of.client("bob").connected()
        again = await of.client("bob", "tablet").connected()
        assert phone.bodies(conv)[-len(more) :] == more
        assert again.bodies(conv)[-len(more) :] == more
        assert len(set(again.seqs(conv))) == len(again.seqs(conv))
        await ann.ask("send", "ack", to=conv, n=more[-1] + 1, body="the last")
        for device in (phone, again):
            await device.event("message", body="the last")


async def test_audit_finds_the_messages_of_a_burst_that_the_bus_lost(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "RECHECK_S", 0.0)
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        said = await burst(of, ann, conv)
        await bob.until(lambda: bob.bodies(conv) == said)
        of.node.syncs.ask(bob.session, "audit")
        await of.settled()
        with of.deaf():
            lost = await burst(of, ann, conv, said[-1] + 1)
            await of.settled()
        of.node.audits.sessions([bob.session])
        await bob.until(lambda: bob.bodies(conv) == said + lost)


async def test_user_has_read_their_own_messages_of_a_burst(valkey: EmbeddedValkey) -> None:
    """On another device of theirs, which connects meanwhile; the other user has read none."""
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        said = await burst(of, await of.client("ann").connected(), conv)
        seen = {}
        for user in ("ann", "bob"):
            welcome = await of.client(user, "tablet").hello()
            (entry,) = [one for one in welcome["conversations"] if one["conversation"] == conv]
            seen[user] = entry["unread"], entry["read"] == entry["head"]
        assert seen == {"ann": (0, True), "bob": (len(said), False)}
