"""Tabs of a real Chromium whose pages run the JavaScript SDK as it is served, without a build step.

All tabs of a `Browser` share its storage, as those of one person do. `Tab.call` runs a command of `driver.js`.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.async_api import Browser as Chromium
from playwright.async_api import BrowserContext, Error, Page, Playwright, async_playwright

from tests.flow.client import token
from tests.sdk.js.application import DEADLINE_S, HERE, SOURCE, Report, Reports

EXECUTABLE = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


class _Handler(http.server.SimpleHTTPRequestHandler):
    """`/sdk/…` the package's modules, `/driver.js` the driver, any other path an empty page."""

    def __init__(self, *args: Any, source: Path, **options: Any) -> None:
        self._source = source
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        path = {"/driver.js": HERE / "driver.js"}.get(self.path) or self._source / self.path.removeprefix("/sdk/")
        script = path.suffix == ".js" and path.exists()
        body = path.read_bytes() if script else b"<!doctype html><title>page</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if script else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Log no requests."""


class Tab(Reports):
    """A tab; its reports go on through reloads."""

    def __init__(self, page: Page, address: str) -> None:
        super().__init__()
        self.page = page
        self._address = address

    async def load(self) -> None:
        """Load the page, or load it again."""
        await self.page.goto(self._address)
        await self.page.evaluate(
            "async () => { const { start } = await import('/driver.js');"
            " window.commands = await start('/sdk/index.js', (line) => window.report(line)); }"
        )

    async def call(self, command: str, **args: Any) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.page.evaluate("([command, args]) => window.commands[command](args)", [command, args])
        except TimeoutError:
            raise AssertionError(f"no answer within {DEADLINE_S:g} s: {command} {args}; {self.last()}") from None

    async def open(self, api: str, user: str) -> Report:
        opened: Report = await self.call("open", api=api, user=user, token=token(user))
        return opened

    async def start(self, api: str, user: str, handler: str | None = None) -> Report:
        """Open the client, connect it, and wait until it or the tab that leads is connected."""
        opened = await self.open(api, user)
        since = len(self.reports)
        await self.call("connect", handler=handler)
        await self.until(since=since, type="status", status="live")
        return opened

    async def shown(self, to: str) -> list[Any]:
        """The bodies of the messages that the tab would show."""
        return [message["body"] for message in await self.call("messages", to=to)]

    async def leads(self) -> bool:
        return bool((await self.call("status"))["leader"])

    async def crash(self) -> None:
        """Crash the tab's renderer."""
        crashed = asyncio.Event()
        self.page.on("crash", lambda _page: crashed.set())
        with suppress(Error):
            await self.page.goto("chrome://crash", timeout=1000)
        async with asyncio.timeout(DEADLINE_S):
            await crashed.wait()

    async def stop(self, ms: int) -> None:
        """Stop the tab's main thread: it keeps its lock and its socket, and does nothing."""
        busy = "(ms) => { setTimeout(() => { const until = Date.now() + ms; while (Date.now() < until); }, 0); }"
        await self.page.evaluate(busy, ms)

    async def hide(self) -> None:
        """What the page notices when another tab is brought before it; a headless tab is visible always."""
        await self.page.evaluate(
            "() => { Object.defineProperty(document, 'hidden', { get: () => true });"
            " document.dispatchEvent(new Event('visibilitychange')); }"
        )

    async def wipe(self) -> None:
        """Delete the databases of the origin, as a browser does that clears its data."""
        await self.page.evaluate(
            "async () => { for (const { name } of await indexedDB.databases()) await new Promise((done) => {"
            " const request = indexedDB.deleteDatabase(name); request.onsuccess = request.onerror = done; }); }"
        )


class Browser:
    """`async with Browser() as browser: tab = await browser.tab()`. `host`: in the address of the page; only pages of
    this machine's own names are a secure context without TLS."""

    def __init__(self, source: Path = SOURCE, host: str = "127.0.0.1") -> None:
        self._host = host
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, source=source))
        self._playwright: Playwright | None = None
        self._chromium: Chromium | None = None
        self.context: BrowserContext | None = None

    async def __aenter__(self) -> Browser:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._playwright = await async_playwright().start()
        self._chromium = await self._playwright.chromium.launch(
            executable_path=EXECUTABLE,
            headless=True,
            args=[*FLAGS, f"--host-resolver-rules=MAP {self._host} 127.0.0.1"],
        )
        self.context = await self._chromium.new_context()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._chromium is not None
        assert self._playwright is not None
        await self._chromium.close()
        await self._playwright.stop()
        self._server.shutdown()
        self._server.server_close()

    async def tab(self) -> Tab:
        """A new tab, with the page loaded."""
        assert self.context is not None
        page = await self.context.new_page()
        tab = Tab(page, f"http://{self._host}:{self._server.server_address[1]}/page")
        await page.expose_function("report", tab.add)
        await tab.load()
        return tab
