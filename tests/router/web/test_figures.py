"""`make page`: what the page promises in figures, for scrolling, for a large group, and as Lighthouse measures it.

On a busy machine these tests fail, and Lighthouse is 150 packages, so `make test` leaves them out. With QUICK=1 they
use fewer messages. `-s` shows the figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.async_api import CDPSession, expect

from deploy import sdk
from tests import support
from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.router.web.people import EXECUTABLE, Person, town
from tests.support import ROOT

LIGHTHOUSE: Final = ROOT / ".venv/lighthouse/node_modules/lighthouse/cli/index.js"
FORM: Final = os.environ.get("PAGE_FIGURES", "")
MESSAGES, TALK_S = (1000, 10) if FORM == "quick" else (10_000, 60)
AUTHORS: Final = 40
AT_ONCE: Final = 100
MEMBERS: Final = 1000
SCROLL_MS: Final = 4000
FRAMES_PER_S: Final = 50
HEAP_MB: Final = 150
LIGHTHOUSE_QUICK: Final = 0.95
WINDOW: Final = 400
OFFLINE_S: Final = 60
SOON_S: Final = 10

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(FORM not in ("full", "quick"), reason="part of make page"),
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium"),
]

# Scrolls up by some pixels in each frame, and returns the frames per second and the longest pause between two, in ms.
SCROLL = """async ([ms, pixels]) => {
  const log = document.querySelector(".log");
  const began = performance.now();
  let frames = 0, longest = 0, last = began;
  await new Promise((done) => requestAnimationFrame(function step() {
    const now = performance.now();
    frames += 1;
    longest = Math.max(longest, now - last);
    last = now;
    if (pixels) log.scrollTop -= pixels;
    if (now - began < ms) requestAnimationFrame(step); else done();
  }));
  return [frames * 1000 / (performance.now() - began), longest];
}"""


@pytest.fixture(scope="module")
def system(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Users may send as fast as this test wants to fill a conversation."""
    folder, many = tmp_path_factory.mktemp("figures"), "100000"
    made = System(folder, 2, LINNET_ORIGINS="*", LINNET_SENDS_PER_S=many, LINNET_SEND_BURST=many)
    support.run(made.ready())
    yield made
    made.close()


async def heap_mb(devtools: CDPSession) -> float:
    """Return the heap in use after a garbage collection."""
    await devtools.send("HeapProfiler.collectGarbage")
    measured = await devtools.send("Performance.getMetrics")
    (used,) = [one["value"] for one in measured["metrics"] if one["name"] == "JSHeapUsedSize"]
    return float(used) / 1e6


async def watched(one: Person) -> CDPSession:
    devtools = await one.context.new_cdp_session(one.page)
    await devtools.send("Performance.enable")
    return devtools


async def reached(one: Person, line: int) -> bool:
    """Scroll up by one page of the history; return whether this line is in the window."""
    await one.page.locator(".log").evaluate("(log) => { log.scrollTop = 200; }")
    return int((await one.texts())[0].split()[1]) <= line


async def test_ten_thousand_messages_scroll_smoothly_in_little_memory(system: System, address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f1", viewport={"width": 1280, "height": 800})
        await ann.register()
        authors = [f"author-{number}" for number in range(AUTHORS)]
        group = await system.group(*authors, ann.name, title="Long")
        clients = [ChatClient(name) for name in authors]
        for client in clients:
            await client.connect(system.urls[0])
        for first in range(0, MESSAGES, AT_ONCE):
            await asyncio.gather(
                *(
                    clients[i % AUTHORS].sent(group, f"line {i} " + "word " * (i % 23))
                    for i in range(first, first + AT_ONCE)
                )
            )
        for client in clients:
            await client.disconnect()
        devtools = await watched(ann)
        await ann.row("Long").click()
        await ann.sees(f"line {MESSAGES - 1} ")
        rates, pauses, heap = [], [], 0.0
        for tenth in range(9, -1, -1):
            rate, pause = await ann.page.evaluate(SCROLL, [SCROLL_MS, 50])
            rates.append(rate)
            pauses.append(pause)
            heap = max(heap, await heap_mb(devtools))
            assert await ann.page.locator(".message").count() <= WINDOW
            await support.eventually(partial(reached, ann, MESSAGES * tenth // 10), 120, every_s=0.02)
        rates.sort()
        print(
            f"\nscrolling {MESSAGES} messages: {rates[len(rates) // 2]:.0f} frames/s (median of {len(rates)}, lowest "
            f"{rates[0]:.0f}), longest pause {max(pauses):.0f} ms, heap {heap:.0f} MB"
        )
        assert rates[len(rates) // 2] >= FRAMES_PER_S
        assert heap < HEAP_MB


async def test_group_of_a_thousand_with_a_message_a_second_stays_smooth(system: System, address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-f2", viewport={"width": 1280, "height": 800})
        await ann.register()
        members = [f"member-{number}" for number in range(MEMBERS - 1)]
        group = await system.group(ann.name, *members, title="Large")
        devtools = await watched(ann)
        await ann.row("Large").click()
        await ann.page.get_by_label("Write a message").wait_for()
        before = await heap_mb(devtools)
        showing = asyncio.create_task(ann.page.evaluate(SCROLL, [TALK_S * 1000, 0]))
        late: list[float] = []
        for second in range(TALK_S):
            sent = time.monotonic()
            body = {"to": group, "from": members[second * 7 % len(members)], "body": f"second {second} of the talk"}
            await system.api("POST", "/v1/messages", body)
            await ann.sees(f"second {second} of the talk")
            late.append(time.monotonic() - sent)
            await asyncio.sleep(max(0.0, 1 - late[-1]))
        rate, pause = await showing
        heap = await heap_mb(devtools)
        median_ms = sorted(late)[len(late) // 2] * 1000
        print(
            f"\na group of {MEMBERS}, {TALK_S} messages, one a second: {rate:.0f} frames/s, longest pause "
            f"{pause:.0f} ms, shown after {median_ms:.0f} ms (median), heap {before:.1f}, then {heap:.1f} MB"
        )
        assert await ann.texts() == [f"second {second} of the talk" for second in range(TALK_S)]
        await expect(ann.page.locator(".banner")).to_have_count(0)
        assert rate >= FRAMES_PER_S
        assert heap < HEAP_MB


async def test_five_messages_of_a_minute_without_network_are_there_soon_after_it(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-f3"), await people.person("bob-f3")
        await ann.register()
        await bob.register()
        await ann.write_to(bob.name)
        await ann.context.set_offline(True)
        for number in range(5):
            await ann.say(f"queued {number}")
            await ann.sees(f"queued {number}")
        await asyncio.sleep(OFFLINE_S)
        await ann.context.set_offline(False)
        back = time.monotonic()
        await bob.row(ann.name).click()
        await bob.sees("queued 4")
        took_s = time.monotonic() - back
        print(f"\nafter {OFFLINE_S} s without network, five messages are there after {took_s:.1f} s")
        assert await bob.texts() == [f"queued {number}" for number in range(5)]
        assert took_s < SOON_S


@pytest.mark.skipif(not LIGHTHOUSE.exists(), reason="`make page` installs Lighthouse into .venv/lighthouse")
@pytest.mark.parametrize("form", ["mobile", "desktop"])
def test_lighthouse_finds_it_accessible_and_quick(address: str, form: str, tmp_path: Path) -> None:
    """On a phone Lighthouse assumes a slow network and processor. The performance is the median of three visits."""
    visits = [judged(address, form, tmp_path / "report.json") for _ in range(3)]
    quick = sorted(one["categories"]["performance"]["score"] for one in visits)
    accessible = [one["categories"]["accessibility"]["score"] for one in visits]
    paint = [one["audits"]["first-contentful-paint"]["displayValue"] for one in visits]
    print(f"\nLighthouse, {form}: performance {quick}, accessibility {accessible}, first paint {paint}")
    audits = visits[0]["audits"].items()
    poor = [name for name, one in audits if one["score"] is not None and one["score"] < LIGHTHOUSE_QUICK]
    assert accessible == [1, 1, 1], poor
    assert quick[1] >= LIGHTHOUSE_QUICK, poor


def judged(address: str, form: str, report: Path) -> dict[str, Any]:
    """Return the report of Lighthouse about one visit with an empty browser cache."""
    command = [
        sdk.NODE, str(LIGHTHOUSE), f"{address}/", "--output=json", f"--output-path={report}", "--quiet",
        "--only-categories=performance,accessibility", "--chrome-flags=--headless=new --no-sandbox --disable-gpu",
        *(["--preset=desktop"] if form == "desktop" else []),
    ]  # fmt: skip
    environ = {**os.environ, "CHROME_PATH": str(EXECUTABLE)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found
