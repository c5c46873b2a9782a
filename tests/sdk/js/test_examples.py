"""The examples that use the JavaScript client, run as a person runs them."""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from playwright.async_api import async_playwright

from deploy import sdk
from deploy.embedded import tied
from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import DEADLINE_S
from tests.sdk.js.browser import EXECUTABLE, FLAGS

SDKS = sdk.PACKAGE.parent
PASSWORD = "correct horse battery"
SECRET = {"Authorization": "Bearer hush"}


@asynccontextmanager
async def bridge(api: str, user: str, group: str, store: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        *tied(sdk.NODE, str(SDKS / "examples/webhook.mjs"), api, user, group, str(store), "0"),
        env={**os.environ, "HOOK_PASSWORD": PASSWORD, "HOOK_SECRET": "hush"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_webhook_becomes_a_message_of_the_group_also_after_a_kill(chat: System, api: str, store: Path) -> None:
    """What was answered with 202 arrives once; what is not allowed or no text is refused."""
    for user in ("hook-x1", "ann-x1"):
        await chat.api("POST", "/v1/accounts", {"user": user, "password": PASSWORD, "name": user})
    group = await chat.group("ann-x1", "hook-x1")
    ann = ChatClient("ann-x1")
    await ann.connect(chat.urls[0])
    async with httpx.AsyncClient(trust_env=False, headers=SECRET, timeout=60) as http:
        async with bridge(api, "hook-x1", group, store) as (process, url):
            assert (await http.post(url, json={"text": "built"})).status_code == 202
            assert await ann.has(group, 1) == ["built"]
            for expected, body, headers in (
                (401, b'{"text": "x"}', {"Authorization": "Bearer wrong"}),
                (400, b'{"text": 5}', {}),
                (400, b"no json", {}),
                (413, b"x" * 20_000, {}),
            ):
                assert (await http.post(url, content=body, headers=headers)).status_code == expected
            assert (await http.post(url, json={"text": "kept"})).status_code == 202
            process.kill()
        async with bridge(api, "hook-x1", group, store) as (process, url):
            assert (await http.post(url, json={"text": "deployed"})).status_code == 202
            await ann.until(lambda: "deployed" in ann.bodies(group))
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert ann.bodies(group) == ["built", "kept", "deployed"]


@pytest.fixture
def page() -> Iterator[str]:
    """The address of the folder of the SDKs, served as the page's head says."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            """Log no requests."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SDKS))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")
async def test_page_logs_in_shows_messages_and_sends(chat: System, api: str, page: str) -> None:
    for user in ("ann-x2", "bob-x2"):
        await chat.api("POST", "/v1/accounts", {"user": user, "password": PASSWORD, "name": user})
    bob = ChatClient("bob-x2")
    await bob.connect(chat.urls[0])
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=EXECUTABLE, headless=True, args=FLAGS)
        tab = await chromium.new_page()
        await tab.goto(f"{page}/examples/chat.html")
        for name, text in (("api", api), ("user", "ann-x2"), ("password", PASSWORD), ("to", "@bob-x2")):
            await tab.fill(f"#who input[name={name}]", text)
        await tab.click("#who button")
        await tab.fill("#write input", "hello <b>bob</b>")
        await tab.press("#write input", "Enter")
        assert await bob.has("d:ann-x2:bob-x2", 1) == ["hello <b>bob</b>"]
        await bob.sent("@ann-x2", "hello ann")
        await tab.wait_for_function(
            "() => [...document.querySelectorAll('#messages li')].map((item) => item.textContent).join() ==="
            " 'hello <b>bob</b> ann-x2,hello ann bob-x2'",
            timeout=DEADLINE_S * 1000,
        )
        await chromium.close()
