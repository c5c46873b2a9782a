"""Accounts, logins and tokens, gateways and presence over HTTP."""

import asyncio
from itertools import cycle

import jwt
import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.api import call as api_call
from router.api.call import now_ms
from router.contract import keys
from router.contract.tokens import issue, mapped
from router.store import accounts, users
from router.store.answers import reply_of
from router.store.presence import LEASE_S, Presence
from router.store.sync import Sync, Synced
from tests.router.api.serving import ADA, BOB, SERVER, by, make_group, make_users, serve
from tests.support import JWT_SECRET

PASSWORD = {"password": "correct horse"}


def as_holder_of(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


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


async def test_only_backends_issue_tokens(valkey: EmbeddedValkey) -> None:
    """A user's token is no server key; without a configured server key an empty one is none, either."""
    async with serve(valkey) as api:
        assert await api.refused("POST", "/v1/tokens", ADA, {"user": "bob"}) == (403, "forbidden")
    async with serve(valkey, server_key="") as api:
        assert (await api.refused("POST", "/v1/tokens", {"Authorization": "Bearer"}, {"user": "bob"}))[0] == 401


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
