"""The HTTP API: the effects of each call, its permitted callers, and its errors."""

import asyncio
import json
from base64 import b64encode
from itertools import cycle
from typing import Any

import jwt
import pytest
import redis.asyncio
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.api import call as api_call
from router.api import steps
from router.api import table as api_module
from router.api.call import now_ms
from router.contract import keys, stamp
from router.contract.packing import pack
from router.contract.tokens import issue, mapped
from router.store import accounts, users
from router.store.answers import reply_of
from router.store.appends import Append
from router.store.presence import LEASE_S, Presence
from router.store.sync import Sync, Synced
from tests.router.api.serving import SERVER, Api, by, refusal, serve
from tests.support import JWT_SECRET, eventually

PASSWORD = {"password": "correct horse"}
ADA, BOB, CY, DAN = (by(user) for user in ("ada", "bob", "cy", "dan"))


async def make_users(api: Api, *users: str) -> None:
    for user in users or ("ada", "bob", "cy"):
        await api.ok("POST", "/v1/tokens", SERVER, {"user": user})


async def make_group(api: Api, *members: str, kind: str = "group") -> str:
    """A conversation of ada with these members."""
    made = await api.ok("POST", "/v1/conversations", ADA, {"kind": kind, "title": "T", "members": list(members)})
    conversation: str = made["conversation"]
    return conversation


# -- accounts, logins, tokens


async def test_account_logs_in_and_learns_the_gateways(valkey: EmbeddedValkey) -> None:
    """A password yields a token that API and gateways accept, and the live gateways, least loaded first."""
    async with serve(valkey) as api:
        presence, now = Presence(api.store), now_ms()
        for node, load, at in (("g1", 5, now), ("g2", 1, now), ("g3", 0, now - LEASE_S * 1000)):
            await reply_of(presence.renew, node, f"ws://{node}/ws", load, now, at)
        made = await api.post("/v1/accounts", json={"user": "ada", **PASSWORD, "name": "Ada"})
        assert (made.status_code, made.json()) == (201, {"user": "ada", "name": "Ada"})
        login = await api.ok("POST", "/v1/login", {}, {"user": "ada", **PASSWORD, "device": "phone"})
        assert login["gateways"] == ["ws://g2/ws", "ws://g1/ws"]
        identity = api.services.verifier.check(login["token"], now)
        assert (identity.user, identity.expires_at) == ("ada", login["expires_at"])
        listed = await api.ok("GET", "/v1/conversations", {"Authorization": f"Bearer {login['token']}"})
        assert listed == {"conversations": [], "more": False, "cursor": 0}


def as_holder_of(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_renewed_token_ends_with_the_login(valkey: EmbeddedValkey) -> None:
    """Renewal gives a later token and the gateways, again and again, but none that outlives the login's 30 days."""
    async with serve(valkey, token_ttl_s=60.0, session_ttl_s=100.0) as api:
        presence, now = Presence(api.store), now_ms()
        await reply_of(presence.renew, "g1", "ws://g1/ws", 0, now, now)
        await api.ok("POST", "/v1/accounts", {}, {"user": "ada", **PASSWORD})
        login = await api.ok("POST", "/v1/login", {}, {"user": "ada", **PASSWORD})
        login_s = login["expires_at"] // 1000 - 60
        settings = api.services.settings
        late, _ = issue("ada", settings, (login_s + 99) * 1000, login_s)  # as a renewal near the end makes it
        for token in (login["token"], late):
            for _ in range(2):
                renewed = await api.ok("POST", "/v1/tokens/renew", as_holder_of(token))
                token = renewed["token"]
                assert renewed["gateways"] == ["ws://g1/ws"]
                identity = api.services.verifier.check(token, now)
                assert (identity.user, identity.expires_at) == ("ada", renewed["expires_at"])
                assert api.services.verifier.login_s(token) == login_s
        assert api.services.verifier.check(late, now).expires_at == (login_s + 100) * 1000


async def test_renewal_refuses_a_login_that_has_ended(valkey: EmbeddedValkey) -> None:
    """If an operator shortens the lifetime of logins, tokens that are still valid are not renewed."""
    async with serve(valkey, session_ttl_s=100.0) as api:
        long = replace(api.services.settings, session_ttl_s=1e6)
        now = now_ms()
        token, _ = issue("ada", long, now, now // 1000 - 101)
        assert await api.refused("POST", "/v1/tokens/renew", as_holder_of(token)) == (401, "token_expired")


async def test_renewal_refuses_tokens_that_come_from_no_login(valkey: EmbeddedValkey) -> None:
    """Tokens of POST /v1/tokens, and tokens signed elsewhere, whatever their claim `login` says, are 403."""
    async with serve(valkey) as api:
        made = await api.ok("POST", "/v1/tokens", SERVER, {"user": "ada"})
        claims = {"sub": "ada", "exp": now_ms() // 1000 + 60, "login": "ada@example.com"}
        elsewhere = jwt.encode(claims, JWT_SECRET, algorithm="HS256")
        for token in (made["token"], elsewhere):
            assert await api.refused("POST", "/v1/tokens/renew", as_holder_of(token)) == (403, "forbidden")
        expired = jwt.encode({**claims, "exp": 1, "login": 1}, JWT_SECRET, algorithm="HS256")
        assert await api.refused("POST", "/v1/tokens/renew", as_holder_of(expired)) == (401, "token_expired")


async def test_name_is_given_out_once(valkey: EmbeddedValkey) -> None:
    """One of many simultaneous callers gets it, and after its deletion none does."""
    async with serve(valkey) as api:
        wanted = {"user": "ada", **PASSWORD}
        answers = await asyncio.gather(*(api.post("/v1/accounts", json=wanted) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409, 409]
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        assert await api.refused("POST", "/v1/accounts", {}, wanted) == (409, "conflict")
        assert await api.refused("POST", "/v1/tokens", SERVER, {"user": "ada"}) == (403, "blocked")
        assert await api.refused("GET", "/v1/conversations", ADA) == (403, "blocked")
        assert await api.refused("POST", "/v1/login", {}, wanted) == (401, "unauthorized")


async def test_names_like_an_existing_one_are_refused(valkey: EmbeddedValkey) -> None:
    """In another case 409, also after its deletion; in full-width letters the name is not valid."""
    async with serve(valkey) as api:
        await api.ok("POST", "/v1/accounts", {}, {"user": "ada", **PASSWORD})
        assert await api.refused("POST", "/v1/accounts", {}, {"user": "Ada", **PASSWORD}) == (409, "conflict")
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        assert await api.refused("POST", "/v1/accounts", {}, {"user": "ADA", **PASSWORD}) == (409, "conflict")
        wide = {"user": "\uff21da", **PASSWORD}
        assert await api.refused("POST", "/v1/accounts", {}, wide) == (422, "bad_command")


async def test_unreadable_names_and_titles_are_refused(valkey: EmbeddedValkey) -> None:
    """Controls, overrides of the direction and only invisible characters are refused; an empty name is accepted."""
    async with serve(valkey) as api:
        await make_users(api)
        conv = await make_group(api)
        for text in ("a\nb", "\u202egpj.exe", "\u200b"):
            given = {"user": "dan", "name": text, **PASSWORD}
            assert await api.refused("POST", "/v1/accounts", {}, given) == (422, "bad_command")
            made = {"kind": "group", "title": text}
            assert await api.refused("POST", "/v1/conversations", ADA, made) == (422, "bad_command")
            path = f"/v1/conversations/{conv}"
            assert await api.refused("PATCH", path, ADA, {"title": text}) == (422, "bad_command")
        await api.ok("POST", "/v1/accounts", {}, {"user": "dan", "name": "", **PASSWORD})


async def test_account_cannot_have_the_name_of_a_path_segment(valkey: EmbeddedValkey) -> None:
    """One or two dots would be removed by clients' URL libraries; three of them, or dots among others, are names."""
    async with serve(valkey) as api:
        for name, status in ((".", 422), ("..", 422), ("..\n", 422), ("...", 201), (".a", 201), ("a..", 201)):
            answer = await api.post("/v1/accounts", json={"user": name, **PASSWORD})
            assert answer.status_code == status, name


async def test_account_cannot_have_the_name_of_a_providers_user(valkey: EmbeddedValkey) -> None:
    """The reserved prefix is refused in any case; similar names are accepted."""
    async with serve(valkey) as api:
        for name, status in (
            (mapped("auth0|1"), 422),
            ("EXT--x", 422),
            ("ext--", 422),
            ("ext-1", 201),
            ("an.ext--", 201),
        ):
            answer = await api.post("/v1/accounts", json={"user": name, **PASSWORD})
            assert answer.status_code == status, name


async def test_login_does_not_show_which_users_exist(valkey: EmbeddedValkey) -> None:
    """A wrong password, an unknown user and a user without a password get one answer and one limit."""
    async with serve(valkey) as api:
        await api.ok("POST", "/v1/accounts", {}, {"user": "ada", **PASSWORD})
        await make_users(api, "bob")
        seen = {}
        for user in ("ada", "bob", "nobody"):
            seen[user] = [
                (answer.status_code, answer.json())
                for _ in range(6)
                for answer in (await api.post("/v1/login", json={"user": user, "password": "wrong"}),)
            ]
        assert [status for status, _ in seen["ada"]] == [401] * 5 + [429]
        assert seen["ada"] == seen["bob"] == seen["nobody"]


async def test_successful_logins_reset_the_limit_of_guesses(valkey: EmbeddedValkey) -> None:
    """Logging in often is no attack."""
    async with serve(valkey) as api:
        await api.ok("POST", "/v1/accounts", {}, {"user": "ada", **PASSWORD})
        for _ in range(8):
            await api.ok("POST", "/v1/login", {}, {"user": "ada", **PASSWORD})


async def test_weak_passwords_create_no_account(valkey: EmbeddedValkey) -> None:
    """The shortest allowed password is accepted; a shorter one, or the name, is refused, and the name stays free."""
    async with serve(valkey, password_min=10) as api:
        for password in ("012345678", "Adalovelace"):
            given = {"user": "adalovelace", "password": password}
            assert await api.refused("POST", "/v1/accounts", {}, given) == (422, "bad_command")
        await api.ok("POST", "/v1/accounts", {}, {"user": "adalovelace", "password": "0123456789"})


async def test_wrong_logins_of_strangers_do_not_lock_the_owner_out(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While strangers use up the guesses at a name, its owner logs in from a known address, and from any address with
    a token, expired or not. A forged token or one of another user has no effect.
    """
    hour_us = 3_600_000_000  # forty hashes take a slow machine longer than it takes to regain a guess
    monkeypatch.setattr(accounts, "GUESS_COST_US", hour_us)
    monkeypatch.setattr(accounts, "GUESS_BURST_US", 5 * hour_us)
    async with serve(valkey, trusted_proxies="127.0.0.0/8") as api:

        async def login(address: str, token: str = "", password: str = PASSWORD["password"]) -> int:
            headers = {"X-Forwarded-For": address} | ({"Authorization": f"Bearer {token}"} if token else {})
            given = {"user": "ada", "password": password}
            return (await api.post("/v1/login", json=given, headers=headers)).status_code

        await api.ok("POST", "/v1/accounts", {}, {"user": "ada", **PASSWORD})
        assert await login("2001:db8::1") == 200
        expired = jwt.encode({"sub": "ada", "exp": 1}, JWT_SECRET)
        body, _, signature = expired.rpartition(".")
        forged = f"{body}.{'A' * len(signature)}"
        stranger = jwt.encode({"sub": "eve", "exp": 2_000_000_000}, JWT_SECRET)
        assert [await login(f"10.0.0.{i}", password="wrong") for i in range(6)] == [401] * 5 + [429]
        for token in ("", forged, stranger):
            assert await login("10.0.0.9", token) == 429
        for _ in range(12):
            assert await login("2001:db8::2") == 200
            assert await login("10.0.0.9", expired) == 200
        assert await login("10.0.0.9") == 200
        assert await login("2001:db8:0:1::1") == 429


async def test_accounts_of_one_address_are_limited(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Account and login calls of one address have a rate; another address is not affected."""
    monkeypatch.setattr(api_call, "ADDRESS_BURST", 2)
    monkeypatch.setattr(api_call, "ADDRESS_EVERY_S", 60.0)
    async with serve(valkey, trusted_proxies="127.0.0.0/8") as api:

        async def login(address: str) -> int:
            given = {"user": "nobody", **PASSWORD}
            return (await api.post("/v1/login", json=given, headers={"X-Forwarded-For": address})).status_code

        assert [await login("10.0.0.1") for _ in range(3)] == [401, 401, 429]
        assert await login("1.1.1.1, ::ffff:10.0.0.1, 127.0.0.9") == 429  # the same one
        assert await login("10.0.0.2") == 401


async def test_identity_calls_are_absent_with_an_outside_provider(valkey: EmbeddedValkey) -> None:
    """Without accounts, and without a secret to sign with, those calls are 404; all others exist."""
    async with serve(valkey, accounts=False) as api:
        assert await api.refused("POST", "/v1/login", {}, {"user": "ada", **PASSWORD}) == (404, "not_found")
        paths = (await api.ok("GET", "/v1/openapi.json", {}))["paths"]
        assert "/v1/login" not in paths
        assert "/v1/tokens" in paths
        assert "delete" in paths["/v1/accounts/{user}"]


async def test_deleting_an_account_leaves_every_group_with_an_owner(valkey: EmbeddedValkey) -> None:
    """Sessions end, groups are left, and if a group's only owner leaves, an admin becomes owner first."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api, "bob", "cy")
        await api.ok("PUT", f"/v1/conversations/{group}/members/cy", ADA, {"role": "admin"})
        alone = await make_group(api)
        assert await api.refused("DELETE", "/v1/accounts/ada", BOB) == (403, "forbidden")
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        found = await api.ok("GET", f"/v1/conversations/{group}", BOB)
        assert found["members"] == {"bob": "member", "cy": "owner"}
        assert await api.refused("GET", f"/v1/conversations/{alone}", SERVER) == (404, "not_found")
        await api.ok("DELETE", "/v1/accounts/ada", SERVER)
        assert await api.refused("DELETE", "/v1/accounts/nobody", SERVER) == (404, "not_found")


async def test_deleted_user_gets_no_messages(valkey: EmbeddedValkey) -> None:
    """Existing conversations are closed, too, because an ack would say that the user could read the message. Messages
    stay readable, conversations of other users are unchanged, and no data of the user comes back.
    """
    async with serve(valkey) as api:
        friends = ["bob", "cy", "dee", "ed", "flo"]
        await make_users(api, "ada", *friends)
        token = {name: by(name) for name in friends}
        sent = {name: await api.ok("POST", "/v1/messages", token[name], {"to": "@ada", "body": 1}) for name in friends}
        await api.ok("POST", "/v1/messages", ADA, {"to": "@ada", "body": "a note"})
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        for name in friends:
            for to in ("@ada", sent[name]["conversation"]):
                given = {"to": to, "body": 2}
                assert await api.refused("POST", "/v1/messages", token[name], given) == (404, "not_found"), name
            found = await api.ok("GET", f"/v1/conversations/{sent[name]['conversation']}/events", token[name])
            assert [event["body"] for event in found["events"]] == [1]
        await api.ok("POST", "/v1/messages", token["bob"], {"to": "@cy", "body": 1})
        with valkey.client() as client:
            left = {key.decode() for key in client.scan_iter(match="*ada*") if not key.startswith(b"{c")}
        assert left == {keys.user("ada"), keys.names("ada")}


async def test_user_who_gets_messages_during_the_deletion_is_closed_to_the_writer(
    own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that moves to the top of the user's list meanwhile is not skipped."""
    monkeypatch.setattr(users, "PAGE", 2)
    with own_valkey.client() as client:
        client.config_set("hash-max-listpack-entries", 2)  # as for one with many, so that it takes several pages
    async with serve(own_valkey) as api:
        friends = [f"friend{number}" for number in range(12)]
        await make_users(api, "ada", *friends)
        for name in friends:
            await api.ok("POST", "/v1/messages", by(name), {"to": "@ada", "body": 1})
        contacts, writes = api.services.contacts, cycle(friends)
        end = contacts.end

        async def meanwhile(user: str, other: str) -> None:
            await api.post("/v1/messages", headers=by(next(writes)), json={"to": "@ada", "body": 2})
            await end(user, other)

        monkeypatch.setattr(contacts, "end", meanwhile)
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        for name in friends:
            given = {"to": "@ada", "body": 3}
            assert await api.refused("POST", "/v1/messages", by(name), given) == (404, "not_found"), name


async def test_first_message_during_the_deletion_is_closed_too(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation is opened after the list of conversations to close was read, in either pass."""
    async with serve(valkey) as api:
        newcomers = [f"new{number}" for number in range(8)]
        await make_users(api, "ada", "bob", *newcomers)
        await api.ok("POST", "/v1/messages", BOB, {"to": "@ada", "body": 1})
        contacts, said = api.services.contacts, list[int]()
        end = contacts.end

        async def meanwhile(user: str, other: str) -> None:
            given = {"to": "@ada", "body": 1}
            said.append((await api.post("/v1/messages", headers=by(newcomers[len(said)]), json=given)).status_code)
            await end(user, other)

        monkeypatch.setattr(contacts, "end", meanwhile)
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        assert said[0] == 200
        for name in ("bob", *newcomers):
            given = {"to": "@ada", "body": 2}
            assert await api.refused("POST", "/v1/messages", by(name), given) == (404, "not_found"), name
        with valkey.client() as client:
            left = {key.decode() for key in client.scan_iter(match="*ada*") if not key.startswith(b"{c")}
        assert left == {keys.user("ada"), keys.names("ada")}


async def test_deletion_of_a_user_who_is_added_to_groups_meanwhile_is_unfinished(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's rows are kept, and the next call continues where this one ended."""
    async with serve(valkey) as api:
        await make_users(api)
        conversations = [await make_group(api, "bob") for _ in range(4)]
        delete = api.services.accounts.delete

        async def meanwhile(user: str) -> list[str]:
            return await delete(user) or conversations[-1:]

        with monkeypatch.context() as during:
            during.setattr(api.services.accounts, "delete", meanwhile)
            assert await api.refused("DELETE", "/v1/accounts/bob", BOB) == (503, "unavailable")
        await api.ok("DELETE", "/v1/accounts/bob", SERVER)


async def test_account_can_be_deleted_while_redis_is_full(valkey: EmbeddedValkey) -> None:
    """A deletion frees memory."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        await api.ok("POST", "/v1/messages", BOB, {"to": "@ada", "body": 1})
        with valkey.client() as client:
            client.config_set("maxmemory", 1)
            await api.ok("DELETE", "/v1/accounts/ada", SERVER)
            client.config_set("maxmemory", 0)
        assert await api.refused("POST", "/v1/messages", BOB, {"to": "@ada", "body": 2}) == (404, "not_found")


# -- who calls


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": ADA["Authorization"][:-4]},
        {"Authorization": "Bearer " + jwt.encode({"sub": "ada", "exp": 1}, JWT_SECRET)},
        {"Authorization": "Bearer " + jwt.encode({"sub": "ada", "exp": 10**10}, "another secret of enough bytes, 32")},
        {"Authorization": "Bearer " + "x" * 20_000},
    ],
)
async def test_call_without_a_valid_token_is_unauthorized(valkey: EmbeddedValkey, headers: dict[str, str]) -> None:
    """401 comes before any other check, for every call."""
    async with serve(valkey) as api:
        for method, path in (("GET", "/v1/conversations"), ("POST", "/v1/messages"), ("DELETE", "/v1/accounts/a b")):
            answer = await api.request(method, path, headers=headers)
            status, code = refusal(answer)
            assert (status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert code in ("unauthorized", "token_expired")


async def test_only_backends_issue_tokens(valkey: EmbeddedValkey) -> None:
    """A user's token is no server key; without a configured server key an empty one is none, either."""
    async with serve(valkey) as api:
        assert await api.refused("POST", "/v1/tokens", ADA, {"user": "bob"}) == (403, "forbidden")
    async with serve(valkey, server_key="") as api:
        assert (await api.refused("POST", "/v1/tokens", {"Authorization": "Bearer"}, {"user": "bob"}))[0] == 401


async def test_backend_names_the_user_it_acts_for(valkey: EmbeddedValkey) -> None:
    """`Linnet-User` is required by calls about a user, and creates that user."""
    async with serve(valkey) as api:
        assert await api.refused("GET", "/v1/conversations", SERVER) == (422, "bad_command")
        assert await api.refused("GET", "/v1/conversations", SERVER | {"Linnet-User": "a b"}) == (422, "bad_command")
        as_eve = SERVER | {"Linnet-User": "eve"}
        made = await api.ok("POST", "/v1/conversations", as_eve, {"kind": "group", "members": ["fay"]})
        assert made["members"] == {"eve": "owner", "fay": "member"}
        assert (await api.ok("GET", "/v1/conversations", as_eve))["conversations"][0]["head"] == made["head"]
        own = await api.ok("POST", "/v1/conversations", SERVER, {"kind": "group", "members": {"fay": "admin"}})
        assert own["members"] == {"fay": "admin"}


# -- conversations


async def test_creator_of_a_group_owns_it(valkey: EmbeddedValkey) -> None:
    """Members are named with or without roles; all find the group in their lists, and other users do not see it."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy", "dan")
        answer = await api.post(
            "/v1/conversations",
            headers=ADA,
            json={"kind": "group", "title": "Tea", "members": {"bob": "admin", "cy": "reader", "ada": "reader"}},
        )
        made = answer.json()
        assert answer.status_code == 201
        assert made["members"] == {"ada": "owner", "bob": "admin", "cy": "reader"}
        assert (made["kind"], made["title"], made["size"], made["role"]) == ("group", "Tea", 3, "owner")
        group = made["conversation"]
        for headers in (ADA, BOB, CY):
            (listed,) = (await api.ok("GET", "/v1/conversations", headers))["conversations"]
            assert (listed["conversation"], listed["title"], listed["unread"]) == (group, "Tea", 0)
        for path in (f"/v1/conversations/{group}", f"/v1/conversations/{group}/events"):
            assert await api.refused("GET", path, DAN) == (404, "not_found")
            assert await api.refused("GET", path.replace("g:", "c:"), ADA) == (404, "not_found")
            assert await api.refused("GET", path.replace(group, "no%3Asuch"), ADA) == (404, "not_found")


async def test_unknown_members_are_named(valkey: EmbeddedValkey) -> None:
    """A user cannot add users who do not exist, and the error has their names; no group is created."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        answer = await api.post("/v1/conversations", headers=ADA, json={"kind": "group", "members": ["bob", "zoe"]})
        assert refusal(answer) == (404, "not_found")
        assert "zoe" in answer.json()["error"]["message"]
        assert (await api.ok("GET", "/v1/conversations", ADA))["conversations"] == []


async def test_at_most_a_thousand_members_are_named_at_a_time(valkey: EmbeddedValkey) -> None:
    """Including the creator; one more is refused. The list of members pages through all."""
    async with serve(valkey) as api:
        names = [f"user-{i}" for i in range(1000)]
        as_first = SERVER | {"Linnet-User": names[0]}
        made = await api.ok("POST", "/v1/conversations", as_first, {"kind": "group", "members": names})
        group = made["conversation"]
        assert (len(made["members"]), made["size"], made["more_members"]) == (1000, 1000, False)
        await api.ok("PUT", f"/v1/conversations/{group}/members/one-more", SERVER)
        found = await api.ok("GET", f"/v1/conversations/{group}", by(names[0]))
        assert (len(found["members"]), found["size"], found["more_members"]) == (1000, 1001, True)
        seen, cursor = set(), 0
        while True:
            page = await api.ok("GET", f"/v1/conversations/{group}/members?cursor={cursor}", by(names[0]))
            seen |= {member["user"] for member in page["members"]}
            cursor = page["cursor"]
            if not page["more"]:
                break
        assert seen == {*names, "one-more"}
        for members in ([*names, "x"], dict.fromkeys([*names, "x"], "member")):
            given = {"kind": "group", "members": members}
            assert (await api.refused("POST", "/v1/conversations", as_first, given))[0] == 422


async def test_members_are_added_removed_and_changed(valkey: EmbeddedValkey) -> None:
    """Each change is in the log and in the user's own list; a removed user sees the events up to the removal."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api, "bob")
        await api.ok("POST", "/v1/messages", ADA, {"to": group, "body": "before"})
        added = await api.ok("PUT", f"/v1/conversations/{group}/members/cy", ADA)
        assert (added["user"], added["role"]) == ("cy", "member")
        assert (await api.ok("GET", "/v1/conversations", CY))["conversations"][0]["title"] == "T"
        await api.ok("POST", "/v1/messages", ADA, {"to": group, "body": "between"})
        assert (await api.ok("PUT", f"/v1/conversations/{group}/members/cy", ADA, {"role": "reader"}))[
            "role"
        ] == "reader"
        assert await api.refused("POST", "/v1/messages", CY, {"to": group, "body": "no"}) == (403, "read_only")
        assert await api.refused("PUT", f"/v1/conversations/{group}/members/cy", BOB, {"role": "admin"}) == (
            403,
            "read_only",
        )
        await api.ok("DELETE", f"/v1/conversations/{group}/members/cy", CY)
        assert await api.refused("DELETE", f"/v1/conversations/{group}/members/cy", ADA) == (404, "not_found")
        await api.ok("POST", "/v1/messages", ADA, {"to": group, "body": "after"})
        assert (await api.ok("GET", "/v1/conversations", CY))["conversations"] == []
        assert await api.refused("GET", f"/v1/conversations/{group}", CY) == (404, "not_found")
        events = (await api.ok("GET", f"/v1/conversations/{group}/events", CY))["events"]
        assert [(e["type"], e.get("body") or e.get("action")) for e in events] == [
            ("member", "add"),
            ("message", "between"),
            ("member", "role"),
            ("member", "remove"),
        ]
        assert await api.refused("DELETE", f"/v1/conversations/{group}/members/ada", ADA) == (409, "conflict")


async def test_events_of_one_author_never_share_a_number(valkey: EmbeddedValkey) -> None:
    """A client drops an event with the (from, device, n) of another one, so each change of members needs its own."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api)
        for user in ("bob", "cy"):
            await api.ok("PUT", f"/v1/conversations/{group}/members/{user}", ADA)
        await api.ok("PATCH", f"/v1/conversations/{group}", ADA, {"title": "U"})
        await api.ok("POST", "/v1/messages", ADA, {"to": group, "body": 1})
        await api.ok("POST", "/v1/messages", ADA, {"to": group, "body": 1})
        await api.ok("POST", "/v1/messages", SERVER, {"to": group, "body": 1, "from": "ada"})
        events = (await api.ok("GET", f"/v1/conversations/{group}/events", ADA))["events"]
        assert len(events) == 6
        assert len({(e["from"], e["device"], e["n"]) for e in events}) == 6


async def test_user_joins_a_channel_as_reader(valkey: EmbeddedValkey) -> None:
    """Readers see all earlier events; a group, or an unknown conversation, cannot be joined."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        channel = await make_group(api, kind="channel")
        await api.ok("POST", "/v1/messages", ADA, {"to": channel, "body": "news"})
        for _ in range(2):
            joined = await api.ok("POST", f"/v1/conversations/{channel}/join", BOB)
            assert (joined["user"], joined["role"]) == ("bob", "reader")
        events = (await api.ok("GET", f"/v1/conversations/{channel}/events", BOB))["events"]
        assert [event["type"] for event in events] == ["message", "member"]
        group = await make_group(api)
        for conversation in (group, channel[:-1] + "x", "d:ada:bob", "x"):
            assert await api.refused("POST", f"/v1/conversations/{conversation}/join", BOB) == (404, "not_found")


async def test_owners_rename_and_delete(valkey: EmbeddedValkey) -> None:
    """A deleted conversation is gone for all users, at once."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        group = await make_group(api, "bob")
        assert await api.refused("PATCH", f"/v1/conversations/{group}", BOB, {"title": "X"}) == (403, "read_only")
        assert (await api.ok("PATCH", f"/v1/conversations/{group}", ADA, {"title": "New"}))["title"] == "New"
        assert (await api.ok("GET", "/v1/conversations", BOB))["conversations"][0]["title"] == "New"
        assert await api.refused("DELETE", f"/v1/conversations/{group}", BOB) == (403, "read_only")
        await api.ok("DELETE", f"/v1/conversations/{group}", ADA)
        for headers in (ADA, BOB, SERVER):
            assert await api.refused("GET", f"/v1/conversations/{group}", headers) == (404, "not_found")
        assert (await api.ok("GET", "/v1/conversations", BOB))["conversations"] == []
        assert await api.refused("POST", "/v1/messages", ADA, {"to": group, "body": 1}) == (404, "not_found")


async def test_list_pages_through_all(valkey: EmbeddedValkey) -> None:
    """Newest first, each once, also while other conversations change."""
    async with serve(valkey) as api:
        await make_users(api, "ada")
        made = [await make_group(api) for _ in range(7)]
        seen: list[str] = []
        cursor, more = 0, True
        while more:
            page = await api.ok("GET", f"/v1/conversations?limit=3&cursor={cursor}", ADA)
            seen += [one["conversation"] for one in page["conversations"]]
            cursor, more = page["cursor"], page["more"]
        assert seen == made[::-1]


# -- messages


async def test_direct_message_creates_the_conversation(valkey: EmbeddedValkey) -> None:
    """Both find it in their lists and in the log; other users do not see it; an unknown user gets no message."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        body = {"text": "hé", "bytes": {"$b64": b64encode(b"\0\xff").decode()}, "n": 2**53 - 1}
        sent = await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": body, "media": "rich"})
        assert sent["conversation"] == "d:ada:bob"
        assert not sent["duplicate"]
        reply = await api.ok("POST", "/v1/messages", BOB, {"to": "d:ada:bob", "body": "yo", "reply_to": sent["seq"]})
        assert reply["seq"] == sent["seq"] + 1
        page = await api.ok("GET", "/v1/conversations/d:ada:bob/events", ADA)
        first, second = page["events"]
        assert first["body"] == body
        assert (first["from"], first["media"], first["device"]) == ("ada", "rich", "api/r1")
        assert (second["reply_to"], second["prev"], second["count"]) == (sent["seq"], sent["seq"], 2)
        for headers, other, unread in ((ADA, "bob", 1), (BOB, "ada", 0)):
            (listed,) = (await api.ok("GET", "/v1/conversations", headers))["conversations"]
            assert (listed["with"], listed["head"], listed["unread"]) == (other, reply["seq"], unread)
        found = await api.ok("GET", "/v1/conversations/d%3Aada%3Abob", BOB)
        assert (found["kind"], found["members"]) == ("direct", {"ada": "member", "bob": "member"})
        for path in ("/v1/conversations/d:ada:bob", "/v1/conversations/d:ada:bob/events"):
            assert await api.refused("GET", path, CY) == (404, "not_found")
        for to in ("@nobody", "@a b", "@", "d:bob:cy", "d:bob:ada", "nonsense", "g:" + "x" * 22):
            assert await api.refused("POST", "/v1/messages", ADA, {"to": to, "body": 1}) == (404, "not_found"), to


async def test_direct_event_reaches_both_users_channels(valkey: EmbeddedValkey) -> None:
    """The bytes of the log are published to both, right after the append."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        heard: dict[str, bytes] = {}
        async with redis.asyncio.Redis.from_url(valkey.url) as other, other.pubsub() as listener:
            await listener.ssubscribe(keys.Channels().user("ada"), keys.Channels().user("bob"))
            await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": "hi"})
            while len(heard) < 2:
                said = await listener.get_message(ignore_subscribe_messages=True, timeout=5)
                if said and said["type"] == "smessage":
                    heard[said["channel"].decode()] = said["data"]
        assert set(heard) == {keys.Channels().user("ada"), keys.Channels().user("bob")}
        assert len(set(heard.values())) == 1
        assert stamp.decode(heard[keys.Channels().user("bob")])["body"] == "hi"


async def test_user_sends_as_themselves_and_backend_as_any_user(valkey: EmbeddedValkey) -> None:
    """`from` must be the user of the token, and is required of backends; membership is required in both cases."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api, "bob")
        message = {"to": group, "body": 1}
        assert await api.refused("POST", "/v1/messages", ADA, message | {"from": "bob"}) == (403, "forbidden")
        await api.ok("POST", "/v1/messages", ADA, message | {"from": "ada"})
        assert await api.refused("POST", "/v1/messages", SERVER, message) == (422, "bad_command")
        await api.ok("POST", "/v1/messages", SERVER, message | {"from": "bob"})
        await api.ok("POST", "/v1/messages", SERVER | {"Linnet-User": "bob"}, message)
        assert await api.refused("POST", "/v1/messages", SERVER, message | {"from": "cy"}) == (404, "not_found")
        events = (await api.ok("GET", f"/v1/conversations/{group}/events", SERVER))["events"]
        assert [event["from"] for event in events] == ["ada", "bob", "bob"]


async def test_each_n_of_a_device_counts_once(valkey: EmbeddedValkey) -> None:
    """`device` and `n` mean the same as on a socket: a resend gets the first answer, other content is refused."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        message = {"to": "@bob", "body": "hi", "device": "worker", "n": 7}
        first = await api.ok("POST", "/v1/messages", ADA, message)
        again = await asyncio.gather(*(api.ok("POST", "/v1/messages", ADA, message) for _ in range(5)))
        assert first["device"] == "api/worker"
        assert [one | {"duplicate": False} for one in again] == [first] * 5
        assert all(one["duplicate"] for one in again)
        assert await api.refused("POST", "/v1/messages", ADA, message | {"body": "ho"}) == (409, "conflict")
        assert await api.refused("POST", "/v1/messages", ADA, message | {"n": None}) == (422, "bad_command")
        done = await api.ok("POST", "/v1/messages", ADA, message | {"n": 8, "done": 7})
        assert done["seq"] == first["seq"] + 1
        assert await api.refused("POST", "/v1/messages", ADA, message) == (409, "conflict")


async def test_message_with_an_idempotency_key_counts_once(valkey: EmbeddedValkey) -> None:
    """For resends at once or through another process there is one event and one answer; other content is refused."""
    async with serve(valkey) as one, serve(valkey) as two:
        await make_users(one, "ada", "bob", "cy")
        keyed = ADA | {"Idempotency-Key": "k-1"}
        message = {"to": "@bob", "body": {"a": [1, "x"]}}
        answers = await asyncio.gather(*(api.ok("POST", "/v1/messages", keyed, message) for api in (one, two) * 5))
        assert len({(answer["seq"], answer["at"], answer["n"]) for answer in answers}) == 1
        assert sum(not answer["duplicate"] for answer in answers) == 1
        for other in ({"to": "@bob", "body": 2}, {"to": "@cy", "body": {"a": [1, "x"]}}):
            assert await one.refused("POST", "/v1/messages", keyed, other) == (409, "conflict")
        other_key = ADA | {"Idempotency-Key": "k-2"}
        assert (await two.ok("POST", "/v1/messages", other_key, message))["seq"] == answers[0]["seq"] + 1
        await one.ok("POST", "/v1/messages", BOB | {"Idempotency-Key": "k-1"}, {"to": "@ada", "body": "mine"})
        assert len((await one.ok("GET", "/v1/conversations/d:ada:bob/events", ADA))["events"]) == 3
        assert await one.refused("POST", "/v1/messages", ADA | {"Idempotency-Key": "k" * 256}, message) == (
            422,
            "bad_command",
        )


async def test_send_of_a_process_that_died_is_finished_by_its_key(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before, or right after, the append."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": "open"})
        keyed, message = ADA | {"Idempotency-Key": "k"}, {"to": "@bob", "body": "hi"}

        async def dies(*_: Any) -> None:
            raise RuntimeError("the process dies here")

        with monkeypatch.context() as patch:
            patch.setattr(api.services.pushes, "set_idempotency_answer", dies)
            assert await api.refused("POST", "/v1/messages", keyed, message) == (500, "internal")
        again = await api.ok("POST", "/v1/messages", keyed, message)
        assert again["duplicate"]
        with monkeypatch.context() as patch:
            patch.setattr(api.services.conversations, "append", lambda *_: 1 / 0)
            assert (await api.refused("POST", "/v1/messages", ADA | {"Idempotency-Key": "l"}, message))[0] == 500
        assert not (await api.ok("POST", "/v1/messages", ADA | {"Idempotency-Key": "l"}, message))["duplicate"]
        events = (await api.ok("GET", "/v1/conversations/d:ada:bob/events", ADA))["events"]
        assert [event["body"] for event in events] == ["open", "hi", "hi"]


async def test_sends_of_users_are_limited_and_those_of_backends_are_not(valkey: EmbeddedValkey) -> None:
    """The rate of a conversation's device applies here too, and the error says when to retry."""
    async with serve(valkey, sends_per_s=0.1, send_burst=3) as api:
        await make_users(api, "ada", "bob")
        group = await make_group(api, "bob")
        message = {"to": group, "body": 1}
        answers = [await api.post("/v1/messages", headers=ADA, json=message) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert refusal(answers[-1]) == (429, "rate_limited")
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 20
        for _ in range(5):
            await api.ok("POST", "/v1/messages", SERVER, message | {"from": "ada"})


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2**53},
        {"n": 10**400},
        [[[]]] * 3 + [json.loads("[" * 40 + "]" * 40)],
        {"$b64": "***"},
        {"$b64": "AA==", "x": 1},
    ],
)
async def test_only_canonical_values_are_sent(valkey: EmbeddedValkey, body: Any) -> None:
    """A value that one codec or client could not read is refused."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        assert await api.refused("POST", "/v1/messages", ADA, {"to": "@bob", "body": body}) == (422, "bad_command")


async def test_events_are_read_in_pages(valkey: EmbeddedValkey) -> None:
    """Upwards with `after`, downwards with `before`, the newest without either; `more` if there are others."""
    async with serve(valkey) as api:
        await make_users(api, "ada")
        group = await make_group(api)
        seqs = [
            (await api.ok("POST", "/v1/messages", SERVER, {"to": group, "from": "ada", "body": i}))["seq"]
            for i in range(5)
        ]

        async def page(query: str) -> tuple[list[int], bool]:
            found = await api.ok("GET", f"/v1/conversations/{group}/events?{query}", ADA)
            return [event["seq"] for event in found["events"]], found["more"]

        assert await page("limit=2") == (seqs[3:], True)
        assert await page("after=0&limit=3") == (seqs[:3], True)
        assert await page(f"after={seqs[2]}&limit=3") == (seqs[3:], False)
        assert await page(f"before={seqs[2]}&limit=5") == (seqs[:2], False)
        assert await page(f"after={seqs[-1]}") == ([], False)
        for query in ("after=1&before=2", "limit=0", "limit=201", "after=x", "after=-1", "limit=1&limit=2", "after="):
            path = f"/v1/conversations/{group}/events?{query}"
            assert await api.refused("GET", path, ADA) == (422, "bad_command"), query


# -- presence, sessions


async def test_live_gateways_are_judged_by_redis_clock(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router whose own clock is an hour ahead considers no live gateway dead, nor its users offline."""
    monkeypatch.setattr("router.api.accounts.now_ms", lambda: now_ms() + 3_600_000)
    async with serve(valkey) as api:
        await make_users(api, "ada")
        await reply_of(api.services.presence.renew, "g1", "ws://g1/ws", 1, 0, now_ms())
        register = Sync(user="ada", device="phone", session="s1", node="g1", started=now_ms(), register=True)
        assert isinstance(await reply_of(api.services.users.sync, register), Synced)
        assert (await api.ok("GET", "/v1/presence?users=ada", ADA))["users"]["ada"]["online"]


async def test_presence_follows_sessions_and_kicks(valkey: EmbeddedValkey) -> None:
    """A user is online while a device names a live gateway; a kick ends the present sessions, and only those."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        now = now_ms()
        await reply_of(api.services.presence.renew, "g1", "ws://g1/ws", 1, now, now)
        audit = Sync(user="ada", device="phone", session="s1", node="g1", started=now)
        register = Sync(user="ada", device="phone", session="s1", node="g1", started=now, register=True)
        assert isinstance(await reply_of(api.services.users.sync, register), Synced)
        users = (await api.ok("GET", "/v1/presence?users=ada,bob,nobody", BOB))["users"]
        assert users["ada"]["online"]
        assert users["bob"] == users["nobody"] == {"online": False, "last_seen": None}
        for query in ("", "?users=", "?users=a%20b", "?users=" + ",".join(["x"] * 201)):
            assert (await api.refused("GET", "/v1/presence" + query, BOB))[0] == 422
        assert await api.refused("DELETE", "/v1/sessions/ada", BOB) == (403, "forbidden")
        assert await api.refused("DELETE", "/v1/sessions/nobody", SERVER) == (404, "not_found")
        await api.ok("DELETE", "/v1/sessions/ada/phone", ADA)
        assert (await reply_of(api.services.users.sync, audit)).status == "kicked"
        await api.ok("DELETE", "/v1/sessions/ada", SERVER)
        assert (await reply_of(api.services.users.sync, audit)).status == "kicked"


# -- the shape of it all


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"{", "application/json", (400, "bad_frame")),
        (b"\xff", "application/json", (400, "bad_frame")),
        (b"[]", "application/json", (422, "bad_command")),
        (b"", "application/json", (422, "bad_command")),
        (b'{"to": "@bob"}', "application/json", (422, "bad_command")),
        (b'{"to": 7, "body": 1}', "application/json; charset=utf-8", (422, "bad_command")),
        (b'{"to": "@bob", "body": "\\ud800"}', "application/json", (400, "bad_frame")),
        (b"[" * 100_000, "application/json", (422, "bad_command")),
        (b'{"to": "@bob", "body": ' + b"[" * 60_000, "application/json", (422, "bad_command")),
        (b'{"to": "@bob", "body": "' + b"x" * 66_000 + b'"}', "application/json", (413, "too_large")),
        (b"x" * 140_000, "application/json", (413, "too_large")),
        (b'{"to": "@bob", "body": 1}', "text/plain", (415, "unsupported_media_type")),
        (b"to=@bob", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
    ],
)
async def test_wrong_body_is_refused(
    valkey: EmbeddedValkey, content: bytes, kind: str, expected: tuple[int, str]
) -> None:
    """Unreadable, wrong, too deep, too large or of another type: each has its status, in one shape."""
    async with serve(valkey) as api:
        await make_users(api, "bob")
        answer = await api.post("/v1/messages", content=content, headers=ADA | {"Content-Type": kind})
        assert refusal(answer) == expected


async def test_endless_or_slow_body_is_cut_off(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of unknown length ends at the limit; one that stalls ends after the time limit."""
    async with serve(valkey) as api:

        async def endless() -> Any:
            while True:
                yield b" " * 10_000

        async def stalled() -> Any:
            yield b'{"to":'
            await asyncio.Event().wait()

        for content, body_s, expected in (
            (endless(), 10.0, (413, "too_large")),
            (stalled(), 0.05, (400, "bad_frame")),
        ):
            monkeypatch.setattr(steps, "BODY_S", body_s)
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
            writer.write(f"Authorization: {ADA['Authorization']}\r\n\r\n".encode())

            async def feed(content: Any = content, writer: asyncio.StreamWriter = writer) -> None:
                async for part in content:
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                    await writer.drain()

            feeding = asyncio.create_task(feed())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith(f"HTTP/1.1 {expected[0]} ")
            assert ("connection: close" in head.lower()) == (expected[1] == "bad_frame")
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            writer.close()


async def test_unknown_paths_and_methods_are_refused_in_the_same_shape(valkey: EmbeddedValkey) -> None:
    """404 and 405 (with the allowed methods) have the shape of all errors, for every method."""
    async with serve(valkey) as api:
        for path in ("/", "/v1", "/v1/nonsense", "/v1/login/", "/v1/conversations/a%2Fb", "/docs"):
            assert await api.refused("GET", path, ADA) == (404, "not_found"), path
        answer = await api.request("TRACE", "/v1/conversations")
        assert refusal(answer) == (405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"
        assert (await api.head("/v1/conversations", headers=ADA)).status_code == 200


async def test_exception_is_answered_internal_without_its_text(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unforeseen exception is 500 `internal`; only the log has its text."""
    async with serve(valkey) as api:

        async def bug() -> None:
            raise KeyError("secret-detail")

        monkeypatch.setattr(api.services.presence, "gateways", bug)
        answer = await api.get("/v1/presence?users=ada", headers=ADA)
        assert refusal(answer) == (500, "internal")
        assert "secret-detail" not in answer.text
        assert "secret-detail" in caplog.text


async def test_calls_without_redis_are_unavailable_and_later_succeed(own_valkey: EmbeddedValkey) -> None:
    """503 with the time to retry instead of a hanging request; calls succeed when Redis is back."""
    async with serve(own_valkey) as api:
        await make_users(api, "ada")
        own_valkey.kill()
        assert await api.refused("GET", "/v1/conversations", ADA) == (503, "unavailable")
        own_valkey.start()

        async def served() -> bool:
            return (await api.get("/v1/conversations", headers=ADA)).status_code == 200

        await eventually(served)


async def test_browsers_of_listed_origins_may_call(valkey: EmbeddedValkey) -> None:
    """CORS for the configured origins only; none if none is configured."""
    ask_for = {"Origin": "https://chat.example", "Access-Control-Request-Method": "PUT"}
    async with serve(valkey, origins="https://chat.example, https://b.example/") as api:
        preflight = await api.options("/v1/messages", headers=ask_for)
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        for header in ("Linnet-User", "Linnet-Name", "Tus-Resumable", "Upload-Offset", "Upload-Metadata"):
            asked = await api.options("/v1/messages", headers=ask_for | {"Access-Control-Request-Headers": header})
            assert asked.status_code == 200, header
        called = await api.get("/v1/conversations", headers={"Origin": "https://b.example"})
        exposed = called.headers["access-control-expose-headers"].split(", ")
        assert {"Linnet-Upload", "Location", "Upload-Offset", "Upload-Length", "Retry-After"} <= set(exposed)
        assert called.status_code == 401
        assert called.headers["access-control-allow-origin"] == "https://b.example"
        other = await api.get("/v1/conversations", headers=ADA | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with serve(valkey) as api:
        assert (await api.options("/v1/messages", headers=ask_for)).status_code == 405


def test_every_handler_has_a_docstring() -> None:
    """The document contains the docstrings of the handlers."""
    rows = api_module.ACCOUNTS + api_module.TOKENS + api_module.ALWAYS + api_module.DOCUMENTS
    assert all(row.handler.__doc__ for row in rows)
    assert len({(row.method, row.path) for row in rows}) == len(rows)


async def test_groups_of_one_user_are_limited(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user cannot fill the store with conversations; a backend has no limit."""
    monkeypatch.setattr(users, "OPEN_BURST_US", 2 * users.OPEN_COST_US)
    async with serve(valkey) as api:
        for _ in range(2):
            await make_group(api)
        given = {"kind": "group"}
        assert await api.refused("POST", "/v1/conversations", ADA, given) == (429, "rate_limited")
        for _ in range(5):
            await api.ok("POST", "/v1/conversations", SERVER | {"Linnet-User": "ada"}, given)


async def test_channel_of_joined_readers_gets_no_owner_from_among_them(valkey: EmbeddedValkey) -> None:
    """When the owner's account ends, only the server key manages it; a member who was added would become owner."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        alone = await make_group(api, kind="channel")
        added = await make_group(api, "cy", kind="channel")
        for channel in (alone, added):
            await api.ok("POST", f"/v1/conversations/{channel}/join", BOB)
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        roles = [(await api.ok("GET", f"/v1/conversations/{conv}", SERVER))["members"] for conv in (alone, added)]
        assert roles == [{"bob": "reader"}, {"bob": "reader", "cy": "owner"}]


async def test_admin_lowers_own_role_and_a_put_without_a_role_keeps_it(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api, "cy")
        bob = f"/v1/conversations/{group}/members/bob"
        assert (await api.ok("PUT", bob, ADA, {}))["role"] == "member"
        assert (await api.ok("PUT", bob, ADA, {"role": "admin"}))["role"] == "admin"
        assert (await api.ok("PUT", bob, ADA, {}))["role"] == "admin"
        assert (await api.ok("PUT", bob, BOB, {"role": "member"}))["role"] == "member"
        assert await api.refused("PUT", bob, BOB, {"role": "admin"}) == (403, "read_only")


async def test_server_key_deletes_any_message(valkey: EmbeddedValkey) -> None:
    """In groups and direct conversations, without an author; once for its `n`. A user deletes what the role allows."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        group = await make_group(api, "bob")
        sent = [
            await api.ok("POST", "/v1/messages", SERVER, {"from": "bob", "to": to, "body": "x"})
            for to in (group, "@cy")
        ]
        for number, message in enumerate(sent, 1):
            conv = message["conversation"]
            delete = {"type": "delete", "conversation": conv, "seq": message["seq"], "n": number}
            assert await api.refused("POST", "/v1/commands", CY if conv == group else ADA, delete) == (404, "not_found")
            ack = await api.ok("POST", "/v1/commands", SERVER, delete)
            assert (ack["type"], ack["n"], ack["conversation"], ack["duplicate"]) == ("ack", number, conv, False)
            again = await api.ok("POST", "/v1/commands", SERVER, delete)
            assert (again["seq"], again["duplicate"]) == (ack["seq"], True)
            events = (await api.ok("GET", f"/v1/conversations/{conv}/events", BOB))["events"]
            assert [(event["type"], event["from"], event["target"]) for event in events] == [
                ("delete", "", message["seq"])
            ]
        (listed,) = (await api.ok("GET", "/v1/conversations", CY))["conversations"]
        assert (listed["conversation"], listed["unread"], listed["read"]) == (sent[1]["conversation"], 0, 0)
        own = await api.ok("POST", "/v1/messages", BOB, {"to": group, "body": "x"})
        delete = {"type": "delete", "conversation": group, "seq": own["seq"], "n": 1}
        assert (await api.ok("POST", "/v1/commands", BOB, delete))["seq"] == own["seq"] + 1
        assert await api.refused("POST", "/v1/commands", SERVER, {**delete, "type": "send"}) == (422, "bad_command")


async def test_server_key_deletes_any_conversation(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        direct = (await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": "x"}))["conversation"]
        for conv in (await make_group(api, "bob"), direct):
            await api.ok("DELETE", f"/v1/conversations/{conv}", SERVER)
            assert await api.refused("GET", f"/v1/conversations/{conv}", ADA) == (404, "not_found")


async def test_403_names_the_missing_right(valkey: EmbeddedValkey) -> None:
    """The developer of a client learns from it which role the call needs."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy")
        made = await api.ok(
            "POST", "/v1/conversations", ADA, {"kind": "group", "members": {"bob": "admin", "cy": "member"}}
        )
        group = f"/v1/conversations/{made['conversation']}"

        async def message(method: str, path: str, caller: dict[str, str], body: Any = None) -> str:
            answer = await api.request(method, path, headers=caller, **({} if body is None else {"json": body}))
            assert refusal(answer) == (403, "read_only")
            return str(answer.json()["error"]["message"])

        assert "owner or admin" in await message("PATCH", group, CY, {"title": "X"})
        assert "role owner" in await message("DELETE", group, BOB)
        assert "owner or admin" in await message("PUT", f"{group}/members/ada", CY, {"role": "member"})
        assert "role owner" in await message("PUT", f"{group}/members/cy", BOB, {"role": "admin"})
        assert "role owner" in await message("DELETE", f"{group}/members/ada", BOB)


# -- integers that arrive as floats


async def test_integers_that_arrive_as_floats_are_accepted(valkey: EmbeddedValkey) -> None:
    """In bodies and in queries, with the same result as integers; a fraction is refused."""
    async with serve(valkey) as api:
        await make_users(api)
        given = {"to": "@bob", "body": 1.0, "device": "a"}
        sent = await api.ok("POST", "/v1/messages", ADA, {**given, "n": 1.8e15})
        assert (sent["n"], type(sent["n"])) == (1_800_000_000_000_000, int)
        again = await api.ok("POST", "/v1/messages", ADA, {**given, "n": 1_800_000_000_000_000})
        assert (again["seq"], again["duplicate"]) == (sent["seq"], True)
        events = "/v1/conversations/d:ada:bob/events"
        page = await api.ok("GET", f"{events}?before={sent['seq'] + 1}.0&limit=5.0", ADA)
        assert [event["seq"] for event in page["events"]] == [sent["seq"]]
        assert await api.refused("POST", "/v1/messages", ADA, {**given, "n": 1.5}) == (422, "bad_command")
        for query in ("limit=1.5", "limit=", "limit=1_0", "before=1e300"):
            assert await api.refused("GET", f"{events}?{query}", ADA) == (422, "bad_command"), query


async def test_conflict_of_an_n_has_its_reason_and_the_next_usable_n(valkey: EmbeddedValkey) -> None:
    """As on a socket: a worker that restarts with a clock behind is not locked out."""
    async with serve(valkey) as api:
        await make_users(api)
        given = {"to": "@bob", "device": "a"}

        async def conflict(**more: Any) -> dict[str, Any]:
            answer = await api.post("/v1/messages", headers=ADA, json={**given, **more})
            assert refusal(answer) == (409, "conflict")
            error: dict[str, Any] = answer.json()["error"]
            return {name: error[name] for name in ("reason", "next") if name in error}

        await api.ok("POST", "/v1/messages", ADA, {**given, "body": 1, "n": 50, "done": 40})
        assert await conflict(body=1, n=40) == {"reason": "answered", "next": 51}
        assert await conflict(body=2, n=50) == {"reason": "content"}


# -- what a client asks after it was away


async def test_reads_contain_each_members_read_mark(valkey: EmbeddedValkey) -> None:
    """In direct conversations and small groups, for members only."""
    async with serve(valkey) as api:
        await make_users(api)
        group = await make_group(api, "bob")
        for conv in (group, "d:ada:bob"):
            sent = await api.ok("POST", "/v1/messages", ADA, {"to": conv if conv == group else "@bob", "body": 1})
            await reply_of(api.services.users.read, "bob", conv, sent["seq"], 1)
            reads = await api.ok("GET", f"/v1/conversations/{conv}/reads", ADA)
            assert reads["reads"].keys() == {"ada", "bob"}
            assert reads["reads"]["bob"] == sent["seq"]
            assert await api.refused("GET", f"/v1/conversations/{conv}/reads", CY) == (404, "not_found")
        for i in range(31):
            member = f"/v1/conversations/{group}/members/m{i}"
            await api.ok("PUT", member, SERVER, {"role": "member"})
        assert await api.refused("GET", f"/v1/conversations/{group}/reads", ADA) == (403, "forbidden")


async def test_gateways_are_listed_right_after_the_clock_was_put_back(valkey: EmbeddedValkey) -> None:
    """No gateway has renewed its lease by the new time yet; once one has, leases of the old time count as ended."""
    async with serve(valkey) as api:
        presence, now = Presence(api.store), now_ms()
        for node in ("g1", "g2"):
            await reply_of(presence.renew, node, f"ws://{node}/ws", 0, now, now + 3_600_000)
        assert await api.ok("GET", "/v1/gateways", ADA) == {"gateways": ["ws://g1/ws", "ws://g2/ws"]}
        await reply_of(presence.renew, "g2", "ws://g2/ws", 0, now, now)
        assert await api.ok("GET", "/v1/gateways", ADA) == {"gateways": ["ws://g2/ws"]}


async def test_gateways_are_listed_for_any_token(valkey: EmbeddedValkey) -> None:
    """Live ones, least loaded first, because a user of an outside provider gets no list with the token."""
    async with serve(valkey) as api:
        presence, now = Presence(api.store), now_ms()
        for node, load, at in (("g1", 5, now), ("g2", 1, now), ("g3", 0, now - LEASE_S * 1000)):
            await reply_of(presence.renew, node, f"ws://{node}/ws", load, now, at)
        assert await api.ok("GET", "/v1/gateways", ADA) == {"gateways": ["ws://g2/ws", "ws://g1/ws"]}
        assert await api.refused("GET", "/v1/gateways", {}) == (401, "unauthorized")


async def test_gateways_behind_one_address_are_listed_once(valkey: EmbeddedValkey) -> None:
    """All gateways of a cluster have the URL of its proxy; a repeated URL would be no second address to try."""
    async with serve(valkey) as api:
        presence, now = Presence(api.store), now_ms()
        for node, url, load in (("g1", "wss://chat/ws", 3), ("g2", "wss://other/ws", 2), ("g3", "wss://chat/ws", 1)):
            await reply_of(presence.renew, node, url, load, now, now)
        assert await api.ok("GET", "/v1/gateways", ADA) == {"gateways": ["wss://chat/ws", "wss://other/ws"]}


async def test_message_of_a_backend_does_not_move_the_users_read_mark(valkey: EmbeddedValkey) -> None:
    """The user has not seen the messages before it; a message by the user's own token does move it."""
    async with serve(valkey) as api:
        await make_users(api)
        group = await make_group(api, "bob")
        await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": 1})

        async def read(conv: str) -> int:
            row = await api.services.users.row("bob", conv)
            return row.read if row else 0

        for conv, to in ((group, group), ("d:ada:bob", "@ada")):
            await api.ok("POST", "/v1/messages", SERVER, {"from": "bob", "to": to, "body": 2})
            await api.ok("POST", "/v1/messages", SERVER, {"from": "bob", "to": to, "body": 2, "device": "w", "n": 1})
            assert await read(conv) == 0
            events = (await api.ok("GET", f"/v1/conversations/{conv}/events", ADA))["events"]
            assert events[-1]["server"] is True
            own = await api.ok("POST", "/v1/messages", BOB, {"to": to, "body": 3})
            assert await read(conv) == own["seq"]
            events = (await api.ok("GET", f"/v1/conversations/{conv}/events", ADA))["events"]
            assert "server" not in events[-1]


async def test_listed_unread_leaves_deleted_messages_out(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        group = await make_group(api, "bob")
        for to, conv in ((group, group), ("@bob", "d:ada:bob")):
            sent = await api.ok("POST", "/v1/messages", ADA, {"to": to, "body": 1})
            await api.ok("POST", "/v1/messages", ADA, {"to": to, "body": 2})
            tail = stamp.tail("delete", conv, "ada", "x", 1, {"target": pack(sent["seq"])})
            delete = Append(conv, "ada", "x", 1, 0, b"8 bytes.", tail, "delete", sent["seq"])
            await reply_of(api.services.conversations.append, delete)
        listed = (await api.ok("GET", "/v1/conversations", BOB))["conversations"]
        assert [each["unread"] for each in listed] == [1, 1]
