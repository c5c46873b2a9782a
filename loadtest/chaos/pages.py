"""Two people at the web page, in a real Chromium each on its own gateway: what they do, and what they see.

Each does again and again all that one can do with messages, in an order that the seed decides, and does not wait for
the other or for the server, except as people do: one can only answer what one sees. What a page shows is read from its
elements (`page_recorder.js`) and written into its history, which `proof/pages.py` judges.

Invariant: a body that a person writes is written once, so that the log can be searched for it. Only voice messages
have none. A message that is to be deleted is not edited, answered or reacted to.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.async_api import Browser, Error, FilePayload, Page, Playwright, async_playwright

from loadtest.chaos.browsers import EXECUTABLE, FLAGS, HERE
from loadtest.chaos.cluster import Cluster
from loadtest.chaos.proof.evidence import Mark, append
from loadtest.chaos.proof.history import digest, now_ms
from loadtest.chaos.proof.page_history import Asked, PageRows, Raised, ShownMessage, Shows

PEOPLE: Final = ("ann", "bob")
PASSWORD: Final = "correct-horse"  # noqa: S105  of people who are made for a run
GROUP: Final = "Tour"
START_S: Final = 180.0
STEP_S: Final = 120.0  # a step may need what is killed again and again
POLL_S: Final = 0.05
RECORDER: Final = HERE / "page_recorder.js"
MEDIA: Final = ("--use-fake-device-for-media-stream", "--mute-audio")
CHIP: Final = re.compile("live at [^,]+")
WHOLE_S: Final = 10.0
# The worker answers for the page, which it does only if it has all of the page's files.
WHOLE: Final = """() => new Promise((resolve) => {
  navigator.serviceWorker.addEventListener("controllerchange", () => resolve());
  if (navigator.serviceWorker.controller) resolve();
})"""


def body_of(shown: dict[str, Any]) -> Any:
    """Return the body that a page shows, as it is sent."""
    if shown["forwarded"]:
        return {"text": shown["text"], "forwarded": shown["forwarded"]}
    return {"text": shown["text"], "mentions": shown["mentions"]} if shown["mentions"] else shown["text"]


class Visitor:
    """One person at one page."""

    def __init__(self, name: str, other: str, page: Page, history: Path, rng: random.Random) -> None:
        self.name = name
        self.page = page
        self.group = self.direct = self.here = ""  # here: the conversation that is open
        self.shown: dict[str, list[dict[str, Any]]] = {}  # the messages that the page shows, by conversation
        self.typing = False  # the page has shown that the other types
        self.done = 0
        self._other = other
        self._history = history
        self._rng = rng
        self._texts = 0
        self._voices = 0
        self._plain: list[str] = []  # own texts that can be edited or forwarded, each once
        self._reacted: set[int] = set()

    # -- what the page shows

    async def watch(self) -> None:
        self.page.set_default_timeout(STEP_S * 1000)
        self.page.on("pageerror", lambda error: self._note(Raised(now_ms(), f"raised {error}")))
        self.page.on("console", lambda message: self._console(message.type, message.text))
        await self.page.expose_function("tellShown", self._told)
        await self.page.add_init_script(path=RECORDER)

    def _console(self, kind: str, text: str) -> None:
        if kind == "error" and ("Content Security Policy" in text or "Trusted" in text):
            self._note(Raised(now_ms(), f"was refused something: {text}"))

    def _note(self, row: PageRows) -> None:
        append(self._history, row)

    def _told(self, text: str) -> None:
        told = json.loads(text)
        conversation = {GROUP: self.group, self._other: self.direct}.get(told["title"], "")
        if not conversation:
            return  # before there is a group, and what newcomers find
        self.shown[conversation] = told["messages"]
        self.typing = self.typing or told["typing"]
        self._note(Shows(now_ms(), conversation, [_row(one) for one in told["messages"]], told["typing"]))

    def _asked(self, kind: str, body: Any, target: int = 0, conversation: str = "") -> None:
        told = body if kind == "react" else "" if kind == "delete" else digest(body)
        self._note(Asked(now_ms(), kind, conversation or self.here, told, target))
        self.done += 1

    async def _until(self, what: str, reached: Callable[[], Any]) -> Any:
        """Wait until the page shows what its person waits for, and return that."""
        until = asyncio.get_running_loop().time() + STEP_S
        while not (found := reached()):
            if asyncio.get_running_loop().time() > until:
                raise TimeoutError(f"the page of {self.name} did not show {what} in {STEP_S:g} s")
            await asyncio.sleep(POLL_S)
        return found

    def _own(self, text: str) -> dict[str, Any] | None:
        """The person's own message with this text, as it is shown."""
        return next((one for one in self.shown.get(self.here, ()) if one["mine"] and one["text"] == text), None)

    async def _stored(self, text: str) -> int:
        def seq() -> int:
            return int((self._own(text) or {"seq": 0})["seq"])

        return int(await self._until(f"{text!r} as stored", seq))

    async def _others_newest(self) -> int:
        """Wait for a message of the other person that will not be deleted; return its seq."""

        def seq() -> int:
            theirs = (one for one in reversed(self.shown.get(self.here, ())) if not one["mine"])
            kept = (one for one in theirs if not one["deleted"] and "to be deleted" not in one["text"])
            return next((one["seq"] for one in kept if one["seq"] not in self._reacted), 0)

        return int(await self._until("a message of the other person", seq))

    # -- the first minute

    async def register(self, address: str) -> None:
        await self.page.goto(address)
        await self.page.get_by_label("Name", exact=True).fill(self.name)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Create account and enter").click()
        await self.live()

    async def live(self) -> None:
        """Wait until the page is connected, and has all its modules, which no router need serve from then on."""
        while True:
            await self.page.locator(".chip.live").wait_for(state="attached")
            with suppress(TimeoutError):
                async with asyncio.timeout(WHOLE_S):
                    await self.page.evaluate(WHOLE)
                    return
            # Right after its start a router may not know the gateways, and then no worker keeps the page.
            await self.page.reload()

    async def gateway(self) -> str:
        """Return the address of the gateway that the page names."""
        text = await self.page.locator(".chip", has_text=CHIP).inner_text()
        return text.partition(",")[0]

    async def make_group(self) -> str:
        await self.page.locator("#main").get_by_role("button", name="Make a group").click()
        dialog = self.page.get_by_role("dialog")
        await dialog.get_by_label("Title").fill(GROUP)
        await dialog.get_by_label("People").fill(self._other)
        await dialog.get_by_role("button", name="Create").click()
        await self.page.locator(".chat-title", has_text=GROUP).wait_for()
        return str(await self.page.evaluate("decodeURIComponent(location.hash.slice(4))"))

    async def open(self, conversation: str) -> None:
        if conversation != self.here:
            self.shown.pop(conversation, None)  # what was shown before it was left is old
        await self.page.evaluate("(id) => { location.hash = `#/c/${encodeURIComponent(id)}`; }", conversation)
        title = GROUP if conversation == self.group else self._other
        await self.page.locator(".chat-title", has_text=title).wait_for()
        await self._until(title, lambda: conversation in self.shown)
        self.here = conversation

    # -- what people do

    async def tour(self, until: float) -> None:
        """Do everything once, and again until it is time."""
        acts: list[Callable[[], Awaitable[None]]] = [
            self.write, self.mention, self.choose_emoji, self.send_picture, self.send_file, self.send_voice,
            self.reply, self.edit, self.delete, self.react, self.forward, self.type_only,
        ]  # fmt: skip
        loop, first = asyncio.get_running_loop(), True
        while first or loop.time() < until:
            await self.write()
            for act in self._rng.sample(acts, len(acts)):
                if first or loop.time() < until:
                    await act()
            first = False

    def _text(self, words: str) -> str:
        self._texts += 1
        return f"{self.name} {self._texts} {words}"

    @property
    def _field(self) -> Any:
        return self.page.get_by_label("Write a message")

    async def _say(self, text: str, *, kind: str = "message", body: Any = None, target: int = 0) -> None:
        """Send what is in the field, and wait until the page shows it."""
        self._asked(kind, text if body is None else body, target)
        await self._field.press("Enter")
        await self._until(repr(text), lambda: self._own(text))

    async def write(self) -> None:
        text = self._text(self._rng.choice(("hello", "what about six?", "äöü 漢字", "see https://x.example/a?b")))
        await self._field.fill(text)
        await self._say(text)
        if self.here == self.group:
            self._plain.append(text)

    async def mention(self) -> None:
        begun = self._text("@")
        await self._field.fill("")
        await self._field.press_sequentially(begun + self._other[:2])
        await self.page.get_by_role("option", name=f"@{self._other}").wait_for()
        await self.page.keyboard.press("Enter")
        text = begun + self._other
        await self._say(text, body={"text": text, "mentions": [self._other]})

    async def choose_emoji(self) -> None:
        text = self._text("")
        await self._field.fill(text)
        await self.page.get_by_role("button", name="Emoji", exact=True).click()
        await self.page.get_by_label("grinning face", exact=True).first.click()
        await self.page.keyboard.press("Escape")
        await self._say(f"{text}😀")

    async def send_picture(self) -> None:
        body = io.BytesIO()
        Image.new("RGB", (64, 48), tuple(self._rng.randrange(256) for _ in range(3))).save(body, "JPEG")
        await self._send_file(FilePayload(name="a.jpg", mimeType="image/jpeg", buffer=body.getvalue()))

    async def send_file(self) -> None:
        await self._send_file(FilePayload(name="a.txt", mimeType="text/plain", buffer=self._rng.randbytes(50)))

    async def _send_file(self, file: FilePayload) -> None:
        text = self._text("with a file")
        await self.page.locator(".composer input[type=file]").set_input_files(file)
        dialog = self.page.get_by_role("dialog")
        await dialog.get_by_label("Text to it").fill(text)
        self._asked("message", text)
        await dialog.get_by_role("button", name="Send", exact=True).click()
        await self._uploaded()
        await self._until(repr(text), lambda: self._own(text))

    async def _uploaded(self) -> None:
        """Wait until no file is on its way; one that could not be sent is sent again."""
        until = asyncio.get_running_loop().time() + STEP_S
        jobs = self.page.locator(".upload")
        while await jobs.count():
            again = jobs.get_by_role("button", name="Send again")
            if await again.count():
                await again.first.click()
            if asyncio.get_running_loop().time() > until:
                raise TimeoutError(f"a file of {self.name} was not sent in {STEP_S:g} s")
            await asyncio.sleep(0.5)

    async def send_voice(self) -> None:
        await self.page.get_by_role("button", name="Record a voice message").click()
        await self.page.get_by_role("timer").filter(has_text=re.compile("[1-9]")).wait_for()
        await self.page.get_by_role("button", name="Stop").click()
        await self.page.locator(".recorder .play").wait_for()
        self._asked("message", "")
        self._voices += 1
        await self.page.locator(".recorder").get_by_role("button", name="Send", exact=True).click()
        await self._uploaded()

        def all_there() -> bool:
            return len([one for one in self.shown[self.here] if one["mine"] and not one["text"]]) >= self._voices

        await self._until("the voice message", all_there)

    async def _act(self, seq: int, what: str) -> None:
        message = self.page.locator(f'.message[data-seq="{seq}"]')
        await message.hover()
        await message.locator(".acts > button").click()
        await self.page.get_by_role("menuitem", name=what, exact=True).click()

    async def reply(self) -> None:
        await self._act(await self._others_newest(), "Reply")
        text = self._text("is my answer")
        await self._field.fill(text)
        await self._say(text)

    async def edit(self) -> None:
        if not self._plain:
            await self.write()
        seq = await self._stored(self._plain.pop())
        await self._act(seq, "Edit")
        text = self._text("is another text")
        await self._field.fill(text)
        await self._say(text, kind="edit", target=seq)

    async def delete(self) -> None:
        text = self._text("is to be deleted")
        await self._field.fill(text)
        await self._say(text)
        seq = await self._stored(text)
        await self._act(seq, "Delete")
        self._asked("delete", "", seq)
        await self.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await self._until(f"that {seq} is deleted", lambda: self._own("Message deleted") and not self._own(text))

    async def react(self) -> None:
        seq = await self._others_newest()
        self._reacted.add(seq)
        self._asked("react", "👍", seq)
        await self._act(seq, "React with 👍")

        def shows() -> bool:
            return any(one["seq"] == seq and "👍" in one["reactions"] for one in self.shown[self.here])

        await self._until("the reaction", shows)

    async def forward(self) -> None:
        if not self._plain:
            await self.write()
        text = self._plain.pop(0)
        await self._act(await self._stored(text), "Forward")
        self._asked("message", {"text": text, "forwarded": self.name}, conversation=self.direct)
        await self.page.get_by_role("dialog").get_by_role("button", name=self._other).click()

    async def type_only(self) -> None:
        await self._field.press_sequentially("hm …", delay=50)
        await self._field.fill("")

    # -- the end

    def at_rest(self, conversation: str) -> list[Any]:
        """What the page shows, without what differs from person to person; empty if something is on its way."""
        rows = self.shown.get(conversation, [])
        kept = [one for one in rows if not one["deleted"]]  # of what was deleted while a page was away it knows nothing
        if any(one["mine"] and not one["state"].startswith("Read") for one in kept):
            return []
        return [{**one, "mine": None, "state": None, "text": (one["text"], one["mentions"])} for one in kept]

    def failed(self, error: BaseException) -> None:
        self._note(Raised(now_ms(), f"stopped its person: {error}"))


def _row(one: dict[str, Any]) -> ShownMessage:
    body = "" if one["deleted"] else digest(body_of(one))
    return ShownMessage(
        one["seq"], one["mine"], body, one["edited"], one["deleted"], one["files"], one["answers"], one["reactions"],
        one["state"],
    )  # fmt: skip


class Pages:
    """The two people of a run."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.people: list[Visitor] = []
        self._cluster = cluster
        self._folder = folder
        self._rng = random.Random(seed)
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        (folder / "pages").mkdir()

    async def gather(self) -> None:
        """Register both, each at a router of its own; make their group; and let them be on two gateways."""
        async with asyncio.timeout(START_S):
            await self._gather()

    async def _gather(self) -> None:
        self._playwright = await async_playwright().start()
        flags = [*FLAGS, *MEDIA]
        self._browser = await self._playwright.chromium.launch(executable_path=EXECUTABLE, headless=True, args=flags)
        for name, other, router in zip(PEOPLE, reversed(PEOPLE), self._cluster.routers, strict=True):
            context = await self._browser.new_context(locale="en-GB", permissions=["microphone"])
            history = self._folder / "pages" / f"{name}.jsonl"
            one = Visitor(name, other, await context.new_page(), history, random.Random(self._rng.random()))
            self.people.append(one)
            await one.watch()
            await one.register(f"{router.url}/")
        ann, bob = self.people
        group = await ann.make_group()
        for one in self.people:
            one.group, one.direct = group, "d:" + ":".join(sorted(PEOPLE))
            await one.open(one.direct)
            await one.write()
        while await ann.gateway() == await bob.gateway():
            await bob.page.reload()
            await bob.live()
        for one in self.people:
            await one.open(group)

    async def run(self, seconds: float, _rate: float, _every_s: float) -> None:
        until = asyncio.get_running_loop().time() + seconds
        await asyncio.gather(*(self._tour(one, until) for one in self.people))

    async def _tour(self, one: Visitor, until: float) -> None:
        try:
            await one.tour(until)
        except (TimeoutError, Error) as error:  # what a page did not do is a finding, and the other person goes on
            one.failed(error)
            await one.page.screenshot(path=self._folder / f"{one.name}.png")

    async def settle(self, _heads: object) -> list[Mark]:
        """Let both look at both conversations until they show the same and all is read, and see the other type."""
        try:
            await self._settle()
        except (TimeoutError, Error) as error:
            self.people[0].failed(error)
        return []

    async def _settle(self) -> None:
        ann, bob = self.people
        for conversation in (ann.direct, ann.group):
            for one in self.people:
                await one.open(conversation)
            await self._agree(conversation)
        for one, other in ((ann, bob), (bob, ann)):
            other.typing = False
            until = asyncio.get_running_loop().time() + STEP_S
            while not other.typing and asyncio.get_running_loop().time() < until:
                await one.type_only()
            if not other.typing:
                other.failed(TimeoutError("it does not show that the other person types"))
        await self._agree(ann.group)

    async def _agree(self, conversation: str) -> None:
        ann, bob = self.people
        until = asyncio.get_running_loop().time() + STEP_S
        while asyncio.get_running_loop().time() < until:
            shown = ann.at_rest(conversation)
            if shown and shown == bob.at_rest(conversation):
                return
            for one in self.people:
                if await (newest := one.page.locator(".to-newest")).count():
                    with suppress(Error):  # it is gone by now
                        await newest.click(timeout=1000)
            await asyncio.sleep(POLL_S)

    def progress(self) -> str:
        return "  ".join(f"{one.name} has done {one.done}" for one in self.people)

    async def stop(self) -> None:
        if self._browser is not None:
            await self._browser.close()
        if self._playwright is not None:
            await self._playwright.stop()
