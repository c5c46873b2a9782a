"""`sync`: the session of a device, and the rows that have changed."""

from functools import partial
from itertools import count

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import Blocked, RateLimited, Unavailable
from router.store.accounts import Accounts
from router.store.redis.client import Client
from router.store.rows import Row
from router.store.sync import Sync, Synced
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import Channel, connected, now
from tests.support import eventually


def session(name: str, started: int, **more: object) -> Sync:
    given: dict[str, object] = {"user": "ann", "device": "phone", "node": "node-1", **more}
    return msgspec.convert({"session": name, "started": started, **given}, Sync)


async def register(users: Users, who: Sync) -> Synced:
    synced: Synced = await called(users.sync, msgspec.structs.replace(who, register=True))
    return synced


async def crowd(users: Users, who: Sync, *living: str) -> Synced:
    """Register a device beyond the places, as a gateway does that knows these gateways to be alive."""
    first = await register(users, who)
    assert first.status == "crowded"
    return await register(users, msgspec.structs.replace(who, living=living, devices=first.devices))


async def audit(users: Users, who: Sync, since: bytes = b"", limit: int = 200) -> Synced:
    synced: Synced = await called(users.sync, msgspec.structs.replace(who, since=since, limit=limit))
    return synced


async def of_ann(client: Client) -> Users:
    await Accounts(client).ensure("ann")
    return Users(client)


async def message(users: Users, other: str, seq: int) -> str:
    """A direct message from `other` to ann."""
    conv = keys.direct("ann", other)
    await called(users.deliver, "ann", conv, other, seq, seq, b"\x81", False, 0)
    return conv


def names(rows: list[Row]) -> list[str]:
    return [row.conversation for row in rows]


# -- whose session it is


@pytest.mark.parametrize("slow", [False, True])
async def test_older_session_cannot_replace_a_newer_one(valkey: EmbeddedValkey, slow: bool) -> None:
    """Of two sessions of a device the one that started later is kept, in any order of their registering."""
    async with connected(valkey) as client:
        users = Users(client)
        older, later = session("s-older", 10), session("s-later", 20)
        first = [await register(users, who) for who in ((later, older) if slow else (older, later))]
        assert [synced.status for synced in first] == (["ok", "replaced"] if slow else ["ok", "ok"])
        assert (await audit(users, older)).status == "replaced"
        assert (await audit(users, later)).status == "ok"


async def test_session_that_may_have_started_later_by_another_clock_is_to_try_again(valkey: EmbeddedValkey) -> None:
    """The clock of its gateway is a little behind that of the gateway where the device was before."""
    async with connected(valkey) as client:
        users = Users(client)
        before = session("s-before", 10_000)
        await register(users, before)
        with pytest.raises(Unavailable) as refused:
            await register(users, session("s-again", 9_900, node="node-2"))
        assert refused.value.retry_after == 1.0
        assert (await audit(users, before)).status == "ok"
        assert (await register(users, session("s-late", 8_900, node="node-2"))).status == "replaced"
        assert (await register(users, session("s-retried", 10_900, node="node-2"))).status == "ok"


@pytest.mark.parametrize("swapped", [False, True])
async def test_sessions_with_equal_starts_have_a_fixed_winner(valkey: EmbeddedValkey, swapped: bool) -> None:
    """The same one is kept in either order, so they never replace each other in turn."""
    async with connected(valkey) as client:
        users = Users(client)
        one, two = session("s-1", 10), session("s-2", 10)
        for who in (two, one) if swapped else (one, two):
            await register(users, who)
        assert [(await audit(users, who)).status for who in (one, two, one)] == ["replaced", "ok", "replaced"]


async def test_ended_session_does_not_refuse_the_next_one(valkey: EmbeddedValkey) -> None:
    """After the later session has ended, a gateway whose clock is behind can register the device's next one."""
    async with connected(valkey) as client:
        users = Users(client)
        ahead, behind = session("s-ahead", 5_000), session("s-behind", 1_000, node="node-2")
        await register(users, ahead)
        await called(users.mark_away, "ann", "phone", "s-ahead")
        assert (await audit(users, behind)).status == "replaced"  # but an old one does not come back by itself
        assert (await register(users, behind)).status == "ok"
        assert (await audit(users, behind)).status == "ok"


async def test_registering_twice_is_registering_once(valkey: EmbeddedValkey) -> None:
    """A registering that is repeated after a lost reply replaces no session."""
    async with connected(valkey) as client:
        users = Users(client)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            await register(users, session("s", 10))
            assert (await register(users, session("s", 10))).status == "ok"
        assert channel.heard == []


async def test_replaced_session_is_notified(valkey: EmbeddedValkey) -> None:
    """Its gateway gets `Taken` with the successor's instance; watchers of the user read the presence again."""
    async with connected(valkey) as client:
        users = Users(client)
        await register(users, session("s-1", 10, instance="tab"))
        with (
            Channel(valkey, keys.Channels().user("ann")) as user,
            Channel(valkey, keys.Channels().presence("ann")) as presence,
        ):
            await register(users, session("s-2", 20, instance="tab-2"))
        assert [signals.decode(payload) for payload in user.heard] == [signals.Taken("phone", "s-2", "tab-2")]
        assert [signals.decode(payload) for payload in presence.heard] == [signals.Touched("ann")]


@pytest.mark.parametrize("device", ["phone", None])
@pytest.mark.parametrize("known", [True, False])
async def test_kick_ends_a_session_that_registers_late(valkey: EmbeddedValkey, device: str | None, known: bool) -> None:
    """A session that started before the kick never registers, however late; one that starts after it does."""
    async with connected(valkey) as client:
        at = await now(client)
        users, accounts = Users(client), Accounts(client)
        await accounts.ensure("ann")
        if known:
            await register(users, session("s-first", at - 2_000))
        await users.kick("ann", device)
        assert (await register(users, session("s-slow", at - 1_000))).status == "kicked"
        assert (await register(users, session("s-next", at + 60_000))).status == "ok"
        assert (await register(users, session("s-slow", at - 1_000))).status == "kicked"


@pytest.mark.parametrize("device", ["phone", None])
async def test_kick_ends_the_registered_session(valkey: EmbeddedValkey, device: str | None) -> None:
    """The next audit returns it, and a signal starts that audit, also if the gateway's clock is ahead."""
    async with connected(valkey) as client:
        at = await now(client)
        users = Users(client)
        ahead = session("s", at + 3_600_000)
        await register(users, ahead)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            await users.kick("ann", device)
        assert [signals.decode(payload) for payload in channel.heard] == [signals.Kick(device or "")]
        assert (await audit(users, ahead)).status == "kicked"


async def test_kick_of_one_device_leaves_the_others(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        at = await now(client)
        users = Users(client)
        phone, desk = session("s-1", at - 1_000), session("s-2", at - 1_000, device="desk")
        await register(users, phone)
        await register(users, desk)
        await users.kick("ann", "phone")
        assert (await audit(users, phone)).status == "kicked"
        assert (await audit(users, desk)).status == "ok"


async def test_kick_of_an_unknown_user_creates_no_user(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        await Users(client).kick("nobody")
        assert await client.fetch("KEYS", "*nobody*") == []


async def test_audit_registers_a_lost_session_again(valkey: EmbeddedValkey) -> None:
    """A failover may lose device rows, or restore older ones: the live session writes its own row again."""
    async with connected(valkey) as client:
        users = Users(client)
        old, live = session("s-old", 10), session("s-live", 20)
        await register(users, old)
        rolled_back = await client.fetch("HGET", keys.devices("ann"), "phone")
        await register(users, live)
        await client.fetch("HSET", keys.devices("ann"), "phone", rolled_back)
        assert (await audit(users, live)).status == "ok"
        assert (await audit(users, old)).status == "replaced"
        await client.fetch("DEL", keys.devices("ann"), keys.user("ann"))
        assert (await audit(users, live)).status == "ok"
        assert (await audit(users, old)).status == "replaced"
        assert await called(users.exists, "ann")


async def test_seventeenth_device_evicts_the_oldest_if_all_are_online(valkey: EmbeddedValkey) -> None:
    """Sixteen devices have rows; one more evicts the one that started first, its cursors too, and tells its session.

    That only happens once the caller has said which gateways live: until then no session is ended.
    """
    async with connected(valkey) as client:
        users = Users(client)
        devices = [session(f"s-{i}", 100 + i, device=f"device-{i}") for i in range(16)]
        for who in devices:
            await register(users, who)
        await called(users.ack, "ann", "device-0", "s-0", {"d:ann:bob": 5})
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert (await register(users, session("s-16", 116, device="device-16"))).status == "crowded"
            assert (await audit(users, devices[0])).status == "ok"
            assert (await crowd(users, session("s-16", 116, device="device-16"), "node-1")).status == "ok"
        assert [signals.decode(payload) for payload in channel.heard] == [signals.Taken("device-0", "s-16", "")]
        assert await client.fetch("HLEN", keys.devices("ann")) == 16
        assert not await client.fetch("EXISTS", keys.cursor("ann", "device-0"))
        assert (await audit(users, devices[0])).status == "evicted"
        assert (await audit(users, devices[1])).status == "ok"


async def test_seventeenth_device_evicts_an_ended_session_first(valkey: EmbeddedValkey) -> None:
    """The one that was seen longest ago; sessions on a dead gateway count as ended, too."""
    async with connected(valkey) as client:
        users = Users(client)
        devices = [session(f"s-{i}", 100 + i, device=f"device-{i}", node=f"node-{i}") for i in range(20)]
        for who in devices[:16]:
            await register(users, who)
        for i in (9, 5):
            await called(users.mark_away, "ann", f"device-{i}", f"s-{i}")
        living = tuple(f"node-{i}" for i in range(20))
        for who in devices[16:18]:
            assert (await crowd(users, who, *living)).status == "ok"
        left = {name.decode() for name in await client.fetch("HKEYS", keys.devices("ann"))}
        assert left == {who.device for who in devices[:18]} - {"device-9", "device-5"}
        assert (await crowd(users, devices[18], *(node for node in living if node != "node-7"))).status == "ok"
        assert (await audit(users, devices[0])).status == "ok"
        assert (await audit(users, devices[7])).status == "evicted"


async def test_device_that_registers_meanwhile_is_not_evicted_with_its_cursors_left(valkey: EmbeddedValkey) -> None:
    """The caller named the devices before: it is answered the names of all, and asks again."""
    async with connected(valkey) as client:
        users = Users(client)
        for i in range(16):
            await register(users, session(f"s-{i}", 100 + i, device=f"device-{i}"))
        late = session("s-16", 116, device="device-16", living=("node-1",), devices=("device-1", "device-2"))
        again = await register(users, late)
        assert again.status == "crowded"
        assert sorted(again.devices) == sorted(f"device-{i}" for i in range(16))
        assert await client.fetch("HLEN", keys.devices("ann")) == 16
        assert (await register(users, msgspec.structs.replace(late, devices=again.devices))).status == "ok"


async def test_kick_remains_after_its_row_was_evicted(valkey: EmbeddedValkey) -> None:
    """An evicted device that was kicked is refused at a late registering and at an audit."""
    async with connected(valkey) as client:
        users = Users(client)
        devices = [session(f"s-{i}", 100 + i, device=f"device-{i}") for i in range(17)]
        for who in devices[:16]:
            await register(users, who)
        await users.kick("ann", "device-0")
        assert (await crowd(users, devices[16], "node-1")).status == "ok"
        assert (await register(users, devices[0])).status == "kicked"
        assert (await audit(users, devices[0])).status == "kicked"
        assert (await audit(users, devices[1])).status == "ok"


async def test_deleted_user_registers_no_session(valkey: EmbeddedValkey) -> None:
    """Neither a new session nor a live one: its audit does not restore the user."""
    async with connected(valkey) as client:
        users, accounts = Users(client), Accounts(client)
        await register(users, session("s", 10))
        await accounts.delete("ann")
        with pytest.raises(Blocked):
            await audit(users, session("s", 10))
        with pytest.raises(Blocked):
            await register(users, session("s-2", 20))
        assert not await called(users.exists, "ann")


async def test_connects_of_one_user_have_a_rate(valkey: EmbeddedValkey) -> None:
    """Thirty at once, then one a second; the error says when to retry, and audits go on."""
    async with connected(valkey) as client:
        users = Users(client)
        for i in range(30):
            await register(users, session(f"s-{i}", i))
        with pytest.raises(RateLimited) as refused:
            await register(users, session("s-30", 30))
        assert 0 < (refused.value.retry_after or 0) <= 1
        assert (await audit(users, session("s-29", 29))).status == "ok"


async def test_registering_is_refused_near_maxmemory(valkey: EmbeddedValkey) -> None:
    """From 90 % on it is `unavailable`, while registered sessions are audited even if memory is full."""
    async with connected(valkey) as client:
        users = Users(client)
        await register(users, session("s", 10))
        names = (f"eve-{i}" for i in count())

        async def noticed() -> bool:
            """The server may free memory meanwhile, so the limit is set anew; a user may not register without end."""
            with valkey.client() as redis:
                redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.05))
            try:
                await register(users, session("s", 10, user=next(names)))
            except Unavailable:
                return True
            return False

        await eventually(noticed)
        with pytest.raises(Unavailable):
            await register(users, session("s-2", 20))
        await client.fetch("CONFIG", "SET", "maxmemory", "1mb")
        assert (await audit(users, session("s", 10))).status == "ok"
        await called(users.ack, "ann", "phone", "s", {"d:ann:bob": 5})


# -- what moved


async def test_since_is_unchanged_without_changes(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = Users(client)
        conv = await message(users, "bob", 1)
        assert conv
        first = await register(users, session("s", 10))
        again = await audit(users, session("s", 10), first.since)
        assert (again.rows, again.since, again.more) == ([], first.since, False)


async def test_since_never_skips_a_row_raised_while_pages_are_read(valkey: EmbeddedValkey) -> None:
    """Between pages, rows that were read and rows that were not are raised: each is read in its last state."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        others = [f"user-{i}" for i in range(9)]
        await Accounts(client).ensure("ann")
        since = (await register(users, who)).since
        for other in others:
            await message(users, other, 1)
        seen: dict[str, int] = {}
        heads = dict.fromkeys(others, 1)
        busy = [0, 8, 1, 0, 4]  # of those that were read and of those that were not
        more = True
        while more:
            page = await audit(users, who, since, limit=2)
            seen.update((row.title, row.head) for row in page.rows)
            since, more = page.since, page.more
            if busy:
                other = others[busy.pop()]
                heads[other] += 1
                await message(users, other, heads[other])
        assert seen == heads


async def test_registering_returns_the_newest_first_and_every_group_once(valkey: EmbeddedValkey) -> None:
    """`page` continues from there, and both together return each row exactly once."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10, limit=3)
        await Accounts(client).ensure("ann")
        groups = [keys.new_conversation(kind) for kind in "ggc"]
        await users.join("ann", groups[0], "old", 0, 0, 0, "m")
        await users.join("ann", groups[1], "left", 0, 0, 0, "m")
        await users.leave("ann", groups[1], 7)
        directs = [await message(users, f"user-{i}", 1) for i in range(5)]
        await users.join("ann", groups[2], "new", 0, 0, 0, "m")
        synced = await register(users, who)
        assert names(synced.rows) == [groups[2], directs[4], directs[3], groups[0]]
        assert synced.more
        rest = (await called(users.page, "ann", "phone", synced.below)).rows
        assert names(rest) == [directs[2], directs[1], directs[0], groups[1]]
        assert [row.left for row in rest] == [False, False, False, True]
        assert (await audit(users, who, synced.since)).rows == []


async def test_pages_end(valkey: EmbeddedValkey) -> None:
    """For any page size each row is returned once, newest first, and the last page has no `more`."""
    async with connected(valkey) as client:
        users = Users(client)
        await Accounts(client).ensure("ann")
        directs = [await message(users, f"user-{i}", 1) for i in range(7)]
        for limit in (1, 2, 7, 8):
            found: list[str] = []
            below, more = 2**53, True
            while more:
                page = await called(partial(users.page, limit=limit), "ann", "phone", below)
                found, below, more = found + names(page.rows), page.below, page.more
            assert found == directs[::-1]


async def test_row_is_raised_above_all_others_for_any_clock(valkey: EmbeddedValkey) -> None:
    """After the clock was put back, a raised row is still above all earlier ones."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        await register(users, who)
        first = await message(users, "bob", 1)
        await client.fetch("ZADD", keys.recent("ann"), await now(client) * 1000 + 3_600_000_000, first)
        await client.fetch("FUNCTION", "FLUSH")  # or they would know the score that they have written themselves
        await client.load()
        since = (await register(users, who)).since
        conv = await message(users, "eve", 1)
        assert names((await audit(users, who, since)).rows) == [conv]


async def test_rows_of_five_minutes_are_returned_again_on_another_server(valkey: EmbeddedValkey) -> None:
    """After a failover the clock may be behind, so rows up to five minutes before `since` are returned again."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        await register(users, who)
        at = await now(client) * 1000
        old, late = await message(users, "old", 1), await message(users, "late", 1)
        await client.fetch("ZADD", keys.recent("ann"), at - 301_000_000, old, at - 299_000_000, late)
        since = b"%s(%d" % (b"f" * 16, at)
        synced = await audit(users, who, since)
        assert names(synced.rows) == [late]
        assert synced.since[:16] != since[:16]
        assert (await audit(users, who, synced.since)).rows == []


async def test_since_is_five_minutes_back_on_a_server_without_rows(valkey: EmbeddedValkey) -> None:
    """A row that it raises next, by a clock that is behind, is not below the new `since`."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        await register(users, who)
        ahead = await now(client) * 1000 + 60_000_000
        synced = await audit(users, who, b"%s(%d" % (b"f" * 16, ahead))
        conv = await message(users, "bob", 1)
        assert names((await audit(users, who, synced.since)).rows) == [conv]


async def test_news_contain_the_sessions_with_changes(valkey: EmbeddedValkey) -> None:
    """A raised row, another session's row, no row, a kick, another server: one call finds them all."""
    async with connected(valkey) as client:
        users, asked = Users(client), list[Sync]()
        for name in ("quiet", "moved", "replaced", "lost", "kicked", "elsewhere"):
            who = session(f"s-{name}", 10, user=name)
            asked.append(msgspec.structs.replace(who, since=(await register(users, who)).since))
        assert await called(users.sessions_to_sync, asked) == []
        await called(users.deliver, "moved", keys.direct("bob", "moved"), "bob", 1, 1, b"\x81", False, 0)
        await register(users, session("s-later", 20, user="replaced"))
        await client.fetch("DEL", keys.devices("lost"))
        await users.kick("kicked")
        asked[5] = msgspec.structs.replace(asked[5], since=b"f" * 16 + asked[5].since[16:])
        assert await called(users.sessions_to_sync, asked) == [1, 2, 3, 4, 5]
        assert await called(users.sessions_to_sync, []) == []
        never = session("s-never", 10, user="quiet")
        assert await called(users.sessions_to_sync, [asked[0], never]) == [1]


# -- what each device has


async def test_each_device_has_its_own_cursors(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = Users(client)
        phone, desk = session("s-1", 10), session("s-2", 10, device="desk")
        await register(users, phone)
        await register(users, desk)
        conv = await message(users, "bob", 9)
        await called(users.ack, "ann", "phone", "s-1", {conv: 9})
        await called(users.ack, "ann", "desk", "s-2", {conv: 4})
        assert [(await audit(users, who)).rows[0].cursor for who in (phone, desk)] == [9, 4]
        assert [(await register(users, who)).rows[0].cursor for who in (phone, desk)] == [9, 4]


async def test_device_is_new_until_its_starts_are_set(valkey: EmbeddedValkey) -> None:
    """A connect that dies half way begins again as a new device; a start never moves an existing cursor."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        await Accounts(client).ensure("ann")
        one, two = await message(users, "bob", 5), await message(users, "eve", 5)
        assert (await register(users, who)).new_device
        assert await called(users.set_starts, "ann", "phone", "s", {one: 2}, False)
        half = await register(users, who)
        assert half.new_device
        assert {row.conversation: row.cursor for row in half.rows} == {one: 2, two: None}
        assert await called(users.set_starts, "ann", "phone", "s", {one: 1, two: 3}, True)
        whole = await register(users, who)
        assert not whole.new_device
        assert {row.conversation: row.cursor for row in whole.rows} == {one: 2, two: 3}
        assert not await called(users.set_starts, "ann", "phone", "s-other", {one: 1}, True)


async def test_hello_replaces_cursors_in_both_directions(valkey: EmbeddedValkey) -> None:
    """For conversations of the user; no other name can be stored in the cursors."""
    async with connected(valkey) as client:
        users, who = Users(client), session("s", 10)
        await Accounts(client).ensure("ann")
        one, two = await message(users, "bob", 50), await message(users, "eve", 50)
        await register(users, who)
        await called(users.ack, "ann", "phone", "s", {one: 20, two: 20})
        again = await register(users, session("s", 10, cursors={one: 10, two: 30, "d:ann:zoe": 7, "*": 1}))
        assert {row.conversation: row.cursor for row in again.rows} == {one: 10, two: 30}
        assert again.new_device
        assert await client.fetch("HLEN", keys.cursor("ann", "phone")) == 2


# -- damaged rows


@pytest.mark.parametrize("damage", ["lost", "d ", "d-", "\x02.d-", "\x02\x7fd-m" + 50 * "\0"])
async def test_conversation_without_a_whole_row_is_left_out_and_its_name_removed(
    valkey: EmbeddedValkey, damage: str
) -> None:
    """A connect, an audit and a page return all others; the next call does not find the name again."""
    async with connected(valkey) as client:
        users = await of_ann(client)
        who = session("s", 10)
        since = (await register(users, who)).since
        convs = [await message(users, other, 1) for other in ("bob", "cid", "dan")]
        if damage == "lost":
            await client.fetch("HDEL", keys.convs("ann"), convs[1])
        else:
            await called(users.ack, "ann", "phone", "s", {convs[1]: 1})
            await client.fetch("HSET", keys.convs("ann"), convs[1], damage)
        await client.fetch("ZADD", keys.groups("ann"), 1, convs[1])
        whole = [convs[0], convs[2]]
        assert names((await called(users.page, "ann", "phone", 2**53)).rows) == whole[::-1]
        assert names((await users.conversations("ann")).rows) == whole[::-1]
        assert names((await audit(users, who, since)).rows) == whole
        assert await client.fetch("ZSCORE", keys.recent("ann"), convs[1]) is None
        assert await client.fetch("ZSCORE", keys.groups("ann"), convs[1]) is None
        await client.fetch("ZADD", keys.recent("ann"), "NX", 2**52, convs[1])
        assert names((await register(users, session("t", 20))).rows) == whole[::-1]
        assert await client.fetch("ZSCORE", keys.recent("ann"), convs[1]) is None


async def test_group_missing_in_recent_is_returned_at_a_connect(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users = await of_ann(client)
        await register(users, session("s", 10))
        group = keys.new_conversation("g")
        assert await users.join("ann", group, "a title", 1, 0, 0, "m")
        await client.fetch("ZREM", keys.recent("ann"), group)
        conv = await message(users, "bob", 1)
        synced: Synced = await called(users.sync, msgspec.structs.replace(session("t", 20), register=True, limit=1))
        assert names(synced.rows) == [conv]
        other = await message(users, "cid", 1)
        synced = await called(users.sync, msgspec.structs.replace(session("u", 30), register=True, limit=1))
        assert names(synced.rows) == [other, group]


async def test_undecodable_row_is_left_out(valkey: EmbeddedValkey) -> None:
    """Its title is no text: the connect returns the others."""
    async with connected(valkey) as client:
        users = await of_ann(client)
        convs = [await message(users, other, 1) for other in ("bob", "cid")]
        row = await client.fetch("HGET", keys.convs("ann"), convs[0])
        await client.fetch("HSET", keys.convs("ann"), convs[0], row[:42] + b"\xff\xfe")
        assert names((await register(users, session("s", 10))).rows) == [convs[1]]
