"""A user's rows, cursors and read marks; `sync` has a file of its own."""

from itertools import permutations
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import RateLimited
from router.store.accounts import Accounts
from router.store.redis.client import Client
from router.store.rows import Row
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import Channel, connected

CONV = keys.direct("ann", "bob")
GROUP = "g:AAAAAAAAAAAAAAAAAAAAAA"
EVENT = b"\x81\xa1a\xa1b"


async def users_of(client: Client, *names: str) -> Users:
    """The store's users, with these already made."""
    for name in names or ("ann",):
        await Accounts(client).ensure(name)
    return Users(client)


async def registered(users: Users, session: str = "s", started: int = 10) -> None:
    who = Sync(user="ann", device="phone", session=session, node="node-1", started=started, register=True)
    assert (await called(users.sync, who)).status == "ok"


async def cursors(client: Client) -> dict[str, int]:
    flat = iter(await client.fetch("HGETALL", keys.cursor("ann", "phone")))
    return {conv.decode(): int(seq) for conv, seq in zip(flat, flat, strict=True)}


async def score(client: Client, conv: str) -> float:
    return float(await client.fetch("ZSCORE", keys.recent("ann"), conv) or 0)


async def deliver(users: Users, seq: int, count: int = 0, author: bool = False, target: int = 0) -> bool:
    published: bool = await called(users.deliver, "ann", CONV, "bob", seq, count or seq, EVENT, author, target)
    return published


# -- deliver


async def test_delivering_twice_raises_and_publishes_once(valkey: EmbeddedValkey) -> None:
    """The sender's gateway and a router both deliver; the second delivery changes nothing."""
    async with connected(valkey) as client:
        users = await users_of(client)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert await deliver(users, 3, 2)
            at = await score(client, CONV)
            assert not await deliver(users, 3, 2)
        assert channel.heard == [EVENT]
        assert await score(client, CONV) == at
        assert await users.row("ann", CONV) == Row(CONV, "d", "bob", False, 3, 2, 0, 0, None, 0, role="m")


@pytest.mark.parametrize("damage", ["", "d-", "g ", "d \0\0\0\0", "\x02", "\x02.d m", "\x02\x7fg m" + 50 * "\0"])
async def test_each_write_makes_a_damaged_row_whole(valkey: EmbeddedValkey, damage: str) -> None:
    """A row that is cut short counts as lost: a delivery, a join and a leave write it anew, a read mark finds none."""
    async with connected(valkey) as client:
        users = await users_of(client)
        for conv in (CONV, GROUP):
            await client.fetch("HSET", keys.convs("ann"), conv, damage)
            assert await users.row("ann", conv) is None
            assert not await called(users.read, "ann", conv, 1, 1)
        assert await deliver(users, 3)
        assert await users.leave("ann", GROUP, 9)
        left = await users.row("ann", GROUP)
        assert left is not None
        assert left.left
        await client.fetch("HSET", keys.convs("ann"), GROUP, damage)
        assert await users.join("ann", GROUP, "a title", 8, 0, 0, "m")
        rows = [await users.row("ann", conv) for conv in (CONV, GROUP)]
        assert [(row.title, row.left) for row in rows if row] == [("bob", False), ("a title", False)]


async def test_event_delivered_after_its_successor_is_not_published(valkey: EmbeddedValkey) -> None:
    """The head does not fall; live sessions have noticed a hole and read the log."""
    async with connected(valkey) as client:
        users = await users_of(client)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert await deliver(users, 4)
            assert not await deliver(users, 3)
        assert len(channel.heard) == 1
        row = await users.row("ann", CONV)
        assert row is not None
        assert (row.head, row.count) == (4, 4)


async def test_own_message_moves_the_read_mark(valkey: EmbeddedValkey) -> None:
    """Up to the author's own event, also if a later one was delivered before; never down."""
    async with connected(valkey) as client:
        users = await users_of(client)
        marks = []
        for seq, author in ((5, True), (6, False), (9, False), (7, True), (3, True)):
            await deliver(users, seq, author=author)
            row = await users.row("ann", CONV)
            assert row is not None
            marks.append((row.head, row.read, row.read_count))
        assert marks == [(5, 5, 5), (6, 5, 5), (9, 5, 5), (9, 7, 7), (9, 7, 7)]


async def test_deleted_user_gets_no_delivery(valkey: EmbeddedValkey) -> None:
    """No row, no event."""
    async with connected(valkey) as client:
        users = await users_of(client, "ann", "bob")
        await deliver(users, 1)
        await Accounts(client).delete("ann")
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert not await deliver(users, 2)
        assert channel.heard == []
        assert {key.decode() for key in await client.fetch("KEYS", "*:*:ann")} == {keys.user("ann"), keys.names("ann")}


# -- groups and channels


async def test_leave_marks_the_row(valkey: EmbeddedValkey) -> None:
    """The row stays, with title and read mark; `groups` no longer has the group; the user's sessions get a signal."""
    async with connected(valkey) as client:
        users = await users_of(client)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert await users.join("ann", GROUP, "Crew", 4, 3, 2, "m")
            joined = await score(client, GROUP)
            assert await users.leave("ann", GROUP, 9)
        assert [signals.decode(payload) for payload in channel.heard] == [signals.Moved(GROUP)] * 2
        assert await users.row("ann", GROUP) == Row(GROUP, "g", "Crew", True, 0, 0, 3, 2, None, 0, changed=9, role="-")
        assert await client.fetch("ZCARD", keys.groups("ann")) == 0
        assert await score(client, GROUP) > joined


CHANGES = {0: "join", 5: "leave", 8: "join", 12: "leave"}


async def test_latest_change_of_membership_wins_in_any_order(valkey: EmbeddedValkey) -> None:
    """Changes arrive late, twice and out of order; earlier ones have no effect."""
    async with connected(valkey) as client:
        for i, order in enumerate(permutations(CHANGES)):
            name, latest = f"ann-{i}", -1
            users = await users_of(client, name)
            for changed in (*(each for each in order for _ in range(2)), *order):
                if CHANGES[changed] == "join":
                    took = await users.join(name, GROUP, "Crew", changed, changed, 0, "m")
                else:
                    took = await users.leave(name, GROUP, changed)
                assert took == (changed > latest)
                latest = max(latest, changed)
                row = await users.row(name, GROUP)
                assert row is not None
                assert row.left == (CHANGES[latest] == "leave")
                assert await client.fetch("ZCARD", keys.groups(name)) == (0 if row.left else 1)


async def test_deleted_user_joins_no_conversation(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client, "ann")
        await Accounts(client).delete("ann")
        assert not await users.join("ann", GROUP, "Crew", 0, 0, 0, "m")
        assert not await users.leave("ann", GROUP, 1)
        assert {key.decode() for key in await client.fetch("KEYS", "*:*:ann")} == {keys.user("ann"), keys.names("ann")}


async def test_member_whose_hash_was_lost_joins_and_exists_again(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        await client.fetch("DEL", keys.user("ann"))
        assert await users.join("ann", GROUP, "Crew", 2, 0, 0, "m")
        assert await called(users.exists, "ann")


async def test_joining_again_does_not_lower_the_read_mark(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        await users.join("ann", GROUP, "Crew", 0, 0, 0, "m")
        await called(users.read, "ann", GROUP, 20, 15)
        await users.leave("ann", GROUP, 21)
        await users.join("ann", GROUP, "Crew", 22, 5, 3, "m")
        row = await users.row("ann", GROUP)
        assert row is not None
        assert (row.left, row.read, row.read_count) == (False, 20, 15)


# -- cursors and read marks


async def test_acks_only_raise(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        await registered(users)
        assert await called(users.ack, "ann", "phone", "s", {CONV: 5, GROUP: 2**53 - 1})
        assert await called(users.ack, "ann", "phone", "s", {CONV: 4, GROUP: 7})
        assert await cursors(client) == {CONV: 5, GROUP: 2**53 - 1}


async def test_only_the_registered_session_acks(valkey: EmbeddedValkey) -> None:
    """A replaced or evicted session must not change the cursors of its successor."""
    async with connected(valkey) as client:
        users = await users_of(client)
        await registered(users, "s-1", 10)
        await registered(users, "s-2", 20)
        assert not await called(users.ack, "ann", "phone", "s-1", {CONV: 5})
        assert not await called(users.ack, "ann", "desk", "s-2", {CONV: 5})
        assert await cursors(client) == {}
        assert await client.fetch("EXISTS", keys.cursor("ann", "desk")) == 0


async def test_cursor_is_read(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        await registered(users)
        await called(users.ack, "ann", "phone", "s", {CONV: 5})
        assert [await called(users.cursor, "ann", "phone", conv) for conv in (CONV, GROUP)] == [5, 0]


async def test_read_mark_only_rises(valkey: EmbeddedValkey) -> None:
    """A higher mark raises the row and is sent to the user's own sessions, once; others change nothing."""
    async with connected(valkey) as client:
        users = await users_of(client)
        await deliver(users, 9)
        before = await score(client, CONV)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert [await called(users.read, "ann", CONV, seq, seq - 1) for seq in (4, 4, 3, 6)] == [1, 0, 0, 1]
        assert [signals.decode(payload) for payload in channel.heard] == [
            signals.Receipt(CONV, "ann", 4),
            signals.Receipt(CONV, "ann", 6),
        ]
        assert await users.row("ann", CONV) == Row(CONV, "d", "bob", False, 9, 9, 6, 5, None, 0, role="m")
        assert await score(client, CONV) > before


async def test_read_mark_of_an_unknown_conversation_is_ignored(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        assert not await called(users.read, "ann", "d:ann:zoe", 4, 4)
        assert await users.row("ann", "d:ann:zoe") is None


# -- what else may be asked


async def test_new_direct_conversations_have_a_rate(valkey: EmbeddedValkey) -> None:
    """Sixty at once, then one in two seconds; other users are not affected."""
    async with connected(valkey) as client:
        users = await users_of(client, "ann", "bob")
        for _ in range(60):
            assert await called(users.spend_opening, "ann") is None
        with pytest.raises(RateLimited) as refused:
            await called(users.spend_opening, "ann")
        assert 0 < (refused.value.retry_after or 0) <= 2
        assert await called(users.spend_opening, "bob") is None


async def test_clock_that_was_put_back_refuses_no_user_for_long(valkey: EmbeddedValkey) -> None:
    """A stamp further ahead than a burst is of another clock: the rate begins again from it, with its limit."""
    async with connected(valkey) as client:
        users = await users_of(client)
        await client.fetch("HSET", keys.user("ann"), "opens", 2**52)
        for _ in range(60):
            assert await called(users.spend_opening, "ann") is None
        with pytest.raises(RateLimited) as refused:
            await called(users.spend_opening, "ann")
        assert 0 < (refused.value.retry_after or 0) <= 2


async def test_user_exists_from_creation_to_deletion(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = Users(client)
        told = [await called(users.exists, "ann")]
        await Accounts(client).ensure("ann")
        told.append(await called(users.exists, "ann"))
        await Accounts(client).delete("ann")
        told.append(await called(users.exists, "ann"))
        assert told == [False, True, False]


async def test_whisper_reaches_users_with_the_conversation(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        await deliver(users, 1)
        typing = signals.encode(signals.Typing(CONV, "bob"))
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert await called(users.whisper, "ann", CONV, typing)
            assert not await called(users.whisper, "ann", "d:ann:zoe", typing)
            users.whisper("ann", CONV, typing)
            assert await called(users.exists, "ann")  # answers come in order: the whisper was done
        assert channel.heard == [typing, typing]


async def test_all_conversations_can_be_listed(valkey: EmbeddedValkey) -> None:
    """Newest first, page by page, present and left groups too; without a device's cursors."""
    async with connected(valkey) as client:
        users = await users_of(client)
        await deliver(users, 1)
        await users.join("ann", GROUP, "Crew", 0, 0, 0, "m")
        left = "c:BBBBBBBBBBBBBBBBBBBBBB"
        await users.join("ann", left, "Old", 0, 0, 0, "m")
        await users.leave("ann", left, 3)
        first = await users.conversations("ann", limit=2)
        second = await users.conversations("ann", first.below, limit=2)
        assert [(row.conversation, row.left) for row in first.rows + second.rows] == [
            (left, True),
            (GROUP, False),
            (CONV, False),
        ]
        assert (first.more, second.more) == (True, False)
        assert (await users.conversations("nobody")).rows == []


async def test_only_its_own_session_ends_a_row(valkey: EmbeddedValkey) -> None:
    """A late `mark_away` of a replaced session changes nothing."""
    async with connected(valkey) as client:
        users = await users_of(client)
        await registered(users, "s-1", 10)
        await registered(users, "s-2", 20)
        with Channel(valkey, keys.Channels().presence("ann")) as channel:
            told: list[Any] = [await called(users.mark_away, "ann", "phone", f"s-{i}") for i in (1, 2, 2)]
        assert told == [False, True, False]
        assert [signals.decode(payload) for payload in channel.heard] == [signals.Touched("ann")]
