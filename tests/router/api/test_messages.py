"""Messages and events over HTTP."""

import asyncio
import json
from base64 import b64encode
from typing import Any

import pytest
import redis.asyncio

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from tests.router.api.serving import ADA, BOB, CY, SERVER, make_group, make_users, refusal, serve


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
                said = await listener.get_message(ignore_subscribe_messages=True, timeout=40)
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
