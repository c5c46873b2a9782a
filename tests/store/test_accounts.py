"""Users: accounts, names, and names of deleted users."""

import asyncio

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, signals
from router.contract.errors import Blocked, Conflict, NotFound, RateLimited
from router.contract.files import FileInfo
from router.store import accounts as accounts_module
from router.store.accounts import Accounts, GuessSource
from router.store.files import Files, UploadRate
from router.store.pushes import Pushes
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import Channel, connected

GROUP = "g:AAAAAAAAAAAAAAAAAAAAAA"

STRANGER, HOME = GuessSource("a" * 16), GuessSource("b" * 16)
PHONE = GuessSource(STRANGER.address, "c" * 16)


async def test_one_of_many_callers_gets_a_name(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        accounts = Accounts(client)
        tries = [accounts.create("ann", f"hash-{i}", f"Ann {i}") for i in range(5)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(result) for result in results].count(Conflict) == 4
        winner = results.index(None)
        assert await accounts.password("ann") == (f"hash-{winner}".encode(), 0)
        assert await client.fetch("HGET", keys.user("ann"), "name") == f"Ann {winner}".encode()


async def test_one_of_the_names_that_differ_only_in_case_is_given_out(valkey: EmbeddedValkey) -> None:
    """Of many simultaneous calls, and for ever: also after its deletion, and for users that a backend created."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        likes = ("ada", "Ada", "ADA", "aDa", "adA")
        made = await asyncio.gather(*(accounts.create(name, "hash", "") for name in likes), return_exceptions=True)
        assert sorted(map(type, made), key=str) == sorted([type(None)] + [Conflict] * 4, key=str)
        winner = likes[made.index(None)]
        await accounts.end(winner)
        await accounts.delete(winner)
        for name in likes:
            with pytest.raises(Conflict):
                await accounts.create(name, "hash", "")
        await accounts.ensure("Bob")
        with pytest.raises(Conflict):
            await accounts.create("bob", "hash", "")
        await accounts.ensure("bob")  # their issuer decides


async def test_names_of_an_earlier_release_are_not_given_out_again(valkey: EmbeddedValkey) -> None:
    """In lower case at once, else from the next login or the deletion on."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        for user in ("ann", "Cy", "Dan"):
            await client.fcall("create_account", (keys.user(user),), ("hash", ""))
        with pytest.raises(Conflict):
            await accounts.create("Ann", "hash", "")
        await accounts.confirm_guess("Cy", HOME)
        await accounts.end("Dan")
        for user in ("cy", "dan"):
            with pytest.raises(Conflict):
                await accounts.create(user, "hash", "")


async def test_claim_of_a_router_that_died_is_replaced_after_a_while(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that was claimed without creating an account is free again after a router's longest time; once."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await client.fcall("claim_name", (keys.names("Eve"),), ("Eve", ""))
        with pytest.raises(Conflict):
            await accounts.create("eve", "hash", "")
        monkeypatch.setattr(accounts_module, "CLAIM_MS", 0)
        made = await asyncio.gather(*(accounts.create(n, "hash", "") for n in ("eve", "evE")), return_exceptions=True)
        assert sorted(map(type, made), key=str) == sorted([type(None), Conflict], key=str)


async def test_user_of_a_token_has_the_name(valkey: EmbeddedValkey) -> None:
    """A password cannot be set for them, and reading it does not show whether they exist."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await accounts.ensure("ann")
        created = await client.fetch("HGET", keys.user("ann"), "created")
        await accounts.ensure("ann")
        assert created == await client.fetch("HGET", keys.user("ann"), "created") is not None
        with pytest.raises(Conflict):
            await accounts.create("ann", "hash", "Ann")
        assert await accounts.password("ann") == (None, 0)


async def test_names_of_deleted_users_are_never_given_out_again(valkey: EmbeddedValkey) -> None:
    """Not to an account, a backend or a token; and the data of the user are deleted."""
    async with connected(valkey) as client:
        accounts, users, pushes = Accounts(client), Users(client), Pushes(client)
        await accounts.create("ann", "hash", "Ann")
        who = Sync(user="ann", device="phone", session="s", node="node-1", started=10, register=True)
        await called(users.sync, who)
        await called(users.deliver, "ann", "d:ann:bob", "bob", 1, 1, b"\x80", False, 0)
        await called(users.ack, "ann", "phone", "s", {"d:ann:bob": 1})
        await pushes.schedule("ann", "d:ann:bob", 1, 0)
        files, info = Files(client), FileInfo(sha256="0" * 64, type="text/plain", kind="file", size=1)
        await files.begin("ann", "u", 1, 60_000, UploadRate(3, 60, 10))
        await files.own("ann", info, 10)
        with Channel(valkey, keys.Channels().user("ann")) as channel:
            assert await accounts.delete("ann") == []
        assert signals.decode(channel.heard[0]) == signals.Kick("")
        assert set(await client.fetch("KEYS", "*ann*")) == {keys.user("ann").encode(), keys.names("ann").encode()}
        assert await client.fetch("HKEYS", keys.user("ann")) == [b"deleted"]
        assert await pushes.claims((keys.partition("ann"),), 10, 1000) == [[]]
        with pytest.raises(Conflict):
            await accounts.create("ann", "hash", "Ann")
        with pytest.raises(Blocked):
            await accounts.ensure("ann")
        with pytest.raises(Blocked):
            await called(users.sync, who)
        with pytest.raises(NotFound):
            await files.own("ann", info, 10)  # an upload that was on its way
        assert not await called(users.exists, "ann")
        assert await accounts.password("ann") == (None, 0)


async def test_deletion_can_be_continued_by_another_caller(valkey: EmbeddedValkey) -> None:
    """The user is gone at once; their groups are known until a caller has removed them from all."""
    async with connected(valkey) as client:
        accounts, users = Accounts(client), Users(client)
        await accounts.ensure("ann")
        await users.join("ann", GROUP, "Crew", 4, 0, 0, "m")
        assert await accounts.delete("ann") == [GROUP]
        assert not await called(users.exists, "ann")
        assert not await users.join("ann", "g:BBBBBBBBBBBBBBBBBBBBBB", "Late", 1, 0, 0, "m")
        assert await accounts.delete("ann") == [GROUP]
        assert await users.leave("ann", GROUP, 9)
        assert await accounts.delete("ann") == []
        assert set(await client.fetch("KEYS", "*ann*")) == {keys.user("ann").encode(), keys.names("ann").encode()}
        assert not await users.leave("ann", GROUP, 11)
        assert set(await client.fetch("KEYS", "*ann*")) == {keys.user("ann").encode(), keys.names("ann").encode()}


async def test_deletion_of_an_unknown_user_is_refused(valkey: EmbeddedValkey) -> None:
    """Otherwise any caller could use up names."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        with pytest.raises(NotFound):
            await accounts.delete("ann")
        await accounts.create("ann", "hash", "Ann")


async def use_up(accounts: Accounts, source: GuessSource) -> None:
    """Guess until the source's rate refuses."""
    for _ in range(5):
        await accounts.take_guess("ann", source)
    with pytest.raises(RateLimited) as refused:
        await accounts.take_guess("ann", source)
    assert 0 < (refused.value.retry_after or 0) <= 12


async def test_guesses_have_a_rate_and_create_no_user(valkey: EmbeddedValkey) -> None:
    """Five at once, then one in twelve seconds, until the password is right; for an unknown name no data is kept."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await accounts.create("ann", "hash", "Ann")
        await use_up(accounts, STRANGER)
        await accounts.confirm_guess("ann", STRANGER)
        await accounts.take_guess("ann", STRANGER)
        for _ in range(6):
            await accounts.take_guess("nobody", PHONE)
            await accounts.confirm_guess("nobody", PHONE)
        assert await client.fetch("KEYS", "*nobody*") == []


async def test_guesses_of_strangers_leave_the_rates_of_known_sources(valkey: EmbeddedValkey) -> None:
    """An address that logged in before, and a device with a token, have rates of their own; each is limited."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await accounts.create("ann", "hash", "Ann")
        await accounts.take_guess("ann", HOME)
        await accounts.confirm_guess("ann", HOME)
        await use_up(accounts, STRANGER)
        await use_up(accounts, HOME)
        await use_up(accounts, PHONE)
        await accounts.confirm_guess("ann", HOME)
        await accounts.take_guess("ann", HOME)
        with pytest.raises(RateLimited):
            await accounts.take_guess("ann", PHONE)


async def test_known_sources_of_a_user_are_bounded(valkey: EmbeddedValkey) -> None:
    """The sixteen used last are kept, and no rate of another one."""
    async with connected(valkey) as client:
        accounts = Accounts(client)
        await accounts.create("ann", "hash", "Ann")
        for i in range(40):
            await accounts.confirm_guess("ann", GuessSource(f"{i:016}"))
            await accounts.take_guess("ann", GuessSource(f"{i:016}"))
            await accounts.take_guess("ann", GuessSource("a" * 16, f"t{i:015}"))
        known = (await client.fetch("HGET", keys.user("ann"), "known")).decode().split()
        assert known == [name for i in range(39, 31, -1) for name in (f"t{i:015}", f"{i:016}")]
        fields = {name.decode() for name in await client.fetch("HKEYS", keys.user("ann"))}
        assert {name.removeprefix("guesses:") for name in fields if name.startswith("guesses:")} == set(known)
