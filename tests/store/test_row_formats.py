"""The two formats of a user's row: both are read by every function, and the deployment says which one is written."""

from struct import pack

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.store.accounts import Accounts
from router.store.redis.client import Client
from router.store.rows import Row
from router.store.sync import Synced
from router.store.users import Users
from tests.store.calling import called, event, store
from tests.store.test_sync import audit, register, session
from tests.store.test_users import EVENT
from tests.store.user_slot import connected

CONV = keys.direct("ann", "bob")
GROUP = "g:AAAAAAAAAAAAAAAAAAAAAA"
LEFT = "g:BBBBBBBBBBBBBBBBBBBBBB"
# Rows as an earlier release has written them.
RECORDED = {
    CONV: bytes.fromhex("6420" "0000000000000009" "0000000000000007" "0000000000000006" "0000000000000005"
                        "0000000000000001" "626f62"),
    GROUP: bytes.fromhex("6720" "0000000000000000" "0000000000000000" "0000000000000003" "0000000000000002"
                         "0000000000000004" "43726577"),
    LEFT: bytes.fromhex("672d" "0000000000000000" "0000000000000000" "0000000000000003" "0000000000000002"
                        "0000000000000008" "4f6c64"),
}  # fmt: skip
READ = {
    CONV: Row(CONV, "d", "bob", False, 9, 7, 6, 5, None, 0, deleted_above=1),
    GROUP: Row(GROUP, "g", "Crew", False, 0, 0, 3, 2, None, 0, changed=4),
    LEFT: Row(LEFT, "g", "Old", True, 0, 0, 3, 2, None, 0, changed=8),
}
LATER = b"\x07later"  # what a later version has added to a row


def second(row: Row, more: bytes = b"", flags: int = 0) -> bytes:
    """The row in format 2."""
    mark, changed = (b"-", row.changed) if row.left else (b" ", row.changed or row.deleted_above)
    kind, role = row.kind.encode(), (row.role or "m").encode()
    numbers = row.head, row.count, row.read, row.read_count, changed
    return pack(">BBcccBQQQQQ", 2, 46 + len(more), kind, mark, role, flags, *numbers) + more + row.title.encode()


async def users_of(client: Client, row_format: int = 2) -> Users:
    client.row_format = row_format
    await Accounts(client).ensure("ann")
    for i, (conv, row) in enumerate(RECORDED.items()):
        await client.fetch("HSET", keys.convs("ann"), conv, row)
        await client.fetch("ZADD", keys.recent("ann"), i + 1, conv)
    return Users(client)


async def stored(client: Client, conv: str) -> bytes:
    row: bytes = await client.fetch("HGET", keys.convs("ann"), conv)
    return row


async def deliver(users: Users, seq: int) -> bool:
    published: bool = await called(users.deliver, "ann", CONV, "bob", seq, seq - 2, EVENT, False, 0)
    return published


@pytest.mark.parametrize("conv", RECORDED)
async def test_recorded_rows_are_read_and_so_are_the_same_rows_in_format_2(valkey: EmbeddedValkey, conv: str) -> None:
    """Alone, by `sync`, and by a page; in format 2 with the user's role, and with additions of a later version."""
    async with connected(valkey) as client:
        users = await users_of(client)
        assert await users.row("ann", conv) == READ[conv]
        role = "-" if READ[conv].left else "m"
        for more, flags in ((b"", 0), (LATER, 1)):
            await client.fetch("HSET", keys.convs("ann"), conv, second(replace(READ[conv], role=role), more, flags))
            assert await users.row("ann", conv) == replace(READ[conv], role=role)
            synced: Synced = await register(users, session("s" + str(flags), 10 + flags))
            found = [replace(row, score=0) for row in synced.rows]
            assert found == [replace(READ[at], role=role if at == conv else None) for at in (LEFT, GROUP, CONV)]
            page = await users.conversations("ann")
            assert [row.conversation for row in page.rows] == [LEFT, GROUP, CONV]


async def test_older_format_is_written_while_a_process_reads_no_other(valkey: EmbeddedValkey) -> None:
    """By every function: the bytes are those of an earlier release."""
    async with connected(valkey) as client:
        users = await users_of(client, keys.ROWS_1)
        assert await deliver(users, 10)
        assert await stored(client, CONV) == pack(">ccQQQQQ", b"d", b" ", 10, 8, 6, 5, 1) + b"bob"
        assert await called(users.read, "ann", CONV, 10, 8)
        assert await stored(client, CONV) == pack(">ccQQQQQ", b"d", b" ", 10, 8, 10, 8, 0) + b"bob"
        assert await users.join("ann", GROUP, "Crew 2", 5, 0, 0, "a")
        assert await stored(client, GROUP) == pack(">ccQQQQQ", b"g", b" ", 0, 0, 3, 2, 5) + b"Crew 2"
        assert await users.leave("ann", GROUP, 6)
        assert await stored(client, GROUP) == pack(">ccQQQQQ", b"g", b"-", 0, 0, 3, 2, 6) + b"Crew 2"


async def test_writes_in_format_2_keep_what_a_later_version_has_added(valkey: EmbeddedValkey) -> None:
    """The flags and the additions are kept by a delivery, a read mark, a join and a leave; also by a process that would
    write format 1."""
    async with connected(valkey) as client:
        for row_format in (keys.ROWS_1, keys.ROWS_2):
            users = await users_of(client, row_format)
            for conv in (CONV, GROUP):
                await client.fetch("HSET", keys.convs("ann"), conv, second(READ[conv], LATER, 1))
            direct, group = replace(READ[CONV], role="m"), replace(READ[GROUP], role="a", changed=5)
            assert await deliver(users, 10)
            direct = replace(direct, head=10, count=8)
            assert await stored(client, CONV) == second(direct, LATER, 1)
            assert await called(users.read, "ann", CONV, 10, 8)
            direct = replace(direct, read=10, read_count=8, deleted_above=0)
            assert await stored(client, CONV) == second(direct, LATER, 1)
            assert await users.join("ann", GROUP, "Crew", 5, 0, 0, "a")
            assert await stored(client, GROUP) == second(group, LATER, 1)
            assert await called(users.read, "ann", GROUP, 4, 3)
            assert await stored(client, GROUP) == second(replace(group, read=4, read_count=3), LATER, 1)
            assert await users.leave("ann", GROUP, 6)
            left = replace(group, read=4, read_count=3, changed=6, left=True, role="-")
            assert await stored(client, GROUP) == second(left, LATER, 1)


async def test_delivery_and_join_raise_a_row_to_format_2(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        assert await called(users.read, "ann", GROUP, 4, 3)
        assert (await stored(client, GROUP))[:1] == b"g"  # a read mark has no role to write
        assert await deliver(users, 10)
        assert await stored(client, CONV) == second(replace(READ[CONV], head=10, count=8))
        assert await users.join("ann", GROUP, "Crew", 5, 0, 0, "r")
        assert await stored(client, GROUP) == second(replace(READ[GROUP], read=4, read_count=3, changed=5, role="r"))


@pytest.mark.parametrize(("row_format", "first"), [(keys.ROWS_1, b"d"), (keys.ROWS_2, b"\x02")])
async def test_append_writes_the_rows_of_both_users_in_the_format_of_the_deployment(
    valkey: EmbeddedValkey, row_format: int, first: bytes
) -> None:
    async with store(valkey.url) as s:
        s.client.row_format = row_format
        for user in ("ann", "bob"):
            await Accounts(s.client).ensure(user)
        await called(s.conversations.create_direct, "ann", "bob", 1, 1_000_000)
        await called(s.conversations.append, event(CONV, "ann", 1))
        rows = [await s.client.fetch("HGET", keys.convs(user), CONV) for user in ("ann", "bob")]
        assert [row[:1] for row in rows] == [first, first]
        found = [await Users(s.client).row(user, CONV) for user in ("ann", "bob")]
        assert [(row.title, row.unread(row.count, ())) for row in found if row] == [("bob", 0), ("ann", 1)]


@pytest.mark.parametrize("in_format_2", [False, True])
async def test_device_that_acked_a_leave_is_not_told_again(valkey: EmbeddedValkey, in_format_2: bool) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        if in_format_2:
            await client.fetch("HSET", keys.convs("ann"), LEFT, second(replace(READ[LEFT], role="-"), LATER))
        who = session("s", 10)
        since = (await register(users, who)).since
        await called(users.ack, "ann", "phone", "s", {LEFT: 3, "-" + LEFT: 8})
        await client.fetch("ZADD", keys.recent("ann"), 2**52, LEFT)
        (row,) = (await audit(users, who, since)).rows
        assert (row.conversation, row.left, row.gone_acked, row.changed) == (LEFT, True, True, 8)


async def test_row_is_renewed_in_silence_unless_it_changed_meanwhile(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await users_of(client)
        scores = await client.fetch("ZRANGE", keys.recent("ann"), 0, -1, "WITHSCORES")
        assert not await users.renew_row("ann", replace(READ[GROUP], changed=3), "o")
        assert not await users.renew_row("ann", READ[LEFT], "m")
        assert await stored(client, GROUP) == RECORDED[GROUP]
        assert await users.renew_row("ann", READ[GROUP], "o")
        assert not await users.renew_row("ann", READ[GROUP], "m")
        assert await users.renew_row("ann", READ[CONV], "m")
        assert await stored(client, GROUP) == second(replace(READ[GROUP], role="o"))
        assert await stored(client, CONV) == second(READ[CONV])
        assert await client.fetch("ZRANGE", keys.recent("ann"), 0, -1, "WITHSCORES") == scores
