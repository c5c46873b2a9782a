"""The listener of the admin view: who may call what there, and what the calls show."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.api.table import ADMIN, FOR_ADMINS, MODERATION, admin_endpoints
from router.contract.tokens import ADMIN_S
from router.store import directory
from router.store.answers import reply_of
from tests.router.api.serving import SERVER, SETTINGS, Api, as_admin, by, serve
from tests.store.calling import event
from tests.support import eventually

PASSWORD = "correct horse battery"
WHY = {"Linnet-Reason": "a%20court%20order"}
COLUMNS = ("user", "moderator, ordinary token", "admin, ordinary token", "moderator", "admin", "server", "nobody")

# fmt: off
ROWS: tuple[tuple[str, str, Any, str], ...] = (
    # call, path, body                                                       usr mod' adm' mod adm srv nob
    ("GET /v1/admin/users", "/v1/admin/users", None,                         "403 403 403 403 200 200 401"),
    ("GET /v1/admin/conversations", "/v1/admin/conversations", None,         "403 403 403 403 200 200 401"),
    ("GET /v1/admin/conversations/{conversation}/events", "/v1/admin/conversations/<group>/events", None,
                                                                             "403 403 403 403 200 200 401"),
    ("GET /v1/admin/conversations/{conversation}/devices", "/v1/admin/conversations/<group>/devices", None,
                                                                             "403 403 403 403 200 200 401"),
    ("GET /v1/admin/nodes", "/v1/admin/nodes", None,                         "403 403 403 403 200 200 401"),
    ("POST /v1/password/resets", "/v1/password/resets", {"user": "victim"},  "403 403 403 403 200 200 401"),
    ("POST /v1/password/resets", "/v1/password/resets", {"user": "mod"},     "403 403 403 403 403 200 401"),
    ("DELETE /v1/sessions/{user}", "/v1/sessions/victim", None,              "403 403 403 403 204 204 401"),
    ("DELETE /v1/sessions/{user}", "/v1/sessions/boss2", None,               "403 403 403 403 403 204 401"),
    ("DELETE /v1/sessions/{user}/{device}", "/v1/sessions/victim/x", None,   "403 403 403 403 204 204 401"),
    ("PUT /v1/accounts/{user}/suspension", "/v1/accounts/bad/suspension", {},    "403 403 403 204 204 204 401"),
    ("DELETE /v1/accounts/{user}/suspension", "/v1/accounts/bad/suspension", None, "403 403 403 204 204 204 401"),
    ("GET /v1/roles/{user}", "/v1/roles/victim", None,                       "403 403 403 403 403 200 401"),
    ("PUT /v1/roles/{user}", "/v1/roles/bad", {"roles": []},                 "403 403 403 403 403 200 401"),
    ("POST /v1/reports", "/v1/reports", {"user": "bad", "reason": "x"},      "201 201 201 200 200 422 401"),
    ("GET /v1/reports", "/v1/reports", None,                                 "403 403 403 200 200 200 401"),
    ("PATCH /v1/reports/{report}", "/v1/reports/<report>", {"state": "open"}, "403 403 403 200 200 200 401"),
    ("GET /v1/audit", "/v1/audit", None,                                     "403 403 403 200 200 200 401"),
    ("PUT /v1/conversations/{conversation}/members/{user}/mute", "/v1/conversations/<group>/members/victim/mute", {},
                                                                             "404 404 404 204 204 204 401"),
    ("DELETE /v1/conversations/{conversation}/members/{user}/mute", "/v1/conversations/<group>/members/victim/mute",
        None,                                                                "404 404 404 204 204 204 401"),
    ("PUT /v1/conversations/{conversation}/bans/{user}", "/v1/conversations/<group>/bans/bad", {},
                                                                             "404 404 404 204 204 204 401"),
    ("DELETE /v1/conversations/{conversation}/bans/{user}", "/v1/conversations/<group>/bans/bad", None,
                                                                             "404 404 404 204 204 204 401"),
    ("GET /v1/conversations/{conversation}/bans", "/v1/conversations/<group>/bans", None,
                                                                             "404 404 404 200 200 200 401"),
    ("POST /v1/commands", "/v1/commands", {"type": "delete", "conversation": "<group>", "seq": 1, "n": 1},
                                                                             "404 404 404 200 200 200 401"),
    ("GET /v1/me", "/v1/me", None,                                           "200 200 200 200 200 422 401"),
    ("POST /v1/login", "/v1/login", {"user": "bad"},                         "422 422 422 422 422 422 422"),
    ("GET /v1/openapi.json", "/v1/openapi.json", None,                       "200 200 200 200 200 200 200"),
    ("POST /v1/logout", "/v1/logout", {},                                    "204 204 204 204 204 422 401"),
)
# fmt: on


async def make_roles(api: Api, **roles: str) -> None:
    """Set roles of users in the deployment."""
    for user, role in roles.items():
        await api.services.accounts.ensure(user)
        await api.services.accounts.set_roles(user, [role])  # type: ignore[list-item]


async def make_group(api: Api, *members: str) -> str:
    conv = "g:admin-test-group-00000"
    await api.services.conversations.create(conv, "g", "T", dict.fromkeys(members, "m"), 0, 0)
    for user in members:
        await api.services.accounts.ensure(user)
        await api.services.users.join(user, conv, "T", 0, 0, 0, "m")
    return conv


def test_table_names_every_call_of_the_admin_listener() -> None:
    served = {f"{endpoint.method} {endpoint.path}" for endpoint in admin_endpoints(SETTINGS)}
    assert {row[0] for row in ROWS} == served
    assert {f"{row.method} {row.path}" for row in (*ADMIN, *MODERATION)} | FOR_ADMINS == served


async def test_admin_listener_allows_each_call_exactly_to_its_callers(valkey: EmbeddedValkey) -> None:
    """A role counts only with a token of the admin view; an admin cannot act on users with a role."""
    async with serve(valkey, admin_view=True) as api:
        for user in ("user", "victim", "mod", "boss2", "bad"):
            await api.services.accounts.create(user, "hash", "")
        await make_roles(api, mod="moderator", boss="admin", boss2="moderator")
        group = await make_group(api, "victim", "bad", "writer")
        report, _ = await api.services.reports.report_user("user", "victim", "x")
        callers = dict(
            zip(
                COLUMNS,
                (by("user"), by("mod"), by("boss"), as_admin("mod"), as_admin("boss"), SERVER, {}),
                strict=True,
            )
        )
        wrong = []
        for call, path, body, codes in ROWS:
            for caller, code in zip(COLUMNS, codes.split(), strict=True):
                filled = {k: v.replace("<group>", group) if isinstance(v, str) else v for k, v in (body or {}).items()}
                if call == "POST /v1/commands":
                    sent = await reply_of(api.services.conversations.append, _message(api, group))
                    filled["seq"] = sent.seq
                answer = await api.request(
                    call.split()[0],
                    path.replace("<group>", group).replace("<report>", report),
                    headers=callers[caller] | WHY,
                    json=None if body is None else filled,
                )
                if answer.status_code != int(code):
                    wrong.append((call, caller, answer.status_code, answer.text))
        assert not wrong, "\n".join(map(str, wrong))


def _message(api: Api, group: str) -> Any:
    made = event(group, "writer", 1)
    return replace(made, n=api.services.event_numbers.next())


async def test_login_to_the_admin_view_takes_a_role_and_its_own_listener(valkey: EmbeddedValkey) -> None:
    """The token lasts 15 minutes, cannot be renewed, and ends with its logout."""
    login = {"user": "boss", "password": PASSWORD, "scope": "admin"}
    async with serve(valkey) as public:
        await public.ok("POST", "/v1/accounts", SERVER, {"user": "boss", "password": PASSWORD})
        assert await public.refused("POST", "/v1/login", {}, login) == (403, "forbidden")
        for path in ("/v1/admin/users", "/v1/admin/nodes", "/admin"):
            assert (await public.get(path, headers=SERVER)).status_code == 404
        async with serve(valkey, admin_view=True) as api:
            assert await api.refused("POST", "/v1/login", {}, login) == (403, "forbidden")
            await make_roles(api, boss="admin")
            assert await api.refused("POST", "/v1/login", {}, login | {"password": "wrong"}) == (401, "unauthorized")
            made = await api.ok("POST", "/v1/login", {}, login)
            now = await api.services.presence.clock_ms()
            assert 0 < made["expires_at"] - now <= ADMIN_S * 1000
            own = {"Authorization": f"Bearer {made['token']}"}
            assert (await public.ok("GET", "/v1/audit", own))["more"] is False
            assert await public.refused("POST", "/v1/tokens/renew", own) == (403, "forbidden")
            ordinary = await api.ok("POST", "/v1/login", {}, {"user": "boss", "password": PASSWORD})
            plain = {"Authorization": f"Bearer {ordinary['token']}"}
            assert await api.refused("GET", "/v1/admin/users", plain) == (403, "forbidden")
            await api.services.accounts.set_roles("boss", [])
            assert await api.refused("GET", "/v1/admin/users", own) == (403, "forbidden")
            await api.ok("POST", "/v1/logout", own, {})
            assert await api.refused("GET", "/v1/me", own) == (401, "unauthorized")


async def test_admin_finds_users_by_prefix_and_state(valkey: EmbeddedValkey, monkeypatch: Any) -> None:
    """Page by page, each once; the user with exactly that name comes first."""
    monkeypatch.setattr(directory, "STEP", 3)
    monkeypatch.setattr(directory, "STEPS", 1)
    async with serve(valkey, admin_view=True) as api:
        await make_roles(api, boss="admin")
        for number in range(20):
            await api.services.accounts.ensure(f"an{number}")
        await api.services.accounts.create("an", "hash", "Ann")
        await api.services.accounts.suspend("an3", 3, "", 0, "")
        await api.services.accounts.delete("an4")

        async def pages(query: str) -> list[Any]:
            found, after = [], "0"
            while after:
                page = await api.ok("GET", f"/v1/admin/users?{query}&after={after}", as_admin("boss"))
                found += page["users"]
                after = page["after"]
                assert page["more"] == bool(after)
            return found

        found = await pages("prefix=an")
        assert found[0]["user"] == "an"
        assert (found[0]["name"], found[0]["password"], found[0]["online"]) == ("Ann", True, False)
        assert {one["user"] for one in found} == {"an"} | {f"an{number}" for number in range(20)}
        assert [one["user"] for one in await pages("state=suspended")] == ["an3"]
        assert [one["user"] for one in await pages("state=deleted&prefix=a")] == ["an4"]
        for query in (
            "prefix=a*",
            "prefix=%5Ba",
            "state=x",
            "after=x",
            "after=a%20b",
            "after=%2018446744073709551616",
            "limit=0",
        ):
            assert await api.refused("GET", f"/v1/admin/users?{query}", as_admin("boss")) == (422, "bad_command")


async def test_log_is_read_with_a_reason_that_the_audit_has(valkey: EmbeddedValkey) -> None:
    async with serve(valkey, admin_view=True) as api:
        await make_roles(api, boss="admin")
        group = await make_group(api, "writer")
        await reply_of(api.services.conversations.append, _message(api, group))
        path = f"/v1/admin/conversations/{group}/events"
        for reason in ({}, {"Linnet-Reason": "%20"}, {"Linnet-Reason": "%ff"}, {"Linnet-Reason": "x" * 501}):
            assert await api.refused("GET", path, as_admin("boss") | reason) == (422, "bad_command")
        unknown = f"/v1/admin/conversations/{group[:-1]}x/events"
        assert await api.refused("GET", unknown, as_admin("boss") | WHY) == (404, "not_found")
        page = await api.ok("GET", path, as_admin("boss") | WHY)
        assert [event["from"] for event in page["events"]] == ["writer"]

        async def noted() -> bool:
            entries = (await api.ok("GET", "/v1/audit", as_admin("boss")))["entries"]
            return [(one["action"], one["actor"], one["target"], one["reason"]) for one in entries][-1:] == [
                ("conversation_read", "boss", {"conversation": group}, "a court order")
            ]

        await eventually(noted)


async def test_admin_sees_what_each_device_has_and_what_nodes_do(valkey: EmbeddedValkey) -> None:
    """A device without a cursor has null, and a member without a device is named."""
    async with serve(valkey, admin_view=True) as api:
        await make_roles(api, boss="admin")
        group = await make_group(api, "ann", "writer")
        await reply_of(api.services.conversations.append, _message(api, group))
        found = await api.ok("GET", f"/v1/admin/conversations/{group}/devices", as_admin("boss"))
        assert (found["head"], found["devices"], found["without"], found["more"]) == (1, [], ["ann", "writer"], False)
        listed = await api.ok("GET", f"/v1/admin/conversations?conversation={group}", as_admin("boss"))
        assert [(one["title"], one["size"], one["count"], one["posting"]) for one in listed["conversations"]] == [
            ("T", 2, 1, "all")
        ]
        every = await api.ok("GET", "/v1/admin/conversations", as_admin("boss"))
        assert group in {one["conversation"] for one in every["conversations"]}
        now = await api.services.presence.clock_ms()
        await reply_of(api.services.presence.renew, "g1", "ws://g1/ws", 7, now, now)
        nodes = await api.ok("GET", "/v1/admin/nodes", as_admin("boss"))
        assert [
            (one["node"], one["connections"], one["alive"]) for one in nodes["gateways"] if one["node"] == "g1"
        ] == [("g1", 7, True)]
        assert nodes["backlog"].keys() == {"conversations", "oldest_ms"}
