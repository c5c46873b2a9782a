"""router/process/poster.py with a real server."""

from __future__ import annotations

import asyncio
import logging

import pytest

from router.process.http_client import NoAnswer
from router.process.poster import LOG_EVERY_S, MAX_ANSWER_BYTES, Poster
from tests.process.hook_server import SECRET, is_signed
from tests.process.test_http_client import request, serving


async def test_post_is_signed_and_an_answer_of_256_kib_is_read() -> None:
    heads: list[bool] = []
    size = MAX_ANSWER_BYTES

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append(is_signed(*await request(reader)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async with serving(handle) as url:
        poster = Poster("LINNET_SEND_HOOK_URL", url, SECRET, 30, "posts")
        answer = await poster.post(b"{}", 1)
        assert (answer.status, len(answer.body), answer.whole) == (200, 262_144, True)
        size += 1
        assert not (await poster.post(b"{}", 1)).whole
        poster.close()
    assert heads == [True, True]


async def test_log_has_a_line_at_the_first_failure_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "linnet.posts")
    poster = Poster("LINNET_WEBHOOK_URL", "http://127.0.0.1:9/", SECRET, 5, "posts of a test")
    for _ in range(3):
        with pytest.raises(NoAnswer) as error:
            await poster.post(b"{}", 1)
        poster.report(str(error.value))
    for _ in range(3):
        poster.report("")
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "posts of a test fail",
        "posts of a test succeed again",
    ]
    assert SECRET not in caplog.text


def test_posts_that_fail_now_and_then_fill_no_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user's text can make each second post fail. If all fail from then on, the log says so within LOG_EVERY_S."""
    caplog.set_level(logging.INFO, "linnet.posts")
    clock = [0.0]
    monkeypatch.setattr("router.process.poster.monotonic", lambda: clock[0])
    poster = Poster("LINNET_WEBHOOK_URL", "http://127.0.0.1:9/", SECRET, 5, "posts of a test")
    for _ in range(100):
        poster.report("status 500")
        poster.report("")
    assert len(caplog.records) == 2
    for clock[0] in (LOG_EVERY_S - 1, LOG_EVERY_S, LOG_EVERY_S + 1):
        poster.report("status 503")
    assert [record.message for record in caplog.records[2:]] == ["posts of a test fail: status 503"]
