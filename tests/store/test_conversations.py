"""Conversations: creation, membership, the part of the log that a user sees, read positions, heads."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import BadCommand, Conflict, Internal, NotFound, ReadOnly, Unavailable
from router.contract.packing import MAX_BODY_BYTES, MAX_INTEGER
from router.store.conversations import PAGE_BYTES, Page, ReadPosition
from router.store.heads import Head
from router.store.openings import Opening, Wanted
from tests.store.calling import BURST_US, COST_US, Store, called, store


def seqs(page: Page) -> list[int]:
    return [stamp.slots(event)[0] for event in page.events]


async def head(s: Store, conv: str) -> Head:
    (found,) = await called(s.conversations.heads, [conv])
    assert isinstance(found, Head)
    return found


async def start(s: Store, conv: str, user: str, read: int) -> int | None:
    (opening,) = await called(s.conversations.openings, user, [Wanted(conv, read)])
    assert opening is not None
    found: int | None = opening.start
    return found


async def fill(s: Store, conv: str, count: int, user: str = "ann", **more: Any) -> None:
    await asyncio.gather(*(s.send(conv, user, **more) for _ in range(count)))


# -- create


async def test_create_makes_a_conversation_once(valkey: EmbeddedValkey) -> None:
    """A second call, with any members, changes nothing; all keys that functions use exist from the start."""
    async with store(valkey.url) as s:
        conv = keys.new_conversation(keys.GROUP)
        create = s.conversations.create
        assert await create(conv, keys.GROUP, "first", {"ann": "o", "bob": "m"}, COST_US, BURST_US)
        assert not await create(conv, keys.GROUP, "second", {"eve": "o"}, COST_US, BURST_US)
        found = await s.conversations.describe(conv, "ann")
        assert (found.kind, found.title, found.head, found.count, found.size) == ("g", "first", 0, 0, 2)
        assert (found.version, found.role) == (0, "o")
        assert found.at == found.made > 0
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o", "bob": "m"}
        for key in (keys.conversation(conv), keys.log(conv), keys.dirty(keys.partition(conv))):
            assert await s.client.fetch("EXISTS", key) == 1


async def test_create_that_died_half_way_leaves_no_conversation(valkey: EmbeddedValkey) -> None:
    """Without its counters a conversation does not exist; another create completes it."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.client.fetch("HDEL", keys.conversation(conv), "m")
        with pytest.raises(NotFound):
            await s.send(conv, "ann", 1)
        assert await s.conversations.create(conv, keys.GROUP, "", {"ann": "o"}, COST_US, BURST_US)
        assert (await s.send(conv, "ann", 1)).prev == 0


async def test_create_accepts_at_most_a_thousand_members(valkey: EmbeddedValkey) -> None:
    """More are refused without a call to Redis; a large conversation is listed in pages."""
    async with store(valkey.url) as s:
        members = {f"user-{i}": "m" for i in range(1000)}
        conv = await s.group(**members)
        assert (await s.conversations.describe(conv, None)).size == 1000
        with pytest.raises(BadCommand):
            await s.group(ann="o", **members)
        listed: dict[str, str] = {}
        page = await s.conversations.members.page(conv)
        while True:
            listed |= page.roles
            if not page.cursor:
                break
            page = await s.conversations.members.page(conv, "user-1", page.cursor)
        assert listed == members


async def test_create_direct_is_the_same_from_both_sides(valkey: EmbeddedValkey) -> None:
    """Two users have one direct conversation; a user may have one with themselves."""
    async with store(valkey.url) as s:
        direct = s.conversations.create_direct
        assert await called(direct, "ann", "bob", COST_US, BURST_US) is True
        assert await called(direct, "bob", "ann", COST_US, BURST_US) is False
        assert await called(direct, "ann", "ann", COST_US, BURST_US) is True
        assert (await s.conversations.members.page(keys.direct("ann", "ann"))).roles == {"ann": "m"}


# -- member


async def test_put_and_remove_leave_one_event_each_and_raise_the_version(valkey: EmbeddedValkey) -> None:
    """Log, rows, size and version agree; a call without a change writes nothing."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await s.send(conv, "ann", 1)
        member = s.conversations.member
        add = await member(conv, "ann", "bob", "put", device="phone")
        assert (add.action, add.seq, add.role, add.prev, add.count) == ("add", 2, "m", 1, 1)
        assert (await member(conv, "ann", "bob", "put")).action == "none"
        role = await member(conv, "ann", "bob", "put", "a")
        assert (role.action, role.seq, role.role) == ("role", 3, "a")
        remove = await member(conv, "ann", "bob", "remove")
        assert (remove.action, remove.seq, remove.role) == ("remove", 4, "a")
        assert (await member(conv, "ann", "bob", "remove")).action == "none"

        told = [(e["type"], e["from"], e["user"], e["action"], e["role"]) for e in (await s.log(conv))[1:]]
        assert told == [
            ("member", "ann", "bob", "add", "member"),
            ("member", "ann", "bob", "role", "admin"),
            ("member", "ann", "bob", "remove", None),
        ]
        found = await s.conversations.describe(conv, "ann")
        assert (found.version, found.size, found.count, found.head) == (3, 1, 1, 4)
        assert await called(s.conversations.roles, conv, ["ann", "bob", "eve"]) == ["o", "", ""]
        other = await s.group(bob="o", ann="r")
        openings = s.conversations.openings
        wanted = [Wanted(at, None) for at in (conv, other, "g:nowhere")]
        assert await called(openings, "ann", wanted) == [Opening(role, None) for role in ("o", "r", "")]
        assert await called(openings, "bob", wanted[:2]) == [Opening(role, None) for role in ("", "o")]
        with pytest.raises(NotFound):
            await s.conversations.describe(conv, "bob")
        with pytest.raises(NotFound):
            await s.conversations.members.page(conv, "bob")


@pytest.mark.parametrize(
    ("actor", "user", "action", "role", "refusal"),
    [
        ("own", "adm", "put", "o", None),
        ("own", "mem", "put", "a", None),
        ("own", "adm", "remove", "m", None),
        ("adm", "new", "put", "m", None),
        ("adm", "mem", "put", "r", None),
        ("adm", "mem", "remove", "m", None),
        ("adm", "adm", "remove", "m", None),
        ("adm", "adm", "put", "m", None),
        ("mem", "mem", "put", "r", None),
        ("mem", "mem", "remove", "m", None),
        (None, "own", "remove", "m", None),
        (None, "new", "put", "o", None),
        ("adm", "new", "put", "a", ReadOnly),
        ("adm", "mem", "put", "o", ReadOnly),
        ("adm", "own", "remove", "m", ReadOnly),
        ("adm", "own", "put", "m", ReadOnly),
        ("adm", "adm2", "remove", "m", ReadOnly),
        ("adm", "adm2", "put", "m", ReadOnly),
        ("mem", "new", "put", "m", ReadOnly),
        ("mem", "rea", "remove", "m", ReadOnly),
        ("mem", "mem", "put", "o", ReadOnly),
        ("rea", "rea", "put", "m", ReadOnly),
        ("own", "own", "remove", "m", Conflict),
        ("own", "own", "put", "m", Conflict),
        ("eve", "new", "put", "m", NotFound),
        ("eve", "mem", "remove", "m", NotFound),
        ("eve", "eve", "put", "o", NotFound),
        ("eve", "eve", "join", "o", NotFound),
    ],
)
async def test_membership_changes_follow_the_roles(
    valkey: EmbeddedValkey, actor: str | None, user: str, action: Any, role: str, refusal: type[Exception] | None
) -> None:
    """The rules of a group; a refused call writes nothing."""
    async with store(valkey.url) as s:
        conv = await s.group(own="o", adm="a", adm2="a", mem="m", rea="r")
        change = s.conversations.member(conv, actor, user, action, role)
        if refusal is None:
            assert (await change).seq == (await head(s, conv)).version == 1
        else:
            with pytest.raises(refusal):
                await change
            assert (await head(s, conv)).seq == (await head(s, conv)).version == 0


async def test_last_owner_cannot_leave_before_other_members(valkey: EmbeddedValkey) -> None:
    """With another owner, or as the last member, an owner may leave."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        member = s.conversations.member
        with pytest.raises(Conflict, match="hand over"):
            await member(conv, "ann", "ann", "remove")
        await member(conv, "ann", "bob", "put", "o")
        await member(conv, "ann", "ann", "remove")
        with pytest.raises(NotFound):
            await member(conv, "ann", "ann", "remove")
        with pytest.raises(NotFound):
            await member(conv, "ann", "bob", "put", "m")
        assert (await member(conv, "bob", "bob", "remove")).action == "remove"


async def test_group_ends_when_its_last_member_leaves(valkey: EmbeddedValkey) -> None:
    """A router finds it due, with that member, to remove it. Groups and channels of a backend may be empty."""
    async with store(valkey.url) as s:
        member = s.conversations.member
        conv = await s.group(ann="o", bob="m")
        await s.send(conv, "ann", 1)
        await member(conv, "bob", "bob", "remove")
        gone = await member(conv, "ann", "ann", "remove")
        assert (gone.action, gone.role, gone.seq, gone.count) == ("remove", "o", 3, 0)
        assert await s.conversations.gone(conv) == 3
        assert await called(s.conversations.heads, [conv]) == [None]
        assert await s.log(conv) == []
        assert await s.dirty.claims((keys.partition(conv),), 10, 60_000) == [[conv]]
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o"}
        emptied = [(await s.group(ann="o"), None), (await s.group(keys.CHANNEL, ann="o"), "ann")]
        for conv, actor in emptied:
            await member(conv, actor, "ann", "remove")
            assert (await s.conversations.describe(conv, None)).size == 0


async def test_put_without_a_role_keeps_the_role(valkey: EmbeddedValkey) -> None:
    """For a member it writes nothing, whatever the role; another user becomes a member."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", adm="a", bob="r")
        for user, role in (("ann", "o"), ("adm", "a"), ("bob", "r")):
            change = await s.conversations.member(conv, "adm", user, "put", None)
            assert (change.action, change.role) == ("none", role)
        change = await s.conversations.member(conv, "adm", "new", "put", None)
        assert (change.action, change.role) == ("add", "m")
        assert [(e["action"], e["role"]) for e in await s.log(conv)] == [("add", "member")]


async def test_heir_is_an_admin_or_the_member_who_was_added_first(valkey: EmbeddedValkey) -> None:
    """Never a reader of a channel, because every user may join one; a reader of a group if there is no other."""
    async with store(valkey.url) as s:
        member, heir = s.conversations.member, s.conversations.members.heir
        channel = await s.group(keys.CHANNEL, ann="o")
        await member(channel, "abe", "abe", "join")
        assert await heir(channel, "ann") == ""
        for user in ("bob", "aldo", "cat"):
            await member(channel, "ann", user, "put", "m")
        await member(channel, None, "bob", "remove")
        await member(channel, None, "bob", "put", "m")
        await member(channel, None, "abe", "put", "m")  # a member from now on
        assert await heir(channel, "ann") == "aldo"
        await member(channel, "ann", "cat", "put", "a")
        assert await heir(channel, "ann") == "cat"

        group = await s.group(ann="o", eve="r")
        assert await heir(group, "ann") == "eve"
        for user in ("zoe", "bob"):
            await member(group, "ann", user, "put", "m")
        assert await heir(group, "ann") == "zoe"


async def test_join_is_for_channels_and_makes_a_reader(valkey: EmbeddedValkey) -> None:
    """For any requested role; joining again changes nothing, and a channel can be full."""
    async with store(valkey.url) as s:
        channel = await s.group(keys.CHANNEL, ann="o")
        member = s.conversations.member
        joined = await member(channel, "bob", "bob", "join", "o")
        assert (joined.action, joined.role) == ("add", "r")
        assert (await member(channel, "bob", "bob", "join")).action == "none"
        assert (await member(channel, "ann", "ann", "join")).action == "none"
        with pytest.raises(Conflict, match="no room"):
            await member(channel, "cat", "cat", "join", max_members=2)
        with pytest.raises(NotFound):
            await member(keys.new_conversation(keys.CHANNEL), "cat", "cat", "join")


async def test_direct_conversations_have_fixed_members_and_no_title(valkey: EmbeddedValkey) -> None:
    """A party gets that error; a stranger gets NotFound."""
    async with store(valkey.url) as s:
        await called(s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        direct = keys.direct("ann", "bob")
        for actor, refusal in (("ann", ReadOnly), (None, ReadOnly), ("eve", NotFound)):
            for change in (
                s.conversations.member(direct, actor, "cat", "put"),
                s.conversations.member(direct, actor, "ann", "remove"),
                s.conversations.title(direct, actor, "ours"),
                *([s.conversations.remove_conversation(direct, actor)] if actor else []),
            ):
                with pytest.raises(refusal):
                    await change


async def test_direct_conversation_deleted_by_the_server_can_be_created_again(valkey: EmbeddedValkey) -> None:
    """After a router has removed it from its users; its seqs are above the earlier ones."""
    async with store(valkey.url) as s:
        direct = keys.direct("ann", "bob")
        create = (s.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        await called(*create)
        last = (await s.send(direct, "ann", 1)).seq
        assert await s.conversations.remove_conversation(direct, None) == last + 1
        with pytest.raises(NotFound):
            await s.send(direct, "ann", 2)
        with pytest.raises(Unavailable) as refused:
            await called(*create)
        assert refused.value.retry_after == 1.0
        assert (await s.conversations.members.page(direct)).roles == {"ann": "m", "bob": "m"}
        await s.dirty.forget_conversation(direct)
        assert await called(*create)
        assert (await s.send(direct, "ann", 2)).seq > last + 1


# -- title, remove_conversation


async def test_title_is_for_owners_and_admins_and_leaves_an_event(valkey: EmbeddedValkey) -> None:
    """Heads contain the new title; the server may set it, too."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="a", cat="m")
        assert (await s.conversations.title(conv, "bob", "ours")).seq == 1
        assert (await s.conversations.title(conv, None, "thëirs")).prev == 1
        assert (await head(s, conv)).title == "thëirs"
        assert [(e["type"], e["title"], e["from"]) for e in await s.log(conv)] == [
            ("title", "ours", "bob"),
            ("title", "thëirs", ""),
        ]
        await s.conversations.title(conv, "bob", None, reacting="members")
        assert (await head(s, conv)).title == "thëirs"
        assert (await s.conversations.describe(conv, "cat")).reacting == "members"
        last = (await s.log(conv))[-1]
        assert (last["type"], last["title"], last["reacting"]) == ("title", "thëirs", "members")
        await s.conversations.title(conv, None, "x" * 256)
        assert (await s.log(conv))[-1]["title"] == "x" * 256
        assert (await s.conversations.describe(conv, "cat")).reacting == "members"
        with pytest.raises(ReadOnly):
            await s.conversations.title(conv, "cat", None, reacting="all")
        with pytest.raises(ReadOnly):
            await s.conversations.title(conv, "cat", "mine")
        with pytest.raises(NotFound):
            await s.conversations.title(conv, "eve", "mine")


async def test_removed_conversation_is_not_found(valkey: EmbeddedValkey) -> None:
    """Every call is NotFound, the log is empty, and a router finds it due, with its members."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="a")
        await s.send(conv, "ann", 1)
        for actor, refusal in (("bob", ReadOnly), ("eve", NotFound)):
            with pytest.raises(refusal):
                await s.conversations.remove_conversation(conv, actor)
        assert await s.conversations.gone(conv) == 0
        assert await s.conversations.remove_conversation(conv, "ann") == 2

        assert await s.conversations.gone(conv) == 2
        assert await called(s.conversations.heads, [conv]) == [None]
        assert await s.log(conv) == []
        calls = [
            s.send(conv, "ann", 1),
            s.conversations.member(conv, None, "cat", "put"),
            s.conversations.title(conv, None, "x"),
            s.conversations.remove_conversation(conv, None),
            called(s.conversations.range, conv, None, 0, MAX_INTEGER, 10),
            called(s.conversations.range_before, conv, "ann", MAX_INTEGER, 10),
            called(s.conversations.read_position, conv, "ann", 1),
            called(s.conversations.whisper, conv, "ann", b"\x90"),
            s.conversations.members.page(conv, "ann"),
            s.conversations.describe(conv, None),
            s.dirty.mark_routed(conv, 1, 100, 1000),
        ]
        for call in calls:
            with pytest.raises(NotFound):
                await call
        assert await called(s.conversations.roles, conv, ["ann"]) == [""]
        assert not await s.conversations.create(conv, keys.GROUP, "", {"ann": "o"}, COST_US, BURST_US)

        part = keys.partition(conv)
        assert await s.dirty.claims((part,), 10, 60_000) == [[conv]]
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o", "bob": "a"}
        await s.dirty.forget_conversation(conv)
        assert await s.client.fetch("EXISTS", keys.conversation(conv), keys.log(conv)) == 0
        assert await s.client.fetch("ZRANGE", keys.dirty(part), 0, -1) == [b"!"]
        with pytest.raises(NotFound):
            await s.dirty.forget_conversation(conv)


async def test_forget_deletes_only_removed_conversations(valkey: EmbeddedValkey) -> None:
    """A mistaken call of a router deletes nothing."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        with pytest.raises(NotFound):
            await s.dirty.forget_conversation(conv)
        assert (await s.send(conv, "ann", 1)).seq == 1


# -- heads


async def test_heads_are_in_the_order_of_the_request(valkey: EmbeddedValkey) -> None:
    """None for a missing conversation; an empty request has an empty reply; an error is replied once."""
    async with store(valkey.url) as s:
        convs = [await s.group(ann="o") for _ in range(3)]
        last = [await s.send(conv, "ann", 1, body=conv) for conv in convs]
        answers = await called(s.conversations.heads, [convs[2], keys.new_conversation("g"), convs[0]])
        assert [head.server if head else b"" for head in answers] == [last[2].replid, b"", last[0].replid]
        answers = [head and replace(head, server=b"") for head in answers]
        assert answers == [
            Head(1, 1, last[2].at, 0, 0, 0, "g", "a title", 1),
            None,
            Head(1, 1, last[0].at, 0, 0, 0, "g", "a title", 1),
        ]
        assert await called(s.conversations.heads, []) == []
        replies: list[object] = []
        for conv in convs[:2]:
            await s.client.fetch("SET", keys.conversation(conv), "broken")
        s.conversations.heads(convs, replies.append)
        s.conversations.heads(convs[:2], replies.append)
        await s.client.fetch("PING")
        some, none = replies
        assert isinstance(some, list)
        assert [type(head) for head in some] == [Internal, Internal, Head]
        assert isinstance(none, Internal)


# -- range, before


async def test_range_continues_from_its_position(valkey: EmbeddedValkey) -> None:
    """Pages follow each other; the last one ends at the head, or at the requested bound."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 200)
        read = s.conversations.range
        pages, position = [], 0
        while True:
            page = await called(read, conv, "ann", position, MAX_INTEGER, 70)
            pages.append(seqs(page))
            position = page.position
            if not page.more:
                break
        assert pages == [list(range(1, 71)), list(range(71, 141)), list(range(141, 201))]
        assert position == 200
        assert await called(read, conv, "ann", 200, MAX_INTEGER, 70) == Page([], 200, 0, False)
        bounded = await called(read, conv, None, 10, 13, 70)
        assert (seqs(bounded), bounded.position, bounded.more) == ([11, 12, 13], 13, False)
        exact = await called(read, conv, None, 10, 13, 3)
        assert (seqs(exact), exact.position, exact.more) == ([11, 12, 13], 13, False)


async def test_range_passes_over_deleted_events(valkey: EmbeddedValkey) -> None:
    """A short page has the requested bound as its position, so a deleted last event is not requested again."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 5)
        for target in (2, 5):
            await s.send(conv, "ann", action="delete", target=target)
        page = await called(s.conversations.range, conv, "ann", 0, 5, 100)
        assert (seqs(page), page.position, page.more) == ([1, 3, 4], 5, False)


async def test_range_keeps_the_position_of_a_reader_ahead_of_the_log(valkey: EmbeddedValkey) -> None:
    """A device may be ahead of a log that a failover rolled back."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 3)
        assert await called(s.conversations.range, conv, "ann", 9, MAX_INTEGER, 10) == Page([], 9, 0, False)


async def test_range_and_before_bound_a_page_by_its_bytes(valkey: EmbeddedValkey) -> None:
    """Large events make short pages; `position` and `more` show that there are others."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 40, body="x" * (MAX_BODY_BYTES - 10))
        forward, position = [], 0
        while True:
            page = await called(s.conversations.range, conv, "ann", position, MAX_INTEGER, 200)
            assert sum(map(len, page.events)) <= PAGE_BYTES
            forward += seqs(page)
            position = page.position
            if not page.more:
                break
        assert forward == list(range(1, 41))
        back, position = list[int](), MAX_INTEGER
        while True:
            page = await called(s.conversations.range_before, conv, "ann", position, 200)
            assert sum(map(len, page.events)) <= PAGE_BYTES
            assert page.position == seqs(page)[0]
            back[:0] = seqs(page)
            position = page.position
            if not page.more:
                break
        assert back == list(range(1, 41))


async def test_member_sees_the_events_of_their_membership(valkey: EmbeddedValkey) -> None:
    """Both ends included, by range, before, place and start; others get NotFound; the server sees all."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 3)
        joined = (await s.conversations.member(conv, "ann", "bob", "put")).seq
        await fill(s, conv, 2)
        read, before = s.conversations.range, s.conversations.range_before
        assert seqs(await called(read, conv, "bob", 0, MAX_INTEGER, 10)) == [joined, 5, 6]
        left = (await s.conversations.member(conv, "bob", "bob", "remove")).seq
        await fill(s, conv, 3)
        page = await called(read, conv, "bob", 0, MAX_INTEGER, 10)
        assert (seqs(page), page.position, page.more) == ([joined, 5, 6, left], left, False)
        for limit in (10, 4):
            page = await called(before, conv, "bob", MAX_INTEGER, limit)
            assert (seqs(page), page.position, page.more) == ([joined, 5, 6, left], joined, False)
        assert (await called(s.conversations.read_position, conv, "bob", MAX_INTEGER)).seq == left
        assert await start(s, conv, "bob", 0) == joined - 1
        for eve in (called(read, conv, "eve", 0, MAX_INTEGER, 10), called(before, conv, "eve", MAX_INTEGER, 10)):
            with pytest.raises(NotFound):
                await eve
        assert len((await called(read, conv, None, 0, MAX_INTEGER, 100)).events) == 10
        back = (await s.conversations.member(conv, "ann", "bob", "put")).seq
        assert seqs(await called(read, conv, "bob", 0, MAX_INTEGER, 10)) == [joined, 5, 6, left, back]


async def test_member_added_again_sees_both_times_and_no_event_between(valkey: EmbeddedValkey) -> None:
    """Forwards and backwards, in pages of any size; a new device begins there; own old messages can be edited."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        member, read, before = s.conversations.member, s.conversations.range, s.conversations.range_before
        visible = [(await s.send(conv, "bob")).seq]
        hidden = []
        for _ in range(3):
            visible.append((await member(conv, "bob", "bob", "remove")).seq)
            hidden.append((await s.send(conv, "ann")).seq)
            visible.append((await member(conv, "ann", "bob", "put")).seq)
            visible.append((await s.send(conv, "ann")).seq)
        await member(conv, "ann", "bob", "put", "a")  # a new role changes nothing of it
        visible.append(visible[-1] + 1)
        for limit in range(1, len(visible) + 2):
            forward, position, more = list[int](), 0, True
            while more:
                page = await called(read, conv, "bob", position, MAX_INTEGER, limit)
                forward, position, more = forward + seqs(page), page.position, page.more
            assert (forward, position) == (visible, visible[-1])
            back, upto, more = list[int](), MAX_INTEGER, True
            while more:
                page = await called(before, conv, "bob", upto, limit)
                back, upto, more = seqs(page) + back, page.position, page.more
            assert back == visible
        assert seqs(await called(read, conv, "bob", 0, hidden[1], 10)) == [seq for seq in visible if seq < hidden[1]]
        assert await start(s, conv, "bob", 0) == 0
        assert (await called(s.conversations.read_position, conv, "bob", MAX_INTEGER)).seq == visible[-1]
        for target in hidden:
            with pytest.raises(NotFound):
                await s.send(conv, "bob", action="react", target=target)
        await s.send(conv, "bob", action="edit", target=visible[0])
        await s.send(conv, "bob", action="delete", target=visible[0])
        await member(conv, "bob", "bob", "remove")
        assert seqs(await called(read, conv, "bob", 0, visible[-1], 10)) == visible[1:]


async def test_history_of_a_channel_is_open_to_its_readers(valkey: EmbeddedValkey) -> None:
    """A reader sees it from its beginning, and no new event after leaving."""
    async with store(valkey.url) as s:
        conv = await s.group(keys.CHANNEL, ann="o")
        await fill(s, conv, 3)
        await s.conversations.member(conv, "bob", "bob", "join")
        assert seqs(await called(s.conversations.range, conv, "bob", 0, MAX_INTEGER, 10)) == [1, 2, 3, 4]
        await s.conversations.member(conv, "bob", "bob", "remove")
        await fill(s, conv, 1)
        assert seqs(await called(s.conversations.range, conv, "bob", 0, MAX_INTEGER, 10)) == [1, 2, 3, 4, 5]


async def test_before_pages_backwards(valkey: EmbeddedValkey) -> None:
    """Ascending within a page; `more` is false with the first event, also if it is at the page's edge."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 10)
        before = s.conversations.range_before
        page = await called(before, conv, "ann", MAX_INTEGER, 4)
        assert (seqs(page), page.position, page.more) == ([7, 8, 9, 10], 7, True)
        page = await called(before, conv, "ann", 7, 6)
        assert (seqs(page), page.position, page.more) == ([1, 2, 3, 4, 5, 6], 1, False)
        page = await called(before, conv, "ann", 1, 6)
        assert (seqs(page), page.more) == ([], False)
        assert seqs(await called(before, conv, None, 4, 2)) == [2, 3]


# -- place, start


async def test_read_position_takes_its_count_from_the_log(valkey: EmbeddedValkey) -> None:
    """Clamped to the head; for a deleted or trimmed event it follows from its neighbours."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        await fill(s, conv, 3)
        await s.send(conv, "ann", action="react", target=1)
        await s.send(conv, "ann", action="delete", target=2)
        await fill(s, conv, 1)
        position = s.conversations.read_position
        counts = [(await called(position, conv, "ann", seq)).count for seq in range(7)]
        assert counts == [0, 1, 1, 3, 3, 3, 4]
        assert await called(position, conv, "ann", MAX_INTEGER) == ReadPosition(6, 4, 2, "g")
        await s.client.fetch("XTRIM", keys.log(conv), "MINID", 6)
        assert await called(position, conv, "ann", 4) == ReadPosition(4, 3, 2, "g")
        await s.client.fetch("XTRIM", keys.log(conv), "MAXLEN", 0)
        assert (await called(position, conv, "ann", 4)).count == 4
        with pytest.raises(NotFound):
            await called(position, conv, "eve", 4)


async def test_start_is_a_hundred_events_back_or_the_read_mark(valkey: EmbeddedValkey) -> None:
    """The earlier of the two, but at most a thousand; counted in events, with deletions and jumps of seqs."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        assert await start(s, conv, "ann", 0) == 0
        await fill(s, conv, 50)
        assert await start(s, conv, "ann", 50) == 0
        await fill(s, conv, 1200)
        assert await start(s, conv, "ann", 1250) == 1150
        assert await start(s, conv, "ann", 1200) == 1150
        assert await start(s, conv, "ann", 700) == 700
        assert await start(s, conv, "ann", 5) == 250
        await s.client.fetch("XDEL", keys.log(conv), *range(1151, 1161))
        assert await start(s, conv, "ann", 1250) == 1140
        await s.client.fetch("HSET", keys.conversation(conv), "floor", 1200)
        assert await start(s, conv, "ann", 0) == 1200
        joined = (await s.conversations.member(conv, "ann", "bob", "put")).seq
        assert await start(s, conv, "bob", 0) == joined - 1
        assert await start(s, conv, "eve", 0) is None


async def test_openings_of_many_conversations_take_one_call(valkey: EmbeddedValkey) -> None:
    """Roles and starts, of seen, unseen and removed conversations. If the logs are long, a call leaves the rest to the
    next one, so that it does not block the server."""
    async with store(valkey.url) as s:
        groups = [await s.group(ann="o", bob="m") for _ in range(12)]
        for conv in groups[:11]:
            await fill(s, conv, 120)
        await s.conversations.remove_conversation(groups[10], None)
        unseen = await s.group(bob="o")
        wanted = [Wanted(conv, 120) for conv in (*groups, unseen)] + [Wanted(unseen, None), Wanted(groups[0], None)]
        before = s.client.statistics().functions.get("starts", 0)
        found = await called(s.conversations.openings, "ann", wanted)
        near, none = Opening("o", 20), Opening("", None)
        assert found == [near] * 10 + [none, Opening("o", 0), none, none, Opening("o", None)]
        assert s.client.statistics().functions["starts"] == before + 2
        assert (await called(s.conversations.openings, "bob", wanted[:9])) == [Opening("m", 20)] * 9
        assert s.client.statistics().functions["starts"] == before + 3


async def test_openings_whose_server_is_away_are_missing_and_keep_no_other(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where partitions are on several servers, each has a call of its own, and a conversation without an answer is
    None."""
    async with store(valkey.url) as s:
        near, far = await s.group(ann="o"), await s.group(ann="m")
        while keys.partition(far) == keys.partition(near):
            far = await s.group(ann="m")
        monkeypatch.setattr(type(s.client), "one_server", False)
        call = s.client.call

        def unavailable(function: str, names: Any, args: Any, reply: Any) -> None:
            if keys.conversation(far) in names:
                reply(Unavailable())
            else:
                call(function, names, args, reply)

        monkeypatch.setattr(s.client, "call", unavailable)
        wanted = [Wanted(far, None), Wanted(near, 0), Wanted(near, None)]
        found = await called(s.conversations.openings, "ann", wanted)
        assert found == [None, Opening("o", 0), Opening("o", None)]


async def test_start_counts_only_events_that_the_user_sees(valkey: EmbeddedValkey) -> None:
    """A member who comes back after 150 events starts as many events of their own times back as any other user."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        await fill(s, conv, 300)
        left = (await s.conversations.member(conv, "bob", "bob", "remove")).seq
        await fill(s, conv, 150)
        await s.conversations.member(conv, "ann", "bob", "put")
        await fill(s, conv, 9)
        assert await start(s, conv, "bob", 500) == left - 90
        assert await start(s, conv, "bob", 150) == 150


async def test_start_is_later_if_events_are_large(valkey: EmbeddedValkey) -> None:
    """A new device does not get a thousand large events, and the function does not block the server by reading them."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        await fill(s, conv, 250, body="x" * 10_000)
        assert await start(s, conv, "ann", 0) == 50


# -- whisper


async def test_whisper_is_published_for_present_members_only(valkey: EmbeddedValkey) -> None:
    """The reply is the size, by which a gateway decides on receipts."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", cat="r")
        await s.conversations.member(conv, "bob", "bob", "remove")
        with valkey.client() as other, other.pubsub() as listener:
            listener.ssubscribe(keys.Channels().conversation(conv))
            assert listener.get_sharded_message(timeout=40)["type"] == "ssubscribe"
            assert await called(s.conversations.whisper, conv, "cat", b"\x91\x01") == 2
            for user in ("bob", "eve"):
                with pytest.raises(NotFound):
                    await called(s.conversations.whisper, conv, user, b"\x91\x02")
            s.conversations.whisper(conv, "ann", b"\x91\x03")
            s.conversations.whisper(conv, "eve", b"\x91\x04")
            await s.client.fetch("PING")
            heard = [listener.get_sharded_message(timeout=40)["data"] for _ in range(2)]
            assert heard == [b"\x91\x01", b"\x91\x03"]
            assert listener.get_sharded_message(timeout=0) is None
