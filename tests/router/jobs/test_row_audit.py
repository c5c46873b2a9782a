"""router/jobs/row_audit.py: rows that a server lost are restored from the conversations."""

import logging

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.jobs.finisher import Finisher
from router.jobs.row_audit import RowAudit
from router.store.answers import reply_of
from router.store.moderation import Act
from tests.router.world import World, settings, world


async def finished(w: World, *convs: str) -> None:
    finisher = Finisher(settings(), w.conversations, w.users, w.pushes, w.dirty, w.contacts, w.files, w.audit)
    for conv in convs:
        await finisher.finish(conv)


async def walked(w: World) -> None:
    """Run one whole walk."""
    audit = RowAudit(w.conversations, w.users, w.audit)
    await audit.step()
    while audit._place:
        await audit.step()


async def test_lost_rows_of_a_user_are_restored(valkey: EmbeddedValkey) -> None:
    """All keys of the user's slot are deleted: every conversation is back in the list, and the user exists."""
    async with world(valkey) as w:
        direct, group = await w.direct("ann", "bob"), await w.group("ann", "bob")
        said = await w.say("ann", direct)
        await w.say("bob", direct)
        await w.say("ann", group)
        await finished(w, direct, group)
        kept = await w.row("ann", direct)
        with valkey.client() as redis:
            redis.delete(keys.user("bob"), keys.convs("bob"), keys.recent("bob"), keys.groups("bob"))
        await walked(w)
        assert {row.conversation for row in (await w.users.conversations("bob")).rows} == {direct, group}
        row = await w.row("bob", direct)
        assert (row.head > said.seq, row.title) == (True, "ann")
        assert (await w.row("bob", group)).title == "a title"
        assert await reply_of(w.users.exists, "bob")
        assert await w.row("ann", direct) == kept


async def test_damaged_rows_are_restored_with_the_lost_ones_beside_them(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as w:
        group = await w.group("ann", "bob", "cid")
        await w.say("ann", group)
        await finished(w, group)
        with valkey.client() as redis:
            redis.hset(keys.convs("bob"), group, "g ")
            redis.delete(keys.convs("cid"))
        await walked(w)
        assert [(await w.row(user, group)).title for user in ("bob", "cid")] == ["a title"] * 2


async def test_present_rows_removed_members_and_deleted_users_are_unchanged(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as w:
        group, direct = await w.group("ann", "bob", "cid"), await w.direct("ann", "dan")
        await w.say("ann", direct)
        await w.conversations.member(group, None, "bob", "remove")
        await finished(w, group, direct)
        await w.accounts.delete("dan")
        left, order = await w.row("bob", group), (await w.users.conversations("cid")).rows
        await walked(w)
        assert left.left
        assert await w.row("bob", group) == left
        assert (await w.users.conversations("cid")).rows == order
        assert await w.users.row("dan", direct) is None


async def test_rows_of_format_1_are_written_anew_once_all_processes_read_format_2(valkey: EmbeddedValkey) -> None:
    """With the role, and in silence: the order of the list stays. Until then they stay as they are."""
    async with world(valkey) as w:
        w.client.row_format = keys.ROWS_1
        group, direct = await w.group("ann", "bob"), await w.direct("ann", "bob")
        await w.say("ann", direct)
        await finished(w, group, direct)
        rows = (await w.users.conversations("bob")).rows
        await walked(w)
        assert (await w.users.conversations("bob")).rows == rows
        assert [row.role for row in rows] == [None, None]
        w.client.row_format = keys.ROWS_2
        await walked(w)
        renewed = [replace(row, role="m") for row in rows]
        assert (await w.users.conversations("bob")).rows == renewed
        assert (await w.row("ann", group)).role == "o"


async def test_acts_that_an_earlier_release_left_reach_the_audit(valkey: EmbeddedValkey) -> None:
    """Its router knows of no acts, so it unmarks the conversation."""
    async with world(valkey) as w:
        group = await w.group("ann", "bob")
        await finished(w, group)
        await w.moderation.restrain(Act(conversation=group, actor="ann", by="ann", user="bob"), "mute")
        with valkey.client() as redis:
            acts = redis.hget(keys.conversation(group), "acts")
            redis.hdel(keys.conversation(group), "acts")
            await finished(w, group)
            redis.hset(keys.conversation(group), "acts", acts)
        assert not w.is_dirty(group)
        await walked(w)
        entries = await w.client.fetch("XRANGE", keys.audit_of_conversations(keys.partition(group)), "-", "+")
        assert sum(group.encode() in fields[1] for _, fields in entries) == 1
        assert not w.is_dirty(group)


async def test_role_that_did_not_reach_the_row_is_restored(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as w:
        group = await w.group("ann", "bob")
        await w.say("ann", group)
        await finished(w, group)
        await w.conversations.member(group, "ann", "bob", "put", "a")
        await finished(w, group)
        with valkey.client() as redis:
            row = redis.hget(keys.convs("bob"), group)
            redis.hset(keys.convs("bob"), group, row[:4] + b"m" + row[5:14] + b"\0" * 32 + row[46:])
        assert (await w.row("bob", group)).role == "m"
        await walked(w)
        assert (await w.row("bob", group)).role == "a"


async def test_unfinished_conversation_is_left_to_the_finisher(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as w:
        group = await w.group("ann", "bob")
        await w.say("ann", group)
        await walked(w)
        assert await w.users.row("bob", group) is None


async def test_damaged_conversation_keeps_no_other(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as w:
        groups = [await w.group("ann", "bob") for _ in range(8)]
        for group in groups:
            await w.say("ann", group)
        await finished(w, *groups)
        with valkey.client() as redis:
            redis.delete(keys.convs("bob"))
            redis.hset(keys.conversation(groups[3]), "u:bob", "")
            redis.hset(keys.conversation(groups[4]), "m", "junk")
            redis.hset(b"{c1}:conv:\xff", "m", "junk")
        await walked(w)
        rows = {row.conversation for row in (await w.users.conversations("bob")).rows}
        assert {*groups} - {groups[3], groups[4]} <= rows


async def test_lost_rows_of_many_conversations_are_one_log_entry_of_a_step(
    valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that has lost the slots of users would else fill the log with an entry for each conversation."""
    async with world(valkey) as w:
        groups = [await w.group("ann", "bob") for _ in range(8)]
        await finished(w, *groups)
        with valkey.client() as redis:
            redis.delete(keys.convs("bob"))
        audit = RowAudit(w.conversations, w.users, w.audit)
        with caplog.at_level(logging.WARNING, "linnet.router"):
            steps = 0
            while steps == 0 or audit._place:
                await audit.step()
                steps += 1
        entries = [record for record in caplog.records if "restored" in record.getMessage()]
        assert 0 < len(entries) <= steps
        assert sum(int(entry.getMessage().rpartition(" ")[2]) for entry in entries) == len(groups)
