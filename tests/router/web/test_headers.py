"""What answers say to browsers, and what the page may do."""

from __future__ import annotations

from typing import Any

from router.web import headers


async def answered(path: str, asked: dict[str, str], sent: dict[str, str]) -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request, for an application that answers with the headers in `sent`."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": b"what the application has"})

    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    raw = [(name.encode(), value.encode()) for name, value in asked.items()]
    await headers.SecureHeaders(app)({"type": "http", "path": path, "headers": raw}, None, send)
    start, *bodies = messages
    assert len(bodies) == 1
    assert (start["status"] == 200) == (bodies[0]["body"] == b"what the application has")
    return start["status"], {name.decode(): value.decode() for name, value in start["headers"]}


async def test_every_answer_has_the_headers() -> None:
    status, found = await answered("/v1/anything", {}, {"x-own": "1"})
    assert status == 200
    assert found["x-own"] == "1"
    assert found["x-content-type-options"] == "nosniff"
    assert found["x-frame-options"] == "DENY"
    assert found["referrer-policy"] == "no-referrer"
    assert found["cross-origin-opener-policy"] == "same-origin"
    assert found["permissions-policy"] == "microphone=(self), camera=(self)"


async def test_only_the_worker_of_the_page_can_become_one() -> None:
    asked = {"service-worker": "script"}
    assert (await answered("/sw.js", asked, {}))[0] == 200
    status, found = await answered("/v1/uploads/abc", asked, {})
    assert status == 403
    assert found["x-content-type-options"] == "nosniff"


async def test_upload_cannot_become_a_page_or_a_script() -> None:
    for kind in ("script", "style", "worker", "document", "iframe", "object", "embed"):
        asked = {"sec-fetch-dest": kind}
        assert (await answered("/v1/uploads/abc", asked, {"content-type": "text/html"}))[0] == 403
        attached = {"content-disposition": 'attachment; filename="a.html"'}
        assert (await answered("/v1/uploads/abc", asked, attached))[0] == 200
    assert (await answered("/v1/uploads/abc", {"sec-fetch-dest": "image"}, {}))[0] == 200


def test_policy_names_hosts_and_never_a_bare_scheme() -> None:
    connect = headers.hosts(["ws://10.0.0.1:8001/ws", "wss://chat.example/ws", "ws://[::1]:8001/ws", "http://x", "ws:"])
    assert connect == ["ws://10.0.0.1:*", "ws://[::1]:*", "wss://chat.example:*"]
    policy = headers.policy("aGFzaA==", connect)
    assert policy.startswith("default-src 'none'; script-src 'self' 'sha256-aGFzaA=='; style-src 'self'; ")
    assert "connect-src 'self' ws://10.0.0.1:* ws://[::1]:* wss://chat.example:*; " in policy
    assert policy.endswith("require-trusted-types-for 'script'; trusted-types linnet")
    assert " ws: " not in policy


def test_policy_cannot_be_extended_by_an_address() -> None:
    """A gateway's address that is no host is left out."""
    assert headers.hosts(["ws://a b/ws", "ws://x;script-src/ws", "ws://x'/ws", "ws://%20/ws"]) == []
