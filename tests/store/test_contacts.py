"""Pairs of users: their record, the roles that follow from it, and the copies in both users' slots."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics, signals
from router.contract.errors import Blocked, Conflict, LinnetError, NotFound, Unavailable
from router.contract.packing import unpack
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.contacts import Contacts
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.pairs import Change, PairAction, Pairs
from router.store.people import Counts, People, Person
from router.store.profiles import Profiles
from router.store.redis.client import Client, RedisArg, Reply
from router.store.state import State
from router.store.users import Users
from tests.store.calling import BURST_US, COST_US, called, event
from tests.store.clock import stepped
from tests.store.user_slot import Channel, connected

T = TypeVar("T")

DAY_S: Final = 86_400


class Town:
    """Users with their pairs, on a real server; `route` is a router's round."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.accounts = Accounts(client)
        self.conversations = Conversations(client, 20_000)
        self.dirty = Dirty(client)
        self.pairs = Pairs(client)
        self.people = People(client)
        self.state = State(client, (1, 1_000_000))
        self.profiles = Profiles(client)
        self.users = Users(client)
        self.contacts = Contacts(self.pairs, self.people, self.profiles, self.users, self.state)
        self._n = itertools.count(1)

    async def change(self, user: str, other: str, action: Any, argument: str = "", number: int = 0) -> Change:
        """Change the record alone, as a process that dies before it writes the copies."""
        return await reply_of(self.pairs.change, user, other, action, argument, number)

    async def marked(self, user: str, other: str) -> float | None:
        """When the pair's copies are due to be repeated, in ms."""
        conv = keys.direct(user, other)
        due = await self.client.fetch("ZSCORE", keys.dirty(keys.partition(conv)), f"={conv}")
        return None if due is None else float(due)

    async def due_checks(self, *users: str) -> list[str]:
        """Make all marks beside these users' copies due, and check their pairs; return the pairs."""
        for part in map(keys.partition, users):
            for mark in await self.client.fetch("ZRANGE", keys.copied(part), 0, -1):
                await self.client.fetch("ZADD", keys.copied(part), 1, mark)
        parts = sorted({keys.partition(user) for user in users})
        claims = await self.people.claims(parts, 10, 1000)
        pairs = sorted({pair for found in claims if not isinstance(found, LinnetError) for pair in found})
        for pair in pairs:
            await self.contacts.check(pair)
        return pairs

    async def entry(self, user: str, other: str) -> Any:
        """The user's copy in their state."""
        found = await self.state.read(user, f"contact/{other}")
        return found and found.value and unpack(found.value)

    async def block(self, user: str, other: str) -> Any:
        found = await self.state.read(user, f"block/{other}")
        return found and found.value and unpack(found.value)

    async def opened(self, user: str, other: str) -> str:
        await called(self.conversations.create_direct, user, other, COST_US, BURST_US)
        return keys.direct(user, other)

    async def send(self, user: str, other: str, *, server: bool = False) -> None:
        sent = event(keys.direct(user, other), user, 0 if server else next(self._n), server=server)
        await called(self.conversations.append, sent)


@asynccontextmanager
async def town(valkey: EmbeddedValkey, *users: str) -> AsyncIterator[Town]:
    async with connected(valkey) as client:
        made = Town(client)
        for user in users:
            await made.accounts.ensure(user)
        yield made


# -- requests


async def test_accepted_request_makes_contacts_on_both_sides(valkey: EmbeddedValkey) -> None:
    async with town(valkey, "ann", "bob") as t:
        asked = await t.contacts.change("ann", "bob", "ask", "hi", 1)
        entry = asked.entry("ann", "bob")
        assert entry is not None
        assert entry.until - entry.at == 30 * DAY_S * 1000
        shown = {"message": "hi", "at": entry.at, "until": entry.until}
        assert await t.entry("ann", "bob") == {"state": "outgoing", **shown}
        assert await t.entry("bob", "ann") == {"state": "incoming", **shown}
        made = await t.contacts.change("bob", "ann", "accept")
        contact = {"state": "contact", "message": None, "at": made.now, "until": None}
        assert await t.entry("ann", "bob") == await t.entry("bob", "ann") == contact
        assert await t.people.counts("ann") == await t.people.counts("bob") == Counts(1, 0, 0, 0)
        await t.contacts.change("ann", "bob", "remove")
        assert not await t.entry("ann", "bob")
        assert not await t.entry("bob", "ann")
        assert await t.people.counts("ann") == await t.people.counts("bob") == Counts(0, 0, 0, 0)


async def test_copies_of_a_removal_are_made_although_its_process_died(valkey: EmbeddedValkey) -> None:
    """The record says nothing any more, but it is deleted only after its copies are written."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "ask", "", 1)
        await t.change("ann", "bob", "remove")
        await t.contacts.repeat("d:ann:bob")
        assert not await t.entry("ann", "bob")
        assert not await t.entry("bob", "ann")


@pytest.mark.parametrize("step", [-3600, -90])
async def test_copies_follow_the_record_after_the_clock_was_put_back(
    valkey: EmbeddedValkey, tmp_path: Path, step: int
) -> None:
    """A record that says nothing is deleted hours later, because the next one would have lower numbers than copies."""
    async with stepped(valkey, tmp_path) as clock:
        t = Town(clock.client)
        for user in ("ann", "bob"):
            await t.accounts.ensure(user)
        await t.contacts.change("ann", "bob", "ask", "", 1)
        await t.contacts.change("ann", "bob", "remove")
        await t.contacts.change("ann", "bob", "unblock")
        await t.contacts.repeat("d:ann:bob")
        await clock.step(step)
        await t.contacts.change("ann", "bob", "ask", "", 1)
        assert (await t.entry("ann", "bob"))["state"] == "outgoing"
        assert (await t.entry("bob", "ann"))["state"] == "incoming"
        assert await t.people.counts("ann") == Counts(0, 1, 0, 0)
        await t.contacts.change("ann", "bob", "remove")
        await clock.step(4 * 3600)
        await t.contacts.repeat("d:ann:bob")
        assert await t.marked("ann", "bob") is None
        assert not await t.client.fetch("HEXISTS", keys.conversation("d:ann:bob"), "pair")


async def test_request_that_meets_a_block_is_never_shown(valkey: EmbeddedValkey) -> None:
    """Not after the end of the block either; and the one who blocks has no key for the one who asked."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("bob", "ann", "block")
        await t.contacts.change("ann", "bob", "ask", "hi", 1)
        assert (await t.entry("ann", "bob"))["state"] == "outgoing"
        await t.contacts.change("bob", "ann", "unblock")
        await t.contacts.change("ann", "bob", "ask", "hi", 1)
        with pytest.raises(NotFound):
            await t.contacts.change("bob", "ann", "accept")
        assert await t.state.read("bob", "contact/ann") is None


async def test_declined_request_is_shown_again_after_a_day(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Until then asking changes nothing, also after a cancel; the asker's own entry never changes."""
    async with stepped(valkey, tmp_path) as clock:
        t = Town(clock.client)
        for user in ("ann", "bob"):
            await t.accounts.ensure(user)
        await t.contacts.change("ann", "bob", "ask", "hi", 1)
        seen = await t.entry("ann", "bob")
        await t.contacts.change("bob", "ann", "remove")
        await t.contacts.change("ann", "bob", "ask", "again", 1)
        assert await t.entry("ann", "bob") == seen
        assert not await t.entry("bob", "ann")
        await clock.step(DAY_S)
        await t.contacts.change("ann", "bob", "ask", "again", 1)
        assert await t.entry("ann", "bob") == seen
        assert (await t.entry("bob", "ann"))["message"] == "hi"
        await t.contacts.change("bob", "ann", "remove")
        await t.contacts.change("ann", "bob", "remove")
        await t.contacts.change("ann", "bob", "ask", "new", 1)
        assert (await t.entry("ann", "bob"))["message"] == "new"
        assert not await t.entry("bob", "ann")


async def test_request_is_over_after_thirty_days_and_leaves_nothing(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """It cannot be accepted, counts no longer, and a router takes it away."""
    async with stepped(valkey, tmp_path) as clock:
        t = Town(clock.client)
        for user in ("ann", "bob"):
            await t.accounts.ensure(user)
        await t.contacts.change("ann", "bob", "ask", "hi", 1)
        await t.contacts.repeat("d:ann:bob")
        await clock.step(30 * DAY_S)
        with pytest.raises(NotFound):
            await t.contacts.change("bob", "ann", "accept")
        assert await t.people.counts("ann") == await t.people.counts("bob") == Counts(0, 0, 0, 0)
        due = await t.marked("ann", "bob")
        assert due is not None
        assert due <= await clock.now_ms() + 3_600_000
        await t.contacts.repeat("d:ann:bob")
        await clock.step(4 * 3600)
        await t.contacts.repeat("d:ann:bob")
        await t.contacts.change("ann", "cid", "block")  # any later write sweeps
        assert await t.marked("ann", "bob") is None
        assert await t.client.fetch("EXISTS", keys.conversation("d:ann:bob")) == 0
        assert "bob" not in await t.people.everybody("ann")
        assert not await t.entry("ann", "bob")


async def test_list_of_incoming_requests_is_bounded(valkey: EmbeddedValkey) -> None:
    """One beyond five hundred looks pending to its asker, and leaves the other's rows as they are."""
    async with town(valkey, "bob", "late") as t:
        await asyncio.gather(
            *(t.people.set_relation("bob", f"u{i}", Person(1, "i", False, False, 1, 2**52)) for i in range(499))
        )
        for asker in ("ann", "late"):
            await t.accounts.ensure(asker)
            await t.contacts.change(asker, "bob", "ask", "", 1)
        assert (await t.people.counts("bob")).incoming == 500
        assert "late" not in await t.people.everybody("bob")
        assert (await t.entry("late", "bob"))["state"] == "outgoing"
        with pytest.raises(NotFound):
            await t.contacts.change("bob", "late", "accept")


# -- writing


async def test_block_holds_before_the_conversation_exists(valkey: EmbeddedValkey) -> None:
    """Also if the conversation was deleted, and for the server key."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "block")
        conv = await t.opened("bob", "ann")
        for _round in range(2):
            for user, other in (("ann", "bob"), ("bob", "ann")):
                for server in (False, True):
                    with pytest.raises(Blocked):
                        await t.send(user, other, server=server)
            await t.conversations.remove_conversation(conv, None)
            await t.dirty.forget_conversation(conv)
            await t.opened("bob", "ann")
        await t.contacts.change("ann", "bob", "unblock")
        await t.send("bob", "ann")


async def test_messages_from_contacts_only(valkey: EmbeddedValkey) -> None:
    """Refused until they are contacts or the user has written; a backend passes. A late setting does not win."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "only", "1", 2)
        await t.opened("bob", "ann")
        with pytest.raises(Blocked):
            await t.send("bob", "ann")
        await t.send("bob", "ann", server=True)
        await t.contacts.change("ann", "bob", "only", "0", 1)
        with pytest.raises(Blocked):
            await t.send("bob", "ann")
        await t.contacts.change("bob", "ann", "ask", "", 1)
        await t.contacts.change("ann", "bob", "ask", "", 1)
        await t.send("bob", "ann")
        await t.contacts.change("ann", "bob", "remove")
        with pytest.raises(Blocked):
            await t.send("bob", "ann")
        await t.send("ann", "bob")
        assert (await t.change("bob", "ann", "look")).role == "m"
        await t.send("bob", "ann")


async def test_setting_that_takes_long_to_write_is_settled(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router may have settled the mark of before the write, when it knew nothing of the change."""
    async with town(valkey, "ann") as t:
        marks, write = keys.dirty(keys.partition("ann")), t.profiles._change

        async def late(user: str, changes: Any) -> None:
            await t.client.fetch("ZADD", marks, await t.client.clock_ms() + 10_000, f"@{user}")  # claimed
            await t.contacts.settle(user)
            await write(user, changes)

        monkeypatch.setattr(t.profiles, "_change", late)
        await t.profiles.change("ann", {"messages": "contacts"})
        assert await t.client.fetch("ZSCORE", marks, "@ann") is not None


async def test_block_of_an_earlier_release_is_an_ended_account(valkey: EmbeddedValkey) -> None:
    """Unblocking does not open a conversation whose other user is gone."""
    async with town(valkey, "ann", "bob") as t:
        conv = await t.opened("ann", "bob")
        await t.client.fetch("HSET", keys.conversation(conv), "u:bob", "b 0 0")
        await t.contacts.change("bob", "ann", "block")
        await t.contacts.change("bob", "ann", "unblock")
        with pytest.raises(Blocked):
            await t.send("bob", "ann")


# -- copies


async def test_router_repeats_copies_of_a_process_that_died(valkey: EmbeddedValkey) -> None:
    """Whatever was written of them; then the pair is no longer marked."""
    async with town(valkey, "ann", "bob") as t:
        await t.change("ann", "bob", "ask", "hi", 1)
        await t.change("bob", "ann", "accept")
        assert await t.entry("ann", "bob") is None
        assert await t.marked("ann", "bob") is not None
        await t.contacts.repeat("d:ann:bob")
        assert (await t.entry("ann", "bob"))["state"] == (await t.entry("bob", "ann"))["state"] == "contact"


async def test_copy_that_comes_late_does_not_win(valkey: EmbeddedValkey) -> None:
    """A process may write an old record after a newer one was copied."""
    async with town(valkey, "ann", "bob") as t:
        old = await t.change("ann", "bob", "ask", "hi", 1)
        await t.contacts.change("bob", "ann", "accept")
        await t.contacts.change("bob", "ann", "remove")
        await t.contacts.copy("ann", "bob", old)
        assert not await t.entry("ann", "bob")
        assert not await t.entry("bob", "ann")
        assert await t.people.counts("bob") == Counts(0, 0, 0, 0)


# The data of one server that a failover takes back: the record and its mark, or a user's copies.
LOSSES: Final[dict[str, list[tuple[str, PairAction]]]] = {
    "request": [("ann", "ask")],
    "contact": [("ann", "ask"), ("bob", "ask")],
    "end": [("ann", "ask"), ("bob", "ask"), ("ann", "remove")],
    "block": [("ann", "ask"), ("bob", "ask"), ("ann", "block")],
    "unblock": [("ann", "block"), ("ann", "unblock")],
    "other block": [("bob", "block")],
}


@pytest.mark.parametrize(("copied", "since"), [(False, None), (True, None), (False, "ask"), (False, "block")])
@pytest.mark.parametrize("last", LOSSES)
async def test_users_agree_with_a_record_that_a_failover_took_back(
    valkey: EmbeddedValkey, last: str, copied: bool, since: PairAction | None
) -> None:
    """The copies are ahead of the record, whose mark is lost with it. The marks beside the copies lead to the check.

    `since`: what the other user does before the check, so that the record has a higher number than the copies.
    """
    async with town(valkey, "ann", "bob") as t:
        conv, *earlier, change = keys.direct("ann", "bob"), *LOSSES[last]
        for user, action in earlier:
            await t.contacts.change(user, "bob" if user == "ann" else "ann", action, "", 1)
        await t.contacts.repeat(conv)
        names = keys.conversation(conv), keys.dirty(keys.partition(conv))
        before, was = await agreed(t, "ann", "bob"), [await t.client.fetch("DUMP", name) for name in names]
        user, action = change
        await t.contacts.change(user, "bob" if user == "ann" else "ann", action, "", 1)
        if copied:
            await t.contacts.repeat(conv)
        for name, packed in zip(names, was, strict=True):
            await t.client.fetch("DEL", name)
            if packed is not None:
                await t.client.fetch("RESTORE", name, 0, packed)
        if since:
            await t.contacts.change("bob", "ann", since, "", 1)
        taken = metrics.PAIRS_TAKEN_BACK._value.get()
        assert await t.due_checks("ann", "bob") == [conv]
        after = await agreed(t, "ann", "bob")
        if since is None:
            assert after == before
            assert metrics.PAIRS_TAKEN_BACK._value.get() == taken + 1
        await t.contacts.change("ann", "bob", "block")
        assert (await agreed(t, "ann", "bob"))[0] == (None, True)


async def test_key_of_a_lost_block_goes_although_its_row_has_gone(valkey: EmbeddedValkey) -> None:
    """A process ends the block, and dies between row and key. Then a failover takes back all of the record."""
    async with town(valkey, "ann", "bob") as t:
        conv = keys.direct("ann", "bob")
        await t.contacts.change("ann", "bob", "block")
        ended = (await t.change("ann", "bob", "unblock")).record
        assert ended is not None
        await t.people.set_relation("ann", "bob", Person(ended.n, "-", False, False, 0, 0))
        await t.client.fetch("DEL", keys.conversation(conv), keys.dirty(keys.partition(conv)))
        assert await t.due_checks("ann", "bob") == [conv]
        assert await agreed(t, "ann", "bob") == [(None, False)] * 2


@pytest.mark.parametrize("lost", ["ann", "bob"])
async def test_copies_that_a_failover_took_back_are_written_again(
    valkey: EmbeddedValkey, tmp_path: Path, lost: str
) -> None:
    """The pair stays marked for a while after its copies were written, and no longer."""
    async with stepped(valkey, tmp_path) as clock:
        t = Town(clock.client)
        for user in ("ann", "bob"):
            await t.accounts.ensure(user)
        await t.contacts.change("ann", "bob", "ask", "", 1)
        await t.contacts.change("bob", "ann", "ask", "", 1)
        await t.contacts.repeat("d:ann:bob")
        await t.client.fetch("DEL", keys.people(lost), keys.state(lost), keys.versions(lost))
        due = await t.marked("ann", "bob")
        assert due is not None
        assert await clock.now_ms() < due <= await clock.now_ms() + 30_000
        await clock.step(31)
        await t.contacts.repeat("d:ann:bob")
        assert await agreed(t, "ann", "bob") == [("contact", False)] * 2
        assert await t.marked("ann", "bob") is None


async def test_check_that_finds_nothing_ends_and_tells_nobody(valkey: EmbeddedValkey) -> None:
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "ask", "", 1)
        versions = [(await t.state.entries(user, 0, "", 10)).version for user in ("ann", "bob")]
        taken = metrics.PAIRS_TAKEN_BACK._value.get()
        assert await t.due_checks("ann", "bob") == ["d:ann:bob"]
        assert await t.due_checks("ann", "bob") == []
        assert [(await t.state.entries(user, 0, "", 10)).version for user in ("ann", "bob")] == versions
        assert metrics.PAIRS_TAKEN_BACK._value.get() == taken


async def test_pair_that_changes_while_it_is_copied_stays_marked(valkey: EmbeddedValkey) -> None:
    async with town(valkey, "ann", "bob") as t:
        old = await t.change("ann", "bob", "ask", "hi", 1)
        await t.change("bob", "ann", "accept")
        await t.pairs.copied(old.conversation, old.record)
        assert await t.marked("ann", "bob") is not None


async def test_block_tells_only_the_one_who_blocks(valkey: EmbeddedValkey) -> None:
    """The other's state has no key of it; both users' gateways learn from whom they are hidden."""
    async with town(valkey, "ann", "bob") as t:
        names = keys.Channels()
        with Channel(valkey, names.user("bob")) as heard, Channel(valkey, names.presence("bob")) as watched:
            blocked = await t.contacts.change("ann", "bob", "block")
        assert [signals.decode(payload) for payload in heard.heard] == [signals.Hidden("bob")]
        assert [signals.decode(payload) for payload in watched.heard] == [signals.Hidden("bob")]
        assert await t.block("ann", "bob") == {"at": blocked.now}
        assert (await t.state.entries("bob", 0, "", 10)).version == 0
        assert await t.people.hiding(["ann", "bob", "cid"]) == ["ann", "bob"]
        await t.contacts.change("ann", "bob", "unblock")
        assert await t.people.hiding(["ann", "bob"]) == []


async def test_user_is_hidden_from_any_number_of_viewers(valkey: EmbeddedValkey) -> None:
    """More than the arguments of one call on Lua's stack: all sessions of a node may watch one user."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "block")
        viewers = [*(f"viewer{i}" for i in range(9000)), "bob"]
        assert await reply_of(t.people.hidden_from, "ann", viewers) == {"bob"}


async def test_account_that_ended_has_no_contacts(valkey: EmbeddedValkey) -> None:
    """Also if somebody asks between the last look and the end: the record learns it by the copy that finds no user."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "ask", "", 1)
        await t.contacts.change("bob", "ann", "ask", "", 1)
        await t.contacts.change("ann", "bob", "ended")
        await t.accounts.end("ann")
        await t.accounts.delete("ann")
        assert not await t.entry("bob", "ann")
        with pytest.raises(NotFound):
            await t.contacts.change("bob", "ann", "ask", "", 1)
        await t.accounts.ensure("cid")
        await t.contacts.change("cid", "ann", "ask", "", 1)
        assert not await t.entry("cid", "ann")
        assert set(await t.client.fetch("KEYS", "{u*}:*ann")) == {
            keys.user("ann").encode(), keys.names("ann").encode()
        }  # fmt: skip


class Mortal(Client):
    """A client of a process that dies with the call that follows so many: nothing more reaches Redis."""

    left = 0

    def call(self, function: str, keys: Sequence[str | bytes], args: Sequence[RedisArg], reply: Reply) -> None:
        if self.left == 0:
            asyncio.get_running_loop().call_soon(reply, Unavailable("the process is dead"))
            return
        self.left -= 1
        super().call(function, keys, args, reply)


@asynccontextmanager
async def dying(valkey: EmbeddedValkey) -> AsyncIterator[Mortal]:
    client = await Mortal.connect(valkey.url)
    assert isinstance(client, Mortal)
    try:
        yield client
    finally:
        await client.close()


STEPS: Final[dict[str, list[tuple[int, PairAction]]]] = {
    "ask": [],
    "accept": [(0, "ask")],
    "remove": [(0, "ask"), (1, "accept")],
    "cancel": [(1, "ask")],
    "decline": [(0, "ask")],
    "block": [(0, "ask"), (1, "accept")],
    "unblock": [(1, "block")],
    "ended": [(0, "ask"), (1, "accept")],
}
NAMES: Final[dict[str, PairAction]] = {"cancel": "remove", "decline": "remove"}


@pytest.mark.parametrize("change", STEPS)
async def test_both_users_agree_with_the_record_wherever_a_process_dies(valkey: EmbeddedValkey, change: str) -> None:
    """Between any two calls of a change; a router's round makes the rest, and says the same to both."""
    async with town(valkey) as t, dying(valkey) as doomed:
        for calls in itertools.count():
            users = f"ann-{change}-{calls}", f"bob-{change}-{calls}"
            for user in users:
                await t.accounts.ensure(user)
            for actor, action in STEPS[change]:
                await t.contacts.change(users[actor], users[1 - actor], action, "", 1)
            conv, before = keys.direct(*users), await agreed(t, *users)
            doomed.left = calls
            try:
                await Town(doomed).contacts.change(users[1], users[0], NAMES.get(change, change), "", 1)  # type: ignore[arg-type]
                survived = True
            except Unavailable:
                survived = False
            if await t.marked(*users) is not None:
                await t.contacts.repeat(conv)
            assert (await agreed(t, *users) != before) is (calls > 0)
            if survived:
                break
    assert calls >= 4


async def agreed(t: Town, user: str, other: str) -> list[tuple[str | None, bool]]:
    """What the record says about both users, which their rows and keys say, too."""
    record = await reply_of(t.pairs.read, user, other)
    says: list[tuple[str | None, bool]] = []
    for one, two in ((user, other), (other, user)):
        entry = record.entry(one, two, 0) if record else None
        blocks = record is not None and bool(record.of[one].blocked)
        row = (await t.people.everybody(one)).get(two)
        assert (row is not None and row.blocks) == blocks
        if record is None or not record.of[one].ended:
            own = await t.entry(one, two)
            assert (own["state"] if own else None) == (entry.state if entry else None)
            assert bool(await t.block(one, two)) == blocks
        says.append((entry.state if entry else None, blocks))
    return says


# -- any interleaving


class Model:
    """What two users are to each other; the actions as the page for client authors has them."""

    def __init__(self) -> None:
        self.contact = False
        self.asked: dict[str, bool] = {}  # asker -> whether the other sees it
        self.quiet: set[str] = set()
        self.blocks: set[str] = set()
        self.only: set[str] = set()
        self.wrote: set[str] = set()
        self.ended: set[str] = set()

    def apply(self, user: str, other: str, action: str) -> bool:
        """Whether it is allowed."""
        if action == "ask":
            if user in self.blocks or self.ended:
                return False
            if self.contact:
                return True
            if other in self.asked:
                self.befriend()
                return True
            reaches = other not in self.blocks and user not in self.quiet
            if not self.asked.get(user):
                self.asked[user] = reaches
            if not self.asked[user]:
                self.quiet.add(user)
        elif action == "accept":
            if not self.contact and not self.asked.get(other):
                return False
            if not self.contact:
                self.befriend()
        elif action == "remove":
            if self.contact:
                self.contact = False
            elif user in self.asked:
                del self.asked[user]
            else:
                self.decline(other)
        elif action == "block":
            self.blocks.add(user)
            self.contact = False
            self.asked.pop(user, None)
            self.decline(other)
        elif action == "unblock":
            self.blocks.discard(user)
        elif action in ("only", "everybody"):
            (self.only.add if action == "only" else self.only.discard)(user)
        elif action == "ended":
            self.ended.add(user)
            self.contact = False
            self.asked.clear()
        return True

    def befriend(self) -> None:
        self.contact = True
        self.asked.clear()
        self.quiet.clear()

    def decline(self, asker: str) -> None:
        if self.asked.get(asker):
            self.asked[asker] = False
            self.quiet.add(asker)

    def entry(self, user: str, other: str) -> str | None:
        if self.contact:
            return "contact"
        if user in self.asked:
            return "outgoing"
        return "incoming" if self.asked.get(other) else None

    def may_write(self, user: str, other: str) -> bool:
        if self.blocks or self.ended:
            return False
        return other not in self.only or self.contact or other in self.wrote


ACTIONS: Final = ("ask", "accept", "remove", "block", "unblock", "only", "everybody", "ended", "ask", "ask", "accept")
USERS: Final = ("ann", "bob", "cid")


class Interleaving(RuleBasedStateMachine):
    """Actions of three users, some of whose processes die before the copies; compared with a model of each pair."""

    valkey: EmbeddedValkey
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        with self.valkey.client() as redis:
            redis.flushall()
        self.client = self.run(Client.connect(self.valkey.url))
        self.town = Town(self.client)
        self.models = {keys.direct(a, b): Model() for a, b in itertools.combinations(USERS, 2)}
        self.number = 0
        for user in USERS:
            self.run(self.town.accounts.ensure(user))

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.ensure_future(work, loop=self.loop))

    @rule(
        pair=st.permutations(USERS).map(lambda users: users[:2]),
        action=st.sampled_from(ACTIONS),
        dies=st.booleans(),
    )
    def act(self, pair: list[str], action: str, dies: bool) -> None:
        user, other = pair
        model = self.models[keys.direct(user, other)]
        self.number += 1
        argument, number = {"only": ("1", self.number), "everybody": ("0", self.number)}.get(action, ("", 1))
        name = "only" if action == "everybody" else action
        work: Callable[..., Awaitable[Change]] = self.town.change if dies else self.town.contacts.change
        try:
            self.run(work(user, other, name, argument, number))
            allowed = True
        except (Conflict, NotFound):
            allowed = False
        assert allowed == model.apply(user, other, action)

    @rule(pair=st.permutations(USERS).map(lambda users: users[:2]))
    def write(self, pair: list[str]) -> None:
        user, other = pair
        model = self.models[keys.direct(user, other)]
        self.run(self.town.opened(user, other))
        try:
            try:
                self.run(self.town.send(user, other))
            except Blocked:
                if self.run(self.town.change(user, other, "look")).role != "m":
                    raise
                self.run(self.town.send(user, other))
            allowed = True
        except LinnetError:
            allowed = False
        assert allowed == model.may_write(user, other)
        if allowed:
            model.wrote.add(user)

    @invariant()
    def record_agrees_with_the_model(self) -> None:
        for conv, model in self.models.items():
            first, second = keys.parties(conv)
            record = self.run(reply_of(self.town.pairs.read, first, second))
            for user, other in ((first, second), (second, first)):
                entry = record.entry(user, other, 0) if record else None
                assert (entry.state if entry else None) == model.entry(user, other)

    def teardown(self) -> None:
        """A router's round: then all copies agree with the records."""
        for conv, model in self.models.items():
            if self.run(self.town.marked(*keys.parties(conv))) is not None:
                self.run(self.town.contacts.repeat(conv))
            first, second = keys.parties(conv)
            for user, other in ((first, second), (second, first)):
                row = self.run(self.town.people.everybody(user)).get(other)
                assert (row is not None and row.blocks) == (user in model.blocks)
                assert (row is not None and row.hidden) == bool(model.blocks)
                if user not in model.ended:
                    entry, block = self.run(self.town.entry(user, other)), self.run(self.town.block(user, other))
                    assert (entry["state"] if entry else None) == model.entry(user, other)
                    assert bool(block) == (user in model.blocks)
        self.run(self.client.close())


def test_any_interleaving_agrees_with_the_model(valkey: EmbeddedValkey) -> None:
    """Requests, accepts, cancels, removals, blocks, settings, ends of accounts, messages, and processes that die."""
    loop = asyncio.new_event_loop()
    machine = type("Bound", (Interleaving,), {"valkey": valkey, "loop": loop})
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=settings().max_examples // 5,
                stateful_step_count=20,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        loop.close()
