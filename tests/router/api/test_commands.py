"""Commands of the WebSocket over HTTP."""

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
