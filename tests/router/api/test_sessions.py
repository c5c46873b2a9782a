"""Passwords and sessions over HTTP: changes, resets, logouts, the list of sessions."""

from __future__ import annotations

import time
from typing import Any

import jwt

from deploy.embedded import EmbeddedValkey
from router.contract.tokens import Identity
from router.store.answers import reply_of
from router.store.sync import Sync
from tests.router.api.serving import SERVER, Api, serve
from tests.support import JWT_SECRET

OLD, NEW = "correct horse battery", "another horse battery"
REFUSED = (401, "unauthorized")


async def account(api: Api, user: str = "ann") -> None:
    await api.ok("POST", "/v1/accounts", {}, {"user": user, "password": OLD})


async def log_in(api: Api, password: str = OLD, user: str = "ann") -> dict[str, str]:
    login = await api.ok("POST", "/v1/login", {}, {"user": user, "password": password})
    return holder(login["token"])


def holder(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def elsewhere(user: str = "ann", **claims: Any) -> dict[str, str]:
    """A token that a backend of the deployment has signed, without `gen`."""
    claims = {"sub": user, "exp": time.time() + 600, **claims}
    return holder(jwt.encode(claims, JWT_SECRET, algorithm="HS256"))


async def accepted(api: Api, *tokens: dict[str, str]) -> list[bool]:
    return [(await api.get("/v1/sessions", headers=token)).status_code == 200 for token in tokens]


def identity(api: Api, token: dict[str, str]) -> Identity:
    return api.services.verifier.check(token["Authorization"].split()[1], int(time.time() * 1000))


async def connect(api: Api, token: dict[str, str], device: str, started: int) -> None:
    """Register a session with this token, as a gateway would."""
    who = identity(api, token)
    question = Sync(user="ann", device=device, session=device, node="none", started=started, register=True,
                    token=who.token, token_expires_s=who.expires_at // 1000)  # fmt: skip
    await reply_of(api.services.users.sync, question)


async def test_two_tokens_of_one_second_differ(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await account(api)
        assert len({(await log_in(api))["Authorization"] for _ in range(3)}) == 3


async def test_password_change_ends_all_tokens_but_the_calling_one(valkey: EmbeddedValkey) -> None:
    """Also those that were signed elsewhere, until their issuer gives out a later one."""
    async with serve(valkey) as api:
        await account(api)
        mine, other, foreign = await log_in(api), await log_in(api), elsewhere(iat=int(time.time()))
        assert await accepted(api, mine, other, foreign) == [True] * 3
        assert (await api.put("/v1/password", headers=mine, json={"old": OLD, "new": NEW})).status_code == 204
        assert await accepted(api, mine, other, foreign, elsewhere()) == [True, False, False, False]
        assert await accepted(api, elsewhere(iat=int(time.time()) + 5)) == [True]
        assert await api.refused("POST", "/v1/login", {}, {"user": "ann", "password": OLD}) == REFUSED
        new = await log_in(api, NEW)
        renewed = holder((await api.ok("POST", "/v1/tokens/renew", mine))["token"])
        assert await accepted(api, new, renewed) == [True, True]
        assert await api.refused("POST", "/v1/tokens/renew", other) == REFUSED


async def test_wrong_old_password_counts_as_a_wrong_login(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await account(api)
        mine = await log_in(api)
        found = [await api.refused("PUT", "/v1/password", mine, {"old": "wrong", "new": NEW}) for _ in range(6)]
        assert found == [(403, "forbidden")] * 5 + [(429, "rate_limited")]
        assert await accepted(api, mine) == [True]
        assert await api.refused("POST", "/v1/login", mine, {"user": "ann", "password": OLD}) == (429, "rate_limited")


async def test_new_password_follows_the_rules(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await account(api)
        mine = await log_in(api)
        assert await api.refused("PUT", "/v1/password", mine, {"old": OLD, "new": "short"}) == (422, "bad_command")
        reset = await api.ok("POST", "/v1/password/resets", SERVER, {"user": "ann"})
        body = {"token": reset["token"], "new": "short"}
        assert await api.refused("POST", "/v1/password/reset", {}, body) == (422, "bad_command")
        await api.ok("POST", "/v1/password/reset", {}, {**body, "new": NEW})  # the token is not used up by a refusal


async def test_user_of_a_provider_has_no_password_to_change(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        body = {"old": OLD, "new": NEW}
        assert await api.refused("PUT", "/v1/password", elsewhere(), body) == (403, "forbidden")
        assert await api.refused("POST", "/v1/password/resets", SERVER, {"user": "ann"}) == (404, "not_found")


async def test_reset_token_sets_a_password_once_and_ends_every_token(valkey: EmbeddedValkey) -> None:
    """Unknown, used, voided and malformed tokens get one answer."""
    async with serve(valkey) as api:
        await account(api)
        mine = await log_in(api)
        voided = await api.ok("POST", "/v1/password/resets", SERVER, {"user": "ann"})
        reset = await api.ok("POST", "/v1/password/resets", SERVER, {"user": "ann"})
        assert abs(reset["expires_at"] / 1000 - time.time() - 3600) < 60
        await api.ok("POST", "/v1/password/reset", {}, {"token": reset["token"], "new": NEW})
        assert await accepted(api, mine) == [False]
        await log_in(api, NEW)
        answers = set()
        for token in (
            reset["token"],
            voided["token"],
            "ann.x",
            "bob.x",
            "",
            ".",
            "nonsense",
            "a b.c",
            "ann." + "é" * 9,
        ):
            answer = await api.post("/v1/password/reset", json={"token": token, "new": OLD})
            answers.add((answer.status_code, answer.text))
        assert len(answers) == 1
        assert answers.pop()[0] == 401
        await log_in(api, NEW)


async def test_logout_ends_the_calling_token_and_forgets_its_device(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await account(api)
        mine, other, foreign = await log_in(api), await log_in(api), elsewhere()
        await connect(api, mine, "phone", 1)
        await connect(api, other, "laptop", 2)
        assert (await api.post("/v1/logout", headers=mine, json={})).status_code == 204
        assert (await api.post("/v1/logout", headers=foreign, json={})).status_code == 204
        assert await accepted(api, foreign, elsewhere(jti="x"), elsewhere(exp=time.time() + 601)) == [False, True, True]
        assert await accepted(api, mine, other) == [False, True]
        sessions = (await api.ok("GET", "/v1/sessions", other))["sessions"]
        assert [(one["device"], one["current"], one["online"]) for one in sessions] == [("laptop", True, False)]
        assert await api.refused("POST", "/v1/logout", mine, {}) == REFUSED


async def test_logout_of_a_device_of_the_others_and_of_all(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await account(api)
        one, two, three = [await log_in(api) for _ in range(3)]
        for at, (token, device) in enumerate(((one, "phone"), (two, "laptop"), (three, "tablet"))):
            await connect(api, token, device, at + 1)
        listed = (await api.ok("GET", "/v1/sessions", one))["sessions"]
        assert [(row["device"], row["started"], row["current"]) for row in listed] == [
            ("tablet", 3, False), ("laptop", 2, False), ("phone", 1, True)]  # fmt: skip
        await api.ok("POST", "/v1/logout", one, {"device": "laptop"})
        assert await accepted(api, one, two, three) == [True, False, True]
        assert await api.refused("POST", "/v1/logout", one, {"device": "laptop"}) == (404, "not_found")
        await api.ok("POST", "/v1/logout", one, {"others": True})
        assert await accepted(api, one, three) == [True, False]
        assert [row["device"] for row in (await api.ok("GET", "/v1/sessions", one))["sessions"]] == ["phone"]
        four = await log_in(api)
        await api.ok("POST", "/v1/logout", one, {"everywhere": True})
        assert await accepted(api, one, four) == [False, False]
        five = await log_in(api)
        assert (await api.ok("GET", "/v1/sessions", five))["sessions"] == []
        assert await api.refused("POST", "/v1/logout", five, {"others": True, "device": "x"}) == (422, "bad_command")


async def test_backend_logs_a_user_out(valkey: EmbeddedValkey) -> None:
    """It has no token that could end, or go on."""
    async with serve(valkey) as api:
        await account(api)
        ann = {**SERVER, "Linnet-User": "ann"}
        mine = await log_in(api)
        assert await api.refused("POST", "/v1/logout", ann, {}) == (422, "bad_command")
        await api.ok("POST", "/v1/logout", ann, {"others": True})
        assert await accepted(api, mine) == [False]
        made = await api.ok("POST", "/v1/tokens", SERVER, {"user": "ann"})
        assert await accepted(api, holder(made["token"])) == [True]


async def test_login_with_the_old_password_during_a_change_gives_no_token_that_counts(valkey: EmbeddedValkey) -> None:
    """The change is written while the old password is being verified."""
    async with serve(valkey) as api:
        await account(api)
        services = api.services
        stored, _ = await services.accounts.password("ann")
        verify = services.passwords.verify

        async def changed_meanwhile(hashed: bytes | None, password: str) -> bool:
            right = await verify(hashed, password)
            assert stored is not None
            await services.accounts.change_password("ann", "another hash", stored.decode(), "")
            return right

        object.__setattr__(services.passwords, "verify", changed_meanwhile)
        late = await log_in(api)
        assert await accepted(api, late) == [False]
