"""Contacts and blocks as calls: their answers, what they hide, and their limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.api import contacts as contacts_module
from router.contract import keys
from router.contract.packing import unpack
from router.store.people import Person
from tests.router.api.serving import SERVER, Api, by, serve

ADA, BOB, CY = (by(user) for user in ("ada", "bob", "cy"))


async def make_users(api: Api, *users: str) -> None:
    for user in users or ("ada", "bob", "cy"):
        await api.ok("POST", "/v1/tokens", SERVER, {"user": user})


async def states(api: Api, headers: dict[str, str]) -> dict[str, str]:
    listed = await api.ok("GET", "/v1/contacts", headers)
    return {one["user"]: one["state"] for one in listed["contacts"]}


async def test_request_is_accepted_listed_and_removed(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        assert await api.ok("PUT", "/v1/contacts/bob", ADA, {"message": "hi\nit's me"}) == {
            "user": "bob",
            "state": "outgoing",
        }
        assert (await api.ok("PUT", "/v1/contacts/bob", ADA, {"message": "other"}))["state"] == "outgoing"
        (shown,) = (await api.ok("GET", "/v1/contacts?state=incoming", BOB))["contacts"]
        assert (shown["user"], shown["state"], shown["message"]) == ("ada", "incoming", "hi\nit's me")
        assert shown == await api.ok("GET", "/v1/contacts/ada", BOB)
        assert await api.refused("POST", "/v1/contacts/bob/accept", ADA) == (404, "not_found")
        made = {"user": "ada", "state": "contact"}
        assert await api.ok("POST", "/v1/contacts/ada/accept", BOB) == made
        assert await api.ok("POST", "/v1/contacts/ada/accept", BOB) == made
        assert await api.ok("PUT", "/v1/contacts/ada", BOB, {}) == made
        contact = await api.ok("GET", "/v1/contacts/bob", ADA)
        assert (contact["state"], contact["message"], contact["until"]) == ("contact", None, None)
        assert await states(api, ADA) == {"bob": "contact"}
        await api.ok("DELETE", "/v1/contacts/ada", BOB)
        await api.ok("DELETE", "/v1/contacts/ada", BOB)
        assert await states(api, ADA) == await states(api, BOB) == {}
        assert await api.refused("GET", "/v1/contacts/bob", ADA) == (404, "not_found")


async def test_requests_of_both_make_contacts(valkey: EmbeddedValkey) -> None:
    """Also at once, however they interleave."""
    async with serve(valkey) as api:
        await make_users(api)
        await asyncio.gather(
            *(api.ok("PUT", f"/v1/contacts/{b}", by(a), {}) for a, b in (("ada", "bob"), ("bob", "ada")))
        )
        assert await states(api, ADA) == {"bob": "contact"}
        assert await states(api, BOB) == {"ada": "contact"}


async def test_list_is_paged_by_name(valkey: EmbeddedValkey) -> None:
    async with serve(valkey) as api:
        await make_users(api)
        for name in ("u3", "u1", "u2"):
            await make_users(api, name)
            await api.ok("PUT", f"/v1/contacts/{name}", ADA, {})
            await api.ok("PUT", f"/v1/blocks/{name}", BOB)
        for path, name, headers in (("/v1/contacts", "contacts", ADA), ("/v1/blocks", "blocks", BOB)):
            first = await api.ok("GET", f"{path}?limit=2", headers)
            assert ([one["user"] for one in first[name]], first["more"]) == (["u1", "u2"], True)
            rest = await api.ok("GET", f"{path}?limit=2&after=u2", headers)
            assert ([one["user"] for one in rest[name]], rest["more"]) == (["u3"], False)


async def test_unknown_users_and_oneself_are_refused(valkey: EmbeddedValkey) -> None:
    """Lifting and removing what is not there changes nothing and creates nothing."""
    async with serve(valkey) as api:
        await make_users(api)
        for path in ("/v1/contacts/{}", "/v1/blocks/{}"):
            given: dict[str, str] | None = {} if "contacts" in path else None
            assert await api.refused("PUT", path.format("nobody"), ADA, given) == (404, "not_found")
            assert await api.refused("PUT", path.format("ada"), ADA, given) == (422, "bad_command")
            for other in ("nobody", "ada", "bob"):
                await api.ok("DELETE", path.format(other), ADA)
        with valkey.client() as client:
            assert not list(client.scan_iter(match="*conv:d:*")) + list(client.scan_iter(match="*nobody*"))


async def views(api: Api, user: str, other: str) -> list[Any]:
    """All that a user sees of another one over HTTP, without times."""
    seen: list[Any] = []
    headers = by(user)
    for method, path, body in (
        ("POST", "/v1/messages", {"to": f"@{other}", "body": "hello"}),
        ("PUT", f"/v1/contacts/{other}", {"message": "hi"}),
        ("PUT", f"/v1/contacts/{other}", {"message": "hi"}),
        ("POST", f"/v1/contacts/{other}/accept", None),
        ("GET", "/v1/contacts", None),
        ("GET", f"/v1/contacts/{other}", None),
        ("GET", "/v1/blocks", None),
        ("GET", f"/v1/conversations/{keys.direct(user, other)}", None),
        ("GET", "/v1/conversations", None),
        ("GET", f"/v1/presence?users={other}", None),
        ("DELETE", f"/v1/contacts/{other}", None),
        ("GET", "/v1/contacts", None),
    ):
        answer = await api.request(method, path, headers=headers, json=body)
        seen.append((method, path, answer.status_code, blurred(answer.json()) if answer.content else None))
    entries = await api.services.state.entries(user, 0, "", 100)
    seen += [(entry.key, blurred(unpack(entry.value)) if entry.value else None) for entry in entries.entries]
    return [str(one).replace(f"{user}:{other}", "PAIR").replace(other, "OTHER").replace(user, "ME") for one in seen]


def blurred(value: Any) -> Any:
    """The value with every time as its kind: what is compared are fields, not clocks."""
    if isinstance(value, dict):
        return {
            name: "time" if name in ("at", "until", "made") and one else blurred(one)
            for name, one in sorted(value.items(), key=str)
        }
    return [blurred(one) for one in value] if isinstance(value, list) else value


async def test_blocked_user_sees_what_a_stranger_sees(valkey: EmbeddedValkey) -> None:
    """Of a user who takes messages from contacts only; call by call and field by field, also in the own state."""
    async with serve(valkey) as api:
        await make_users(api, "ann", "tom", "victim", "zoe")
        await api.ok("PUT", "/v1/blocks/ann", by("victim"))
        await api.services.contacts.change("zoe", "tom", "only", "1", 1)
        assert await views(api, "ann", "victim") == await views(api, "tom", "zoe")
        assert (await api.ok("GET", "/v1/contacts", by("victim")))["contacts"] == []
        assert (await api.services.state.entries("victim", 0, "contact/", 10)).entries == []


async def test_block_refuses_every_way_to_write(valkey: EmbeddedValkey) -> None:
    """Before the conversation exists and after; both ways; for the server key; the own message can be deleted."""
    async with serve(valkey) as api:
        await make_users(api)
        await api.ok("PUT", "/v1/blocks/bob", ADA)
        for headers, to, author in ((BOB, "@ada", None), (ADA, "@bob", None), (SERVER, "@ada", "bob")):
            given = {"to": to, "body": 1} | ({"from": author} if author else {})
            assert await api.refused("POST", "/v1/messages", headers, given) == (403, "blocked")
        assert await api.refused("PUT", "/v1/contacts/bob", ADA, {}) == (409, "conflict")
        await api.ok("DELETE", "/v1/blocks/bob", ADA)
        sent = await api.ok("POST", "/v1/messages", BOB, {"to": "@ada", "body": 1})
        await api.ok("PUT", "/v1/blocks/ada", BOB)
        assert await api.refused("POST", "/v1/messages", BOB, {"to": "@ada", "body": 2}) == (403, "blocked")
        delete = {"type": "delete", "conversation": sent["conversation"], "seq": sent["seq"], "n": 1}
        await api.ok("POST", "/v1/commands", BOB, delete)


async def test_answer_opens_the_way_at_once(valkey: EmbeddedValkey) -> None:
    """A user who takes messages from contacts only has written: the other's next message is accepted."""
    async with serve(valkey) as api:
        await make_users(api)
        await api.services.contacts.change("ada", "bob", "only", "1", 1)
        assert await api.refused("POST", "/v1/messages", BOB, {"to": "@ada", "body": 1}) == (403, "blocked")
        await api.ok("POST", "/v1/messages", SERVER, {"from": "bob", "to": "@ada", "body": 1})
        await api.ok("POST", "/v1/messages", ADA, {"to": "@bob", "body": 1})
        await api.ok("POST", "/v1/messages", BOB, {"to": "@ada", "body": 1})


async def test_end_of_an_account_ends_contacts(valkey: EmbeddedValkey) -> None:
    """And requests, both ways; a block of the user stays, and can be lifted."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob", "cy", "dan", "ann")
        for asker, other in (("ada", "bob"), ("bob", "ada"), ("cy", "ada"), ("ada", "dan")):
            await api.ok("PUT", f"/v1/contacts/{other}", by(asker), {})
        await api.ok("PUT", "/v1/blocks/ada", by("ann"))
        await api.ok("DELETE", "/v1/accounts/ada", ADA)
        for user in ("bob", "cy", "dan"):
            assert await states(api, by(user)) == {}
            found = await api.services.state.read(user, "contact/ada")
            assert found is None
        assert [one["user"] for one in (await api.ok("GET", "/v1/blocks", by("ann")))["blocks"]] == ["ada"]
        await api.ok("DELETE", "/v1/blocks/ada", by("ann"))
        assert await api.refused("PUT", "/v1/contacts/ada", BOB, {}) == (404, "not_found")


async def test_requests_have_a_rate(valkey: EmbeddedValkey) -> None:
    """Twenty at once; an answer to a request, and a repetition, cost nothing."""
    async with serve(valkey) as api:
        names = [f"u{number}" for number in range(21)]
        await make_users(api, "ada", "bob", *names)
        await api.ok("PUT", "/v1/contacts/ada", BOB, {})
        for name in names[:-1]:
            await api.ok("PUT", f"/v1/contacts/{name}", ADA, {})
        assert await api.refused("PUT", f"/v1/contacts/{names[-1]}", ADA, {}) == (429, "rate_limited")
        await api.ok("PUT", f"/v1/contacts/{names[0]}", ADA, {})
        await api.ok("PUT", "/v1/contacts/bob", ADA, {})


async def test_quotas_hold(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of open requests, contacts and blocks; a repetition is no further one."""
    for name in ("MAX_OUTGOING", "MAX_CONTACTS", "MAX_BLOCKS"):
        monkeypatch.setattr(contacts_module, name, 1)
    async with serve(valkey) as api:
        await make_users(api)
        for _ in range(2):
            await api.ok("PUT", "/v1/contacts/bob", ADA, {})
            await api.ok("PUT", "/v1/blocks/ada", CY)
        assert await api.refused("PUT", "/v1/contacts/cy", ADA, {}) == (403, "quota")
        assert await api.refused("PUT", "/v1/blocks/bob", CY) == (403, "quota")
        await api.ok("PUT", "/v1/contacts/ada", BOB, {})
        assert await api.refused("PUT", "/v1/contacts/cy", BOB, {}) == (403, "quota")
        await api.ok("DELETE", "/v1/blocks/ada", CY)
        await make_users(api, "dan")
        await api.ok("PUT", "/v1/contacts/bob", by("dan"), {})
        assert await api.refused("POST", "/v1/contacts/dan/accept", BOB) == (403, "quota")


async def test_throw_away_accounts_fill_no_more_than_the_list(valkey: EmbeddedValkey) -> None:
    """All get the answer of a request that waits; beyond 500 nothing of the asked user's grows."""
    async with serve(valkey) as api:
        await make_users(api, "ada", "bob")
        relate = api.services.people.set_relation
        await asyncio.gather(*(relate("ada", f"x{n}", Person(1, "i", False, False, 1, 2**52)) for n in range(495)))
        askers = [f"t{number}" for number in range(40)]
        await make_users(api, *askers)
        answers = await asyncio.gather(*(api.ok("PUT", "/v1/contacts/ada", by(asker), {}) for asker in askers))
        assert {answer["state"] for answer in answers} == {"outgoing"}
        counts = await api.services.people.counts("ada")
        assert counts.incoming == 500
        assert len(await api.services.people.everybody("ada")) <= 500 + len(askers)
        shown = await api.ok("GET", "/v1/contacts?state=incoming&limit=1000", ADA)
        assert len(shown["contacts"]) == 500
