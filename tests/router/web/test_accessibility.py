"""No violation by axe-core in any screen, on a phone and on a wide screen, in light and in dark colours.

The colours do not depend on the width, so the dark ones are looked at on the phone alone.
"""

from __future__ import annotations

import io
import os
import wave
from pathlib import Path
from typing import Literal

import httpx
import pytest
from PIL import Image
from playwright.async_api import FilePayload

from deploy.web import MODULES
from tests.router.web.people import EXECUTABLE, PASSWORD, Person, town
from tests.support import SERVER_KEY

pytestmark = [
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium"),
    pytest.mark.skipif(not MODULES.exists(), reason="`make test` installs npm packages into .venv/web"),
]

SERVER = {"Authorization": f"Bearer {SERVER_KEY}"}

WIDE = 1280
EDGES = """[...document.querySelectorAll('[role=menu], dialog')].map((one) => {
  const { left, right } = one.getBoundingClientRect();
  return [left, right];
})"""
SCHEMES: tuple[tuple[Literal["dark", "light"], str], ...] = (
    ("dark", "runOnly: ['color-contrast'],"),
    ("light", ""),
)


PICTURES = os.environ.get("LINNET_PICTURES")  # a folder for a picture of each state, for people to look at


class Judge:
    """Looks at a page in each of its states. The dark colours need only the rules about colours."""

    def __init__(self, one: Person, width: int) -> None:
        self.page = one.page
        self.width = width
        self.axe = (MODULES / "axe-core/axe.min.js").read_text()
        self.seen: list[str] = []

    async def look(self, state: str) -> None:
        if not await self.page.evaluate("typeof axe === 'object'"):
            await self.page.evaluate(self.axe)
        for scheme, rules in SCHEMES if self.width < WIDE or PICTURES else SCHEMES[1:]:
            await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            result = await self.page.evaluate(f"axe.run({{ {rules} resultTypes: ['violations'] }})")
            found = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in result["violations"]]
            assert found == [], (state, scheme)
            if PICTURES:
                await self.page.screenshot(path=Path(PICTURES) / f"{state} {self.width} {scheme}.png")
        wide = await self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= self.width, (state, wide)
        edges = await self.page.evaluate(EDGES)
        assert all(0 <= left <= right <= self.width for left, right in edges), (state, edges)
        self.seen.append(state)


def recording() -> bytes:
    """A quarter of a second of silence."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(4000))
    return body.getvalue()


async def prepared(address: str, ann: str, bob: str, cem: str) -> str:
    """Messages of all kinds, a group, contacts and requests; return the group."""
    picture = io.BytesIO()
    Image.new("RGB", (320, 200), "teal").save(picture, "JPEG")
    async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
        by = {}
        for user in (bob, cem):
            assert (await http.post("/v1/accounts", json={"user": user, "password": PASSWORD})).status_code == 201
            token = (await http.post("/v1/login", json={"user": user, "password": PASSWORD})).json()["token"]
            by[user] = {"Authorization": f"Bearer {token}"}
            assert (await http.put(f"/v1/contacts/{ann}", json={"message": "Hi"}, headers=by[user])).is_success
        for body in ("Hello https://x.example", {"text": f"@{ann} look", "mentions": [ann]}, "👍"):
            assert (await http.post("/v1/messages", json={"to": f"@{ann}", "body": body}, headers=by[bob])).is_success
        files = (
            ("", "image/jpeg", picture.getvalue()),
            ("?kind=voice&duration=3000&waveform=10,200,90,40", "audio/wav", recording()),
            ("", "text/plain", b"text"),
        )
        for query, kind, content in files:
            head = {**by[bob], "Content-Type": kind, "Linnet-Name": "a.file"}
            answer = await http.post(f"/v1/uploads{query}", content=content, headers=head)
            assert answer.is_success, answer.text
            made = answer.json()
            sent = {"to": f"@{ann}", "body": "", "media": made["kind"], "files": [made["sha256"]]}
            assert (await http.post("/v1/messages", json=sent, headers=by[bob])).is_success
        titled = {"kind": "group", "title": "Walks", "members": {ann: "owner"}}
        group = (await http.post("/v1/conversations", json=titled, headers={**SERVER, "Linnet-User": bob})).json()
        said = {"to": group["conversation"], "body": "Where to?"}
        assert (await http.post("/v1/messages", json=said, headers=by[bob])).is_success
        return str(group["conversation"])


@pytest.mark.parametrize("width", [360, WIDE])
async def test_no_screen_has_a_violation(address: str, width: int) -> None:
    async with town(address) as people:
        may = ["microphone", "camera"]
        ann = await people.person(f"ann-x{width}", viewport={"width": width, "height": 760}, permissions=may)
        bob, cem = f"bob-x{width}", f"cem-x{width}"
        page, judge = ann.page, Judge(ann, width)

        await ann.open()
        await page.get_by_label("Name", exact=True).fill("bad name")
        await judge.look("login, wrong name")
        await ann.register()
        await judge.look("nothing yet")
        group = await prepared(address, ann.name, bob, cem)
        await ann.row("Walks").wait_for()
        await page.locator(".requests").wait_for()
        await judge.look("list, with requests")
        await page.locator(".requests").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Accept").first.click()
        await dialog.get_by_role("button", name="What to do with").wait_for()
        await judge.look("contacts")
        await dialog.locator(".row-button").first.click()
        await dialog.get_by_role("button", name="Block").wait_for()
        await judge.look("a person")
        await page.keyboard.press("Escape")
        await ann.row(bob).click()
        await ann.sees("👍")
        await page.locator(".voice .play:not([disabled])").wait_for()
        await ann.until("document.querySelector('.picture img')?.naturalWidth > 0")
        await ann.act("look", "React with ❤️")
        await ann.act("look", "Reply")
        await judge.look("conversation with files, a reply")
        await ann.say("An answer")
        await page.locator(".picture").click()
        await dialog.get_by_role("img").wait_for()
        await judge.look("a picture")
        await page.keyboard.press("Escape")
        await page.locator(".composer input[type=file]").set_input_files(
            FilePayload(name="note.txt", mimeType="text/plain", buffer=b"x")
        )
        await dialog.get_by_label("Text to it").wait_for()
        await judge.look("about to send a file")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Record a voice message").click()
        await page.get_by_role("timer").wait_for()
        await judge.look("recording")
        await ann.recorded()
        await page.get_by_role("button", name="Stop").click()
        await page.locator(".recorder .play").wait_for()
        await judge.look("recorded")
        await page.get_by_role("button", name="Discard").click()
        await ann.message("An answer").locator(".acts > button").click(force=True)
        await judge.look("menu of a message")
        await page.get_by_role("menuitem", name="Delete").click()
        await judge.look("delete?")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Emoji", exact=True).click()
        await page.get_by_label("grinning face", exact=True).wait_for()
        await judge.look("emoji")
        await page.keyboard.press("Escape")
        await page.evaluate("(hash) => { location.hash = hash; }", f"#/c/{group}")
        await ann.sees("Where to?")
        await judge.look("group")
        await page.locator(".chat-title").click()
        await dialog.get_by_text("Owner").first.wait_for()
        await judge.look("members")
        await page.keyboard.press("Escape")
        await page.evaluate("location.hash = '#/'")
        await page.get_by_role("button", name=ann.name, exact=True).click()
        await judge.look("own menu")
        await page.get_by_role("menuitem", name="Invite somebody").click()
        await page.get_by_role("img", name="QR code of the link").wait_for()
        await judge.look("invitation")
        await page.keyboard.press("Escape")
        await ann.menu("Settings")
        await judge.look("settings")
        await dialog.locator(".person-row").click()
        await page.get_by_label("Display name").wait_for()
        await judge.look("profile")
        await page.keyboard.press("Escape")
        await ann.menu("Settings", "Privacy")
        await page.get_by_label("Who can write to you").wait_for()
        await judge.look("privacy")
        await page.keyboard.press("Escape")
        await ann.menu("Settings", "Password")
        await page.get_by_label("Current password").wait_for()
        await judge.look("password")
        await page.keyboard.press("Escape")
        await ann.menu("Settings", "Devices")
        await dialog.get_by_text("this device").wait_for()
        await judge.look("devices")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="New conversation").click()
        await page.get_by_role("menuitem", name="Make a channel").click()
        await page.get_by_label("People").wait_for()
        await judge.look("new channel")
        await page.evaluate("document.documentElement.dir = 'rtl'")
        await page.keyboard.press("Escape")
        await judge.look("right to left")
        assert len(judge.seen) >= 12
