"""What happens around a page while it is open: a deploy of another version, no network for a while, a wiped store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import copytree

import httpx
import pytest
from msgspec.structs import replace
from playwright.async_api import Error, expect
from starlette.requests import Request
from starlette.responses import Response

from router.contract.settings import Settings
from router.web import site
from router.web.serve import with_web
from tests.flow.conftest import System
from tests.router.web.people import EXECUTABLE, Person, town
from tests.support import JWT_SECRET

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

expect.set_options(timeout=30_000)
HOP_BY_HOP = ("connection", "content-length", "content-encoding", "transfer-encoding", "host")


class Front:
    """One address in front of a router, whose page is of the version that `page` is now."""

    def __init__(self, system: System) -> None:
        assert system.router is not None
        self._api = httpx.AsyncClient(base_url=system.router.url, timeout=60, trust_env=False)
        self._urls = list(system.urls)
        self.page = self.version()
        self.tasks: set[asyncio.Task[None] | None] = set()

    def version(self) -> httpx.AsyncClient:
        """The page as its files are now."""

        async def gateways(_host: str) -> list[str]:
            return self._urls

        settings = replace(Settings(jwt_secret=JWT_SECRET), accounts=True, media_url="file:///elsewhere")
        app = with_web(self._to_api, settings, gateways)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://front", trust_env=False)

    async def close(self) -> None:
        await self.page.aclose()
        await self._api.aclose()

    async def _to_api(self, scope: object, receive: object, send: object) -> None:
        request = Request(scope, receive)  # type: ignore[arg-type]
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        path = str(request.url).removeprefix("http://front")
        answer = await self._api.request(request.method, path, headers=headers, content=await request.body())
        kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
        await Response(answer.content, answer.status_code, kept)(scope, receive, send)  # type: ignore[arg-type]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of a browser, by the page or by the API behind it."""
        self.tasks.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            method, path, _ = first.split(" ")
            headers = {name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            sent = {name: value for name, value in headers.items() if name not in HOP_BY_HOP}
            answer = await self.page.request(method, path, headers=sent, content=body)
            kept = [(name, value) for name, value in answer.headers.items() if name not in HOP_BY_HOP]
            kept += [("content-length", str(len(answer.content))), ("connection", "close")]
            text = "".join(f"{name}: {value}\r\n" for name, value in kept)
            writer.write(f"HTTP/1.1 {answer.status_code} x\r\n{text}\r\n".encode("latin-1") + answer.content)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def front_of(system: System) -> AsyncIterator[tuple[Front, str]]:
    front = Front(system)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    try:
        yield front, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait([task for task in front.tasks if task is not None])
        await front.close()


def another_version(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on the page's files are those of a later version, which says so."""
    copytree(site.PAGE, folder / "page")
    texts = folder / "page/lang/en.js"
    texts.write_text(texts.read_text().replace('write_message: "Write a message"', 'write_message: "Write a note"'))
    monkeypatch.setattr(site, "PAGE", folder / "page")


async def test_deploy_of_another_version_is_not_noticed_until_the_user_wants_it(
    system: System, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a worker the old version goes on, whole, and the new one comes with a click. Without a worker a module that
    is gone begins the page again, and what was being written is still there."""
    async with front_of(system) as (front, where), town(where) as people:
        ann = await people.person("ann-c1")
        bare = await people.person("ben-c1", service_workers="block")
        await ann.register()
        await bare.register()
        await ann.page.evaluate("async () => (await navigator.serviceWorker.ready).active.state")
        await ann.write_to(bare.name)
        await bare.write_to(ann.name)
        await bare.page.get_by_label("Write a message").fill("Half a sentence")
        another_version(monkeypatch, tmp_path)
        front.page = front.version()

        await ann.page.get_by_role("button", name="Emoji", exact=True).click()  # a module that is loaded late
        await ann.page.get_by_label("grinning face", exact=True).click()
        await ann.page.keyboard.press("Escape")
        await ann.page.keyboard.press("Enter")
        await bare.page.get_by_role("button", name="Emoji", exact=True).click()
        await expect(bare.page.get_by_label("Write a note")).to_have_value("Half a sentence")
        await bare.sees("😀")

        await ann.page.reload()
        await expect(ann.page.get_by_label("Write a message")).to_be_visible()
        await ann.page.get_by_role("button", name="Update").click()
        await expect(ann.page.get_by_label("Write a note")).to_be_visible()
        await ann.sees("😀")


async def test_five_messages_of_an_offline_hour_are_sent_after_it(address: str) -> None:
    """Across a reload, and a crash of the tab that leads since then, once each and in their order."""
    async with town(address) as people:
        ann, bob = await people.person("ann-c2"), await people.person("bob-c2")
        await ann.register()
        await bob.register()
        await ann.write_to(bob.name)
        await ann.say("Before")
        await expect(ann.message("Before").get_by_label("Stored by the server")).to_be_visible()
        await ann.page.evaluate("async () => (await navigator.serviceWorker.ready).active.state")
        other = Person(await ann.context.new_page(), ann.context, address, ann.name)
        await other.open()
        await other.row(bob.name).click()
        await other.sees("Before")
        await ann.context.set_offline(True)
        await ann.page.reload()
        for number in range(5):
            await ann.say(f"Offline {number}")
            await expect(ann.message(f"Offline {number}").get_by_label("Waiting to be sent")).to_be_visible()
        await expect(ann.page.locator(".banner button")).to_have_text("5 waiting")
        await other.sees("Offline 4")
        with suppress(Error):
            await other.page.goto("chrome://crash", timeout=1000)
        await other.page.close()
        await ann.context.set_offline(False)
        await bob.row(ann.name).click()
        await bob.sees("Offline 4")
        expected = ["Before", *(f"Offline {number}" for number in range(5))]
        assert await bob.texts() == expected
        await expect(ann.message("Offline 4").get_by_label("Read")).to_be_visible()
        assert await ann.texts() == expected


async def test_browser_that_wiped_its_storage_asks_for_the_password_and_has_everything_again(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-c3")
        await ann.register()
        await ann.write_to(await people.account("bob-c3"))
        await ann.say("Before the wipe")
        await expect(ann.message("Before the wipe").get_by_label("Stored by the server")).to_be_visible()
        devtools = await ann.context.new_cdp_session(ann.page)
        await devtools.send("Storage.clearDataForOrigin", {"origin": address, "storageTypes": "all"})
        await ann.say("After the wipe")
        await expect(ann.message("After the wipe").get_by_label("Stored by the server")).to_be_visible()
        await ann.page.reload()
        await ann.page.get_by_role("button", name="Create account and enter").wait_for()
        await ann.log_in()
        await ann.write_to("bob-c3")
        await ann.sees("After the wipe")
        assert await ann.texts() == ["Before the wipe", "After the wipe"]
