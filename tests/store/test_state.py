"""A user's state: writes, versions, removed keys, pages, and what a failover takes back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import BadCommand, Conflict, NotFound, Quota, RateLimited
from router.contract.packing import pack, unpack
from router.store.accounts import Accounts
from router.store.redis.client import Client
from router.store.rows import Page
from router.store.state import Entry, State, Written
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import Channel, connected

RATE_US: Final = (1, 1_000_000_000)
AHEAD_US: Final = 60_000_000


@asynccontextmanager
async def of_ann(valkey: EmbeddedValkey, rate_us: tuple[int, int] = RATE_US) -> AsyncIterator[tuple[Client, State]]:
    async with connected(valkey) as client:
        await Accounts(client).ensure("ann")
        yield client, State(client, rate_us)


async def write(state: State, key: str, value: object, expect: int | None = None) -> Written:
    written: Written = await called(state.write, "ann", key, None if value is None else pack(value), expect)
    return written


async def put(state: State, key: str, value: object, change: int) -> Written | None:
    written: Written | None = await called(state.put, "ann", key, None if value is None else pack(value), change)
    return written


async def known(state: State, after: int = 0, prefix: str = "") -> dict[str, object]:
    page = await state.entries("ann", after, prefix, 1000)
    return {one.key: one.value and unpack(one.value) for one in page.entries}


async def begin_at(client: Client, version: int) -> None:
    """The next version is by the clock, but above this one; no versions are void."""
    meta: bytes = await client.fetch("HGET", keys.state("ann"), "*")
    await client.fetch("HSET", keys.state("ann"), "*", version.to_bytes(8) + meta[8:40])


async def other_server(client: Client) -> None:
    """As after a promotion: the last writer of the state has another replication id than this server."""
    meta: bytes = await client.fetch("HGET", keys.state("ann"), "*")
    await client.fetch("HSET", keys.state("ann"), "*", meta[:24] + b"0" * 16 + meta[40:])


# -- writing


async def test_last_write_of_a_key_wins_and_versions_rise(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        first = await write(state, "draft/a", "x")
        second = await write(state, "draft/a", {"text": "y"})
        other = await write(state, "pin/b", 1)
        assert first.prev == 0
        assert (second.prev, other.prev) == (first.version, second.version)
        assert first.version < second.version < other.version
        assert await state.read("ann", "draft/a") == Entry("draft/a", second.version, pack({"text": "y"}))
        assert (await state.entries("ann", 0, "", 10)).entries == [
            Entry("draft/a", second.version, pack({"text": "y"})),
            Entry("pin/b", other.version, pack(1)),
        ]
        assert await known(state, second.version) == {"pin/b": 1}
        assert await known(state, 0, "dra") == {"draft/a": {"text": "y"}}


async def test_expected_version_decides_whether_a_write_counts(valkey: EmbeddedValkey) -> None:
    """0 stands for an absent key, and for a removed one."""
    async with of_ann(valkey) as (_, state):
        with pytest.raises(Conflict) as refused:
            await write(state, "a", 1, expect=7)
        assert refused.value.version == 0
        first = await write(state, "a", 1, expect=0)
        with pytest.raises(Conflict) as refused:
            await write(state, "a", 2, expect=0)
        assert refused.value.version == first.version
        removed = await write(state, "a", None, expect=first.version)
        assert removed.version > first.version
        await write(state, "a", 3, expect=0)
        assert await known(state) == {"a": 3}


async def test_each_write_is_published_once_with_its_versions(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            first = await write(state, "a", {"t": [1, b"\xff"]})
            second = await write(state, "a", None)
        heard = [signals.decode(payload) for payload in channel.heard]
        assert all(isinstance(signal, signals.State) for signal in heard)
        told = [(s.key, unpack(s.value), s.version, s.prev) for s in heard if isinstance(s, signals.State)]
        assert told == [("a", {"t": [1, b"\xff"]}, first.version, 0), ("a", None, second.version, first.version)]


async def test_removing_an_absent_key_is_a_change_with_a_version_of_its_own(valkey: EmbeddedValkey) -> None:
    """Else its answer would have the version of another change."""
    async with of_ann(valkey) as (client, state):
        first = await write(state, "b", 1)
        removed = [await write(state, "a", None) for _ in range(3)]
        assert first.version < removed[0].version < removed[1].version < removed[2].version
        assert await known(state) == {"a": None, "b": 1}
        assert await client.fetch("ZCARD", keys.removed("ann")) == 1


async def test_user_who_does_not_exist_has_no_state(valkey: EmbeddedValkey) -> None:
    """Nor has one who was deleted: their keys are gone."""
    async with of_ann(valkey) as (client, state):
        with pytest.raises(NotFound):
            await called(state.write, "bob", "a", b"\x01", None)
        await write(state, "a", 1)
        await write(state, "b", 1)
        await write(state, "b", None)
        await Accounts(client).delete("ann")
        assert set(await client.fetch("KEYS", "*ann")) == {keys.user("ann").encode(), keys.names("ann").encode()}
        with pytest.raises(NotFound):
            await write(state, "a", 1)


async def test_writes_of_all_clients_share_one_rate(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey, (60_000_000, 120_000_000)) as (_, state):
        await write(state, "a", 1)
        await write(state, "a", 2)
        with pytest.raises(RateLimited) as refused:
            await write(state, "a", 3)
        assert refused.value.retry_after is not None
        assert 0 < refused.value.retry_after <= 60
        assert await put(state, "me", 1, 1) is not None  # the server's writes have none
        assert await known(state) == {"a": 2, "me": 1}


# -- bounds


async def test_number_of_keys_is_bounded(valkey: EmbeddedValkey) -> None:
    """Keys of the server do not count; a key that is there can be changed, and one that was removed makes room."""
    async with of_ann(valkey) as (_, state):
        for i in range(4096):
            state.write("ann", f"k/{i}", b"\x01", None, lambda written: None)
        await put(state, "contact/bob", "x", 1)
        with pytest.raises(Quota):
            await write(state, "one/more", 1)
        await write(state, "k/0", 2)
        await write(state, "k/1", None)
        await write(state, "one/more", 1)
        with pytest.raises(Quota):
            await write(state, "k/1", 1)


async def test_bytes_of_keys_and_values_are_bounded(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        value = pack("x" * 4093)
        assert len(value) == 4096
        for i in range(255):
            state.write("ann", f"k/{i:03}", value, None, lambda written: None)
        with pytest.raises(Quota):
            await write(state, "k/more", "x" * 4093)
        await write(state, "k/000", "x")
        await write(state, "k/more", "x" * 4093)
        with pytest.raises(Quota):
            await write(state, "k/000", "x" * 4093)


async def test_removed_keys_are_kept_up_to_a_number(valkey: EmbeddedValkey) -> None:
    """A device that is older than a removal that was dropped gets everything anew; a newer one only what it lacks."""
    async with of_ann(valkey) as (client, state):
        stays = await write(state, "stays", 1)
        for i in range(1001):
            state.write("ann", f"k/{i}", b"\x01", None, lambda written: None)
        first = await write(state, "k/0", None)
        assert await known(state, stays.version, "k/0") == {"k/0": None}
        for i in range(1, 1001):
            state.write("ann", f"k/{i}", None, None, lambda written: None)
        last = await write(state, "last", 1)
        old = await state.entries("ann", stays.version, "", 1)
        assert old.reset
        assert [one.key for one in old.entries] == ["stays"]
        new = await state.entries("ann", first.version, "", 1000)
        assert not new.reset
        assert await client.fetch("ZCARD", keys.removed("ann")) == 1000
        assert await client.fetch("HLEN", keys.state("ann")) == 1003  # with `stays`, `last` and the numbers
        assert (await state.entries("ann", last.version, "", 10)).entries == []


async def test_removed_key_is_kept_for_thirty_days(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, state):
        await write(state, "a", 1)
        removed = await write(state, "a", None)
        month = 30 * 86_400_000_000
        for age, left in ((month - 120_000_000, {"a": None}), (month + 120_000_000, {})):
            await client.fetch("ZADD", keys.removed("ann"), removed.version - AHEAD_US - age, "a")
            await write(state, "b", age)
            assert {key: value for key, value in (await known(state)).items() if key == "a"} == left


# -- pages


async def test_pages_continue_where_the_last_one_ended(valkey: EmbeddedValkey) -> None:
    """Also a listing of everything that is older than removed keys are kept; what changes meanwhile comes later."""
    async with of_ann(valkey) as (client, state):
        for i in range(5):
            await write(state, f"k/{i}", i)
        await client.fetch("ZADD", keys.removed("ann"), 1, "long-gone")  # is dropped by the next write
        newest = await write(state, "x", 1)
        await client.fetch("HSET", keys.state("ann"), "*", await _floor_at(client, newest.version))
        page = await state.entries("ann", 0, "", 2)
        assert page.reset
        seen = [one.key for one in page.entries]
        await write(state, "k/0", "again")
        while page.cursor:
            page = await state.entries("ann", 0, "", 2, page.cursor)
            assert not page.reset
            seen += [one.key for one in page.entries]
        assert seen == ["k/0", "k/1", "k/2", "k/3", "k/4", "x", "k/0"]
        for cursor in ("", "x", "1", "1-", "-1", "1-2-3", "1-²", "9" * 50 + "-1"):
            if cursor:
                with pytest.raises(BadCommand):
                    await state.entries("ann", 0, "", 2, cursor)


async def _floor_at(client: Client, version: int) -> bytes:
    meta: bytes = await client.fetch("HGET", keys.state("ann"), "*")
    return meta[:8] + version.to_bytes(8) + meta[16:]


async def test_page_ends_at_a_mebibyte(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        for i in range(300):
            await put(state, f"contact/{i:03}", "x" * 4093, 1)
        page = await state.entries("ann", 0, "", 1000)
        assert 250 <= len(page.entries) <= 256
        rest = await state.entries("ann", 0, "", 1000, page.cursor)
        assert len(page.entries) + len(rest.entries) == 300
        assert rest.cursor == ""


async def test_prefix_is_found_among_many_other_keys(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        for i in range(700):
            state.write("ann", f"draft/{i}", b"\x01", None, lambda written: None)
        await write(state, "pin/a", 1)
        page = await state.entries("ann", 0, "pin/", 10)
        assert [one.key for one in page.entries] == ["pin/a"]
        assert page.cursor == ""


# -- the server's keys


async def test_highest_change_of_a_copy_stays(valkey: EmbeddedValkey) -> None:
    """In whatever order, and however often, the copies arrive; a removal is a change like any other."""
    async with of_ann(valkey) as (_, state):
        assert await put(state, "contact/bob", "asked", 2) is not None
        for change in (1, 2):
            assert await put(state, "contact/bob", "older", change) is None
        removed = await put(state, "contact/bob", None, 5)
        assert removed is not None
        assert await put(state, "contact/bob", "late", 4) is None
        assert await known(state) == {"contact/bob": None}
        again = await put(state, "contact/bob", None, 6)
        assert again is not None
        assert again.version == again.prev == removed.version  # nothing changed for devices
        assert await put(state, "contact/bob", "late", 5) is None
        assert await put(state, "contact/bob", "new", 7) is not None
        assert await known(state) == {"contact/bob": "new"}


async def test_removal_that_arrives_first_keeps_an_older_copy_out(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, state):
        assert await put(state, "block/bob", None, 3) is not None
        assert await put(state, "block/bob", "x", 2) is None
        assert await state.read("ann", "block/bob") is None


# -- failovers


async def test_version_is_never_used_twice_over_a_failover(valkey: EmbeddedValkey) -> None:
    """The new server has lost the last write. Its own versions are beyond the lost one, and a device that has it gets
    everything anew; a device that has not goes on."""
    async with of_ann(valkey) as (client, state):
        await write(state, "a", 0)
        await begin_at(client, 0)
        kept = await write(state, "a", 1)
        before = {name: await client.fetch("DUMP", name) for name in (keys.state("ann"), keys.versions("ann"))}
        await begin_at(client, kept.version + 30_000_000)  # the clock of the server that is lost was ahead
        lost = await write(state, "b", 1)
        late = await write(state, "b", 2)  # by the old server, beside the new one
        for name, dump in before.items():
            await client.fetch("RESTORE", name, 0, dump, "REPLACE")
        await other_server(client)
        ahead = await state.entries("ann", lost.version, "", 10)
        assert (ahead.reset, ahead.version) == (True, kept.version)
        new = await write(state, "c", 1)
        assert new.version > late.version
        assert new.prev == kept.version
        for version in (lost.version, late.version):
            page = await state.entries("ann", version, "", 10)
            assert page.reset
            assert [one.key for one in page.entries] == ["a", "c"]
        page = await state.entries("ann", kept.version, "", 10)
        assert not page.reset
        assert [one.key for one in page.entries] == ["c"]


async def test_device_older_than_the_remembered_failovers_gets_everything_anew(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, state):
        written = []
        for i in range(12):
            written.append(await write(state, f"k/{i}", i))
            await other_server(client)
        resets = [(await state.entries("ann", one.version, "", 100)).reset for one in written]
        assert resets == sorted(resets, reverse=True)
        assert resets.count(False) == 9
        # A version between two writes of different servers was never stored.
        assert (await state.entries("ann", written[-1].version - 1, "", 100)).reset


# -- what sessions are told


async def _synced(users: Users, since: bytes = b"", register: bool = False) -> Any:
    who = Sync(user="ann", device="phone", session="s", node="n", started=2**52, since=since, register=register)
    return await called(users.sync, who)


async def test_sync_names_the_version_of_a_state_that_moved(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, state):
        users = Users(client)
        first = await _synced(users, register=True)
        assert first.state is None
        assert (await _synced(users, first.since)).state is None
        written = await write(state, "a", 1)
        question = Sync(user="ann", device="phone", session="s", node="n", started=2**52, since=first.since)
        assert await called(users.sessions_to_sync, [question]) == [0]
        moved = await _synced(users, first.since)
        assert (moved.state, moved.rows) == (written.version, [])
        assert await called(users.sessions_to_sync, [msgspec.structs.replace(question, since=moved.since)]) == []
        assert (await _synced(users, register=True)).state == written.version


async def test_sync_after_a_failover_names_the_version_that_stayed(valkey: EmbeddedValkey) -> None:
    """However long ago it was written, since the device may have one that was lost."""
    async with of_ann(valkey) as (client, state):
        users = Users(client)
        since = (await _synced(users, register=True)).since
        kept = await write(state, "a", 1)
        await client.fetch("ZADD", keys.recent("ann"), 1, keys.STATE)
        synced = await _synced(users, b"0" * 16 + since[16:])
        assert synced.state == kept.version
        await client.fetch("HDEL", keys.convs("ann"), keys.STATE)
        assert (await _synced(users, b"0" * 16 + since[16:])).state == 0


async def test_registering_names_a_version_whose_name_an_older_node_has_removed(valkey: EmbeddedValkey) -> None:
    """A node of the release before takes the name for one without a row. A new device would not ask for anything."""
    async with of_ann(valkey) as (client, state):
        written = await write(state, "a", 1)
        await client.fetch("ZREM", keys.recent("ann"), keys.STATE)
        assert (await _synced(Users(client), register=True)).state == written.version


async def test_state_is_no_conversation(valkey: EmbeddedValkey) -> None:
    """No list has it; a version beyond the page of a registering is named all the same."""
    async with of_ann(valkey) as (client, state):
        users = Users(client)
        written = await write(state, "a", 1)
        for i in range(201):
            other = f"u{i}"
            await called(users.deliver, "ann", keys.direct("ann", other), other, 1, 1, b"\x81", False, 0)
        synced = await _synced(users, register=True)
        assert (len(synced.rows), synced.more, synced.state) == (200, True, written.version)
        page: Page = await users.conversations("ann", None, 500)
        assert len(page.rows) == 201
        below: Page = await called(users.page, "ann", "phone", synced.below)
        assert len(below.rows) == 1


async def test_lost_version_row_is_forgotten_like_a_lost_conversation(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, state):
        users = Users(client)
        await write(state, "a", 1)
        await client.fetch("DEL", keys.convs("ann"))
        assert (await _synced(users, register=True)).state is None
        assert await client.fetch("ZCARD", keys.recent("ann")) == 0
