"""The user's own read marks: if a receipt is lost, an audit sends the mark, and no mark is sent twice."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import codecs, keys, signals
from router.store.answers import reply_of
from tests.gateway.world import Client, World, world


def told(client: Client, conversation: str) -> list[int]:
    """The user's own marks, as this device was told them."""
    mine = client.of("receipt", conversation=conversation, user=client.user)
    return [receipt["read"] for receipt in mine]


async def audited(of: World, client: Client) -> None:
    of.node.syncs.ask(client.session, "audit")
    await of.settled()
    await client.ask("ping", "pong")


@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_read_mark_whose_receipt_was_lost_is_sent_by_the_audit(valkey: EmbeddedValkey, kind: str) -> None:
    """Once, however many audits follow; a mark that a receipt has brought is not sent again."""
    async with world(valkey) as of:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        first, second = [(await of.say("ann", talk, body)).seq for body in ("one", "two")]
        laptop = await of.client("bob", "laptop").connected()
        await reply_of(of.node.users.read, "bob", talk, first, 1)
        await laptop.event("receipt", conversation=talk, read=first)
        await audited(of, laptop)
        with of.deaf():
            await reply_of(of.node.users.read, "bob", talk, second, 2)
            await of.settled()
        assert told(laptop, talk) == [first]
        for _ in range(2):
            await audited(of, laptop)
        assert told(laptop, talk) == [first, second]


# -- marks that follow from what a user writes


async def answered(client: Client, kind: str, n: int, **fields: Any) -> dict[str, Any]:
    return await client.ask(kind, "ack", n=n, **fields)


async def marks(of: World, user: str, talk: str) -> tuple[int, int]:
    """The user's read mark and the messages it counts, once all that was noted is written."""
    for session in of.node.sessions.all:
        of.node.marks.write(session)
    await of.settled()
    row = await of.node.users.row(user, talk)
    assert row is not None
    return row.read, row.read_count


@pytest.mark.parametrize("codec", codecs.CODECS.values())
@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_answer_without_read_sends_a_receipt(valkey: EmbeddedValkey, kind: str, codec: codecs.Codec) -> None:
    """Once: neither the author's next message nor a later `read` of the same position sends another."""
    async with world(valkey) as of, world(valkey) as elsewhere:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        ann = await of.client("ann", codec=codec).connected()
        bob = await elsewhere.client("bob").connected()
        tablet = await elsewhere.client("bob", "tablet").connected()
        await answered(ann, "send", 1, to=talk, body="hi")
        await bob.event("message", conversation=talk)
        answer = await answered(bob, "send", 1, to=talk, body="hello")
        await ann.event("receipt", conversation=talk, user="bob", read=answer["seq"])
        await tablet.event("receipt", conversation=talk, user="bob", read=answer["seq"])
        again = await answered(bob, "send", 2, to=talk, body="and")
        await ann.event("message", conversation=talk, seq=again["seq"])
        bob.say("read", conversation=talk, seq=answer["seq"])
        await bob.ask("ping", "pong")
        await of.settled()
        assert [receipt["read"] for receipt in ann.of("receipt", user="bob")] == [answer["seq"]]
        assert await marks(elsewhere, "bob", talk) == (again["seq"], 3)


async def test_answer_after_a_read_sends_no_further_receipt(valkey: EmbeddedValkey) -> None:
    """The mark was at the message before, so its receipt was enough."""
    async with world(valkey) as of:
        for talk in (await of.direct("ann", "bob"), await of.group("ann", "bob")):
            ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
            sent = await answered(ann, "send", 1, to=talk, body="hi")
            bob.say("read", conversation=talk, seq=sent["seq"])
            await ann.event("receipt", conversation=talk, user="bob", read=sent["seq"])
            answer = await answered(bob, "send", 1, to=talk, body="hello")
            await ann.event("message", conversation=talk, seq=answer["seq"])
            await of.settled()
            assert len(ann.of("receipt", conversation=talk, user="bob")) == 1
            ann.end()
            bob.end()


@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_reaction_edit_and_delete_mark_nothing_read(valkey: EmbeddedValkey, kind: str) -> None:
    """They may be made on old messages, without reading the new ones."""
    async with world(valkey) as of:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        own = await answered(bob, "send", 1, to=talk, body="mine")
        before = await marks(of, "bob", talk)
        new = await answered(ann, "send", 1, to=talk, body="unread")
        await bob.event("message", seq=new["seq"])
        await answered(bob, "react", 2, conversation=talk, seq=new["seq"], emoji="+")
        await answered(bob, "edit", 3, conversation=talk, seq=own["seq"], body="mine!")
        last = await answered(bob, "delete", 4, conversation=talk, seq=own["seq"])
        await ann.event("delete", seq=last["seq"])
        assert await marks(of, "bob", talk) == before == (own["seq"], 1)
        assert ann.of("receipt", user="bob", read=last["seq"]) == []
        bob.end()
        welcome = await of.client("bob", "new").hello()
        assert [(state["read"], state["unread"]) for state in welcome["conversations"]] == [(own["seq"], 1)]


@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_message_of_a_backend_sets_no_read_mark_of_its_author(valkey: EmbeddedValkey, kind: str) -> None:
    async with world(valkey) as of:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        ann = await of.client("ann").connected()
        await answered(ann, "send", 1, to=talk, body="hi")
        said = await of.say("bob", talk, backend=True)
        assert (await ann.event("message", seq=said.seq))["server"] is True
        await of.settled()
        assert ann.of("receipt", user="bob") == []
        assert (await marks(of, "bob", talk))[0] == 0


async def test_answers_in_a_large_group_send_no_receipts(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        talk = await of.group("ann", "bob", *(f"m{i}" for i in range(signals.RECEIPT_MEMBERS - 2)))
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        await answered(ann, "send", 1, to=talk, body="hi")
        first = await answered(bob, "send", 1, to=talk, body="yes")
        await ann.event("receipt", user="bob", read=first["seq"])
        await of.put(talk, "one-more")
        await answered(ann, "send", 2, to=talk, body="hi")
        second = await answered(bob, "send", 2, to=talk, body="yes")
        await ann.event("message", seq=second["seq"])
        await of.settled()
        assert len(ann.of("receipt", user="bob")) == 1


# -- deleted messages


@pytest.mark.parametrize("kind", [keys.DIRECT, keys.GROUP])
async def test_deleted_messages_do_not_count_as_unread(valkey: EmbeddedValkey, kind: str) -> None:
    """Deleted before or after the device connects, above or below the mark."""
    async with world(valkey) as of:
        talk = await (of.direct if kind == keys.DIRECT else of.group)("ann", "bob")
        ann = await of.client("ann").connected()
        sent = [(await answered(ann, "send", n, to=talk, body=n))["seq"] for n in range(1, 6)]

        async def unread() -> int:
            """Return the number for a new connection; it must be the same through an existing hub and a new one."""
            found = set()
            async with world(valkey) as fresh:
                for place, device in ((of, "tablet"), (fresh, "watch")):  # two gateways order starts to a millisecond
                    bob = place.client("bob", device)
                    (state,) = (await bob.hello())["conversations"]
                    bob.end()
                    found.add(state["unread"])
            assert len(found) == 1, found
            return int(found.pop())

        assert await unread() == 5
        await answered(ann, "delete", 11, conversation=talk, seq=sent[0])
        await answered(ann, "delete", 12, conversation=talk, seq=sent[4])
        assert await unread() == 3
        bob = await of.client("bob").connected()
        bob.say("read", conversation=talk, seq=sent[1])
        await bob.event("receipt", read=sent[1])
        assert await unread() == 2
        await answered(ann, "delete", 13, conversation=talk, seq=sent[1])
        assert await unread() == 2
        for n, seq in enumerate(sent[2:4], 14):
            await answered(ann, "delete", n, conversation=talk, seq=seq)
        assert await unread() == 0
