"""A direct event on one server: the append that writes it also delivers it to both of its users."""

import asyncio

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import Blocked
from router.store.accounts import Accounts
from router.store.pairs import Pairs
from router.store.users import Users
from tests.store.calling import BURST_US, COST_US, Store, called, store
from tests.store.user_slot import Channel

CONV = keys.direct("ann", "bob")


async def opened(s: Store) -> Users:
    for user in ("ann", "bob"):
        await s.client.fetch("HSET", keys.user(user), "created", 1)
    await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
    return Users(s.client)


def test_acked_event_is_delivered_to_both_users(valkey: EmbeddedValkey) -> None:
    """Both rows are raised and both channels carry the log's bytes, once; it is read by its author only."""

    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            with (
                Channel(valkey, keys.Channels().user("ann")) as ann,
                Channel(valkey, keys.Channels().user("bob")) as bob,
            ):
                answer = await s.send(CONV, "ann", 1)
                assert (await s.send(CONV, "ann", 1)).duplicate
            (logged,) = await s.log(CONV)
            assert ann.heard == bob.heard
            assert [stamp.decode(event) for event in ann.heard] == [logged]
            rows = {user: await users.row(user, CONV) for user in ("ann", "bob")}
            seen = {user: row and (row.title, row.head, row.count, row.read) for user, row in rows.items()}
            assert seen == {"ann": ("bob", answer.seq, 1, answer.seq), "bob": ("ann", answer.seq, 1, 0)}

    asyncio.run(main())


def test_repeated_delivery_changes_nothing(valkey: EmbeddedValkey) -> None:
    """A router that finishes the conversation publishes nothing twice."""

    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            answer = await s.send(CONV, "ann", 1)
            for user, other in (("ann", "bob"), ("bob", "ann")):
                again = (users.deliver, user, CONV, other, answer.seq, answer.count, b"event", user == "ann", 0)
                assert not await called(*again)

    asyncio.run(main())


def test_conversation_with_oneself_is_delivered_once(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with store(valkey.url) as s:
            await s.client.fetch("HSET", keys.user("ann"), "created", 1)
            await called(s.conversations.create_direct, "ann", "ann", COST_US, BURST_US)
            with Channel(valkey, keys.Channels().user("ann")) as ann:
                await s.send(keys.direct("ann", "ann"), "ann", 1)
            assert len(ann.heard) == 1

    asyncio.run(main())


def test_refused_event_is_not_published(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            await called(Pairs(s.client).change, "bob", "ann", "block", "", 0)
            with Channel(valkey, keys.Channels().user("bob")) as bob, pytest.raises(Blocked):
                await s.send(CONV, "ann", 1)
            assert bob.heard == []
            assert await users.row("bob", CONV) is None

    asyncio.run(main())


def test_deleted_user_gets_no_row(valkey: EmbeddedValkey) -> None:
    """Neither the author nor the other user: a row would outlive the deletion of its user."""

    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            for user in ("ann", "bob"):
                await Accounts(s.client).delete(user)
            with (
                Channel(valkey, keys.Channels().user("ann")) as ann,
                Channel(valkey, keys.Channels().user("bob")) as bob,
            ):
                await s.send(CONV, "ann", 1)
            assert ann.heard == bob.heard == []
            for user in ("ann", "bob"):
                assert await users.row(user, CONV) is None
                assert await s.client.fetch("EXISTS", keys.convs(user), keys.recent(user)) == 0

    asyncio.run(main())


def test_users_whose_hashes_were_lost_get_their_events(valkey: EmbeddedValkey) -> None:
    """The conversation names both, so both existed: acked events reach them, and they exist again."""

    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            for user in ("ann", "bob"):
                await s.client.fetch("DEL", keys.user(user), keys.convs(user), keys.recent(user))
            with (
                Channel(valkey, keys.Channels().user("ann")) as ann,
                Channel(valkey, keys.Channels().user("bob")) as bob,
            ):
                sent = await s.send(CONV, "ann", 1)
            assert len(ann.heard) == len(bob.heard) == 1
            for user in ("ann", "bob"):
                row = await users.row(user, CONV)
                assert row is not None
                assert row.head == sent.seq
                assert await called(users.exists, user)

    asyncio.run(main())


def test_own_message_moves_the_authors_read_mark_only(valkey: EmbeddedValkey) -> None:
    async def main() -> None:
        async with store(valkey.url) as s:
            users = await opened(s)
            first = await s.send(CONV, "ann", 1)
            await called(users.read, "bob", CONV, first.seq, first.count)
            second = await s.send(CONV, "ann", 2)
            rows = {user: await users.row(user, CONV) for user in ("ann", "bob")}
            read = {user: row and (row.head, row.count, row.read, row.read_count) for user, row in rows.items()}
            assert read == {"ann": (second.seq, 2, second.seq, 2), "bob": (second.seq, 2, first.seq, 1)}

    asyncio.run(main())


async def test_users_of_the_same_name_in_two_databases_of_a_server_are_raised_by_themselves(
    valkey: EmbeddedValkey,
) -> None:
    """The one in the second database was raised last by a server whose clock was ahead."""
    async with store(valkey.url) as here, store(valkey.url.removesuffix("/0") + "/1") as there:
        users = [f"user-{number}" for number in range(8)]
        for s in (here, there):
            await opened(s)
            for user in users:
                await s.client.fetch("HSET", keys.user(user), "created", 1)
                await called(s.conversations.create_direct, user, "bob", COST_US, BURST_US)
        ahead = await there.client.clock_ms() * 1000 + 60_000_000
        for user in users:
            conv = keys.direct(user, "bob")
            await there.client.fetch("ZADD", keys.recent(user), ahead, "before")
            await here.send(
                CONV, "ann", users.index(user) + 1
            )  # finds out about the server, so that the next remembers
            await here.send(conv, user, 1)
            await there.send(conv, user, 1)
            assert float(await there.client.fetch("ZSCORE", keys.recent(user), conv)) > ahead
