"""Applications on the JavaScript SDK as tabs of a real Chromium: `playwright` drives Debian's.

A browser is one user with one store; its tabs share them. Each load of a page is a life of the installation. A tab
reports with a blocking request, so that a tab that crashes has reported all that its application had.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import random
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from playwright.async_api import BrowserContext, Error, Page, Playwright, async_playwright

from deploy import sdk
from loadtest.chaos.apps import SLOW, Installation, Report, TokenOf

HERE: Final = Path(__file__).parent
EXECUTABLE: Final = shutil.which("chromium")
FLAGS: Final = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TABS: Final = 2
LOAD_S: Final = 90.0  # a tab that is stopped, for up to a minute, loads a page after it
CRASH_S: Final = 10.0

START: Final = """async (tab) => {
  const { Client } = await import("/sdk/index.js");
  const { start } = await import("/client_driver.mjs");
  const waiting = [];
  const report = (one) => {
    waiting.push(one);
    while (waiting.length) {
      const request = new XMLHttpRequest();
      request.open("POST", `/report/${tab}`, false);
      try { request.send(JSON.stringify(waiting[0])); } catch { return; } // offline: with the next report
      waiting.shift();
    }
  };
  const bug = ({ reason }) => report({ type: "bug", installation: "", text: String(reason?.stack ?? reason) });
  addEventListener("unhandledrejection", bug);
  window.command = start(Client, report, () => undefined);
}"""
# The main thread does nothing for so long; with a transaction, in the middle of one that writes.
STOP: Final = """([ms, name]) => {
  const busy = () => { const until = performance.now() + ms; while (performance.now() < until); };
  if (!name) { setTimeout(busy, 0); return; }
  const opening = indexedDB.open(name);
  opening.onsuccess = () => {
    const database = opening.result;
    if (!database.objectStoreNames.length) { database.close(); return; }
    const request = database.transaction(["meta"], "readwrite").objectStore("meta").get("meta");
    request.onsuccess = () => { busy(); database.close(); };
  };
}"""
HIDE: Final = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
CLOCK: Final = """(ms) => {
  window.realNow ??= Date.now;
  Date.now = () => window.realNow.call(Date) + ms;
}"""


class Server:
    """Serves the page, the SDK as it is and the driver, and takes reports."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._takers: dict[str, Tab] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = HERE / "client_driver.mjs" if self.path == "/client_driver.mjs" else None
                if self.path.startswith("/sdk/"):
                    path = sdk.PACKAGE / "src" / Path(self.path).name
                script = path is not None and path.exists()
                body = path.read_bytes() if path is not None and script else b"<!doctype html><title>page</title>"
                self._answer(200, "text/javascript" if script else "text/html", body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.take(self.path.rpartition("/")[2], json.loads(body))
                self._answer(204, "text/plain", b"")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_request(self, *_: object) -> None:
                """Log no requests."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def register(self, tab: Tab) -> None:
        self._takers[tab.id] = tab

    def take(self, tab: str, report: Report) -> None:
        self._loop.call_soon_threadsafe(self._take, tab, report)

    def _take(self, tab: str, report: Report) -> None:
        if (taker := self._takers.get(tab)) is not None:
            taker.reported(report)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Tab:
    """One load of a page."""

    def __init__(self, app: BrowserApp, page: Page, number: int) -> None:
        self.page = page
        self.id = f"{app.name}-{number}"
        self.life = app.installation.began()
        self.alive = True
        self._app = app

    def reported(self, report: Report) -> None:
        if report["type"] == "token":
            self._app.token(self, report)
        else:
            self._app.installation.reported(report, self.life)

    async def evaluate(self, script: str, argument: Any) -> None:
        """Run a script in the page; a page that has crashed or is closed runs nothing."""
        with suppress(Error):
            await self.page.evaluate(script, argument)


class BrowserApp:
    """A Chromium with two tabs of one user."""

    def __init__(self, name: str, folder: Path, api: str, token: TokenOf, rng: random.Random, server: Server) -> None:
        self.name = name
        self.installations: list[Installation] = []
        self.tabs: list[Tab] = []
        self.busy = asyncio.Lock()
        self._folder = folder
        self._api = api
        self._token = token
        self._rng = rng
        self._server = server
        self._numbers = 0
        self._playwright: Playwright | None = None
        self._context: BrowserContext | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def installation(self) -> Installation:
        return self.installations[0]

    async def start(self) -> None:
        self._playwright = await async_playwright().start()
        self._context = await self._playwright.chromium.launch_persistent_context(
            self._folder / self.name, executable_path=EXECUTABLE, headless=True, args=list(FLAGS)
        )
        for _ in range(TABS):
            await self.add_tab()

    async def add_tab(self) -> None:
        assert self._context is not None
        await self._load(await self._context.new_page())

    async def _load(self, page: Page) -> None:
        self._numbers += 1
        tab = Tab(self, page, self._numbers)
        self._server.register(tab)
        await page.goto(f"{self._server.url}/page", timeout=LOAD_S * 1000)
        await page.evaluate(START, tab.id)
        self.tabs.append(tab)
        self._send(
            tab, "open", api=self._api, user=self.installation.user, store=None,
            device=self.installation.name.rpartition(".")[2], slow=SLOW, seed=0,
            watch=self.installation.watched,
        )  # fmt: skip

    def tell(self, installation: Installation, what: str, **fields: Any) -> None:
        if living := [tab for tab in self.tabs if tab.alive]:
            self._send(self._rng.choice(living), what, **fields)

    def _send(self, tab: Tab, what: str, **fields: Any) -> None:
        command = {"do": what, "installation": self.installation.name, **fields}
        task = asyncio.create_task(tab.evaluate("(command) => { void window.command(command); }", command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def token(self, tab: Tab, report: Report) -> None:
        self._send(tab, "token", id=report["id"], token=self._token(report["user"]))

    # -- faults

    def some_tab(self) -> Tab:
        return self._rng.choice([tab for tab in self.tabs if tab.alive])

    def _lost(self, tab: Tab) -> None:
        tab.alive = False
        self.tabs.remove(tab)
        self.installation.add_ended(tab.life)

    async def crash(self, tab: Tab) -> None:
        """Crash the renderer of a tab, and open another tab."""
        crashed = asyncio.Event()
        tab.page.on("crash", lambda _page: crashed.set())
        with suppress(Error):
            await tab.page.goto("chrome://crash", timeout=1000)
        with suppress(TimeoutError):
            async with asyncio.timeout(CRASH_S):
                await crashed.wait()
        self._lost(tab)
        with suppress(Error):
            await tab.page.close()

    async def close_tab(self, tab: Tab) -> None:
        self._lost(tab)
        await tab.page.close()

    async def reload(self, tab: Tab) -> None:
        self._lost(tab)
        await self._load(tab.page)

    async def stop(self, tab: Tab, ms: int, *, within: str = "") -> None:
        """Stop the main thread; `within`: half of the store in which a transaction is open meanwhile."""
        name = f"linnet:{self._api}:{self.installation.user}:{within}" if within else ""
        await tab.evaluate(STOP, [ms, name])

    async def hide(self, tab: Tab, *, hidden: bool) -> None:
        await tab.evaluate(HIDE, hidden)

    async def step_clock(self, ms: int) -> None:
        for tab in self.tabs:
            await tab.evaluate(CLOCK, ms)

    async def offline(self, *, offline: bool) -> None:
        assert self._context is not None
        await self._context.set_offline(offline)

    async def evict(self) -> None:
        """Remove the store, as a browser does whose disk is full."""
        assert self._context is not None
        session = await self._context.new_cdp_session(self.tabs[0].page)
        with suppress(Error):
            await session.send("Storage.clearDataForOrigin", {"origin": self._server.url, "storageTypes": "indexeddb"})

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._context is not None:
            with suppress(Error):
                await self._context.close()
        if self._playwright is not None:
            await self._playwright.stop()
