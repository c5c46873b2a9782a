"""The steps around a call: callers, bodies, errors."""

import asyncio
from typing import Any

import jwt
import pytest

from deploy.embedded import EmbeddedValkey
from router.api import steps
from tests.router.api.serving import ADA, SERVER, make_users, refusal, serve
from tests.support import JWT_SECRET, eventually


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic YTpi"},
        {"Authorization": ADA["Authorization"][:-4]},
        {"Authorization": "Bearer " + jwt.encode({"sub": "ada", "exp": 1}, JWT_SECRET)},
        {"Authorization": "Bearer " + jwt.encode({"sub": "ada", "exp": 10**10}, "another secret of enough bytes, 32")},
        {"Authorization": "Bearer " + "x" * 20_000},
    ],
)
async def test_call_without_a_valid_token_is_unauthorized(valkey: EmbeddedValkey, headers: dict[str, str]) -> None:
    """401 comes before any other check, for every call."""
    async with serve(valkey) as api:
        for method, path in (("GET", "/v1/conversations"), ("POST", "/v1/messages"), ("DELETE", "/v1/accounts/a b")):
            answer = await api.request(method, path, headers=headers)
            status, code = refusal(answer)
            assert (status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert code in ("unauthorized", "token_expired")


async def test_backend_names_the_user_it_acts_for(valkey: EmbeddedValkey) -> None:
    """`Linnet-User` is required by calls about a user, and creates that user."""
    async with serve(valkey) as api:
        assert await api.refused("GET", "/v1/conversations", SERVER) == (422, "bad_command")
        assert await api.refused("GET", "/v1/conversations", SERVER | {"Linnet-User": "a b"}) == (422, "bad_command")
        as_eve = SERVER | {"Linnet-User": "eve"}
        made = await api.ok("POST", "/v1/conversations", as_eve, {"kind": "group", "members": ["fay"]})
        assert made["members"] == {"eve": "owner", "fay": "member"}
        assert (await api.ok("GET", "/v1/conversations", as_eve))["conversations"][0]["head"] == made["head"]
        own = await api.ok("POST", "/v1/conversations", SERVER, {"kind": "group", "members": {"fay": "admin"}})
        assert own["members"] == {"fay": "admin"}


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"{", "application/json", (400, "bad_frame")),
        (b"\xff", "application/json", (400, "bad_frame")),
        (b"[]", "application/json", (422, "bad_command")),
        (b"", "application/json", (422, "bad_command")),
        (b'{"to": "@bob"}', "application/json", (422, "bad_command")),
        (b'{"to": 7, "body": 1}', "application/json; charset=utf-8", (422, "bad_command")),
        (b'{"to": "@bob", "body": "\\ud800"}', "application/json", (400, "bad_frame")),
        (b"[" * 100_000, "application/json", (422, "bad_command")),
        (b'{"to": "@bob", "body": ' + b"[" * 60_000, "application/json", (422, "bad_command")),
        (b'{"to": "@bob", "body": "' + b"x" * 66_000 + b'"}', "application/json", (413, "too_large")),
        (b"x" * 140_000, "application/json", (413, "too_large")),
        (b'{"to": "@bob", "body": 1}', "text/plain", (415, "unsupported_media_type")),
        (b"to=@bob", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
    ],
)
async def test_wrong_body_is_refused(
    valkey: EmbeddedValkey, content: bytes, kind: str, expected: tuple[int, str]
) -> None:
    """Unreadable, wrong, too deep, too large or of another type: each has its status, in one shape."""
    async with serve(valkey) as api:
        await make_users(api, "bob")
        answer = await api.post("/v1/messages", content=content, headers=ADA | {"Content-Type": kind})
        assert refusal(answer) == expected


async def test_endless_or_slow_body_is_cut_off(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of unknown length ends at the limit; one that stalls ends after the time limit."""
    async with serve(valkey) as api:

        async def endless() -> Any:
            while True:
                yield b" " * 10_000

        async def stalled() -> Any:
            yield b'{"to":'
            await asyncio.Event().wait()

        for content, body_s, expected in (
            (endless(), 10.0, (413, "too_large")),
            (stalled(), 0.05, (400, "bad_frame")),
        ):
            monkeypatch.setattr(steps, "BODY_S", body_s)
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
            writer.write(f"Authorization: {ADA['Authorization']}\r\n\r\n".encode())

            async def feed(content: Any = content, writer: asyncio.StreamWriter = writer) -> None:
                async for part in content:
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                    await writer.drain()

            feeding = asyncio.create_task(feed())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith(f"HTTP/1.1 {expected[0]} ")
            assert ("connection: close" in head.lower()) == (expected[1] == "bad_frame")
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            writer.close()


async def test_exception_is_answered_internal_without_its_text(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unforeseen exception is 500 `internal`; only the log has its text."""
    async with serve(valkey) as api:

        async def bug() -> None:
            raise KeyError("secret-detail")

        monkeypatch.setattr(api.services.presence, "gateways", bug)
        answer = await api.get("/v1/presence?users=ada", headers=ADA)
        assert refusal(answer) == (500, "internal")
        assert "secret-detail" not in answer.text
        assert "secret-detail" in caplog.text


async def test_calls_without_redis_are_unavailable_and_later_succeed(own_valkey: EmbeddedValkey) -> None:
    """503 with the time to retry instead of a hanging request; calls succeed when Redis is back."""
    async with serve(own_valkey) as api:
        await make_users(api, "ada")
        own_valkey.kill()
        assert await api.refused("GET", "/v1/conversations", ADA) == (503, "unavailable")
        own_valkey.start()

        async def served() -> bool:
            return (await api.get("/v1/conversations", headers=ADA)).status_code == 200

        await eventually(served)


async def test_integers_that_arrive_as_floats_are_accepted(valkey: EmbeddedValkey) -> None:
    """In bodies and in queries, with the same result as integers; a fraction is refused."""
    async with serve(valkey) as api:
        await make_users(api)
        given = {"to": "@bob", "body": 1.0, "device": "a"}
        sent = await api.ok("POST", "/v1/messages", ADA, {**given, "n": 1.8e15})
        assert (sent["n"], type(sent["n"])) == (1_800_000_000_000_000, int)
        again = await api.ok("POST", "/v1/messages", ADA, {**given, "n": 1_800_000_000_000_000})
        assert (again["seq"], again["duplicate"]) == (sent["seq"], True)
        events = "/v1/conversations/d:ada:bob/events"
        page = await api.ok("GET", f"{events}?before={sent['seq'] + 1}.0&limit=5.0", ADA)
        assert [event["seq"] for event in page["events"]] == [sent["seq"]]
        assert await api.refused("POST", "/v1/messages", ADA, {**given, "n": 1.5}) == (422, "bad_command")
        for query in ("limit=1.5", "limit=", "limit=1_0", "before=1e300"):
            assert await api.refused("GET", f"{events}?{query}", ADA) == (422, "bad_command"), query
