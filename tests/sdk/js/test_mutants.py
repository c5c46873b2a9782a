"""Mutants of the SDK: each one breaks a promise, and the check of that promise fails.

A mutant is the SDK's source with one line replaced. A check is a short form of the test of one promise: it holds for
the source as it is, and fails for the mutant.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flow.client import ChatClient
from tests.sdk.js.application import SOURCE, NodeApplication
from tests.sdk.js.browser import EXECUTABLE, Browser
from tests.sdk.js.conftest import Proxied
from tests.support import DEADLINE_S, eventually

SOON_S = 4.0  # how long the check of a mutant waits for what the mutant may never do


@dataclass(frozen=True)
class World:
    """What a check works in; users and store are its own."""

    behind: Proxied
    name: str
    store: Path
    source: Path
    soon_s: float = DEADLINE_S

    @property
    def alice(self) -> str:
        return f"alice-{self.name}"

    @property
    def conversation(self) -> str:
        return f"d:{self.alice}:bob-{self.name}"

    async def bob(self) -> ChatClient:
        client = ChatClient(f"bob-{self.name}")
        await client.connect(self.behind.system.urls[0])
        return client

    def app(self) -> NodeApplication:
        return NodeApplication(self.source)


async def outbox_survives(world: World) -> None:
    """A stored message is sent by the next process."""
    bob = await world.bob()
    async with world.app() as app:
        await app.open(world.behind.api, world.alice, world.store)
        await app.call("send", to=f"@{bob.user}", body="kept")
        await app.kill()
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store)
        assert await bob.has(world.conversation, 1, world.soon_s) == ["kept"]


async def numbers_are_not_reused(world: World) -> None:
    """After a restart, even one with an earlier clock, each message takes effect."""
    bob = await world.bob()
    for body in ("one", "two"):
        async with world.app() as app:
            await app.start(world.behind.api, world.alice, world.store)
            sent = await app.call("send", to=f"@{bob.user}", body=body, wait=None)
            assert sent
            await app.until(type="handle", state="acked", deadline_s=world.soon_s)
    ns = [event["n"] for event in bob.received[world.conversation].values()]
    assert ns == sorted(set(ns))
    assert bob.bodies(world.conversation) == ["one", "two"]


async def done_comes_from_the_store(world: World) -> None:
    """A new process does not say that what the one before it left open is answered."""
    bob = await world.bob()
    proxy = world.behind.proxy
    proxy.pass_command = lambda command: command["type"] != "send"  # none arrives
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store)
        await app.call("send", to=f"@{bob.user}", body="open")
        await app.until(type="handle", state="sent")
        await app.kill()
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store)
        await app.call("send", to=f"@{bob.user}", body="next")
        await eventually(lambda: proxy.count("send") >= 3, world.soon_s)
    sends = [command for command in proxy.commands if command["type"] == "send"]
    first = min(command["n"] for command in sends)
    assert all(command["done"] < first for command in sends)


async def acks_what_the_handler_had(world: World) -> None:
    """No ack for an event that the handler still works on."""
    bob = await world.bob()
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store, handler="gated")
        first = await bob.sent(f"@{world.alice}", "first")
        second = await bob.sent(f"@{world.alice}", "second")
        await app.call("pass", body="first")
        await app.handed(1)
        await eventually(lambda: world.behind.proxy.count("ack") > 0)
    acked = [c["cursors"].get(first["conversation"], 0) for c in world.behind.proxy.commands if c["type"] == "ack"]
    assert max(acked) < second["seq"]


async def doubled_events_are_dropped(world: World) -> None:
    """An event that comes twice is handed over once."""
    bob = await world.bob()
    world.behind.proxy.pass_event = lambda event: 2 if event["type"] == "message" else 1
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store)
        for body in ("one", "two", "three"):
            await bob.sent(f"@{world.alice}", body)
        assert await app.handed(3) == ["one", "two", "three"]


async def holes_are_asked_for(world: World) -> None:
    """A lost frame is read from the history, in its place."""
    bob = await world.bob()
    world.behind.proxy.pass_event = lambda event: event.get("body") != "two"
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store)
        for body in ("one", "two", "three"):
            await bob.sent(f"@{world.alice}", body)
        assert await app.handed(3, world.soon_s) == ["one", "two", "three"]


async def handlers_run_beside_the_connection(world: World) -> None:
    """A handler that waits for the ack of its own message gets it."""
    bob = await world.bob()
    async with world.app() as app:
        await app.start(world.behind.api, world.alice, world.store, handler="echo")
        await bob.sent(f"@{world.alice}", "one")
        await bob.sent(f"@{world.alice}", "two")
        await bob.until(lambda: {"echo one", "echo two"} <= set(bob.bodies(world.conversation)), world.soon_s)


async def one_tab_connects(world: World) -> None:
    """Two tabs have one connection."""
    async with Browser(world.source) as browser:
        first, second = await browser.tab(), await browser.tab()
        await first.start(world.behind.api, world.alice)
        await second.start(world.behind.api, world.alice)
        await second.call("send", to=f"@{world.alice}", body="to myself", wait="acked")
        assert [await first.leads(), await second.leads()] == [True, False]
        assert world.behind.proxy.count("hello") == 1


Check = Callable[[World], Awaitable[None]]

# Check, file, the text that is replaced, and its replacement.
MUTANTS: dict[str, tuple[Check, str, str, str]] = {
    "outbox not written": (
        outbox_survives, "outbox.js",
        'await t.put("rows", rowKey(row), row);',
        'if (row.attempts) await t.put("rows", rowKey(row), row);',
    ),
    "n reused after a restart": (
        numbers_are_not_reused, "outbox.js",
        "const n = Math.max(found.last + 1, least, this._now() * 1000);",
        "const n = (this._given = (this._given ?? 1_000_000) + 1);",
    ),
    "done from memory": (
        done_comes_from_the_store, "outbox.js",
        "done: first[0] ? first[0][1].n - 1 : 0 };",
        "done: (rows.at(-1)?.n ?? 1) - 1 };",
    ),
    "cursor acked before the application had the event": (
        acks_what_the_handler_had, "events.js",
        "if (!this._handles) this._applied.cursors.set(event.conversation, event.seq);",
        "this._applied.cursors.set(event.conversation, event.seq);",
    ),
    "dedupe off": (
        doubled_events_are_dropped, "events.js",
        "if (event.seq <= row.cursor) return;",
        "",
    ),
    "hole not asked for": (
        holes_are_asked_for, "events.js",
        "} else if (event.prev > row.cursor && !follows) {",
        "} else if (false) {",
    ),
    "user callback in the read loop": (
        handlers_run_beside_the_connection, "connection.js",
        "socket.onmessage = ({ data }) => {",
        "let before = Promise.resolve(); socket.onmessage = async ({ data }) => { const turn = before;"
        " before = before.then(() => globalThis.handling); await turn;",
    ),
    "lock ignored": (
        one_tab_connects, "election.js",
        "navigator.locks.request(this._name, options, () => this._hold()).catch(",
        "this._hold().catch(",
    ),
}  # fmt: skip
HANDLING = ("handing.js", "await this._handler(event);", "await (globalThis.handling = this._handler(event));")


def mutated(folder: Path, *changes: tuple[str, str, str]) -> Path:
    """The source with these changes, each of which must apply exactly once."""
    source = folder / "src"
    shutil.copytree(SOURCE, source)
    (folder / "package.json").write_text('{"type": "module"}')
    for file, old, new in changes:
        text = (source / file).read_text()
        assert text.count(old) == 1, (file, old)
        (source / file).write_text(text.replace(old, new))
    return source


CHECKS = list(dict.fromkeys(check for check, *_ in MUTANTS.values()))


def needs_browser(check: Check) -> bool:
    return check is one_tab_connects and EXECUTABLE is None


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_check_holds_without_a_mutant(check: Check, proxied: Proxied, tmp_path: Path) -> None:
    if needs_browser(check):
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    await check(World(proxied, check.__name__[:20], tmp_path / "store", SOURCE))


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_mutant_is_noticed(mutant: str, proxied: Proxied, tmp_path: Path) -> None:
    check, *change = MUTANTS[mutant]
    if needs_browser(check):
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    changes = [(change[0], change[1], change[2])] + ([HANDLING] if mutant == "user callback in the read loop" else [])
    world = World(proxied, mutant.replace(" ", "-")[:30], tmp_path / "store", mutated(tmp_path, *changes), SOON_S)
    with pytest.raises((AssertionError, asyncio.TimeoutError)):
        await check(world)
