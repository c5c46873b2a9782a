"""Profiles, privacy, and finding users as calls."""

from __future__ import annotations

import asyncio
from typing import Any

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.packing import unpack
from router.contract.settings import Settings
from router.jobs.finisher import Finisher
from router.store.dirty import Dirty
from tests.router.api.serving import SERVER, Api, by, serve

ADA, BOB, CY = (by(user) for user in ("ada", "bob", "cy"))
EVERYONE = dict.fromkeys(("messages", "groups", "presence", "requests", "receipts"), "everyone")


async def make_users(api: Api, *users: str) -> None:
    for user in users or ("ada", "bob", "cy"):
        await api.ok("POST", "/v1/tokens", SERVER, {"user": user})


async def befriend(api: Api, user: str, other: str) -> None:
    await api.ok("PUT", f"/v1/contacts/{other}", by(user), {})
    await api.ok("PUT", f"/v1/contacts/{user}", by(other), {})


def finisher(api: Api) -> Finisher:
    s = api.services
    stores = s.conversations, s.users, s.pushes, Dirty(api.store), s.contacts, s.files, s.audit
    return Finisher(Settings(jwt_secret="x" * 32), *stores)


async def me_key(api: Api, user: str) -> Any:
    entry = await api.services.state.read(user, "me")
    return entry and entry.value and unpack(entry.value)


async def test_profile_is_merged_and_cleared(valkey: EmbeddedValkey) -> None:
    """Fields that are left out stay, also of `privacy`; null clears; the own devices get the same as `me`."""
    async with serve(valkey) as api:
        await make_users(api)
        empty = {"user": "ada", "name": "", "about": None, "avatar": None, "status": None, "extra": None}
        assert await api.ok("GET", "/v1/me", ADA) == {**empty, "privacy": EVERYONE, "roles": []}
        given = {"name": "Ada", "about": "two\nlines", "status": {"text": "out", "until": 5}, "extra": {"x": [1]}}
        made = await api.ok("PATCH", "/v1/me", ADA, given)
        assert (made["about"], made["status"], made["extra"]) == ("two\nlines", {"text": "out", "until": 5}, {"x": [1]})
        privacy = {"groups": "contacts", "requests": "nobody"}
        made = await api.ok("PATCH", "/v1/me", ADA, {"about": None, "avatar": None, "privacy": privacy})
        assert (made["name"], made["about"], made["privacy"]) == ("Ada", None, EVERYONE | privacy)
        made = await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"groups": None}})
        assert made == await api.ok("GET", "/v1/me", ADA)
        assert made["privacy"] == EVERYONE | {"requests": "nobody"}
        assert {"user": "ada", "roles": [], **await me_key(api, "ada")} == made
        seen = await api.ok("GET", "/v1/users/ada", BOB)
        assert seen == {**empty, "name": "Ada", "extra": {"x": [1]}}, "a status that is over is none"


async def test_changes_of_different_fields_at_once_both_hold(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        changes: list[dict[str, Any]] = [
            {"name": "A"},
            {"about": "B"},
            {"extra": 1},
            {"privacy": {"groups": "contacts"}},
        ]
        await asyncio.gather(*(api.ok("PATCH", "/v1/me", ADA, change) for change in changes))
        made = await api.ok("GET", "/v1/me", ADA)
        assert (made["name"], made["about"], made["extra"], made["privacy"]["groups"]) == ("A", "B", 1, "contacts")
        assert {"user": "ada", "roles": [], **await me_key(api, "ada")} == made


async def test_wrong_profiles_are_refused(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        for given, refusal in (
            ({"name": "x" * 129}, (422, "bad_command")),
            ({"name": "a\nb"}, (422, "bad_command")),
            ({"about": "x" * 513}, (422, "bad_command")),
            ({"about": "\u202ex"}, (422, "bad_command")),
            ({"status": {"text": "x" * 129}}, (422, "bad_command")),
            ({"privacy": {"messages": "nobody"}}, (422, "bad_command")),
            ({"privacy": {"receipts": "contacts"}}, (422, "bad_command")),
            ({"extra": "x" * 4096}, (413, "too_large")),
            ({"avatar": "0" * 64}, (404, "not_found")),
            ({"avatar": "x"}, (422, "bad_command")),
        ):
            assert await api.refused("PATCH", "/v1/me", ADA, given) == refusal, given
        assert await api.refused("GET", "/v1/users", ADA) == (422, "bad_command")
        assert await api.refused("GET", "/v1/users?users=a&prefix=b", ADA) == (422, "bad_command")
        assert await api.refused("GET", "/v1/users/nobody", ADA) == (404, "not_found")


async def test_users_are_read_in_batches(valkey: EmbeddedValkey) -> None:
    """Unknown ones are left out."""
    async with serve(valkey) as api:
        await make_users(api)
        found = await api.ok("GET", "/v1/users?users=cy,nobody,ada,cy", BOB)
        assert [one["user"] for one in found["users"]] == ["cy", "ada"]


async def found(api: Api, prefix: str, headers: dict[str, str]) -> list[str]:
    return [one["user"] for one in (await api.ok("GET", f"/v1/users?prefix={prefix}", headers))["users"]]


async def test_prefix_finds_known_users_only(valkey: EmbeddedValkey) -> None:
    """Contacts and members of common groups, by name or display name in any case; no channel, nobody behind a block."""
    async with serve(valkey) as api:
        names = ("friend", "mate", "chan", "Fay", "fiend", "foe", "stranger")
        await make_users(api, "ada", *names)
        await api.ok("PATCH", "/v1/me", by("mate"), {"name": "FRIDA"})
        await befriend(api, "ada", "friend")
        for kind, members in (("group", ["mate", "Fay", "fiend", "foe"]), ("channel", ["chan"])):
            await api.ok("POST", "/v1/conversations", ADA, {"kind": kind, "members": members})
        await api.ok("PUT", "/v1/blocks/fiend", ADA)
        await api.ok("PUT", "/v1/blocks/ada", by("foe"))
        assert await found(api, "f", ADA) == ["Fay", "friend", "mate"]
        assert await found(api, "fri", ADA) == ["friend", "mate"]
        assert await found(api, "chan", ADA) == await found(api, "str", ADA) == await found(api, "ada", ADA) == []
        answers = await asyncio.gather(*(api.get("/v1/users?prefix=f", headers=ADA) for _ in range(12)))
        assert 429 in [answer.status_code for answer in answers]


async def test_messages_from_contacts_only_holds_for_old_and_new_conversations(valkey: EmbeddedValkey) -> None:
    """For new ones at once, for existing ones after a router's round; not where the user has written."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "old", "answered", "new", "friend")
        hi = {"to": "@ada", "body": 1}
        for user in ("old", "answered"):
            await api.ok("POST", "/v1/messages", by(user), hi)
        await api.ok("POST", "/v1/messages", ADA, {"to": "@answered", "body": 1})
        await befriend(api, "ada", "friend")
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"messages": "contacts"}})
        assert await api.refused("POST", "/v1/messages", by("new"), hi) == (403, "blocked")
        for user in ("friend", "answered"):
            await api.ok("POST", "/v1/messages", by(user), hi)
        await finisher(api).finish("@ada")
        assert await api.refused("POST", "/v1/messages", by("old"), hi) == (403, "blocked")
        for user in ("friend", "answered"):
            await api.ok("POST", "/v1/messages", by(user), hi)
        await api.ok("POST", "/v1/messages", SERVER, {**hi, "from": "old"})
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"messages": "everyone"}})
        await finisher(api).finish("@ada")
        for user in ("old", "new"):
            await api.ok("POST", "/v1/messages", by(user), hi)


async def test_router_settles_a_profile_whose_process_died(valkey: EmbeddedValkey) -> None:
    """The user is marked before the change; then the key `me` follows, and the claimed mark is taken away."""
    async with serve(valkey) as api:
        await make_users(api)
        await api.services.profiles.change("ada", {"name": "Ada"})
        assert await me_key(api, "ada") is None
        dirty = keys.dirty(keys.partition("ada"))
        assert await api.store.fetch("ZSCORE", dirty, "@ada") is not None
        await finisher(api).finish("@ada")
        assert (await me_key(api, "ada"))["name"] == "Ada"
        await api.store.fetch("ZADD", dirty, await api.store.clock_ms() + 9000, "@ada")  # as a claim does
        await finisher(api).finish("@ada")
        assert await api.store.fetch("ZSCORE", dirty, "@ada") is None


async def test_user_who_is_added_by_contacts_only_is_not_added(valkey: EmbeddedValkey) -> None:
    """Nor one who blocks the caller: left out of a new group, refused in an old one, in the same words."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "shy", "friend", "foe")
        for user in ("shy", "friend"):
            await api.ok("PATCH", "/v1/me", by(user), {"privacy": {"groups": "contacts"}})
        await befriend(api, "ada", "friend")
        await api.ok("PUT", "/v1/blocks/ada", by("foe"))
        given = {"kind": "group", "members": ["bob", "shy", "friend", "foe"]}
        made = await api.ok("POST", "/v1/conversations", ADA, given)
        assert made["not_added"] == ["foe", "shy"]
        assert set(made["members"]) == {"ada", "bob", "friend"}
        room = f"/v1/conversations/{made['conversation']}/members"
        answers = [await api.put(f"{room}/{user}", headers=ADA, json={}) for user in ("shy", "foe")]
        assert {(answer.status_code, answer.text) for answer in answers} == {(403, answers[0].text)}
        assert answers[0].json()["error"]["code"] == "blocked"
        for user in ("shy", "foe"):
            await api.ok("PUT", f"{room}/{user}", SERVER, {})
            await api.ok("PUT", f"{room}/{user}", ADA, {"role": "reader"})


async def test_request_to_a_user_who_takes_none_reaches_nobody(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"requests": "nobody"}})
        assert (await api.ok("PUT", "/v1/contacts/ada", BOB, {}))["state"] == "outgoing"
        assert (await api.ok("GET", "/v1/contacts", ADA))["contacts"] == []
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"requests": "everyone"}})
        await api.ok("PUT", "/v1/contacts/ada", BOB, {})
        assert (await api.ok("GET", "/v1/contacts", ADA))["contacts"] == []


async def test_setting_for_messages_has_a_rate(valkey: EmbeddedValkey) -> None:
    """Ten changes; the others have none."""
    async with serve(valkey) as api:
        await make_users(api)
        for number in range(10):
            await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"messages": ("contacts", "everyone")[number % 2]}})
        change = {"privacy": {"messages": "contacts"}}
        assert await api.refused("PATCH", "/v1/me", ADA, change) == (429, "rate_limited")
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"groups": "contacts"}})


async def test_presence_and_read_marks_respect_blocks_and_privacy(valkey: EmbeddedValkey) -> None:
    """Of a hidden user: offline and never seen; no read mark in a direct conversation or small group."""
    async with serve(valkey) as api:
        await make_users(api)
        made = await api.ok("POST", "/v1/conversations", ADA, {"kind": "group", "members": ["bob", "cy"]})
        group = made["conversation"]
        direct = (await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": 1}))["conversation"]
        await api.ok("PATCH", "/v1/me", CY, {"privacy": {"receipts": "nobody"}})
        assert set((await api.ok("GET", f"/v1/conversations/{group}/reads", ADA))["reads"]) == {"ada", "bob"}
        assert set((await api.ok("GET", f"/v1/conversations/{direct}/reads", BOB))["reads"]) == {"ada", "bob"}
        await api.ok("PUT", "/v1/blocks/bob", ADA)
        for user, other in (("ada", "bob"), ("bob", "ada")):
            assert set((await api.ok("GET", f"/v1/conversations/{direct}/reads", by(user)))["reads"]) == {user}
            assert other not in (await api.ok("GET", f"/v1/conversations/{group}/reads", by(user)))["reads"]
            seen = await api.ok("GET", f"/v1/presence?users={other},cy", by(user))
            assert seen["users"][other] == {"online": False, "last_seen": None}
