"""router/process/http_client.py with real servers that answer, redirect, send slowly, send too much, or disconnect."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest

from router.contract.errors import StartupError
from router.process.http_client import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_S,
    Answer,
    HttpClient,
    NoAnswer,
    retry_after_s,
)

Handle: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length:"))
    return head, await reader.readexactly(int(length.partition(":")[2]))


@asynccontextmanager
async def serving(handle: Handle) -> AsyncIterator[str]:
    """The URL of a server that passes each connection to `handle`; all tasks end with it."""
    tasks: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(connection(reader, writer)))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?key=1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def poster(url: str, timeout_s: float = 5.0) -> AsyncIterator[HttpClient]:
    one = HttpClient("LINNET_WEBHOOK_URL", url, timeout_s)
    try:
        yield one
    finally:
        one.close()


async def test_posts_share_a_connection() -> None:
    """The body arrives with its headers at the URL's path and query, and the second post uses the same connection."""
    heads: list[str] = []
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            head, body = await request(reader)
            heads.append(head)
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\n" + body)

    async with serving(handle) as url, poster(url) as post:
        assert (await post.post([("X-Mark", "a")], b"one")).status == 202
        assert (await post.post([], b"two")).status == 202
    assert connections == 1
    assert heads[0].startswith("POST /hook?key=1 HTTP/1.1\r\n")
    assert "X-Mark: a\r\n" in heads[0]


async def test_kept_connection_that_was_closed_is_replaced() -> None:
    """The server disconnects between two posts, even during the second one: it is sent again on a new connection."""
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies.append((await request(reader))[1])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        if len(bodies) == 1:
            await request(reader)

    async with serving(handle) as url, poster(url) as post:
        assert (await post.post([], b"one")).status == 200
        assert (await post.post([], b"two")).status == 200
    assert bodies == [b"one", b"two"]


async def test_redirect_is_returned_and_not_followed() -> None:
    """The status is returned, and no other server gets a request."""
    asked = 0

    async def elsewhere(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1

    async with serving(elsewhere) as target:

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(f"HTTP/1.1 307 x\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()

        async with serving(handle) as url, poster(url) as post:
            assert (await post.post([], b"x")).status == 307
    assert asked == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"120", 120.0),
        (b" 7 ", 7.0),
        (b"Fri, 27 Nov 2026 12:00:30 GMT", 30.0),
        (b"Fri, 27 Nov 2026 11:00:00 GMT", 0.0),  # past
        (b"0", 0.0), (b"-5", 0.0), (b"soon", 0.0), (b"1.5", 0.0), (b"\xff", 0.0),
        (b"9" * 5000, 0.0),  # more digits than int() accepts
        (b"999999999", MAX_RETRY_AFTER_S),
        (b"Fri, 27 Nov 9999 12:00:00 GMT", MAX_RETRY_AFTER_S),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_bounded(value: bytes, seconds: float) -> None:
    """Both forms of RFC 9110; a malformed value counts as none, and a receiver cannot postpone a post without end."""
    assert retry_after_s(value, 1_795_780_800.0) == seconds


async def test_answer_contains_its_retry_after() -> None:
    """The header's name may be in any case; without it the value is 0."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 429 x\r\nretry-AFTER: 30\r\nContent-Length: 0\r\n\r\n")
        await request(reader)
        writer.write(b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n")

    async with serving(handle) as url, poster(url) as post:
        assert await post.post([], b"x") == Answer(429, 30.0)
        assert await post.post([], b"x") == Answer(503, 0.0)


async def test_posts_share_one_lookup_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer occupies one thread for all waiting posts; each post ends in its time."""
    lookups = 0

    async def unanswered() -> list[str]:
        nonlocal lookups
        lookups += 1
        await asyncio.Event().wait()
        return []

    async with poster("http://backend.example/hook", 0.2) as post:
        monkeypatch.setattr(post, "_look_up", unanswered)
        answers = await asyncio.gather(*(post.post([], b"x") for _ in range(20)), return_exceptions=True)
        answers += await asyncio.gather(post.post([], b"x"), return_exceptions=True)
    assert {type(answer) for answer in answers} == {NoAnswer}
    assert lookups == 1


async def test_next_address_is_used_if_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with several addresses is reachable while one of them accepts."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with serving(handle) as url, poster(url) as post:

        async def both() -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]

        monkeypatch.setattr(post, "_look_up", both)
        assert (await post.post([], b"x")).status == 200


async def test_slowly_sent_answer_ends_with_the_time_limit() -> None:
    """A server that sends one byte at a time cannot delay a post beyond its limit."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(handle) as url, poster(url, 0.2) as post:
        with pytest.raises(NoAnswer):
            await post.post([], b"x")


async def test_endless_answer_is_cut_off() -> None:
    """The connection is closed and memory is bounded; the status is returned."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(MAX_ANSWER_BYTES))
            await writer.drain()

    async with serving(handle) as url, poster(url) as post:
        assert (await post.post([], b"x")).status == 200
        assert (await post.post([], b"x")).status == 200


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"])
async def test_incomplete_answer_is_no_answer(answer: bytes) -> None:
    """The server disconnects early, or does not speak HTTP."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with serving(handle) as url, poster(url) as post:
        with pytest.raises(NoAnswer):
            await post.post([], b"x")


async def test_refused_connection_is_no_answer() -> None:
    """No server listens at the address."""

    async def handle(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None: ...

    async with serving(handle) as url:
        pass
    async with poster(url) as post:
        with pytest.raises(NoAnswer):
            await post.post([], b"x")


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "http://", "/hook", "http://a:b/", "http://u:p@a/", "http://a/\r\nX: y\r\n "]
)
def test_urls_that_cannot_be_requested_are_refused(url: str) -> None:
    """A wrong URL stops the process at its start instead of failing at the first push."""
    with pytest.raises(StartupError, match="LINNET_WEBHOOK_URL"):
        HttpClient("LINNET_WEBHOOK_URL", url, 1)


async def test_body_is_streamed_on_a_connection_of_its_own() -> None:
    """It is sent as it comes, with its length, and never twice: a kept connection could be closed meanwhile."""
    bodies = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await request(reader)
            bodies.append(("connection: close" in head.lower(), body))
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def parts() -> AsyncIterator[bytes]:
        for part in (b"a" * 100_000, b"b" * 100_000):
            yield part

    async with serving(handle) as url, poster(url) as client:
        await client.post([], b"kept")
        assert (await client.stream([], 200_000, parts())).status == 204
    assert bodies == [(False, b"kept"), (True, b"a" * 100_000 + b"b" * 100_000)]
