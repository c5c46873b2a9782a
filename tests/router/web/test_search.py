"""Search at the page, in a real Chromium: what the server finds, and a message among those around it."""

from __future__ import annotations

import os

import pytest
from playwright.async_api import expect

from tests.router.web.people import EXECUTABLE, town

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

PICTURES = os.environ.get("PICTURES", "")  # a folder for screenshots, to be looked at


async def test_messages_are_searched_on_the_server_and_shown_among_others(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-s1"), await people.person("bob-s1", viewport={"width": 360, "height": 740})
        await bob.register()
        await ann.register(f"#/@{bob.name}")
        for text in ("Good morning", "I saw a <b>wren</b> 🎉 at the pond", "It sang", "Lunch?"):
            await ann.say(text)
            await ann.sees(text)
        hits = bob.page.locator(".hits li")

        async def asked(query: str) -> None:
            await bob.page.get_by_placeholder("Search").fill("")
            await bob.page.get_by_placeholder("Search").fill(query)
            await bob.page.locator(".hits h2").wait_for()

        await asked("wre")
        while not await hits.count():  # it is found within 5 s; a search shows what there is when it is asked
            await asked("wre")
        await expect(hits.locator("mark")).to_have_text("wren")
        await expect(hits).to_contain_text("I saw a <b>wren</b> 🎉 at the pond")
        if PICTURES:
            await bob.page.screenshot(path=f"{PICTURES}/hits.png")
        await hits.get_by_role("button").click()
        dialog = bob.page.get_by_role("dialog")
        await expect(dialog.locator("li")).to_have_count(4)
        await expect(dialog.locator("[aria-current]")).to_contain_text("<b>wren</b>")
        if PICTURES:
            await bob.page.screenshot(path=f"{PICTURES}/found.png")
        await dialog.get_by_role("button", name="Open the conversation").click()
        await bob.sees("Lunch?")
        await bob.page.get_by_label("Back to the list").click()
        await asked("nightingale")
        await expect(bob.page.locator(".hits")).to_contain_text("No message has these words.")
