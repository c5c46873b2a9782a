"""The conversations of a connecting device: the contents of the lists, and the position at which the device begins in
each.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import errors, keys, wire
from router.store.answers import reply_of
from router.store.moderation import Act, Moderation
from router.store.rules import RulesChange
from router.store.sync import Sync
from tests import support
from tests.gateway.world import world


async def test_conversations_beyond_the_welcome_follow_newest_first(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `conversations` events until `more` is false; each is listed once, and fed."""
    monkeypatch.setattr(wire, "WELCOME_LIMIT", 4)
    async with world(valkey) as of:
        question = of.node.syncs.question
        page = of.node.users.page

        def small(session: Any) -> Sync:
            return replace(question(session), limit=5)

        def short(user: str, device: str, below: int, reply: Any) -> None:
            page(user, device, below, reply, limit=3)

        monkeypatch.setattr(of.node.syncs, "question", small)
        monkeypatch.setattr(of.node.users, "page", short)
        users = [f"user{i}" for i in range(12)]
        for user in users:
            await of.say(user, await of.direct(user, "bob"))
        group = await of.group("bob")
        for user in users[:2]:
            await of.say(user, keys.direct(user, "bob"))
        bob = await of.client("bob").connected()
        told = [event for event in bob.events if event["type"] in ("welcome", "conversations")]
        assert [event["more"] for event in told] == [*[True] * (len(told) - 1), False]
        names = [state["conversation"] for event in told for state in event["conversations"]]
        names.remove(group)  # of the same millisecond as others
        assert names == [keys.direct("bob", user) for user in (*users[1::-1], *users[:1:-1])]
        assert len(told[0]["conversations"]) == 4
        assert len(bob.of("message")) == 14


async def test_new_device_begins_a_hundred_events_back_without_a_gap(valkey: EmbeddedValkey) -> None:
    """It begins at the read mark if that is earlier. The next connect begins at the acked event."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        said = [await of.say("ann", group, i) for i in range(130)]
        await reply_of(of.node.users.read, "bob", group, said[119].seq, 120)
        bob = await of.client("bob").connected()
        assert bob.bodies(group) == list(range(30, 130))
        await reply_of(of.node.users.ack, "bob", "phone", bob.session.id, {group: said[125].seq})
        bob.end()
        again = await of.client("bob").connected()
        assert again.bodies(group) == list(range(126, 130))
        assert bob.of("gap") == again.of("gap") == []
        (state,) = again.of("welcome")[0]["conversations"]
        assert (state["cursor"], state["read"], state["unread"]) == (said[125].seq, said[119].seq, 10)


async def test_device_without_an_answer_about_its_start_stays_new(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next connect asks again; else the device would begin at the first event of the log for ever."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        said = [await of.say("ann", group, i) for i in range(130)]
        await reply_of(of.node.users.read, "bob", group, said[119].seq, 120)
        openings = of.node.conversations.openings
        monkeypatch.setattr(of.node.conversations, "openings", lambda _, wanted, reply: reply([None] * len(wanted)))
        bob = of.client("bob")
        await bob.hello()
        bob.end()
        monkeypatch.setattr(of.node.conversations, "openings", openings)
        again = await of.client("bob").connected()
        assert again.bodies(group) == list(range(30, 130))


async def test_early_read_mark_takes_a_new_device_further_back(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        said = [await of.say("ann", group, i) for i in range(130)]
        await reply_of(of.node.users.read, "bob", group, said[9].seq, 10)
        bob = await of.client("bob").connected()
        assert bob.bodies(group) == list(range(10, 130))


async def test_cursors_of_hello_replace_the_stored_cursors(valkey: EmbeddedValkey) -> None:
    """Downwards, too: a client that lost its storage receives the events again."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        said = [await of.say("ann", direct, i) for i in range(6)]
        bob = await of.client("bob").connected()
        await reply_of(of.node.users.ack, "bob", "phone", bob.session.id, {direct: said[5].seq})
        bob.end()
        down = await of.client("bob").connected(cursors={direct: said[1].seq})
        assert down.bodies(direct) == [2, 3, 4, 5]
        down.end()
        up = await of.client("bob").connected(cursors={direct: said[4].seq, "d:cid:dan": 7})
        assert up.bodies(direct) == [5]
        assert await of.redis.fetch("HEXISTS", keys.cursor("bob", "phone"), "d:cid:dan") == 0


async def test_channel_begins_near_its_end_for_every_device(valkey: EmbeddedValkey) -> None:
    """Its history is public and long: a known device, too, begins a hundred events back."""
    async with world(valkey) as of:
        channel = await of.group("ann", kind=keys.CHANNEL)
        for i in range(120):
            await of.say("ann", channel, i)
        bob = await of.client("bob").connected()
        await of.put(channel, "bob", "r")
        await bob.event("member", user="bob", action="add")
        assert bob.bodies(channel) == list(range(21, 120))


async def test_deleted_group_is_not_listed(valkey: EmbeddedValkey) -> None:
    """Its row may be kept a while longer."""
    async with world(valkey) as of:
        group, other = await of.group("ann", "bob"), await of.group("ann", "bob")
        await of.node.conversations.remove_conversation(group, None)
        bob = of.client("bob")
        welcome = await bob.hello()
        assert [state["conversation"] for state in welcome["conversations"]] == [other]
        await support.eventually(lambda: set(of.node.subscriptions.hubs) == {other})


async def test_name_without_a_row_is_left_out_of_the_list(valkey: EmbeddedValkey) -> None:
    """The welcome contains the other conversations."""
    async with world(valkey) as of:
        lost, whole = await of.direct("bob", "ann"), await of.direct("bob", "cid")
        for user, conv in (("ann", lost), ("cid", whole)):
            await of.say(user, conv)
        await of.redis.fetch("HDEL", keys.convs("bob"), lost)
        welcome = await of.client("bob").hello()
        assert [state["conversation"] for state in welcome["conversations"]] == [whole]


async def test_entries_contain_the_role_of_the_user(valkey: EmbeddedValkey) -> None:
    """In `welcome`, with the present role, and in the entry of a group that the user enters."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.put(group, "bob", "r")
        channel = await of.group("bob", "ann", kind=keys.CHANNEL)
        bob = of.client("bob")
        entries = (await bob.hello())["conversations"]
        assert {entry["conversation"]: entry["role"] for entry in entries} == {group: "reader", channel: "owner"}
        late = await of.group("ann")
        await of.put(late, "bob", "a")
        told = await bob.until(lambda: [e for event in bob.of("conversations") for e in event["conversations"]])
        assert [(entry["conversation"], entry["role"]) for entry in told] == [(late, "admin")]
        assert not bob.session.roles


async def test_entries_contain_who_may_post_and_the_mute_of_the_user(valkey: EmbeddedValkey) -> None:
    """In `welcome`, and in the entry of a channel that the user enters. A mute that is over is left out; mutes are only
    looked up where some user may be muted."""
    async with world(valkey) as of:
        store, moderation = of.node.conversations, Moderation(of.redis, 1000)
        await of.people("ann", "bob", "cid")
        quiet, loud, ended = [await of.group("ann", "bob", "cid") for _ in range(3)]
        await store.title(loud, "ann", None, rules=RulesChange(posting="admins"))
        now = await store.clock_ms(loud)

        async def mute(conv: str, until: int) -> None:
            act = Act(conversation=conv, actor=None, by="", user="bob", until=until)
            await moderation.restrain(act, "mute")

        await mute(loud, now + 3_600_000)
        await mute(ended, 0)
        await of.redis.fetch("HSET", keys.conversation(ended), "x:bob", f"m {now - 1}")
        for user, expected in (("bob", now + 3_600_000), ("cid", None)):
            entries = {one["conversation"]: one for one in (await of.client(user).hello())["conversations"]}
            assert {conv: one["posting"] for conv, one in entries.items()} == {
                quiet: "all",
                loud: "admins",
                ended: "all",
            }
            assert [entries[conv].get("muted_until") for conv in (quiet, loud, ended)] == [None, expected, None]
            assert [conv for conv, one in entries.items() if "muted_until" in one] == ([loud] if expected else [])
        dan = of.client("dan")
        await of.people("dan")
        await dan.hello()
        await moderation.restrain(Act(conversation=loud, actor=None, by="", user="dan"), "mute")
        await of.put(loud, "dan")
        told = await dan.until(lambda: [e for event in dan.of("conversations") for e in event["conversations"]])
        assert [(one["role"], one["posting"], one["muted_until"]) for one in told] == [("member", "admins", None)]
        assert not dan.session.mutes


async def test_hub_knows_of_mutes_and_posting_from_events(valkey: EmbeddedValkey) -> None:
    """A hub that exists learns both from the log, so the next session here gets entries as they are now."""
    async with world(valkey) as of:
        store = of.node.conversations
        await of.people("ann", "bob")
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        act = Act(conversation=group, actor="ann", by="ann", user="bob")
        await Moderation(of.redis, 1000).restrain(act, "mute")
        await store.title(group, "ann", None, rules=RulesChange(posting="admins"))
        await ann.event("title")
        (entry,) = (await of.client("bob").hello())["conversations"]
        assert (entry["role"], entry["posting"], entry["muted_until"]) == ("member", "admins", None)


@pytest.mark.parametrize(("row_format", "calls"), [(keys.ROWS_1, 1), (keys.ROWS_2, 0)])
async def test_known_device_asks_for_roles_only_if_its_rows_have_none(
    valkey: EmbeddedValkey, row_format: int, calls: int
) -> None:
    """In one call for all; rows of format 2 have them."""
    async with world(valkey) as of:
        of.redis.row_format = row_format
        groups = [await of.group("ann", "bob") for _ in range(3)]
        await of.put(groups[0], "bob", "a")
        (await of.client("bob").connected()).end()
        asked = of.node.client.statistics().functions["starts"]
        entries = (await of.client("bob").hello())["conversations"]
        roles = dict.fromkeys(groups, "member") | {groups[0]: "admin"}
        assert {entry["conversation"]: entry["role"] for entry in entries} == roles
        assert of.node.client.statistics().functions["starts"] - asked == calls


@pytest.mark.parametrize("step", ["_page", "_find_gone", "_send"])
async def test_session_whose_older_conversations_cannot_be_listed_ends(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    async with world(valkey) as of:
        question = of.node.syncs.question
        monkeypatch.setattr(of.node.syncs, "question", lambda session: replace(question(session), limit=1))
        for user in ("ann", "carl", "dora"):
            await of.direct(user, "bob")
            await of.say(user, keys.direct(user, "bob"))
        monkeypatch.setattr(of.node.conversation_list, step, fails)
        bob = of.client("bob")
        await bob.hello()
        assert await bob.closed() == (errors.CLOSE_INTERNAL, "internal")
