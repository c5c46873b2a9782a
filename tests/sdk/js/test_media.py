"""Files with the JavaScript SDK, in Node and in a page: uploaded, sent, shown, and fetched by a link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.sdk.js.browser import EXECUTABLE, Browser

DATA = b"bytes of a file\n" * 2000


async def check(call: Any, api: str, user: str, bob: ChatClient) -> None:
    """Upload, send, show, link. In a page it is said how much was sent."""
    conversation = f"d:{user}:{bob.user}"
    made = await call("upload", bytes=list(DATA), name="a ä.txt", mime="text/plain")
    file = made["file"]
    assert (file["size"], file["name"], file["kind"]) == (len(DATA), "a ä.txt", "file")
    await call("send", to=f"@{bob.user}", body="look", files=[file["sha256"]], wait="acked")
    await bob.has(conversation, 1)
    (event,) = bob.received[conversation].values()
    assert event["files"][0]["name"] == "a ä.txt"
    (shown,) = await call("messages", to=f"@{bob.user}")
    assert shown["files"][0]["sha256"] == file["sha256"]
    links = await call("links", files=[file["sha256"]], conversation=conversation)
    async with httpx.AsyncClient(trust_env=False, base_url=api, follow_redirects=True, timeout=60) as http:
        assert (await http.get(links[file["sha256"]]["url"])).content == DATA


async def test_file_is_uploaded_and_sent_from_node(chat: System, api: str, store: Path) -> None:
    bob = ChatClient("bob-m1")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        await app.start(api, "alice-m1", store)
        await check(app.call, api, "alice-m1", bob)


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")
async def test_file_is_uploaded_and_sent_from_a_page_of_another_origin(chat: System, api: str) -> None:
    bob = ChatClient("bob-m2")
    await bob.connect(chat.urls[0])
    async with Browser() as browser:
        tab = await browser.tab()
        await tab.start(api, "alice-m2")
        await check(tab.call, api, "alice-m2", bob)
        told = (await tab.call("upload", bytes=list(DATA)))["told"]
        assert told[-1] == [len(DATA), len(DATA)]
