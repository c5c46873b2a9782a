"""Files with the JavaScript SDK, in Node and in a page: uploaded, sent, shown, fetched by a link, and cut."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cutting import ANSWER, Cutting
from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.sdk.js.browser import EXECUTABLE, Browser
from tests.support import Process

DATA = b"bytes of a file\n" * 2000
SIZE = 3_000_000
LARGE = sha256((bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]).hexdigest()
CUTS = [500_000, 1, 900_000, ANSWER]


@pytest.fixture(scope="module")
def second_router(_behind: tuple[System, int]) -> Process:
    system, _ = _behind
    return system.start("router")


@pytest.fixture
def routers(chat: System, second_router: Process) -> list[str]:
    """Two routers of the system."""
    assert chat.router is not None
    return [chat.router.url, second_router.url]


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
    assert links[file["sha256"]]["url"].startswith(f"{api}/")
    async with httpx.AsyncClient(trust_env=False, follow_redirects=True, timeout=60) as http:
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


async def test_upload_that_is_cut_goes_on_at_another_router(
    routers: list[str], store: Path, second_router: Process
) -> None:
    """Three times in the middle, and its last answer is lost: the file is there, and no byte was sent anew."""
    await second_router.ready()
    async with Cutting(routers, [*CUTS]) as proxy, NodeApplication() as app:
        await app.open(proxy.url, "alice-m3", store)
        made = await app.call("upload", size=SIZE, name="large", mime="text/plain")
        assert (made["file"]["sha256"], made["file"]["size"], made["file"]["name"]) == (LARGE, SIZE, "large")
        assert proxy.done == CUTS
        assert len(set(proxy.ways)) == 2
        proxy.plan[:] = [100]  # a small file, in one request
        small = await app.call("upload", bytes=list(DATA))
        assert small["file"]["size"] == len(DATA)


async def test_stopped_upload_goes_on_in_another_process(
    routers: list[str], store: Path, second_router: Process
) -> None:
    """By its name; one that has ended, or is of another file, begins anew."""
    await second_router.ready()
    async with NodeApplication() as app:
        await app.open(routers[0], "alice-m4", store)
        begun = await app.call("upload", size=20_000_000, stop=8_000_000)
        assert begun["code"] == "cancelled"
        upload = (await app.until(type="begun"))["upload"]
    async with NodeApplication() as app:
        await app.open(routers[1], "alice-m4", store)
        made = await app.call("upload", size=20_000_000, upload=upload)
        assert made["file"]["size"] == 20_000_000
        assert made["told"][0][0] > 8_000_000  # it went on
        for other in (upload, "/v1/uploads/tus/" + "0" * 32):
            made = await app.call("upload", size=SIZE, upload=other)
            assert made["file"]["sha256"] == LARGE


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")
async def test_upload_of_a_page_that_is_cut_goes_on(routers: list[str], second_router: Process) -> None:
    await second_router.ready()
    async with Cutting(routers, [*CUTS]) as proxy, Browser() as browser:
        tab = await browser.tab()
        await tab.open(proxy.url, "alice-m5")
        made = await tab.call("upload", size=SIZE, name="large")
        assert made["file"]["sha256"] == LARGE
        assert proxy.done == CUTS
        assert made["told"][-1] == [SIZE, SIZE]
