"""What owners and admins do in their groups, and what everybody can report."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import Locator, expect

from tests.router.web.people import EXECUTABLE, Person, town
from tests.support import SERVER_KEY

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

expect.set_options(timeout=30_000)


async def act(one: Person, user: str, what: str) -> Locator:
    """Choose in the menu of a member; return the dialog that is open then."""
    dialog = one.page.get_by_role("dialog")
    if not await dialog.is_visible():
        await one.page.locator(".chat-title").click()
    await dialog.get_by_role("button", name=f"What to do with {user}").click()
    await dialog.get_by_role("menuitem", name=what, exact=True).click()
    return dialog


async def test_member_is_muted_banned_and_reported(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-m1"), await people.person("bob-m1")
        await ann.register()
        await bob.register()
        await ann.page.locator("#main").get_by_role("button", name="Make a group").click()
        dialog = ann.page.get_by_role("dialog")
        await dialog.get_by_label("Title").fill("Quay")
        await dialog.get_by_label("People").fill(bob.name)
        await dialog.get_by_role("button", name="Create").click()
        await bob.row("Quay").click()
        await bob.say("Buy my boat")
        await ann.sees("Buy my boat")

        await act(ann, bob.name, "Mute …")
        await dialog.get_by_label("For how long").select_option("1")
        await dialog.get_by_role("button", name="Mute", exact=True).click()
        await expect(ann.page.locator(".toast.shown")).to_have_text(f"{bob.name} is muted")
        await expect(bob.page.locator(".closed")).to_contain_text("You are muted here until")
        await expect(bob.page.get_by_label("Write a message")).to_have_count(0)
        await act(ann, bob.name, "End the mute")
        await expect(ann.page.locator(".toast.shown")).to_have_text("Saved")
        await bob.say("Buy my boat now")
        await ann.sees("Buy my boat now")

        await dialog.get_by_role("button", name="Rules").click()
        await dialog.get_by_label("Who can write").select_option("admins")
        await expect(ann.page.locator(".toast.shown")).to_have_text("Saved")
        await ann.page.keyboard.press("Escape")
        await expect(bob.page.locator(".closed")).to_have_text("Only owners and admins can write here.")
        await expect(ann.page.get_by_label("Write a message")).to_have_count(1)

        await ann.act("Buy my boat now", "Report")
        await dialog.get_by_label("What is wrong?").fill("Sells a boat again and again")
        await dialog.get_by_role("button", name="Report", exact=True).click()
        await expect(ann.page.locator(".toast.shown")).to_contain_text("Reported")
        server = {"Authorization": f"Bearer {SERVER_KEY}"}
        async with httpx.AsyncClient(base_url=address, headers=server, timeout=60, trust_env=False) as http:
            reports = (await http.get("/v1/reports")).json()["reports"]
        assert [one["reason"] for one in reports if one["user"] == bob.name] == ["Sells a boat again and again"]

        await act(ann, bob.name, "Ban …")
        await dialog.get_by_label("Reason").fill("Boats")
        await dialog.get_by_role("button", name="Ban", exact=True).click()
        await expect(bob.page.locator(".closed")).to_contain_text("You are no longer a member")
        await ann.page.locator(".chat-title").click()
        await dialog.get_by_role("button", name="Banned people").click()
        await expect(dialog).to_contain_text("Boats")
        await dialog.get_by_role("button", name=f"End the ban of {bob.name}").click()
        await expect(dialog).to_contain_text("Nobody is banned.")
