"""Mutes, bans and rules of groups and channels: whom they refuse, what they outlast, and when they end."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import BadCommand, Forbidden, NotFound, RateLimited, ReadOnly, Unavailable
from router.store.audit import Audit, Entry, Page
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.moderation import Act, Moderation, Restraint
from router.store.openings import Wanted
from router.store.rules import RulesChange
from tests.store.calling import Store, called, event, store
from tests.store.clock import SteppedClock, stepped

DAY_MS = 86_400_000


def act(conv: str, actor: str | None, user: str, **more: Any) -> Act:
    return Act(conversation=conv, actor=actor, by=actor or "", user=user, **more)


async def restrain(s: Store, conv: str, actor: str | None, user: str, action: Restraint, **more: Any) -> bool:
    return await Moderation(s.client, 20_000).restrain(act(conv, actor, user, **more), action)


async def ban(s: Store, conv: str, actor: str | None, user: str, **more: Any) -> int:
    return (await Moderation(s.client, 20_000).ban(act(conv, actor, user, **more))).seq


async def audited(s: Store, conv: str) -> list[Entry]:
    """The audit's entries, after a router has moved those of the conversation."""
    audit = Audit(s.client)
    await audit.move(conv)
    page = await later(audit)
    assert (page.more, page.missing) == (False, 0)
    return page.entries


async def later(audit: Audit) -> Page:
    """A page that begins in a later millisecond than now: the present one may get further entries."""
    now = await audit._client.clock_ms()
    while await audit._client.clock_ms() <= now + 1:
        pass
    return await audit.page("0", 100)


@asynccontextmanager
async def stepped_store(valkey: EmbeddedValkey, folder: Path) -> AsyncIterator[tuple[Store, SteppedClock]]:
    async with stepped(valkey, folder) as clock:
        yield Store(clock.client, Conversations(clock.client, 20_000), Dirty(clock.client)), clock


# -- mutes


async def test_mute_refuses_send_edit_and_react_but_not_delete(valkey: EmbeddedValkey) -> None:
    """Nor a resend of what was accepted, nor a backend's message in the user's name."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        own = (await s.send(conv, "bob", 1)).seq
        assert await restrain(s, conv, "ann", "bob", "mute", reason="spam")
        for n, action in enumerate(("message", "edit", "react"), 2):
            target = 0 if action == "message" else own
            with pytest.raises(ReadOnly) as refused:
                await s.send(conv, "bob", n, action=action, target=target)
            assert refused.value.retry_after is None
        with pytest.raises(ReadOnly):
            await called(lambda reply: s.conversations.whisper(conv, "bob", b"signal", reply, types=True))
        assert await called(lambda reply: s.conversations.whisper(conv, "bob", b"signal", reply)) == 2
        assert (await s.send(conv, "bob", 1)).duplicate
        assert (await s.send(conv, "bob", server=True)).written
        assert (await s.send(conv, "bob", 9, action="delete", target=own)).written
        muted = next(one for one in await s.log(conv) if one.get("action") == "mute")
        assert (muted["from"], muted["user"], muted["role"], muted["until"]) == ("ann", "bob", None, None)
        assert "reason" not in muted
        assert await restrain(s, conv, "ann", "bob", "unmute")
        assert not await restrain(s, conv, "ann", "bob", "unmute")
        assert (await s.send(conv, "bob", 10)).written


async def test_mute_outlasts_leaving_coming_back_and_a_new_role(valkey: EmbeddedValkey) -> None:
    """The role that others see is the user's own; a mute of an admin takes no right but to write."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", cem="m")
        member = s.conversations.member
        await restrain(s, conv, "ann", "bob", "mute")
        assert (await s.conversations.describe(conv, "bob")).role == "m"
        await member(conv, "bob", "bob", "remove")
        assert (await member(conv, "ann", "bob", "put")).role == "m"
        with pytest.raises(ReadOnly):
            await s.send(conv, "bob", 1)
        assert (await member(conv, "ann", "bob", "put", "a")).action == "role"
        with pytest.raises(ReadOnly):
            await s.send(conv, "bob", 1)
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o", "bob": "a", "cem": "m"}
        assert await called(s.conversations.openings, "bob", [Wanted(conv, None)])
        assert (await member(conv, "bob", "cem", "put", "r")).role == "r"
        await s.conversations.title(conv, "bob", "by an admin")
        await member(conv, "ann", "ann", "put", "o")
        await restrain(s, conv, "ann", "bob", "unmute")
        assert (await s.send(conv, "bob", 1)).written
        assert (await s.conversations.describe(conv, "bob")).role == "a"


async def test_mute_of_a_user_who_is_no_member_holds_when_they_are_added(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        conv = await s.group("c", ann="o")
        await restrain(s, conv, "ann", "eve", "mute")
        assert (await s.conversations.member(conv, None, "eve", "join")).role == "r"
        await s.conversations.member(conv, "ann", "eve", "put", "m")
        with pytest.raises(ReadOnly, match="muted"):
            await s.send(conv, "eve", 1)
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o", "eve": "m"}


async def test_reader_whom_an_earlier_release_adds_over_a_mute_stays_a_reader(valkey: EmbeddedValkey) -> None:
    """In a rolling upgrade, a router without mutes writes the member's row alone. Lifting the mute changes no role."""
    async with store(valkey.url) as s:
        conv = await s.group("c", ann="o")
        await restrain(s, conv, "ann", "eve", "mute")
        await s.conversations.member(conv, None, "eve", "join")
        await s.client.fetch("HSET", keys.conversation(conv), "x:eve", "- 0")
        assert (await s.conversations.describe(conv, "eve")).role == "r"
        assert await restrain(s, conv, "ann", "eve", "unmute")
        assert (await s.conversations.members.page(conv)).roles == {"ann": "o", "eve": "r"}
        with pytest.raises(ReadOnly, match="readers"):
            await s.send(conv, "eve", 1)


async def test_muted_admin_becomes_owner_after_the_last_one(valkey: EmbeddedValkey) -> None:
    """The heir is found by the roles that members have apart from mutes."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", cem="a")
        await restrain(s, conv, "ann", "cem", "mute")
        assert await s.conversations.members.heir(conv, "ann") == "cem"


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_mute_and_ban_end_by_the_clock_of_redis(valkey: EmbeddedValkey, tmp_path: Path, step: int) -> None:
    """Whatever the clock of the process says. The time until then is in the refusal; the role is the user's again."""
    async with stepped_store(valkey, tmp_path) as (s, clock):
        await clock.step(step)
        conv = await s.group(ann="o", bob="a", cem="m")
        until = await clock.now_ms() + 60_000
        await restrain(s, conv, "ann", "bob", "mute", until=until)
        assert await ban(s, conv, "ann", "cem", until=until) > 0
        with pytest.raises(ReadOnly) as refused:
            await s.send(conv, "bob", 1)
        assert 0 < (refused.value.retry_after or 0) <= 60
        with pytest.raises(Forbidden):
            await s.conversations.member(conv, "ann", "cem", "put")
        await clock.step(61)
        assert (await s.send(conv, "bob", 1)).written
        assert (await s.conversations.member(conv, "bob", "cem", "put")).action == "add"
        assert (await s.conversations.member(conv, "ann", "bob", "put", "m")).role == "m"
        assert await s.client.fetch("HGET", keys.conversation(conv), "u:bob") == b"m 0 0"


# -- bans


async def test_ban_removes_a_member_and_keeps_everybody_from_adding_them(valkey: EmbeddedValkey) -> None:
    """The server, too. The user who was no member gets no event. Lifting a ban makes nobody a member."""
    async with store(valkey.url) as s:
        conv = await s.group("c", ann="o", bob="m")
        member = s.conversations.member
        assert await ban(s, conv, "ann", "bob", reason="spam") > 0
        removal = (await s.log(conv))[-1]
        assert (removal["action"], removal["user"], removal["banned"]) == ("remove", "bob", True)
        assert (removal["until"], "reason" in removal) == (None, False)
        for actor in ("ann", None):
            with pytest.raises(Forbidden):
                await member(conv, actor, "bob", "put")
        with pytest.raises(Forbidden):
            await member(conv, None, "bob", "join")
        events = len(await s.log(conv))
        assert await ban(s, conv, "ann", "eve", until=1 << 50) == 0
        assert len(await s.log(conv)) == events
        bans, cursor = await Moderation(s.client, 20_000).bans(conv)
        assert sorted((one.user, one.until, one.by, one.reason) for one in bans) == [
            ("bob", 0, "ann", "spam"),
            ("eve", 1 << 50, "ann", ""),
        ]
        assert cursor == 0
        assert await restrain(s, conv, "ann", "bob", "unban")
        assert not await restrain(s, conv, "ann", "bob", "unban")
        assert (await s.conversations.describe(conv, None)).size == 1
        assert (await member(conv, None, "bob", "join")).action == "add"


async def test_members_are_restrained_by_those_who_may_remove_them(valkey: EmbeddedValkey) -> None:
    """Admins: members and readers; owners: also admins; the server: all; never oneself, never in a direct one."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", adm="a", ad2="a", mem="m", rea="r")
        for actor, user, allowed in (
            ("ann", "adm", True),
            ("adm", "mem", True),
            ("adm", "rea", True),
            ("adm", "ad2", False),
            ("adm", "ann", False),
            ("mem", "rea", False),
            ("mem", "mem", False),
            ("ann", "ann", False),
            (None, "ann", True),
            ("adm", "eve", True),
        ):
            if allowed:
                assert await restrain(s, conv, actor, user, "mute")
                assert await restrain(s, conv, actor, user, "unmute")
                continue
            with pytest.raises(ReadOnly):
                await restrain(s, conv, actor, user, "mute")
            with pytest.raises(ReadOnly):
                await ban(s, conv, actor, user)
        with pytest.raises(NotFound):
            await restrain(s, conv, "eve", "mem", "mute")
        with pytest.raises(NotFound):
            await restrain(s, keys.new_conversation("g"), "eve", "mem", "mute")
        await called(s.conversations.create_direct, "ann", "bob", 1, 1_000_000)
        with pytest.raises(ReadOnly):
            await restrain(s, keys.direct("ann", "bob"), None, "bob", "mute")


async def test_end_that_has_passed_is_refused(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        past = await s.client.clock_ms() - 1
        with pytest.raises(BadCommand):
            await restrain(s, conv, "ann", "bob", "mute", until=past)
        with pytest.raises(BadCommand):
            await ban(s, conv, "ann", "bob", until=past)
        assert (await s.send(conv, "bob", 1)).written


# -- rules


async def test_posting_by_admins_only_refuses_send_and_edit_of_members(valkey: EmbeddedValkey) -> None:
    """Not reactions and deletes. The event of the change has what changed and the unchanged title."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        own = (await s.send(conv, "bob", 1)).seq
        await s.conversations.title(conv, "ann", None, rules=RulesChange(posting="admins"))
        changed = (await s.log(conv))[-1]
        assert (changed["title"], changed["posting"], "slow_s" in changed) == ("a title", "admins", False)
        for n, action in enumerate(("message", "edit"), 2):
            with pytest.raises(ReadOnly):
                await s.send(conv, "bob", n, action=action, target=0 if action == "message" else own)
        assert (await s.send(conv, "bob", 4, action="react", target=own, emoji="x")).written
        assert (await s.send(conv, "ann", 1)).written
        assert (await s.send(conv, "bob", server=True)).written
        assert (await s.conversations.describe(conv, "bob")).rules.posting == "admins"
        await s.conversations.title(conv, "ann", None, rules=RulesChange(posting="all"))
        assert (await s.send(conv, "bob", 5)).written
        assert await s.client.fetch("HEXISTS", keys.conversation(conv), "rules") == 0
        with pytest.raises(ReadOnly):
            await s.conversations.title(conv, "bob", None, rules=RulesChange(slow_s=1))


async def test_adding_by_all_lets_members_add_members_and_readers(valkey: EmbeddedValkey) -> None:
    """Members may add no admins and remove nobody; readers may add nobody."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", rea="r")
        member = s.conversations.member
        with pytest.raises(ReadOnly):
            await member(conv, "bob", "cem", "put")
        await s.conversations.title(conv, "ann", None, rules=RulesChange(adding="all"))
        assert (await member(conv, "bob", "cem", "put")).action == "add"
        assert (await member(conv, "bob", "dan", "put", "r")).action == "add"
        for user, action, role in (("eve", "put", "a"), ("dan", "put", "m"), ("cem", "remove", "m")):
            with pytest.raises(ReadOnly):
                await member(conv, "bob", user, action, role)  # type: ignore[arg-type]
        with pytest.raises(ReadOnly):
            await member(conv, "rea", "eve", "put")


async def test_slow_mode_is_one_window_for_all_devices_of_a_user(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """It outlasts leaving and coming back. Edits are free; so are owners; a resend is acked. A clock that was put back
    locks no user out."""
    async with stepped_store(valkey, tmp_path) as (s, clock):
        conv = await s.group(ann="o", bob="m")
        own = (await s.send(conv, "bob", 1)).seq
        await s.conversations.title(conv, "ann", None, rules=RulesChange(slow_s=60))
        first = await s.send(conv, "bob", 2, device="phone")
        for device in ("phone", "tablet", "laptop"):
            with pytest.raises(RateLimited) as refused:
                await s.send(conv, "bob", 3, device=device)
            assert 50 < (refused.value.retry_after or 0) <= 60
        assert (await s.send(conv, "bob", 2, device="phone")).seq == first.seq
        assert (await s.send(conv, "bob", 4, action="edit", target=own)).written
        assert (await s.send(conv, "ann", 1)).written
        assert (await s.send(conv, "ann", 2)).written
        await s.conversations.member(conv, "bob", "bob", "remove")
        await s.conversations.member(conv, "ann", "bob", "put")
        with pytest.raises(RateLimited):
            await s.send(conv, "bob", 5)
        await clock.step(61)
        assert (await s.send(conv, "bob", 5)).written
        await clock.step(-3600)
        assert (await s.send(conv, "bob", 6)).written


async def test_conversation_without_rules_and_mutes_has_no_further_command(valkey: EmbeddedValkey) -> None:
    """A message of a member makes the same calls as before; of a muted group, only the muted user's makes one more."""

    async def commands(s: Store, user: str, n: int) -> dict[str, int]:
        await s.client.fetch("CONFIG", "RESETSTAT")
        await s.send(conv, user, n)
        found = (await s.client.fetch("INFO", "commandstats")).decode()
        return {
            line.split("_", 1)[1].split(":")[0]: int(line.split("calls=")[1].split(",")[0])
            for line in found.splitlines()
            if line.startswith("cmdstat_h")
        }

    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", cem="m")
        for n in range(1, 4):
            await s.send(conv, "bob", n)
        plain = await commands(s, "bob", 4)
        assert plain == {"hmget": 1, "hset": 1}
        await restrain(s, conv, "ann", "cem", "mute")
        assert await commands(s, "bob", 5) == plain
        await s.conversations.title(conv, "ann", None, rules=RulesChange(slow_s=1))
        assert await commands(s, "ann", 1) | {"hget": 0} == plain | {
            "hset": 2,
            "hget": 0,
        }  # a first event notes its device
        assert await commands(s, "ann", 2) == plain


# -- the audit


async def test_every_act_is_in_the_audit_once(valkey: EmbeddedValkey) -> None:
    """Also one without an event, and the delete of another user's message; one's own delete is none."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        first, second, third = [(await s.send(conv, "bob", n)).seq for n in (1, 2, 3)]
        await restrain(s, conv, "ann", "bob", "mute", reason="spam")
        await restrain(s, conv, None, "bob", "unmute")
        await ban(s, conv, "ann", "eve", reason="seen before")
        await restrain(s, conv, "ann", "eve", "unban")
        await s.send(conv, "bob", 4, action="delete", target=first)
        await s.send(conv, "ann", 1, action="delete", target=second)
        moderated = event(conv, "", 1, action="delete", target=third, server=True)
        await called(s.conversations.append_moderation, moderated, "mod")
        done = await s.dirty.mark_routed(conv, 1 << 52, 1000, DAY_MS)
        assert done.routed == done.head
        assert await s.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), conv)  # the acts are still to be moved
        found = await audited(s, conv)
        assert [(one.action, one.actor, one.user, one.seq, one.reason) for one in found] == [
            ("mute", "ann", "bob", 0, "spam"),
            ("unmute", "", "bob", 0, ""),
            ("ban", "ann", "eve", 0, "seen before"),
            ("unban", "ann", "eve", 0, ""),
            ("message_deleted", "ann", "bob", second, ""),
            ("message_deleted", "mod", "bob", third, ""),
        ]
        assert {one.conversation for one in found} == {conv}
        assert await audited(s, conv) == found
        await s.dirty.mark_routed(conv, 1 << 52, 1000, DAY_MS)
        assert not await s.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), conv)


async def test_audit_is_read_in_pages_over_all_partitions(valkey: EmbeddedValkey) -> None:
    """Pages of any size together have every entry once, in the order of their times."""
    async with store(valkey.url) as s:
        for _ in range(5):
            conv = await s.group(ann="o", bob="m")
            await restrain(s, conv, "ann", "bob", "mute")
            await restrain(s, conv, "ann", "bob", "unmute")
            whole = await audited(s, conv)
        assert len(whole) == 10
        for size in (1, 3):
            paged, after, more = [], "0", True
            while more:
                page = await Audit(s.client).page(after, size)
                paged += page.entries
                after, more = paged[-1].id, page.more
            assert paged == whole
        for wrong in ("x", "1.2", "1.2.x", "-1.2.3", f"{'9' * 20}.1.1"):
            with pytest.raises(BadCommand):
                await Audit(s.client).page(wrong, 1)


async def test_acts_that_no_router_moves_are_bounded(valkey: EmbeddedValkey) -> None:
    """Further ones are `unavailable` until a router has moved them; members write all the same."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        await s.client.fetch("HSET", keys.conversation(conv), "acts", b"\0" * 65_537)
        with pytest.raises(Unavailable):
            await restrain(s, conv, "ann", "bob", "mute")
        with pytest.raises(Unavailable):
            await ban(s, conv, "ann", "bob")
        seq = (await s.send(conv, "bob", 1)).seq
        with pytest.raises(Unavailable):
            await s.send(conv, "ann", 1, action="delete", target=seq)
        assert (await s.send(conv, "bob", 2, action="delete", target=seq)).written
