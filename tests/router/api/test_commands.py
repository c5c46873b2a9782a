"""Commands of the WebSocket over HTTP."""

from typing import Any

from deploy.embedded import EmbeddedValkey
from tests.router.api.serving import ADA, BOB, CY, SERVER, make_group, make_users, serve


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
            ack = (await api.ok("POST", "/v1/commands", SERVER, delete))["event"]
            assert (ack["type"], ack["n"], ack["conversation"], ack["duplicate"]) == ("ack", number, conv, False)
            again = (await api.ok("POST", "/v1/commands", SERVER, delete))["event"]
            assert (again["seq"], again["duplicate"]) == (ack["seq"], True)
            events = (await api.ok("GET", f"/v1/conversations/{conv}/events", BOB))["events"]
            assert [(event["type"], event["from"], event["target"]) for event in events] == [
                ("delete", "", message["seq"])
            ]
        (listed,) = (await api.ok("GET", "/v1/conversations", CY))["conversations"]
        assert (listed["conversation"], listed["unread"], listed["read"]) == (sent[1]["conversation"], 0, 0)
        own = await api.ok("POST", "/v1/messages", BOB, {"to": group, "body": "x"})
        delete = {"type": "delete", "conversation": group, "seq": own["seq"], "n": 1}
        assert (await api.ok("POST", "/v1/commands", BOB, delete))["event"]["seq"] == own["seq"] + 1
        assert await api.refused("POST", "/v1/commands", SERVER, {**delete, "type": "send"}) == (422, "bad_command")


async def test_command_state_writes_a_key_and_returns_its_event(valkey: EmbeddedValkey) -> None:
    """As on a socket: with the command's id, `prev`, bytes, and null for a removed key; refused as there."""

    async def state(**fields: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await api.ok("POST", "/v1/commands", ADA, {"type": "state", **fields})
        event: dict[str, Any] = answer["event"]
        return event

    async with serve(valkey) as api:
        await make_users(api, "ada")
        first = await state(key="draft/a", value={"b": {"$b64": "AAE="}}, id="x")
        assert first == {
            "type": "state", "id": "x", "key": "draft/a", "value": {"b": {"$b64": "AAE="}}, "version": first["version"],
            "prev": 0,
        }  # fmt: skip
        second = await state(key="draft/a", value=None, expect=float(first["version"]))
        assert (second["value"], second["prev"], "id" in second) == (None, first["version"], False)
        assert (await api.ok("GET", "/v1/state", ADA))["version"] == second["version"]
        for status, code, fields in (
            (409, "conflict", {"key": "draft/a", "value": 1, "expect": first["version"]}),
            (403, "read_only", {"key": "me", "value": 1}),
            (422, "bad_command", {"key": "a//b", "value": 1}),
            (422, "bad_command", {"key": "draft/a", "value": 2**53}),
            (422, "bad_command", {"key": "draft/a"}),
            (413, "too_large", {"key": "draft/a", "value": "x" * 5000}),
        ):
            command = {"type": "state", **fields}
            assert await api.refused("POST", "/v1/commands", ADA, command) == (status, code), fields
        assert await api.refused("POST", "/v1/commands", SERVER, {"type": "state", "key": "a", "value": 1}) == (
            422,
            "bad_command",
        )
        assert await api.refused("POST", "/v1/commands", ADA, {"key": "a", "value": 1}) == (422, "bad_command")
