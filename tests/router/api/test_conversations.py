"""Conversations and their members over HTTP."""

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import stamp
from router.contract.packing import pack
from router.store import users
from router.store.answers import reply_of
from router.store.appends import Append
from tests.router.api.serving import ADA, BOB, CY, DAN, SERVER, by, make_group, make_users, refusal, serve


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
