"""The pre-send hook and the HTTP API: what it is asked about, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests.process.hook_server import SECRET, Hook, hooking
from tests.router.api.serving import SERVER, Api, by, serve

ADA, BOB = by("ada"), by("bob")


@asynccontextmanager
async def scene(valkey: EmbeddedValkey, **changes: Any) -> AsyncIterator[tuple[Api, Hook]]:
    async with hooking() as hook:
        given: dict[str, Any] = {
            "send_hook_url": hook.url,
            "send_hook_secret": SECRET,
            "send_hook_timeout_ms": 30_000,
        } | changes
        async with serve(valkey, **given) as api:
            for user in ("ada", "bob"):
                await api.ok("POST", "/v1/tokens", SERVER, {"user": user})
            yield api, hook


def reject(_: dict[str, Any]) -> dict[str, Any]:
    return {"verdict": "reject", "reason": "be nice"}


async def test_message_is_rejected_replaced_and_acked_again(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        message = {"to": "@bob", "body": "rude", "n": 1}
        hook.verdict = reject
        assert await api.refused("POST", "/v1/messages", ADA, message) == (422, "rejected")
        assert await api.refused("GET", f"/v1/conversations/{keys.direct('ada', 'bob')}", ADA) == (404, "not_found")
        hook.verdict = lambda _: {"verdict": "replace", "body": "****"}
        sent = await api.ok("POST", "/v1/messages", ADA, message)
        hook.verdict = reject
        again = await api.ok("POST", "/v1/messages", ADA, message)
        assert (again["seq"], again["duplicate"]) == (sent["seq"], True)
        (event,) = (await api.ok("GET", f"/v1/conversations/{sent['conversation']}/events", ADA))["events"]
        assert event["body"] == "****"
        assert [(asked["action"], asked["to"], asked["from"]) for asked in hook.questions] == [
            ("send", "bob", "ada")
        ] * 2


async def test_backend_is_not_asked_about(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        hook.verdict = reject
        as_ada = SERVER | {"Linnet-User": "ada"}
        await api.ok("POST", "/v1/messages", SERVER, {"to": "@bob", "from": "ada", "body": "news"})
        made = await api.ok("POST", "/v1/conversations", as_ada, {"kind": "group", "title": "news", "members": ["ada"]})
        await api.ok("PATCH", f"/v1/conversations/{made['conversation']}", SERVER, {"title": "more news"})
        assert hook.questions == []


async def test_title_is_asked_about_if_the_caller_may_change_it(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        new = {"kind": "group", "title": "birds", "members": ["bob"]}
        group = (await api.ok("POST", "/v1/conversations", ADA, new))["conversation"]
        await api.ok("PATCH", f"/v1/conversations/{group}", ADA, {"reacting": "members"})
        hook.verdict = reject
        assert await api.refused("PATCH", f"/v1/conversations/{group}", ADA, {"title": "rude"}) == (422, "rejected")
        assert await api.refused("PATCH", f"/v1/conversations/{group}", BOB, {"title": "x"}) == (403, "read_only")
        assert await api.refused("POST", "/v1/conversations", ADA, new) == (422, "rejected")
        assert (await api.ok("GET", f"/v1/conversations/{group}", ADA))["title"] == "birds"
        asked = [(one["action"], one["conversation"], one["kind"], one["body"]) for one in hook.questions]
        assert asked == [
            ("title", None, "group", {"title": "birds"}),
            ("title", group, "group", {"title": "rude"}),
            ("title", None, "group", {"title": "birds"}),
        ]


async def test_profile_is_asked_about_without_privacy(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        change = {"name": "Ada", "extra": {"raw": {"$b64": "AAE="}}, "privacy": {"groups": "contacts"}}
        await api.ok("PATCH", "/v1/me", ADA, change)
        await api.ok("PATCH", "/v1/me", ADA, {"privacy": {"groups": "everyone"}})
        hook.verdict = reject
        assert await api.refused("PATCH", "/v1/me", ADA, {"about": "rude"}) == (422, "rejected")
        me = await api.ok("GET", "/v1/me", ADA)
        assert (me["name"], me["about"], me["extra"]) == ("Ada", None, {"raw": {"$b64": "AAE="}})
        assert [(one["action"], one["from"], one["body"]) for one in hook.questions] == [
            ("profile", "ada", {"name": "Ada", "extra": {"raw": {"$b64": "AAE="}}}),
            ("profile", "ada", {"about": "rude"}),
        ]


async def test_name_of_a_new_account_is_asked_about(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        hook.verdict = reject
        new = {"user": "cy", "password": "correct horse", "name": "rude"}
        assert await api.refused("POST", "/v1/accounts", {}, new | {"password": "x"}) == (422, "bad_command")
        assert hook.questions == []
        assert await api.refused("POST", "/v1/accounts", {}, new) == (422, "rejected")
        assert (hook.questions[0]["action"], hook.questions[0]["from"]) == ("profile", "cy")
        hook.verdict = lambda _: {"verdict": "accept"}
        await api.ok("POST", "/v1/accounts", {}, new)
        assert await api.refused("POST", "/v1/accounts", {}, new) == (409, "conflict")
        assert len(hook.questions) == 2


async def test_contact_request_is_asked_about_once(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, hook):
        hook.verdict = reject
        assert await api.refused("PUT", "/v1/contacts/bob", ADA, {"message": "rude"}) == (422, "rejected")
        assert (await api.ok("GET", "/v1/contacts", BOB))["contacts"] == []
        hook.verdict = lambda _: {"verdict": "accept"}
        for _ in range(2):
            await api.ok("PUT", "/v1/contacts/bob", ADA, {"message": "hello"})
        await api.ok("PUT", "/v1/contacts/ada", BOB, {"message": "accepts"})
        asked = [(one["action"], one["to"], one["body"]) for one in hook.questions]
        assert asked == [("contact", "bob", "rude"), ("contact", "bob", "hello")]


@pytest.mark.parametrize(("policy", "status"), [("accept", 201), ("reject", 503)])
async def test_hook_that_is_down_is_counted_as_the_policy_says(
    valkey: EmbeddedValkey, policy: str, status: int
) -> None:
    async with scene(valkey, send_hook_url="http://127.0.0.1:9/", send_hook_on_failure=policy) as (api, _):
        new = {"kind": "group", "title": "birds", "members": ["bob"]}
        if status == 201:
            await api.ok("POST", "/v1/conversations", ADA, new)
        else:
            assert await api.refused("POST", "/v1/conversations", ADA, new) == (503, "unavailable")
