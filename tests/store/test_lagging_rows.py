"""Rows that lag: to all readers it is as if each message of an active direct conversation had raised both rows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.jobs.finisher import Deliver, deliveries
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.appends import Appended
from router.store.pushes import Pushes
from router.store.redis.client import Client
from router.store.users import Users
from tests.store.calling import BURST_US, COST_US, Store, called, event, store
from tests.store.test_sync import audit, register, session
from tests.store.user_slot import Channel

CONV: Final = keys.direct("ann", "bob")
YEAR_MS: Final = 365 * 86_400_000


def lagging(user: str) -> str:
    return keys.convs(user).replace(":convs:", ":lagging:")


class Pair(NamedTuple):
    """Two users and their conversation, which the seq `base` precedes."""

    s: Store
    users: Users
    ann: str
    bob: str

    @property
    def names(self) -> tuple[str, str]:
        return self.ann, self.bob

    @property
    def conv(self) -> str:
        return keys.direct(self.ann, self.bob)

    async def open(self) -> None:
        for user in (self.ann, self.bob):
            await Accounts(self.s.client).ensure(user)
        await called(self.s.conversations.create_direct, self.ann, self.bob, COST_US, BURST_US)

    async def lags(self) -> bool:
        return bool(await self.s.client.fetch("HEXISTS", keys.conversation(self.conv), "lagging"))

    async def stored_head(self, user: str) -> int:
        """The head in the row as it is stored: what a reader that does not raise rows would see."""
        row: bytes = await self.s.client.fetch("HGET", keys.convs(user), self.conv)
        return int.from_bytes(row[6:14], "big")

    async def finish(self) -> None:
        """What a router does with the conversation."""
        head = await self.s.conversations.head(self.conv)
        assert head is not None
        page = await reply_of(self.s.conversations.range, self.conv, None, head.routed, head.seq, 500)
        for action in deliveries(self.conv, page.events):
            assert isinstance(action, Deliver)
            what = (action.other, action.seq, action.count, action.event, action.marks, action.target)
            await called(self.users.deliver, action.user, self.conv, *what)
        await self.s.dirty.mark_routed(self.conv, head.seq, 1000, YEAR_MS)


@asynccontextmanager
async def opened(valkey: EmbeddedValkey) -> AsyncIterator[Pair]:
    async with store(valkey.url) as s:
        pair = Pair(s, Users(s.client), "ann", "bob")
        await pair.open()
        yield pair


class Burst(NamedTuple):
    raised: int  # the seq that both rows have
    last: Appended
    n: int  # the next one of ann


async def burst(pair: Pair, n: int = 1) -> Burst:
    """Messages of ann, the last four of which have raised no row."""
    while not await pair.lags():
        last = await pair.s.send(pair.conv, pair.ann, n)
        n += 1
    raised = last.seq
    for following in range(n, n + 4):
        last = await pair.s.send(pair.conv, pair.ann, following)
    return Burst(raised, last, n + 4)


async def logged(pair: Pair) -> list[bytes]:
    return [fields[1] for _, fields in await pair.s.client.fetch("XRANGE", keys.log(pair.conv), "-", "+")]


async def test_message_of_an_active_conversation_raises_no_row_and_is_published_to_both(
    valkey: EmbeddedValkey,
) -> None:
    async with opened(valkey) as pair:
        with Channel(valkey, keys.Channels().user("ann")) as ann, Channel(valkey, keys.Channels().user("bob")) as bob:
            raised, last, _ = await burst(pair)
            assert last.seq > raised
            assert [await pair.stored_head(user) for user in ("ann", "bob")] == [raised, raised]
        assert ann.heard == bob.heard == await logged(pair)


@pytest.mark.parametrize("asks", ["register", "audit", "page", "row", "read", "pushes"])
async def test_reader_of_rows_finds_what_lags(valkey: EmbeddedValkey, asks: str) -> None:
    """Without any router, by every function that reads rows."""
    async with opened(valkey) as pair:
        users = pair.users
        bob = session("s1", 1, user="bob")
        since = (await register(users, bob)).since
        _, last, n = await burst(pair)
        match asks:
            case "register":
                (row,) = (await register(users, session("s2", 2, user="bob"))).rows
                assert (row.head, row.count) == (last.seq, last.count)
            case "audit":
                synced = await audit(users, bob, since)
                (row,) = synced.rows
                assert (row.head, row.count) == (last.seq, last.count)
                assert (await audit(users, bob, synced.since)).rows == []
                newest = await pair.s.send(pair.conv, "ann", n)
                audited = session("s1", 1, user="bob", since=synced.since)
                assert await called(users.sessions_to_sync, [audited]) == [0]
                assert [row.head for row in (await audit(users, bob, synced.since)).rows] == [newest.seq]
            case "page":
                (row,) = (await users.conversations("ann")).rows
                assert (row.head, row.read, row.read_count) == (last.seq, last.seq, last.count)
            case "row":
                found = await users.row("ann", pair.conv)
                assert found
                assert (found.head, found.read, found.read_count) == (last.seq, last.seq, last.count)
            case "read":
                assert not await called(users.read, "ann", pair.conv, last.seq - 1, 5)
                assert await called(users.read, "bob", pair.conv, last.seq - 1, 5)
            case "pushes":
                pushes = Pushes(pair.s.client)
                assert await pushes.schedule("ann", pair.conv, last.seq - 1, 0)
                assert (await pushes.waiting("ann")).waits[pair.conv].read == last.seq


async def test_rows_of_a_conversation_at_the_pace_of_people_do_not_lag(valkey: EmbeddedValkey) -> None:
    """Half a second between two messages: then raising the rows costs no more."""
    async with opened(valkey) as pair:
        for n in range(1, 7):
            last = await pair.s.send(pair.conv, "ann", n)
            assert await pair.stored_head("bob") == last.seq
            meta: bytes = await pair.s.client.fetch("HGET", keys.conversation(pair.conv), "m")
            earlier = int.from_bytes(meta[-8:], "big") - 500
            await pair.s.client.fetch("HSET", keys.conversation(pair.conv), "m", meta[:-8] + earlier.to_bytes(8, "big"))
        assert not await pair.lags()


async def test_order_of_conversations_is_that_of_their_last_messages(valkey: EmbeddedValkey) -> None:
    async with opened(valkey) as pair:
        other = pair._replace(bob="cem")
        await other.open()
        n = (await burst(pair)).n
        before = (await burst(other)).last.at
        while (await pair.s.send(pair.conv, "ann", n)).at == before:
            n += 1
        newest = (await pair.users.conversations("ann")).rows
        assert [row.conversation for row in newest] == [pair.conv, other.conv]


async def test_router_ends_the_lag_and_publishes_nothing_again(valkey: EmbeddedValkey) -> None:
    async with opened(valkey) as pair:
        _, last, n = await burst(pair)
        with Channel(valkey, keys.Channels().user("bob")) as bob:
            await pair.finish()
        assert bob.heard == []
        assert not await pair.lags()
        assert [await pair.stored_head(user) for user in ("ann", "bob")] == 2 * [last.seq]
        for user in ("ann", "bob"):
            assert not await pair.s.client.fetch("EXISTS", lagging(user))
        fields = await pair.s.client.fetch("HKEYS", keys.conversation(pair.conv))
        assert not [name for name in fields if name.startswith(b"o:")]
        following = await pair.s.send(pair.conv, "ann", n)  # the first of another burst
        assert [await pair.stored_head(user) for user in ("ann", "bob")] == 2 * [following.seq]


async def test_message_that_comes_while_a_router_finishes_keeps_the_lag(valkey: EmbeddedValkey) -> None:
    async with opened(valkey) as pair:
        last = (await burst(pair)).last
        newest = await pair.s.send(pair.conv, "bob", 1)
        await pair.s.dirty.mark_routed(pair.conv, last.seq, 1000, YEAR_MS)
        assert await pair.lags()
        row = await pair.users.row("bob", pair.conv)
        assert row
        assert (row.head, row.read) == (newest.seq, newest.seq)


async def test_conversations_of_a_user_whose_rows_lag_are_bounded(valkey: EmbeddedValkey) -> None:
    async with opened(valkey) as pair:
        others = [pair._replace(bob=f"bob-{i}") for i in range(66)]
        for other in others:
            await other.open()
            if other is not others[-1] and other is not others[-2]:
                await burst(other)
        for n in range(1, 5):
            last = await pair.s.send(others[-1].conv, "ann", n)
        assert await pair.s.client.fetch("HLEN", lagging("ann")) == 64
        assert not await others[-1].lags()
        assert await others[-1].stored_head("ann") == last.seq


async def test_conversation_that_is_removed_in_a_burst_lags_no_more(valkey: EmbeddedValkey) -> None:
    async with opened(valkey) as pair:
        await burst(pair)
        changed = await pair.s.conversations.remove_conversation(pair.conv, None)
        row = await pair.users.row("ann", pair.conv)
        await pair.users.leave("ann", pair.conv, changed)
        await register(pair.users, session("s1", 1))
        left = await pair.users.row("ann", pair.conv)
        assert row is not None
        assert not row.left
        assert left is not None
        assert left.left
        assert not await pair.s.client.fetch("EXISTS", lagging("ann"))


async def test_process_that_delivers_by_itself_ends_the_lag(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster, after a single server has become one: what lagged is delivered by a router."""
    async with opened(valkey) as pair:
        n = (await burst(pair)).n
        answered = await pair.s.send(pair.conv, "bob", 1)
        monkeypatch.setattr(Client, "one_server", property(lambda _: False))
        apart = Pair(pair.s, Users(pair.s.client), "ann", "bob")
        apart.s.conversations._template.cache_clear()
        last = await pair.s.send(pair.conv, "ann", n)
        assert not await pair.lags()
        await apart.finish()
        rows = {user: await apart.users.row(user, pair.conv) for user in ("ann", "bob")}
        found = {user: row and (row.head, row.read) for user, row in rows.items()}
        assert found == {"ann": (last.seq, last.seq), "bob": (last.seq, answered.seq)}


@pytest.mark.parametrize("seed", range(8))
async def test_rows_are_those_that_every_message_raises(valkey: EmbeddedValkey, seed: int) -> None:
    """The same commands in two conversations, in one of which rows never lag (they are of format 1)."""
    random = Random(seed)
    async with store(valkey.url) as s, store(valkey.url) as plain:
        plain.client.row_format = 1
        pairs = [Pair(s, Users(s.client), "ann", "bob"), Pair(plain, Users(plain.client), "eva", "fay")]
        for pair in pairs:
            await pair.open()
        seqs: list[tuple[Appended, Appended]] = []  # of the messages
        counts, lagged = [0, 0], False
        for _ in range(120):
            what, author = random.choices(range(7), (60, 8, 8, 6, 6, 4, 8))[0], random.randrange(2)
            at = max(0, len(seqs) - random.randrange(1, 5))
            if what and not seqs:
                continue
            counts[author] += 1
            answers: list[Any] = []
            for i, pair in enumerate(pairs):
                user, n = pair.names[author], counts[author]
                match what:
                    case 0:
                        answers.append(await pair.s.send(pair.conv, user, n, done=n - 1))
                    case 1 | 2 | 3:
                        action = ("edit", "delete", "react")[what - 1]
                        target = seqs[at][i].seq
                        more = {"emoji": "+"} if what == 3 else {}
                        sent = event(pair.conv, user, n, action=action, target=target, **more)  # type: ignore[arg-type]
                        answers.append(await _code(called(pair.s.conversations.append, sent)))
                    case 4:
                        position = await reply_of(pair.s.conversations.read_position, pair.conv, user, seqs[at][i].seq)
                        read = partial(pair.users.read, deleted_above=position.deleted_above)
                        answers.append(await called(read, user, pair.conv, position.seq, position.count))
                    case 5:
                        await pair.finish()
                    case _:
                        answers.append(await _rows(pair, seqs[0][i]))
            lagged = lagged or await pairs[0].lags()
            if what == 0:
                seqs.append((answers[0], answers[1]))
            elif what in (4, 6):
                assert answers[0] == answers[1]
            elif what < 4:
                assert type(answers[0]) is type(answers[1])
        assert lagged
        assert await _rows(pairs[0], seqs[0][0]) == await _rows(pairs[1], seqs[0][1])
        assert not await pairs[1].lags()


async def _code(waiting: Any) -> Any:
    try:
        return await waiting
    except Exception as error:  # noqa: BLE001 - both conversations must refuse alike
        return error


async def _rows(pair: Pair, first: Appended) -> list[object]:
    """Both rows, with seqs counted from the first event."""
    rows = [await pair.users.row(user, pair.conv) for user in (pair.ann, pair.bob)]
    return [
        row and (row.head - first.seq, row.count, max(row.read - first.seq, -1), row.read_count, row.deleted_above)
        for row in rows
    ]


async def test_deleted_message_above_an_own_one_that_lags_counts_as_deleted(valkey: EmbeddedValkey) -> None:
    """The own message moves the read mark before the deletion, as if it had raised the row."""
    async with opened(valkey) as pair:
        await burst(pair)
        await pair.s.send(pair.conv, "bob", 1)
        own = await pair.s.send(pair.conv, "bob", 2)
        unread = await pair.s.send(pair.conv, "ann", 100)
        deleted = await pair.s.send(pair.conv, "ann", 101, action="delete", target=unread.seq)
        row = await pair.users.row("bob", pair.conv)
        assert row is not None
        assert (row.head, row.read, row.deleted_above) == (deleted.seq, own.seq, 1)


async def test_rows_that_lag_are_raised_after_the_server_was_killed(own_valkey: EmbeddedValkey) -> None:
    """Before and after the next message, which is the first one of another server."""
    async with opened(own_valkey) as pair:
        _, last, n = await burst(pair)
        await pair.s.send(pair.conv, "bob", 1)
        own = await pair.s.send(pair.conv, "bob", 2)
    own_valkey.kill()
    own_valkey.restart()
    async with store(own_valkey.url) as s:
        pair = Pair(s, Users(s.client), "ann", "bob")
        rows = {user: await pair.users.row(user, pair.conv) for user in pair.names}
        assert {user: row and (row.head, row.read) for user, row in rows.items()} == {
            "ann": (own.seq, last.seq),
            "bob": (own.seq, own.seq),
        }
        newest = await pair.s.send(pair.conv, "ann", n)
        row = await pair.users.row("bob", pair.conv)
        assert row is not None
        assert (row.head, row.read, newest.prev) == (newest.seq, own.seq, own.seq)
