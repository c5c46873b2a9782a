"""Suspension of accounts, and roles in the deployment: who may suspend whom, what ends with it, and when it is over."""

from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import BadCommand, Blocked, Forbidden, NotFound
from router.contract.tokens import TokenId
from router.store.accounts import SERVER_RANK, Accounts, GuessSource, Role, rank_of
from router.store.audit import Audit
from router.store.presence import Presence, state
from router.store.users import Users
from tests.store.calling import called, store
from tests.store.clock import stepped
from tests.store.test_moderation import later
from tests.store.test_sync import audit, register, session

TOKEN = TokenId("t", 0, 0)
MODERATOR, ADMIN = 1, 2


async def test_suspended_user_is_offline_and_refused_until_it_is_lifted(valkey: EmbeddedValkey) -> None:
    """Sessions find it in their next audit without any signal; the password is right and does not help; a backend may
    still name the user, and messages to the user are delivered."""
    async with store(valkey.url) as s:
        accounts, users, presence = Accounts(s.client), Users(s.client), Presence(s.client)
        await accounts.create("ann", "hash", "Ann")
        now = await s.client.clock_ms()
        since = (await register(users, session("s", now))).since
        asked = session("s", now, since=since)
        assert await called(users.sessions_to_sync, [asked]) == []
        await accounts.suspend("ann", SERVER_RANK, "", 0, "spam")
        assert await called(users.sessions_to_sync, [asked]) == [0]
        with pytest.raises(Blocked):
            await audit(users, asked)
        with pytest.raises(Blocked):
            await register(users, session("s2", now + 1000))
        with pytest.raises(Blocked):
            await accounts.ensure("ann", TOKEN)
        with pytest.raises(Blocked):
            await accounts.confirm_guess("ann", GuessSource("a" * 16))
        assert (await accounts.ensure("ann")).generation == 0
        (devices,) = await called(presence.devices, ["ann"])
        seen = state(devices, {}, now)
        assert (seen.online, (seen.last_seen or 0) >= now) == (False, True)
        assert await called(users.deliver, "ann", keys.direct("ann", "bob"), "bob", 1, 1, b"event", False, 0)
        assert await accounts.unsuspend("ann", SERVER_RANK, "")
        assert not await accounts.unsuspend("ann", SERVER_RANK, "")
        assert (await register(users, session("s2", now + 1000))).status == "ok"
        assert (await accounts.ensure("ann", TOKEN)).generation == 0


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_suspension_ends_by_the_clock_of_redis(valkey: EmbeddedValkey, tmp_path: Path, step: int) -> None:
    async with stepped(valkey, tmp_path) as clock:
        await clock.step(step)
        accounts = Accounts(clock.client)
        await accounts.ensure("ann")
        with pytest.raises(BadCommand):
            await accounts.suspend("ann", SERVER_RANK, "", await clock.now_ms() - 1, "")
        await accounts.suspend("ann", SERVER_RANK, "", await clock.now_ms() + 60_000, "")
        with pytest.raises(Blocked):
            await accounts.ensure("ann", TOKEN)
        await clock.step(61)
        await accounts.ensure("ann", TOKEN)
        assert (await register(Users(clock.client), session("s", await clock.now_ms()))).status == "ok"


@pytest.mark.parametrize(
    ("roles", "least"),
    [((), MODERATOR), (("moderator",), ADMIN), (("admin",), SERVER_RANK), (("moderator", "admin"), 3)],
)
async def test_users_are_suspended_by_a_higher_rank(
    valkey: EmbeddedValkey, roles: tuple[Role, ...], least: int
) -> None:
    """The same for the end of it. Only a server key touches admins."""
    async with store(valkey.url) as s:
        accounts = Accounts(s.client)
        await accounts.ensure("ann")
        await accounts.set_roles("ann", roles)
        assert (await accounts.ensure("ann", TOKEN)).roles == roles == await accounts.roles("ann")
        for rank in (MODERATOR, ADMIN, SERVER_RANK):
            if rank >= least:
                await accounts.suspend("ann", rank, "mod", 0, "")
                assert await accounts.unsuspend("ann", rank, "mod")
            else:
                with pytest.raises(Forbidden):
                    await accounts.suspend("ann", rank, "mod", 0, "")
                with pytest.raises(Forbidden):
                    await accounts.unsuspend("ann", rank, "mod")


async def test_unknown_and_deleted_users_get_neither_role_nor_suspension(valkey: EmbeddedValkey) -> None:
    """Nothing is stored for them."""
    async with store(valkey.url) as s:
        accounts = Accounts(s.client)
        await accounts.ensure("eve")
        await accounts.set_roles("eve", ["admin"])
        await accounts.delete("eve")
        for name in ("nobody", "eve"):
            with pytest.raises(NotFound):
                await accounts.set_roles(name, ["admin"])
            with pytest.raises(NotFound):
                await accounts.suspend(name, SERVER_RANK, "", 0, "")
            assert await accounts.roles(name) is None
            assert await s.client.fetch("HMGET", keys.user(name), "roles", "suspended") == [None, None]


async def test_acts_about_users_are_in_the_audit_at_once(valkey: EmbeddedValkey) -> None:
    """In the step in which they are done, so a process that dies leaves none behind."""
    async with store(valkey.url) as s:
        accounts, users = Accounts(s.client), Users(s.client)
        await accounts.create("ann", "hash", "")
        await accounts.set_roles("ann", ["moderator"])
        await accounts.suspend("ann", ADMIN, "boss", 0, "spam")
        await accounts.unsuspend("ann", SERVER_RANK, "")
        await accounts.offer_reset("ann", "digest")
        await users.kick("ann", by="")
        await users.kick("ann")
        entries = (await later(Audit(s.client))).entries
        assert [(one.action, one.actor, one.user, one.reason) for one in entries] == [
            ("roles", "", "ann", "moderator"),
            ("suspend", "boss", "ann", "spam"),
            ("unsuspend", "", "ann", ""),
            ("password_reset", "", "ann", ""),
            ("sessions_ended", "", "ann", ""),
        ]


def test_rank_is_that_of_the_highest_role() -> None:
    assert [rank_of(roles) for roles in ((), ("moderator",), ("admin",), ("moderator", "admin"), ("unknown",))] == [
        0,
        1,
        2,
        2,
        0,
    ]
