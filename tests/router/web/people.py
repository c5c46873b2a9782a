"""People at the web page, in a real Chromium: what they see, and what they do by names and labels, as users would.

Each `Person` has a browser context (storage of its own), and collects errors of the page, refusals by the page's policy
and failed requests. All tests of a worker have one Chromium, on one event loop (conftest.py). A test's contexts end
with it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from playwright.async_api import Browser, BrowserContext, Locator, Page, Playwright, async_playwright

from tests.support import eventually

EXECUTABLE = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--use-fake-device-for-media-stream",  # a camera with a moving picture, and a microphone that beeps
    "--mute-audio",
]  # fmt: skip
PASSWORD = "correct-horse"
DEADLINE_MS = 30_000


class Person:
    """One user in one tab."""

    def __init__(self, page: Page, context: BrowserContext, address: str, name: str) -> None:
        self.page = page
        self.context = context
        self.address = address
        self.name = name
        self.errors: list[str] = []
        page.set_default_timeout(DEADLINE_MS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)

    def _console(self, message: Any) -> None:
        if message.type == "error" and ("Content Security Policy" in message.text or "Trusted" in message.text):
            self.errors.append(message.text)

    async def open(self, hash_: str = "") -> None:
        await self.page.goto(f"{self.address}/{hash_}")

    async def register(self, hash_: str = "") -> None:
        """Make an account by typing a name and a password, and wait for the list."""
        await self.open(hash_)
        await self.page.get_by_label("Name", exact=True).fill(self.name)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Create account and enter").click()
        await self.live()

    async def log_in(self) -> None:
        """Log in to an account that exists, from a page that knows none or was logged out."""
        await self.open("#/login")
        await self.page.get_by_role("button", name="Log in").first.click()
        await self.page.get_by_label("Name", exact=True).fill(self.name)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.locator("button[type=submit]").click()
        await self.live()

    async def live(self) -> None:
        await self.page.locator(".chip.live").wait_for(state="attached")

    async def write_to(self, other: str) -> None:
        """Open the conversation with a name."""
        await self.page.evaluate("(hash) => { location.hash = hash; }", f"#/@{other}")
        await self.page.locator(".chat-title", has_text=other).wait_for()

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Write a message").fill(text)
        await self.page.keyboard.press("Enter")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page, whose policy lets nothing that waits there evaluate it."""

        async def now() -> bool:
            return bool(await self.page.evaluate(expression))

        await eventually(now, DEADLINE_MS / 1000, every_s=0.05)

    async def recorded(self) -> None:
        """Wait until a recording has a length that is shown."""
        await self.page.get_by_role("timer").filter(has_text=re.compile("[1-9]")).wait_for()

    def row(self, title: str) -> Locator:
        """A row of the list, by its title."""
        return self.page.locator(".conversations a", has=self.page.locator(".row-title").get_by_text(title, exact=True))

    def message(self, text: str) -> Locator:
        return self.page.locator(".message", has=self.page.locator(".text", has_text=text)).last

    async def sees(self, text: str) -> None:
        await self.message(text).wait_for()

    async def texts(self) -> list[str]:
        return await self.page.locator(".message .text").all_inner_texts()

    async def menu(self, *names: str) -> None:
        """Choose in the user's own menu, then press buttons of the dialogs that follow."""
        await self.page.get_by_role("button", name=self.name, exact=True).click()
        await self.page.get_by_role("menuitem", name=names[0], exact=True).click()
        for name in names[1:]:
            await self.page.get_by_role("dialog").get_by_role("button", name=name).click()

    async def act(self, text: str, what: str) -> None:
        """Open the menu of a message, and choose."""
        message = self.message(text)
        await message.hover()
        await message.locator(".acts > button").click()
        await self.page.get_by_role("menuitem", name=what, exact=True).click()


class Town:
    """`async with town(address) as people: ann = await people.person("ann")`."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser = browser
        self.address = address
        self.everybody: list[Person] = []

    async def account(self, name: str) -> str:
        """A user who is not there now."""
        async with httpx.AsyncClient(base_url=self.address, timeout=60, trust_env=False) as http:
            made = await http.post("/v1/accounts", json={"user": name, "password": PASSWORD})
            assert made.status_code == 201, made.text
        return name

    async def person(self, name: str, **options: Any) -> Person:
        context = await self.browser.new_context(locale="en-GB", **options)
        one = Person(await context.new_page(), context, self.address, name)
        self.everybody.append(one)
        return one


class Chromium:
    """The browser of this worker. It starts with the first test that needs it, and again if it has ended."""

    def __init__(self) -> None:
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    async def browser(self) -> Browser:
        if self._playwright is None:
            self._playwright = await async_playwright().start()
        if self._browser is None or not self._browser.is_connected():
            self._browser = await self._playwright.chromium.launch(
                executable_path=EXECUTABLE, headless=True, args=FLAGS
            )
        return self._browser

    async def close(self) -> None:
        if self._browser is not None:
            await self._browser.close()
        if self._playwright is not None:
            await self._playwright.stop()


CHROMIUM = Chromium()


@asynccontextmanager
async def town(address: str) -> AsyncIterator[Town]:
    """A browser for people at this address; at the end nobody's page may have had an error."""
    browser = await CHROMIUM.browser()
    try:
        people = Town(browser, address)
        yield people
        errors = [error for one in people.everybody for error in one.errors]
        if errors:
            raise AssertionError(f"errors of pages: {errors}")
    finally:
        for context in browser.contexts:
            for page in context.pages:
                await page.unroute_all(behavior="ignoreErrors")
            await context.close()
