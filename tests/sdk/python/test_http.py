"""Calls of the HTTP API, against a server that answers as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from linnet_client import Refused
from linnet_client.http import Api, UserApi
from linnet_client.media import Media

from tests.support import DEADLINE_S


@contextmanager
def server(location: str, seen: list[str | None]) -> Iterator[str]:
    """Its origin. It redirects to `location`, or answers; `seen` has the `Authorization` of each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(307 if location else 200)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            if not location:
                self.wfile.write(b"bytes")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


async def test_link_to_a_file_gets_no_token() -> None:
    """A file may be at another origin, which the user's token does not concern."""
    seen: list[str | None] = []
    with server("", seen) as files, server(f"{files}/v1/files/x?sig=y", seen) as api:
        assert await Api(api).fetch("/v1/uploads/x", "secret") == b"bytes"
    assert seen == ["Bearer secret", None]


async def test_call_whose_token_has_ended_is_made_again_with_another_token_once() -> None:
    reasons = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            good = self.headers["Authorization"] == "Bearer new"
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(b'{"done": true}' if good else b'{"error": {"code": "token_expired", "message": ""}}')

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def user(**tokens: str) -> UserApi:
        async def source(reason: str) -> str:
            reasons.append(reason)
            return tokens.get(reason, "old")

        return UserApi(Api(f"http://127.0.0.1:{made.server_port}"), source)

    try:
        assert await user(token_expired="new").call("POST", "/", {}) == {"done": True}
        uploaded: object = await Media(user(token_expired="new")).upload(b"some bytes")
        assert uploaded == {"done": True}  # all of its bytes were sent again
        for calls in (user(), user(token_expired="other")):
            with pytest.raises(Refused) as refused:
                await calls.call("POST", "/", {})
            assert refused.value.code == "token_expired"
        assert reasons == ["connect", "token_expired"] * 4
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


async def test_upload_can_be_cancelled_in_every_phase() -> None:
    """The server sees the end of the connection at once, and `progress` is not called any more."""
    begun, ended = asyncio.Event(), asyncio.Event()
    answer = b""
    told = list[int]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if answer and head.startswith(b"POST"):
            writer.write(answer)
            writer.close()
            return
        begun.set()
        while await reader.read(1 << 16):
            pass
        ended.set()
        writer.close()

    async def never(_reason: str) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    async def token(_reason: str) -> str:
        return "a token"

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server, asyncio.timeout(DEADLINE_S):
        api = Api(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        created = (
            b"HTTP/1.1 201 Created\r\nLocation: /v1/uploads/tus/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        for source, size, first in (
            (never, 10, b""),
            (token, 10, b""),
            (token, 2 << 20, b""),
            (token, 32 << 20, created),
        ):
            begun.clear()
            ended.clear()
            answer = first
            media = Media(UserApi(api, source))
            uploading = asyncio.create_task(media.upload(bytes(size), progress=lambda done, _: told.append(done)))
            await begun.wait()
            uploading.cancel()
            await asyncio.wait([uploading])
            assert uploading.cancelled()
            before = len(told)
            if source is token:
                await ended.wait()
            assert len(told) == before
