"""Contacts and requests, and the user's own account: profile, privacy, blocks, password and devices."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image
from playwright.async_api import FilePayload, expect

from tests.router.web.people import EXECUTABLE, PASSWORD, Person, town

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

expect.set_options(timeout=30_000)


async def ask(one: Person, other: str, message: str = "") -> None:
    """Ask a person to be a contact."""
    dialog = one.page.get_by_role("dialog", name="Contacts")
    if not await dialog.is_visible():
        await one.menu("Contacts")
    await dialog.get_by_label("Add a contact").fill(other)
    if message:
        await dialog.get_by_label("What you want to tell them").fill(message)
    await dialog.get_by_role("button", name="Ask", exact=True).click()
    await expect(dialog.get_by_role("button", name=f"Cancel the request to {other}")).to_be_visible()


async def test_contacts_are_asked_accepted_declined_cancelled_and_removed(address: str) -> None:
    """Both lists follow without a reload."""
    async with town(address) as people:
        ann, bob, cem = [await people.person(f"{name}-a1") for name in ("ann", "bob", "cem")]
        for one in (ann, bob, cem):
            await one.register()
        await ask(ann, bob.name, "We met at the harbour")
        await ask(ann, cem.name)
        await expect(bob.page.get_by_role("button", name="1 person wants to be a contact")).to_be_visible()
        await bob.page.get_by_role("button", name="1 person wants to be a contact").click()
        dialog = bob.page.get_by_role("dialog", name="Contacts")
        await expect(dialog).to_contain_text("We met at the harbour")
        await dialog.get_by_role("button", name="Accept").click()
        await expect(dialog.get_by_role("button", name=f"What to do with {ann.name}")).to_be_visible()
        await expect(bob.page.locator(".requests")).to_have_count(0)
        mine = ann.page.get_by_role("dialog", name="Contacts")
        await expect(mine.get_by_role("button", name=f"What to do with {bob.name}")).to_be_visible()

        await cem.page.locator(".requests").click()
        await cem.page.get_by_role("button", name=f"Decline the request of {ann.name}").click()
        await expect(cem.page.locator(".requests")).to_have_count(0)
        await mine.get_by_role("button", name=f"Cancel the request to {cem.name}").click()
        await expect(mine).not_to_contain_text(cem.name)
        await dialog.get_by_role("button", name=f"What to do with {ann.name}").click()
        await dialog.get_by_role("menuitem", name="Remove from contacts").click()
        await expect(dialog).to_contain_text("No contacts yet")
        await expect(mine).to_contain_text("No contacts yet")

        await ann.page.keyboard.press("Escape")
        await ask(cem, ann.name)
        await ann.write_to(cem.name)
        await ann.page.locator(".chat-title").click()
        about = ann.page.get_by_role("dialog", name="About this person")
        await about.get_by_role("button", name="Accept").click()
        await about.get_by_role("button", name="Remove from contacts").click()
        await about.get_by_role("button", name="Ask to be a contact").click()
        await about.get_by_role("button", name="Cancel the request").click()
        await expect(about.get_by_role("button", name="Ask to be a contact")).to_be_visible()
        await ann.page.keyboard.press("Escape")
        await ask_nobody(ann)


async def ask_nobody(one: Person) -> None:
    """What is refused is said: a name that nobody has."""
    await one.menu("Contacts")
    dialog = one.page.get_by_role("dialog", name="Contacts")
    await dialog.get_by_label("Add a contact").fill("not a name")
    await expect(dialog).to_contain_text("is not a name")
    await expect(dialog.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    await dialog.get_by_label("Add a contact").hover()
    await one.page.mouse.down()
    await one.page.mouse.move(3, 3)  # a text that is selected with a wide movement does not close it
    await one.page.mouse.up()
    await expect(dialog.get_by_label("Add a contact")).to_have_value("not a name")
    await dialog.evaluate("(one) => one.close()")  # as a browser may do without asking
    await expect(dialog).to_have_count(0)
    await one.menu("Contacts")
    await expect(dialog).to_be_visible()


async def test_profile_and_privacy_are_what_others_meet(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-a2"), await people.person("bob-a2")
        await ann.register()
        await bob.register()
        await bob.write_to(ann.name)
        await bob.say("Hello")
        await ann.menu("Settings")
        await ann.page.locator(".person-row").click()
        dialog = ann.page.get_by_role("dialog", name="Profile")
        body = io.BytesIO()
        Image.new("RGB", (400, 300), "teal").save(body, "PNG")
        async with ann.page.expect_file_chooser() as choosing:
            await dialog.get_by_role("button", name="Choose a picture").click()
        await (await choosing.value).set_files(FilePayload(name="me.png", mimeType="image/png", buffer=body.getvalue()))
        await expect(dialog.get_by_role("button", name="Remove the picture")).to_be_visible()
        await dialog.get_by_label("Display name").fill("Ann O’Hara")
        await dialog.get_by_label("About you").fill("Likes <b>harbours</b>")
        await dialog.get_by_role("button", name="Save").click()
        await expect(ann.page.get_by_role("button", name="Ann O’Hara", exact=True)).to_be_visible()
        await expect(bob.row("Ann O’Hara").locator(".avatar img")).to_be_visible()
        await bob.until("document.querySelector('.conversations .avatar img')?.naturalWidth > 0")
        await bob.page.locator(".chat-title").click()
        about = bob.page.get_by_role("dialog")
        await expect(about).to_contain_text(f"@{ann.name}")
        await expect(about).to_contain_text("Likes <b>harbours</b>")
        await about.get_by_role("button", name="Block", exact=True).click()
        await expect(about).to_contain_text("You have blocked this person.")
        await bob.page.keyboard.press("Escape")
        await bob.menu("Settings", "Blocked people")
        await bob.page.get_by_role("button", name=f"Unblock {ann.name}").click()
        await expect(bob.page.get_by_role("dialog")).to_contain_text("Nobody is blocked.")
        await bob.page.keyboard.press("Escape")

        await ann.page.get_by_role("button", name="Ann O’Hara", exact=True).click()
        await ann.page.get_by_role("menuitem", name="Settings").click()
        await ann.page.get_by_role("dialog").get_by_role("button", name="Privacy").click()
        await ann.page.get_by_label("Who sees when you are online").select_option("contacts")
        await expect(ann.page.locator(".toast.shown")).to_have_text("Saved")
        await expect(bob.page.locator(".chat-title")).to_contain_text("offline")
        await ann.page.get_by_label("Who can add you to groups").select_option("contacts")
        await expect(ann.page.get_by_label("Who can add you to groups")).to_be_enabled()
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
            login = {"user": ann.name, "password": PASSWORD, "device": "script"}
            token = (await http.post("/v1/login", json=login)).json()["token"]
            me = (await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})).json()
        assert me["privacy"]["presence"] == me["privacy"]["groups"] == "contacts"


async def test_password_is_changed_and_other_devices_are_logged_out(address: str) -> None:
    async with town(address) as people:
        ann, away = await people.person("ann-a3"), await people.person("ann-a3")
        await ann.register()
        await away.log_in()
        await ann.menu("Settings", "Devices")
        dialog = ann.page.get_by_role("dialog", name="Devices")
        await expect(dialog.locator("li")).to_have_count(2)
        await expect(dialog.locator("li").first).to_contain_text("this device")
        await dialog.get_by_role("button", name="Log out web.").click()
        await dialog.get_by_role("button", name="Log out", exact=True).click()
        await expect(dialog.locator("li")).to_have_count(1)
        await expect(away.page.locator(".banner")).to_contain_text("Your login is not valid any more.")
        await away.page.get_by_role("button", name="Log in").click()
        await (
            away.page.get_by_role("button", name="Create account and enter")
            .or_(away.page.locator("button[type=submit]"))
            .first.wait_for()
        )
        await ann.page.keyboard.press("Escape")

        await ann.menu("Settings", "Password")
        dialog = ann.page.get_by_role("dialog", name="Password")
        await dialog.get_by_label("Current password").fill("wrong-horse")
        await dialog.get_by_label("New password", exact=True).fill("better-horse")
        await dialog.get_by_label("New password again").fill("other-horse")
        await expect(dialog).to_contain_text("The two are not the same")
        await expect(dialog.get_by_role("button", name="Save")).to_be_disabled()
        await dialog.get_by_label("New password again").fill("better-horse")
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("The current password is wrong.")
        await dialog.get_by_label("Current password").fill(PASSWORD)
        await dialog.get_by_role("button", name="Save").click()
        await expect(ann.page.locator(".toast.shown")).to_have_text("The password was changed")
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
            for password, status in ((PASSWORD, 401), ("better-horse", 200)):
                answer = await http.post("/v1/login", json={"user": ann.name, "password": password})
                assert answer.status_code == status, password
        await ann.write_to(await people.account("bob-a3"))
        await ann.say("Still here")
        await expect(ann.message("Still here").get_by_label("Stored by the server")).to_be_visible()


async def test_link_to_a_channel_asks_before_it_joins(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-a4"), await people.person("bob-a4")
        await ann.register()
        await ann.page.get_by_role("button", name="New conversation").click()
        await ann.page.get_by_role("menuitem", name="Make a channel").click()
        await ann.page.get_by_label("Title").fill("Tides")
        await ann.page.get_by_role("button", name="Create").click()
        await expect(ann.page.locator(".chat-title")).to_contain_text("Tides")
        channel = (await ann.page.evaluate("location.hash")).removeprefix("#/c/")
        await bob.register(f"#/join/{channel}")
        dialog = bob.page.get_by_role("dialog", name="Join this channel?")
        await dialog.get_by_role("button", name="Cancel").click()
        await ann.page.locator(".chat-title").click()
        await expect(ann.page.get_by_role("dialog").locator(".members li")).to_have_count(1)
        await ann.page.keyboard.press("Escape")
        await bob.page.evaluate("(hash) => { location.hash = hash; }", f"#/join/{channel}")
        await dialog.get_by_role("button", name="Join").click()
        await expect(bob.page.get_by_text("You can read here, but not write.")).to_be_visible()
        await bob.page.evaluate("(hash) => { location.hash = hash; }", f"#/join/{channel}")
        await expect(bob.page.locator(".chat-title")).to_contain_text("Tides")  # a member is not asked


async def test_language_is_chosen_by_each_browser(address: str) -> None:
    """Two people, two languages; a reload keeps them, and what they write stays as it is."""
    async with town(address) as people:
        ann, bob = await people.person("ann-a5", service_workers="block"), await people.person("bob-a5")
        await ann.page.route("**/lang/zh.js", lambda route: route.abort())
        await ann.open()
        await ann.page.get_by_role("button", name="中文").click()
        await expect(ann.page.get_by_role("alert")).to_have_text("It could not be loaded.")
        await ann.register()
        await bob.register()
        for one, code, settings, field in ((ann, "de", "Einstellungen", "Nachricht"), (bob, "zh", "设置", "消息")):
            await one.menu("Settings")
            await one.page.get_by_label("Language").select_option(code)
            await expect(one.page.locator("html")).to_have_attribute("lang", code)
            await one.menu(settings)
            await expect(one.page.get_by_role("dialog", name=settings)).to_be_visible()
            await one.page.keyboard.press("Escape")
            other = bob if one is ann else ann
            await one.write_to(other.name)
            await one.page.get_by_role("textbox", name=field).fill("Good morning")
            await one.page.keyboard.press("Enter")
            await other.row(one.name).filter(has_text="Good morning").wait_for()
        await ann.page.reload()
        await expect(ann.page.locator("html")).to_have_attribute("lang", "de")
        await expect(ann.page.locator(".message .text")).to_have_text(["Good morning", "Good morning"])
