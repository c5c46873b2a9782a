"""Calls of moderation: what they refuse, and what moderators may touch."""

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.api.call import now_ms
from router.contract import keys
from tests.router.api.serving import SERVER, as_admin, by, serve

LONG = "x" * 501


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/members/bob/mute", {"until": 1}),
        ("PUT", "/members/bob/mute", {"until": -1}),
        ("PUT", "/members/bob/mute", {"until": "tomorrow"}),
        ("PUT", "/members/bob/mute", {"until": 2**53}),
        ("PUT", "/members/bob/mute", {"reason": LONG}),
        ("PUT", "/members/bob/mute", {"reason": "\x00"}),
        ("PUT", "/members/bob/mute", {"reason": "\u202e"}),
        ("PUT", "/members/a b/mute", {}),
        ("PUT", "/bans/bob", {"until": 1}),
        ("PUT", "/bans/bob", {"reason": 1}),
        ("GET", "/bans?cursor=-1", None),
        ("PATCH", "", {}),
        ("PATCH", "", {"posting": "nobody"}),
        ("PATCH", "", {"adding": None}),
        ("PATCH", "", {"slow_s": -1}),
        ("PATCH", "", {"slow_s": 21_601}),
        ("PATCH", "", {"slow_s": 0.5}),
    ],
)
async def test_wrong_restraint_is_refused_and_changes_nothing(
    valkey: EmbeddedValkey, method: str, path: str, body: Any
) -> None:
    async with serve(valkey) as api:
        members = {"kind": "group", "members": {"ann": "owner", "bob": "member"}}
        made = await api.ok("POST", "/v1/conversations", SERVER, members)
        where = f"/v1/conversations/{made['conversation']}"
        assert await api.refused(method, where + path, by("ann"), body) == (422, "bad_command")
        found = await api.ok("GET", where, by("bob"))
        assert (found["head"], found["posting"], found["adding"], found["slow_s"]) == (0, "all", "admins", 0)
        assert (await api.ok("GET", f"{where}/bans", by("ann")))["bans"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("PUT", "/v1/roles/ann", {"roles": ["king"]}, 422),
        ("PUT", "/v1/roles/ann", {}, 422),
        ("PUT", "/v1/roles/nobody", {"roles": []}, 404),
        ("GET", "/v1/roles/nobody", None, 404),
        ("PUT", "/v1/accounts/nobody/suspension", {}, 404),
        ("DELETE", "/v1/accounts/nobody/suspension", None, 404),
        ("PUT", "/v1/accounts/ann/suspension", {"until": 1}, 422),
        ("GET", "/v1/audit?after=x", None, 422),
        ("GET", "/v1/audit?after=" + "1" * 65, None, 422),
        ("GET", "/v1/audit?limit=0", None, 422),
        ("GET", "/v1/reports?after=1.600.x", None, 422),
        ("GET", "/v1/reports?state=lost", None, 422),
        ("PATCH", "/v1/reports/x", {"state": "open"}, 404),
        ("PATCH", "/v1/reports/" + "1" * 81, {"state": "open"}, 422),
        ("PATCH", "/v1/reports/1.2.x", {}, 422),
        ("PATCH", "/v1/reports/1.2.x", {"note": LONG}, 422),
    ],
)
async def test_wrong_call_of_moderators_is_refused(
    valkey: EmbeddedValkey, method: str, path: str, body: Any, code: int
) -> None:
    async with serve(valkey) as api:
        await api.ok("POST", "/v1/tokens", SERVER, {"user": "ann"})
        assert (await api.refused(method, path, SERVER, body))[0] == code


async def test_wrong_report_is_refused_and_twenty_an_hour_are_accepted(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        for number in range(22):
            await api.ok("POST", "/v1/tokens", SERVER, {"user": f"u{number}"})
        conv = "g:" + "A" * 22
        for body in (
            {"reason": "x"},
            {"user": "u1"},
            {"user": "u1", "conversation": conv, "seq": 1, "reason": ""},
            {"conversation": conv, "reason": ""},
            {"seq": 1, "reason": ""},
            {"user": "u1", "reason": LONG},
            {"user": "../x", "reason": ""},
            {"conversation": conv, "seq": -1, "reason": ""},
        ):
            assert (await api.refused("POST", "/v1/reports", by("u0"), body))[0] == 422
        assert (await api.refused("POST", "/v1/reports", by("u0"), {"user": "nobody", "reason": ""}))[0] == 404
        for number in range(20):
            await api.ok("POST", "/v1/reports", by("u0"), {"user": f"u{number}", "reason": ""})
        assert await api.refused("POST", "/v1/reports", by("u0"), {"user": "u20", "reason": ""}) == (
            429,
            "rate_limited",
        )


async def test_moderators_touch_only_users_of_a_lower_rank(valkey: EmbeddedValkey) -> None:
    """Elsewhere their role in the conversation counts; not even an admin touches an admin, and nobody themselves."""
    async with serve(valkey) as api:
        made = await api.ok(
            "POST", "/v1/conversations", SERVER, {"kind": "group", "members": {"ann": "owner", "mod": "owner"}}
        )
        for user in ("mod2", "boss", "boss2"):
            await api.ok("POST", "/v1/tokens", SERVER, {"user": user})
        for user, role in (("mod", "moderator"), ("mod2", "moderator"), ("boss", "admin"), ("boss2", "admin")):
            await api.ok("PUT", f"/v1/roles/{user}", SERVER, {"roles": [role]})
        where = f"/v1/conversations/{made['conversation']}/bans"
        for actor, target, status in (
            ("mod2", "ann", 204),
            ("mod2", "mod", 404),  # no rank above, and no member
            ("mod", "mod2", 204),  # as an owner
            ("mod", "mod", 403),
            ("boss", "mod", 204),
            ("boss", "boss2", 404),
            ("boss", "boss", 404),
        ):
            answer = await api.put(f"{where}/{target}", json={}, headers=as_admin(actor))
            assert answer.status_code == status, (actor, target, answer.text)
        for actor, target, status in (
            ("mod", "ann", 204),
            ("mod", "mod2", 403),
            ("mod", "mod", 403),
            ("boss", "mod2", 204),
            ("boss", "boss2", 403),
        ):
            answer = await api.put(f"/v1/accounts/{target}/suspension", json={}, headers=as_admin(actor))
            assert answer.status_code == status, (actor, target, answer.text)
        assert await api.refused("GET", "/v1/me", by("ann")) == (403, "blocked")
        assert await api.ok("GET", "/v1/me", {**SERVER, "Linnet-User": "ann"})


async def test_moderator_deletes_no_message_of_a_user_whose_rank_is_not_lower(valkey: EmbeddedValkey) -> None:
    """Their own they delete also where they are no member any more; the server key deletes all."""
    async with serve(valkey) as api:
        users = {"ann": "owner", "mod": "member", "boss": "member", "bob": "member"}
        conv = (await api.ok("POST", "/v1/conversations", SERVER, {"kind": "group", "members": users}))["conversation"]
        await api.ok("POST", "/v1/tokens", SERVER, {"user": "mod2"})
        for user, role in (("mod", "moderator"), ("mod2", "moderator"), ("boss", "admin")):
            await api.ok("PUT", f"/v1/roles/{user}", SERVER, {"roles": [role]})
        seq = {
            user: (await api.ok("POST", "/v1/messages", by(user), {"to": conv, "body": "x"}))["seq"]
            for user in ("boss", "mod", "bob")
        }
        await api.ok("DELETE", f"/v1/conversations/{conv}/members/mod", by("mod"))
        for n, (actor, author, refusal) in enumerate(
            (
                ("mod2", "boss", (404, "not_found")),
                ("mod2", "mod", (404, "not_found")),
                ("mod", "boss", (404, "not_found")),
                ("boss", "mod", None),
                ("mod2", "bob", None),
            ),
            1,
        ):
            delete = {"type": "delete", "conversation": conv, "seq": seq[author], "n": n}
            if refusal:
                assert await api.refused("POST", "/v1/commands", as_admin(actor), delete) == refusal, (actor, author)
            else:
                first = (await api.ok("POST", "/v1/commands", as_admin(actor), delete))["event"]
                again = (await api.ok("POST", "/v1/commands", as_admin(actor), delete))["event"]
                assert (again["seq"], again["duplicate"]) == (first["seq"], True)
        delete = {"type": "delete", "conversation": conv, "seq": seq["boss"], "n": 1}
        await api.ok("POST", "/v1/commands", SERVER, delete)


@pytest.mark.parametrize("rows", [keys.ROWS_1, keys.ROWS_2])
async def test_lists_show_role_posting_and_the_own_mute(valkey: EmbeddedValkey, rows: int) -> None:
    """Also if the rows of the user have no role. A mute that was lifted is not shown, nor one of another user."""
    async with serve(valkey) as api:
        api.store.row_format = rows
        for user in ("ann", "bob"):
            await api.ok("POST", "/v1/tokens", SERVER, {"user": user})
        convs = []
        for _ in range(2):
            members = {"kind": "group", "members": {"ann": "owner", "bob": "admin"}}
            convs.append((await api.ok("POST", "/v1/conversations", SERVER, members))["conversation"])
        await api.ok("POST", "/v1/messages", by("bob"), {"to": "@ann", "body": "x"})
        until = now_ms() + 3_600_000
        await api.ok("PATCH", f"/v1/conversations/{convs[0]}", by("ann"), {"posting": "admins"})
        await api.ok("PUT", f"/v1/conversations/{convs[0]}/members/bob/mute", SERVER, {"until": until})
        await api.ok("PUT", f"/v1/conversations/{convs[1]}/members/bob/mute", SERVER, {})

        async def listed(user: str) -> dict[str, tuple[Any, ...]]:
            found = (await api.ok("GET", "/v1/conversations", by(user)))["conversations"]
            shown = {
                one["conversation"]: (one["role"], one.get("posting"), one.get("muted_until", "-")) for one in found
            }
            for conv in convs:
                about = await api.ok("GET", f"/v1/conversations/{conv}", by(user))
                assert (about["role"], about["posting"], about.get("muted_until", "-")) == shown[conv]
            return shown

        direct = {"d:ann:bob": ("member", None, "-")}
        assert await listed("bob") == direct | {convs[0]: ("admin", "admins", until), convs[1]: ("admin", "all", None)}
        await api.ok("DELETE", f"/v1/conversations/{convs[1]}/members/bob/mute", SERVER)
        assert await listed("bob") == direct | {convs[0]: ("admin", "admins", until), convs[1]: ("admin", "all", "-")}
        assert await listed("ann") == direct | {convs[0]: ("owner", "admins", "-"), convs[1]: ("owner", "all", "-")}


async def test_list_of_bans_does_not_name_a_moderator_to_those_who_run_the_group(valkey: EmbeddedValkey) -> None:
    """Nor their reason. Other moderators see both, and who runs the group sees the bans of its own people."""
    async with serve(valkey) as api:
        users = {"ann": "owner", "bob": "member", "cem": "member", "dan": "member"}
        conv = (await api.ok("POST", "/v1/conversations", SERVER, {"kind": "group", "members": users}))["conversation"]
        await api.ok("POST", "/v1/tokens", SERVER, {"user": "mod"})
        await api.ok("PUT", "/v1/roles/mod", SERVER, {"roles": ["moderator"]})
        bans = f"/v1/conversations/{conv}/bans"
        for caller, user in ((as_admin("mod"), "bob"), (by("ann"), "cem"), (SERVER, "dan")):
            await api.ok("PUT", f"{bans}/{user}", caller, {"reason": f"about {user}"})

        async def seen(caller: dict[str, str]) -> set[tuple[str, str | None, str]]:
            return {(one["user"], one["by"], one["reason"]) for one in (await api.ok("GET", bans, caller))["bans"]}

        own = {("cem", "ann", "about cem"), ("dan", None, "about dan")}
        assert await seen(by("ann")) == own | {("bob", None, "")}
        assert await seen(as_admin("mod")) == await seen(SERVER) == own | {("bob", "mod", "about bob")}


async def test_acts_of_one_user_have_a_rate(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all kinds together, also those that change nothing; a backend has none."""
    monkeypatch.setattr("router.store.users.ACT_COST_US", 3_600_000_000)
    monkeypatch.setattr("router.store.users.ACT_BURST_US", 5 * 3_600_000_000)
    async with serve(valkey) as api:
        users = {"ann": "owner", "mod": "owner", "bob": "member"}
        conv = (await api.ok("POST", "/v1/conversations", SERVER, {"kind": "group", "members": users}))["conversation"]
        await api.ok("PUT", "/v1/roles/mod", SERVER, {"roles": ["moderator"]})
        made = await api.ok("POST", "/v1/reports", by("ann"), {"user": "bob", "reason": ""})
        where = f"/v1/conversations/{conv}"
        calls: tuple[tuple[str, str, Any], ...] = (
            ("PUT", f"{where}/members/bob/mute", {}),
            ("DELETE", f"{where}/bans/bob", None),
            ("PUT", "/v1/accounts/bob/suspension", {}),
            ("DELETE", "/v1/accounts/bob/suspension", None),
            ("PATCH", f"/v1/reports/{made['id']}", {"state": "resolved"}),
        )
        for method, path, body in calls:
            await api.ok(method, path, as_admin("mod"), body)
        more: tuple[tuple[str, str, Any], ...] = (
            ("DELETE", f"{where}/members/bob/mute", None),
            ("PUT", f"{where}/bans/bob", {}),
            ("POST", "/v1/commands", {"type": "delete", "conversation": conv, "seq": 1, "n": 1}),
        )
        for method, path, body in (*calls, *more):
            assert await api.refused(method, path, as_admin("mod"), body) == (429, "rate_limited"), path
        await api.ok("DELETE", f"{where}/members/bob/mute", by("ann"))
        for _ in range(7):
            await api.ok("DELETE", f"{where}/members/bob/mute", SERVER)
