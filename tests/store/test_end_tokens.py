"""Tokens that end before they expire: by a logout, by all logouts, by a new password."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import Conflict, NotFound, Unauthorized
from router.contract.tokens import TokenId
from router.store.accounts import Accounts
from router.store.redis.client import Client
from router.store.sync import Sync, Synced
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import Channel, connected, now

FOREVER_S = 2**40


@asynccontextmanager
async def of_ann(valkey: EmbeddedValkey) -> AsyncIterator[tuple[Client, Accounts]]:
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await accounts.create("ann", "hash", "Ann")
        yield client, accounts


async def counts(accounts: Accounts, token: TokenId) -> bool:
    """Whether the token is accepted, with which the caller says that it is Ann."""
    try:
        await accounts.ensure("ann", token)
    except Unauthorized:
        return False
    return True


async def register(users: Users, device: str, token: TokenId, started: int) -> Synced:
    return await sync(users, device, token, started, True)


async def sync(
    users: Users, device: str, token: TokenId, started: int, register: bool = False, since: bytes = b""
) -> Synced:
    who = Sync(user="ann", device=device, session=device, node="n", started=started, register=register, since=since,
               token=token, token_expires_s=FOREVER_S)  # fmt: skip
    synced: Synced = await called(users.sync, who)
    return synced


async def test_token_that_was_logged_out_is_refused_and_no_other(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, accounts):
        one, other, foreign = TokenId("one", 0, 5), TokenId("other", 0, 5), TokenId("foreign", None, 5)
        await accounts.end_token("ann", one, FOREVER_S, ())
        await accounts.end_token("ann", foreign, FOREVER_S, ())
        assert [await counts(accounts, token) for token in (one, foreign, other)] == [False, False, True]
        assert await counts(accounts, TokenId("on", 0, 5))


async def test_all_tokens_end_but_the_spared_one(valkey: EmbeddedValkey) -> None:
    """Of our own those of an earlier generation; of others those that were not issued later than that second."""
    async with of_ann(valkey) as (client, accounts):
        second = await now(client) // 1000
        spared, old = TokenId("spared", 0, second), TokenId("old", 0, second)
        assert (await accounts.ensure("ann")).generation == 0
        await accounts.end_all_tokens("ann", spared.id, ())
        assert (await accounts.ensure("ann")).generation == 1
        assert [await counts(accounts, token) for token in (spared, old)] == [True, False]
        assert await counts(accounts, TokenId("new", 1, second))
        foreign = [TokenId("foreign", None, at) for at in (0, second - 1, second, second + 60)]
        assert [await counts(accounts, token) for token in foreign] == [False, False, False, True]
        await accounts.end_all_tokens("ann", "", ())
        assert not await counts(accounts, spared)
        assert not await counts(accounts, TokenId("new", 1, second))


async def test_spared_token_can_be_logged_out(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, accounts):
        spared = TokenId("spared", 0, 0)
        await accounts.end_all_tokens("ann", spared.id, ())
        await accounts.end_token("ann", spared, FOREVER_S, ())
        assert not await counts(accounts, spared)


async def test_number_of_noted_tokens_is_bounded(valkey: EmbeddedValkey) -> None:
    """Those that have expired are forgotten; with one too many, all tokens end, rather than that one goes on."""
    async with of_ann(valkey) as (client, accounts):
        second = await now(client) // 1000
        for i in range(1000):
            await accounts.end_token("ann", TokenId(f"expired{i}", 0, 0), second - 1, ())
        first = TokenId("first", 0, 0)
        await accounts.end_token("ann", first, FOREVER_S, ())
        for i in range(999):
            await accounts.end_token("ann", TokenId(f"out{i}", 0, 0), FOREVER_S, ())
        assert [await counts(accounts, token) for token in (first, TokenId("in", 0, 0))] == [False, True]
        await accounts.end_token("ann", TokenId("one-more", 0, 0), FOREVER_S, ())
        assert not await counts(accounts, TokenId("in", 0, 0))
        assert not await counts(accounts, first)
        assert await counts(accounts, TokenId("in", 1, 0))


async def test_new_password_needs_the_one_that_was_checked(valkey: EmbeddedValkey) -> None:
    """Of two changes at once one counts."""
    async with of_ann(valkey) as (_, accounts):
        await accounts.change_password("ann", "hash-2", "hash", "mine")
        with pytest.raises(Conflict):
            await accounts.change_password("ann", "hash-3", "hash", "mine")
        assert await accounts.password("ann") == (b"hash-2", 1)


async def test_reset_token_counts_once_and_until_another_change(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, accounts):
        expires_s = await accounts.offer_reset("ann", "a")
        assert abs(expires_s - await now(client) // 1000 - 3600) <= 60
        await accounts.offer_reset("ann", "b")
        assert [await accounts.has_reset("ann", digest) for digest in ("a", "b", "")] == [False, True, False]
        with pytest.raises(Conflict):
            await accounts.reset_password("ann", "hash-2", "a")
        await accounts.reset_password("ann", "hash-2", "b")
        with pytest.raises(Conflict):
            await accounts.reset_password("ann", "hash-3", "b")
        assert await accounts.password("ann") == (b"hash-2", 1)
        await accounts.offer_reset("ann", "c")
        await accounts.change_password("ann", "hash-3", "hash-2", "")
        with pytest.raises(Conflict):
            await accounts.reset_password("ann", "hash-4", "c")
        await accounts.offer_reset("ann", "d")
        await client.fetch("HSET", keys.user("ann"), "reset", f"d {await now(client) // 1000 - 1}")
        with pytest.raises(Conflict):
            await accounts.reset_password("ann", "hash-4", "d")


async def test_user_without_a_password_gets_none(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (_, accounts):
        await accounts.ensure("bob")
        for user in ("bob", "nobody"):
            with pytest.raises(NotFound):
                await accounts.offer_reset(user, "a")
            assert not await accounts.has_reset(user, "a")
        with pytest.raises(NotFound):
            await accounts.end_all_tokens("nobody", "", ())


async def test_session_of_an_ended_token_is_refused(valkey: EmbeddedValkey) -> None:
    """It can neither register nor go on; those of other tokens go on, and ask once."""
    async with of_ann(valkey) as (_, accounts):
        users = Users(accounts._client)
        one, other = TokenId("one", 0, 0), TokenId("other", 0, 0)
        phone, laptop = await register(users, "phone", one, 2**52), await register(users, "laptop", other, 2**52 + 1)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            await accounts.end_token("ann", one, FOREVER_S, ())
        assert signals.Kick("") in [signals.decode(payload) for payload in channel.heard]
        questions = [
            Sync(user="ann", device=device, session=device, node="n", started=started, since=since, token=token,
                 token_expires_s=FOREVER_S)
            for device, started, since, token in (("phone", 2**52, phone.since, one),
                                                  ("laptop", 2**52 + 1, laptop.since, other))
        ]  # fmt: skip
        assert await called(users.sessions_to_sync, questions) == [0, 1]
        with pytest.raises(Unauthorized):
            await called(users.sync, questions[0])
        went_on = await called(users.sync, questions[1])
        assert (went_on.status, went_on.rows) == ("ok", [])
        again = await sync(users, "laptop", other, 2**52 + 1, since=went_on.since)
        assert again.since == went_on.since
        with pytest.raises(Unauthorized):
            await register(users, "phone", one, 2**52 + 5)


async def test_session_goes_on_with_the_token_that_it_names_later(valkey: EmbeddedValkey) -> None:
    """Its device's row names the new one; the end of the old one does not concern it any more."""
    async with of_ann(valkey) as (_, accounts):
        users = Users(accounts._client)
        old, new = TokenId("old", 0, 0), TokenId("new", 0, 0)
        since = (await register(users, "phone", old, 2**52)).since
        assert (await sync(users, "phone", new, 2**52, since=since)).status == "ok"
        await accounts.end_token("ann", old, FOREVER_S, ())
        assert (await sync(users, "phone", new, 2**52, since=since)).status == "ok"
        await accounts.end_device("ann", "phone")
        with pytest.raises(Unauthorized):
            await sync(users, "phone", new, 2**52, since=since)


async def test_forgotten_device_leaves_no_row_and_no_cursors(valkey: EmbeddedValkey) -> None:
    async with of_ann(valkey) as (client, accounts):
        users = Users(client)
        token = TokenId("one", 0, 0)
        for at, device in enumerate(("phone", "laptop")):
            await register(users, device, token, 2**52 + at)
            await client.fetch("HSET", keys.cursor("ann", device), "d:ann:bob", 5)
        await accounts.end_device("ann", "phone")
        assert await client.fetch("HKEYS", keys.devices("ann")) == [b"laptop"]
        assert await client.fetch("HGETALL", keys.cursor("ann", "phone")) == []
        assert await client.fetch("HGETALL", keys.cursor("ann", "laptop")) != []
        with pytest.raises(NotFound):
            await accounts.end_device("ann", "phone")
        with pytest.raises(Unauthorized):
            await sync(users, "laptop", token, 2**52 + 1)  # it was the same token
