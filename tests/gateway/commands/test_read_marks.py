"""The user's own read marks: what a receipt did not say, an audit does, and nothing is said twice."""

from __future__ import annotations

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.store.answers import ask
from tests.gateway.world import Client, World, world


def told(client: Client, conversation: str) -> list[int]:
    """The user's own marks, as this device was told them."""
    mine = client.of("receipt", conversation=conversation, user=client.user)
    return [receipt["read"] for receipt in mine]


async def audited(of: World, client: Client) -> None:
    of.node.audits.sync(client.session, "audit")
    await of.settled()
    await client.ask("ping", "pong")


@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_a_mark_whose_receipt_was_lost_is_told_by_the_audit(valkey: EmbeddedValkey, kind: str) -> None:
    """Once, whatever audits follow; and one that the receipt has told is not told again."""
    async with world(valkey) as of:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        first, second = [(await of.say("ann", talk, body)).seq for body in ("one", "two")]
        laptop = await of.client("bob", "laptop").connected()
        await ask(of.node.users.read, "bob", talk, first, 1)
        await laptop.event("receipt", conversation=talk, read=first)
        await audited(of, laptop)
        with of.deaf():
            await ask(of.node.users.read, "bob", talk, second, 2)
            await of.settled()
        assert told(laptop, talk) == [first]
        for _ in range(2):
            await audited(of, laptop)
        assert told(laptop, talk) == [first, second]
