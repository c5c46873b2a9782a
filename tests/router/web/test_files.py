"""Pictures, files and voice messages: how they are chosen, sent, shown and played, and what happens if that fails."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image
from playwright.async_api import FilePayload, Route, expect

from tests.router.web.people import EXECUTABLE, Person, town

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

expect.set_options(timeout=30_000)
MAY = ["microphone", "camera"]

TAKE = """(names) => {
  const data = new DataTransfer();
  for (const name of names) data.items.add(new File([`content of ${name}`], name, { type: "text/plain" }));
  return data;
}"""

PASTE = """(field, clipboardData) => {
  field.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
}"""

HEARD = "(audio) => audio.addEventListener('ended', () => { audio.dataset.heard = String(audio.played.length); })"

LOUD = "[...document.querySelectorAll('.recorder .bars rect')].some((one) => one.height.baseVal.value > 6)"

HELD = """() => {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => (window.heard = await ask(wanted));
}"""

OFF = "window.heard.getTracks().every((track) => track.readyState === 'ended')"

TWICE = "(button) => { button.click(); button.click(); }"

WARNS = """() => {
  const leaving = new Event("beforeunload", { cancelable: true });
  dispatchEvent(leaving);
  return leaving.defaultPrevented;
}"""

HUGE = """() => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(20_000_001)], "huge.jpg", { type: "image/jpeg" }));
  return data;
}"""


def picture(width: int, height: int, color: str) -> FilePayload:
    body = io.BytesIO()
    Image.new("RGB", (width, height), color).save(body, "JPEG")
    return FilePayload(name=f"{color}.jpg", mimeType="image/jpeg", buffer=body.getvalue())


async def choose(one: Person, files: list[FilePayload]) -> None:
    """Choose files as the button *Attach* lets a user choose them."""
    async with one.page.expect_file_chooser() as choosing:
        await one.page.get_by_role("button", name="Attach").click()
        await one.page.get_by_role("menuitem", name="Picture or video").click()
    await (await choosing.value).set_files(files)


async def send(one: Person, caption: str = "") -> None:
    """Send what was chosen."""
    dialog = one.page.get_by_role("dialog")
    if caption:
        await dialog.get_by_label("Text to it").fill(caption)
    await dialog.get_by_role("button", name="Send", exact=True).click()


async def test_pictures_files_and_voice_are_sent_and_received(address: str) -> None:
    """Pictures with a text from the file chooser, files by drag and by paste, a picture of the camera, and a voice that
    is heard before it is sent; the other person looks, saves and plays."""
    async with town(address) as people:
        ann, bob = await people.person("ann-f1", permissions=MAY), await people.person("bob-f1")
        await ann.register()
        await bob.register()
        await ann.write_to(bob.name)
        await choose(ann, [picture(640, 400, "red"), picture(300, 500, "green")])
        await send(ann, "From the walk")
        await expect(bob.row(ann.name)).to_contain_text("From the walk")
        await bob.row(ann.name).click()
        shown = bob.message("From the walk")
        await expect(shown.get_by_role("img", name="red.jpg")).to_be_visible()
        await bob.until("[...document.querySelectorAll('.picture img')].every((i) => i.naturalWidth)")
        await shown.get_by_role("button", name="Look at red.jpg").click()
        viewer = bob.page.get_by_role("dialog", name="red.jpg")
        await expect(viewer.get_by_text("1 of 2")).to_be_visible()
        await bob.page.keyboard.press("ArrowRight")
        await expect(bob.page.get_by_role("dialog", name="green.jpg").get_by_role("img")).to_be_visible()
        await bob.page.keyboard.press("Escape")

        chat = ann.page.locator(".chat")
        dropped = await ann.page.evaluate_handle(TAKE, ["one.txt", "two.txt"])
        await chat.dispatch_event("dragover", {"dataTransfer": dropped})
        await expect(chat).to_have_attribute("data-drop", "Drop files to send them")
        await chat.dispatch_event("drop", {"dataTransfer": dropped})
        await expect(ann.page.get_by_role("dialog", name="Send 2 files")).to_be_visible()
        await ann.page.get_by_role("button", name="Remove two.txt").click()
        await send(ann)
        link = bob.page.locator("a.file", has_text="one.txt")
        async with bob.page.expect_download() as downloading:
            await link.click()
        saved = await downloading.value
        assert saved.suggested_filename == "one.txt"
        assert (await saved.path()).read_text() == "content of one.txt"
        await bob.page.evaluate("() => { const { now } = Date; Date.now = () => now() + 7_200_000; }")
        async with bob.page.expect_download() as downloading, bob.page.expect_request("**/v1/uploads/links"):
            await link.click()  # two hours later its link has ended
        assert (await (await downloading.value).path()).read_text() == "content of one.txt"
        await bob.page.reload()
        await bob.live()
        pasted = await ann.page.evaluate_handle(TAKE, ["pasted.txt"])
        await ann.page.get_by_label("Write a message").evaluate(PASTE, pasted)
        await ann.page.get_by_role("dialog", name="Send 1 file").wait_for()
        await ann.page.keyboard.press("Escape")

        await ann.page.get_by_role("button", name="Attach").click()
        await ann.page.get_by_role("menuitem", name="Take a picture").click()
        await ann.page.get_by_role("button", name="Take it").click()
        await ann.page.get_by_role("dialog", name="Send 1 file").wait_for()
        await send(ann, "My desk")
        await expect(bob.message("My desk").get_by_role("img")).to_be_visible()

        await ann.page.get_by_role("button", name="Record a voice message").click()
        await ann.recorded()
        await ann.until(LOUD)  # the microphone beeps
        await ann.page.get_by_role("button", name="Stop").click()
        await ann.page.locator(".recorder .play").wait_for()
        await ann.page.get_by_role("button", name="Send", exact=True).click()
        voice = bob.page.locator(".message .voice").last
        await expect(voice.locator(".length")).to_have_text(re.compile("[1-9]"))
        heights = await voice.locator(".bars rect").evaluate_all("(all) => all.map((one) => one.height.baseVal.value)")
        assert len(set(heights)) > 1
        heard = (
            "(audio) => audio.addEventListener('ended', () => { audio.dataset.heard = String(audio.played.length); })"
        )
        await voice.locator("audio").evaluate(heard)
        await voice.get_by_role("button", name="Play").click()
        await expect(voice.locator("audio")).to_have_attribute("data-heard", "1")
        await expect(voice.get_by_role("button", name="Play")).to_be_visible()
        await expect(ann.row(bob.name)).to_contain_text("Voice message")
        await ann.page.reload()
        await ann.live()
        await expect(ann.page.locator(".picture img")).to_have_count(3)

        await bob.act("From the walk", "Forward")  # to oneself is a conversation, too
        await bob.page.get_by_role("dialog").get_by_role("button", name=ann.name).click()
        await expect(ann.message("From the walk")).to_contain_text(f"Forwarded from {ann.name}")
        await expect(ann.message("From the walk").get_by_role("img")).to_have_count(2)


async def test_upload_that_fails_can_be_tried_again_or_cancelled(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f2", viewport={"width": 360, "height": 740})
        await ann.register()
        await ann.write_to(await people.account("bob-f2"))
        await ann.say("Hello")
        await expect(ann.message("Hello").get_by_label("Stored by the server")).to_be_visible()

        async def full(route: Route) -> None:
            await route.fulfill(status=403, json={"error": {"code": "quota", "message": "full"}})

        await ann.page.route("**/v1/uploads?*", full)
        await choose(ann, [picture(64, 64, "red")])
        await send(ann, "At last")
        job = ann.page.locator(".upload")
        await expect(job).to_contain_text("Your space for files is full.")
        assert await ann.page.evaluate(WARNS)
        await ann.page.get_by_role("button", name="Back to the list").click()
        await ann.menu("Log out")
        await expect(ann.page.get_by_role("dialog")).to_contain_text("1 message is not sent yet")
        await ann.page.keyboard.press("Escape")
        await ann.write_to("bob-f2")
        await ann.page.unroute("**/v1/uploads?*", full)
        uploads: list[str] = []
        ann.page.on("request", lambda request: uploads.append(request.url) if "/v1/uploads?" in request.url else None)
        await job.get_by_role("button", name="Send again").evaluate(TWICE)
        await ann.sees("At last")
        await expect(job).to_have_count(0)
        assert len(uploads) == 1
        assert not await ann.page.evaluate(WARNS)
        await expect(ann.message("At last").get_by_label("Stored by the server")).to_be_visible()

        held: list[Route] = []

        async def hold(route: Route) -> None:
            held.append(route)

        await ann.page.route("**/v1/uploads?*", hold)
        await choose(ann, [picture(64, 64, "blue")])
        await send(ann, "Never")
        await expect(job.get_by_role("progressbar")).to_be_visible()
        async with ann.page.expect_event("requestfailed", lambda request: "/v1/uploads" in request.url):
            await job.get_by_role("button", name="Cancel blue.jpg").click()
        await expect(job).to_have_count(0)
        await expect(ann.page.get_by_text("Never")).to_have_count(0)
        for route in held:
            await route.abort()  # the page has done so; this ends what Playwright keeps of it

        huge = await ann.page.evaluate_handle(HUGE)
        await ann.page.locator(".chat").dispatch_event("drop", {"dataTransfer": huge})
        dialog = ann.page.get_by_role("dialog")
        await expect(dialog).to_contain_text("too large: at most 20 MB")
        await expect(dialog.get_by_role("button", name="Send", exact=True)).to_be_disabled()
        await dialog.get_by_label("Send unchanged, as files").check()
        await expect(dialog.get_by_role("button", name="Send", exact=True)).to_be_enabled()


async def test_upload_goes_on_after_a_break_under_a_name_of_many_emoji(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f4")
        await ann.register()
        await ann.write_to(await people.account("bob-f4"))
        await ann.page.route("**/v1/uploads?*", lambda route: route.abort())
        name = "😀" * 80 + ".a.text"  # more than a name may have
        dropped = await ann.page.evaluate_handle(TAKE, [name])
        await ann.page.locator(".chat").dispatch_event("drop", {"dataTransfer": dropped})
        await send(ann, "Many faces")
        await expect(ann.message("Many faces").get_by_label("Stored by the server")).to_be_visible()
        await expect(ann.message("Many faces").locator(".file")).to_contain_text("😀.a.text")


async def test_recording_is_kept_if_the_microphone_is_taken_away(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f5", permissions=MAY)
        await ann.register()
        await ann.write_to("bob-f5")
        await ann.page.evaluate(HELD)
        await ann.page.get_by_role("button", name="Record a voice message").click()
        await ann.recorded()
        await ann.page.evaluate("window.heard.getTracks().forEach((track) => track.stop())")
        await ann.page.get_by_role("button", name="Stop").evaluate(TWICE)
        await ann.page.locator(".recorder .play").wait_for()
        await ann.page.get_by_role("button", name="Discard").click()
        await ann.page.get_by_role("button", name="Record a voice message").click()
        await ann.recorded()
        await ann.page.get_by_role("button", name="Stop").evaluate(TWICE)
        await ann.page.locator(".recorder .play").wait_for()
        assert await ann.page.evaluate(OFF)
        await ann.page.get_by_role("button", name="Discard").click()
        await ann.page.evaluate("() => { window.AudioContext = class { constructor() { throw new Error('no'); } }; }")
        await ann.page.get_by_role("button", name="Record a voice message").click()
        await expect(ann.page.locator(".toast.shown")).to_have_text("No microphone was found.")
        assert await ann.page.evaluate(OFF)


async def test_microphone_that_is_refused_is_said(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f3")
        await ann.register()
        await ann.write_to("bob-f3")
        refuse = (
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }"
        )
        await ann.page.evaluate(f"() => {{ {refuse} }}")
        await ann.page.get_by_role("button", name="Record a voice message").click()
        await expect(ann.page.locator(".toast.shown")).to_contain_text("does not allow the microphone")
        await expect(ann.page.get_by_label("Write a message")).to_be_visible()
        await ann.page.get_by_role("button", name="Attach").click()
        await ann.page.get_by_role("menuitem", name="Take a picture").click()
        await expect(ann.page.get_by_role("alert")).to_contain_text("does not allow the camera")
