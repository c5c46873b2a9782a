"""The first minute: from `make up` to an answered message, in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.deploy.test_local import Runner
from tests.router.web.people import EXECUTABLE, town
from tests.support import PATIENCE, eventually

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")


@pytest.fixture
def runner(starts_processes: None, tmp_path: Path) -> Iterator[Runner]:
    one = Runner(tmp_path)
    one.bot = True
    yield one
    if one.popen is not None:
        one.popen.kill()
        one.popen.wait()


async def test_newcomer_has_an_answer_within_a_minute_of_make_up(runner: Runner) -> None:
    """The page's address is the first that is printed. The newcomer's list is not empty, and the bot answers."""
    began = time.monotonic()
    runner.start()
    await runner.said("linnet: ready")
    address = runner.log.partition("linnet: ready")[2].split()[1].rstrip("/")
    assert address == f"http://127.0.0.1:{runner.port}"
    async with town(address) as people:
        ann = await people.person("ann")
        await ann.register()
        bot = ann.row("linnet")
        await bot.get_by_label("1 unread message").wait_for()
        assert re.match(r"\([12]\) Linnet", await ann.page.title())  # what is in the lobby may be new, too
        await bot.click()
        await ann.sees("Three things to try")
        await ann.say("Is anybody there?")
        await ann.page.locator(".message.theirs", has_text="Is anybody there?").wait_for()
        assert time.monotonic() - began < 60 * PATIENCE
        await ann.row("lobby").click()
        await ann.sees("Welcome to the lobby")
        await ann.say("Good morning")
        await ann.page.get_by_label("Stored by the server").last.wait_for()

        chip = ann.page.locator(".chip")
        before = await chip.inner_text()
        assert before.startswith("live at gateway-"), before
        number = int(before[len("live at gateway-")])
        for pid in runner.children("gateway"):  # kill the gateway that the page names, and talk on
            environ = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            if f"LINNET_LISTEN=127.0.0.1:{runner.port + number}" in environ:
                runner.kill(pid)
        await ann.say("Still here?")

        async def elsewhere() -> bool:
            return (await chip.inner_text()).startswith(f"live at gateway-{3 - number}")

        await eventually(elsewhere)
        await ann.page.locator(".message", has_text="Still here?").get_by_label("Stored by the server").wait_for()
        assert (await ann.texts())[-2:] == ["Good morning", "Still here?"]


async def test_demo_has_people_who_have_talked_and_who_answer(runner: Runner) -> None:
    runner.start(DEMO="1")
    await runner.said("linnet: ready")
    assert "mia, noah, lena, omar, yuki" in runner.log
    address = runner.log.partition("linnet: ready")[2].split()[1].rstrip("/")
    async with town(address) as people:
        ann = await people.person("ann")
        await ann.register()
        await ann.write_to("mia")
        await ann.say("Is it you?")
        await ann.page.locator(".message.theirs").first.wait_for()
        mia = await people.person("mia")
        await mia.log_in()
        await mia.row("Harbour walk").filter(has_text="Good night!").wait_for(timeout=90_000)
        await mia.row("linnet").click()
        await mia.sees("Three things to try")
        await expect(mia.page.locator(".message.mine .text")).to_have_text(["/start"])  # bots do not answer each other
        await mia.row("Release 1.4").click()
        await mia.page.locator(".picture img").wait_for()
        await mia.row("Noah Brandt").wait_for()
