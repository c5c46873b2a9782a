"""The whole tour by keyboard alone: nothing here uses a pointer, or puts a focus anywhere."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.router.web.people import EXECUTABLE, PASSWORD, Person, town
from tests.support import eventually

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

expect.set_options(timeout=30_000)
MOST_STEPS = 80

FOCUSED = """() => {
  const one = document.activeElement;
  const label = one.id && document.querySelector(`label[for="${one.id}"]`);
  const copy = one.cloneNode(true);
  for (const hidden of copy.querySelectorAll('[aria-hidden="true"]')) hidden.remove();
  return (one.getAttribute("aria-label") ?? label?.textContent ?? copy.textContent ?? "").trim();
}"""


# Open the menu whose button has the focus, and press Escape as soon as it is there, before the browser draws it.
QUICK_ESCAPE = """async () => {
  document.activeElement.click();
  for (let i = 0; i < 1000 && !document.querySelector("[role=menu]"); i++) await null;
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
}"""


class Keys:
    """A person without a pointer."""

    def __init__(self, one: Person) -> None:
        self.one = one
        self.keyboard = one.page.keyboard

    async def focused(self) -> str:
        return str(await self.one.page.evaluate(FOCUSED))

    async def tab_to(self, name: str, *, back: bool = False) -> None:
        """Press Tab until something with this name has the focus."""
        passed = []
        for _ in range(MOST_STEPS):
            await self.keyboard.press("Shift+Tab" if back else "Tab")
            passed.append(await self.focused())
            if passed[-1].startswith(name):
                return
        raise AssertionError(f"no {name!r} among {passed}")

    async def press(self, name: str, *, back: bool = False, key: str = "Enter") -> None:
        await self.tab_to(name, back=back)
        await self.keyboard.press(key)

    async def choose(self, name: str) -> None:
        """Choose in the menu that is open, by its arrow keys."""
        await self.one.page.get_by_role("menuitem", name=name, exact=True).wait_for()
        for _ in range(MOST_STEPS):
            if await self.focused() == name:
                await self.keyboard.press("Enter")
                return
            await self.keyboard.press("ArrowDown")
        raise AssertionError(f"no {name!r} in the menu")

    async def focus_is(self, name: str) -> None:
        async def has() -> bool:
            return (await self.focused()).startswith(name)

        await eventually(has)


async def test_whole_tour_by_keyboard(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-k1"), await people.person("bob-k1")
        await bob.register()
        await ann.open()
        keys = Keys(ann)
        await keys.tab_to("Name")
        await ann.page.keyboard.type(ann.name)
        await keys.tab_to("Password")
        await ann.page.keyboard.type(PASSWORD)
        await ann.page.keyboard.press("Enter")
        await ann.live()

        await keys.press("Skip to the conversation")
        await keys.press("Write to a name")
        await keys.focus_is("Their name")
        await ann.page.keyboard.type(bob.name)
        await ann.page.keyboard.press("Enter")
        await keys.focus_is("Write a message")
        await ann.page.keyboard.type("Hello by keyboard")
        await ann.page.keyboard.press("Enter")
        await bob.row(ann.name).click()
        await bob.say("Hello by pointer")
        await ann.sees("Hello by pointer")

        await keys.press("What to do with: Hello by pointer", back=True)
        await keys.choose("Reply")
        await keys.focus_is("Write a message")
        await ann.page.keyboard.type("An answer")
        await ann.page.keyboard.press("Enter")
        await expect(bob.message("An answer").locator(".quote")).to_contain_text("Hello by pointer")
        await expect(ann.message("An answer")).to_have_attribute("data-seq", re.compile(r"\d"))  # it is acked
        await ann.page.keyboard.press("ArrowUp")  # the last own message, to be edited
        await expect(ann.page.get_by_label("Write a message")).to_have_value("An answer")
        await ann.page.keyboard.type(", edited")
        await ann.page.keyboard.press("Enter")
        await bob.sees("An answer, edited")
        await keys.press("What to do with: Hello by pointer", back=True)
        await keys.focus_is("React with 👍")
        await ann.page.keyboard.press("ArrowRight")
        await ann.page.keyboard.press("Enter")
        await bob.page.get_by_role("button", name="❤️, 1 person").wait_for()
        await keys.tab_to("Write a message")
        await keys.press("Emoji", back=True)
        await keys.focus_is("Search emoji")
        await ann.page.keyboard.type("lighthouse of nowhere")
        await expect(ann.page.get_by_text("Nothing found")).to_be_visible()
        for _ in range(len("lighthouse of nowhere")):
            await ann.page.keyboard.press("Backspace")
        await ann.page.keyboard.type("grinning face")
        await ann.page.get_by_role("button", name="grinning face", exact=True).wait_for()
        await ann.page.keyboard.press("ArrowDown")
        await ann.page.keyboard.press("Enter")
        await ann.page.keyboard.press("Escape")
        await keys.focus_is("Write a message")
        await expect(ann.page.get_by_label("Write a message")).not_to_have_value("")
        await ann.page.keyboard.press("Enter")
        await bob.sees("😀")

        await keys.press("Attach", back=True)
        await ann.page.get_by_role("menuitem", name="Picture or video").wait_for()
        await ann.page.keyboard.press("Escape")
        await keys.focus_is("Attach")
        await ann.page.evaluate(QUICK_ESCAPE)
        await expect(ann.page.get_by_role("menu")).to_have_count(0)
        await keys.focus_is("Attach")
        await keys.press("What to do with: An answer", back=True)
        await keys.choose("Delete")
        await keys.press("Delete")
        await expect(bob.page.get_by_text("Message deleted")).to_have_count(1)

        await keys.press(ann.name, back=True)
        await keys.choose("Settings")
        await keys.press("Privacy")
        await keys.tab_to("Who can write to you")
        await ann.page.keyboard.press("ArrowDown")
        await expect(ann.page.get_by_label("Who can write to you")).to_have_value("contacts")
        await ann.page.keyboard.press("Escape")
        await expect(ann.page.get_by_role("dialog")).to_have_count(0)
        await keys.press("New conversation")
        await keys.choose("Make a group")
        await keys.focus_is("Title")
        await ann.page.keyboard.type("By keyboard")
        await keys.tab_to("People")
        await ann.page.keyboard.type(bob.name)
        await ann.page.keyboard.press("Enter")
        await bob.row("By keyboard").wait_for()
        await expect(ann.page.locator(".chat-title")).to_contain_text("By keyboard")
        await keys.tab_to("Search", back=True)
        await ann.page.keyboard.press("Tab")
        await ann.page.keyboard.press("ArrowDown")  # between the rows of the list
        await ann.page.keyboard.press("Enter")
        await expect(ann.page.locator(".chat-title")).to_contain_text(bob.name)
        await keys.press(ann.name, back=True)
        await keys.choose("Log out")
        await expect(ann.page.get_by_role("button", name="Create account and enter")).to_be_visible()
