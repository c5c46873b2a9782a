"""Tabs of one browser: one connection, one outbox, and nothing lost when the leading tab ends, stops or is hidden."""

from __future__ import annotations

import asyncio

import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.browser import EXECUTABLE, Browser
from tests.sdk.js.conftest import Proxied
from tests.support import eventually

# Six writers, each with a connection of its own; `written` resolves when all of them have written once more.
WRITERS = """async () => {
  const { openIndexedDb } = await import("/sdk/store_indexeddb.js");
  const rounds = Array(6).fill(0);
  window.failures = [];
  addEventListener("unhandledrejection", ({ reason }) => window.failures.push(`unhandled ${reason}`));
  rounds.forEach(async (_, writer) => {
    for (;;) {
      try {
        const store = await openIndexedDb("removed");
        for (;; rounds[writer] += 1) await store.transact("outbox", true, async (t) => {
          for (let i = 0; i < 20; i += 1) await t.put("rows", `${writer} ${i}`, await t.get("meta", "meta") ?? i);
        });
      } catch (error) {
        window.failures.push(error.constructor.name === "StoreLost" ? "StoreLost" : String(error));
      }
    }
  });
  window.written = async () => {
    const before = [...rounds];
    while (rounds.some((round, writer) => round === before[writer])) await new Promise((done) => setTimeout(done, 20));
  };
}"""
# Returns the errors of two transactions. A request of the first fails as if the browser had closed the database, which
# Chromium seldom reports in this way; the second has already ended when its work is done.
ENDED = """async () => {
  const { openIndexedDb } = await import("/sdk/store_indexeddb.js");
  const store = await openIndexedDb("ended");
  const failure = (working) => working.then(() => "none", (error) => error.constructor.name);
  const closed = await failure(store.transact("outbox", true, async (t) => {
    await t.get("meta", "meta");
    throw new DOMException("Backend aborted error", "InvalidStateError");
  }));
  const begin = IDBDatabase.prototype.transaction;
  let transaction;
  IDBDatabase.prototype.transaction = function (...args) { return (transaction = begin.apply(this, args)); };
  const working = store.transact("outbox", true, async (t) => {
    await t.get("meta", "meta");
    transaction.abort();
    await new Promise((done) => transaction.addEventListener("abort", done));
  });
  IDBDatabase.prototype.transaction = begin;
  return [closed, await failure(working)];
}"""

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")


async def test_messages_stored_before_a_reload_are_sent_after_it(chat: System, api: str) -> None:
    """The browser is asked once, after the first message, to keep the store when its disk is full."""
    bob = ChatClient("bob-t1")
    await bob.connect(chat.urls[0])
    async with Browser() as browser:
        tab = await browser.tab()
        first = await tab.open(api, "alice-t1")
        assert first["durable"]
        asked = "navigator.storage.persist = async () => { window.asked = (window.asked ?? 0) + 1; }"
        await tab.page.evaluate(f"() => {{ {asked} }}")
        await tab.call("send_many", to="@bob-t1", bodies=["kept", "kept too"])
        assert await tab.page.evaluate("window.asked") == 1
        await tab.load()
        assert (await tab.start(api, "alice-t1"))["device"] == first["device"]
        assert await bob.has("d:alice-t1:bob-t1", 2) == ["kept", "kept too"]

        async def shown_once() -> bool:
            return await tab.shown("@bob-t1") == ["kept", "kept too"] and await tab.call("outbox", to="@bob-t1") == []

        await eventually(shown_once)
    assert bob.whole("d:alice-t1:bob-t1")


async def test_tabs_share_one_connection(proxied: Proxied) -> None:
    """What the follower sends is acked through the leader, and both show all."""
    system, proxy, api = proxied
    bob = ChatClient("bob-t2")
    await bob.connect(system.urls[0])
    async with Browser() as browser:
        leader, follower = await browser.tab(), await browser.tab()
        await leader.start(api, "alice-t2")
        await follower.start(api, "alice-t2")
        assert await leader.leads()
        assert not await follower.leads()
        await follower.call("connect")  # again: the leader has the connection
        sent = await follower.call("send", to="@bob-t2", body="from the follower", wait="acked")
        assert sent["state"] == "acked"
        await bob.has("d:alice-t2:bob-t2", 1)
        await bob.sent("@alice-t2", "answer")

        async def both_show_both() -> bool:
            shown = [await tab.shown("@bob-t2") for tab in (leader, follower)]
            return shown == [["from the follower", "answer"]] * 2

        await eventually(both_show_both)
        assert proxy.count("hello") == 1


@pytest.mark.parametrize("end", ["closed", "crashed", "stopped", "hidden"])
async def test_another_tab_takes_over_from_a_leader_that_is(end: str, chat: System, api: str) -> None:
    """What both tabs queued before is sent once; the new leader receives what follows."""
    alice, bob = f"alice-{end}", ChatClient(f"bob-{end}")
    conversation = f"d:{alice}:{bob.user}"
    await bob.connect(chat.urls[0])
    async with Browser() as browser:
        leader, follower = await browser.tab(), await browser.tab()
        await leader.start(api, alice)
        await follower.start(api, alice)
        bodies = [f"m{i}" for i in range(40)]
        await leader.call("send_many", to=f"@{bob.user}", bodies=bodies[:20])
        match end:
            case "closed":
                await leader.page.close()
            case "crashed":
                await leader.crash()
            case "stopped":
                await leader.stop(8000)
            case "hidden":
                await leader.hide()
        await follower.call("send_many", to=f"@{bob.user}", bodies=bodies[20:])
        await eventually(follower.leads)
        await bob.has(conversation, 40)
        await bob.sent(f"@{alice}", "answer")

        async def shows_all() -> bool:
            return sorted(await follower.shown(f"@{bob.user}")) == sorted([*bodies, "answer"])

        await eventually(shows_all)
        if end in ("stopped", "hidden"):

            async def follows() -> bool:
                return not await leader.leads() and sorted(await leader.shown(f"@{bob.user}")) == sorted(
                    [*bodies, "answer"]
                )

            await eventually(follows)
            assert await follower.leads()
    assert sorted(bob.bodies(conversation)) == sorted([*bodies, "answer"])
    assert bob.whole(conversation)


async def test_message_sent_offline_is_delivered_when_the_network_is_back(proxied: Proxied) -> None:
    system, proxy, api = proxied
    bob = ChatClient("bob-t4")
    await bob.connect(system.urls[0])
    async with Browser() as browser:
        tab = await browser.tab()
        await tab.start(api, "alice-t4")
        assert browser.context is not None
        await browser.context.set_offline(True)
        await proxy.cut()
        await tab.until(type="status", status="waiting")
        await tab.call("send", to="@bob-t4", body="written offline")
        assert bob.bodies("d:alice-t4:bob-t4") == []
        await browser.context.set_offline(False)
        assert await bob.has("d:alice-t4:bob-t4", 1) == ["written offline"]
        assert (await tab.call("acked", name="written offline"))["state"] == "acked"


async def test_store_wiped_while_running_is_a_new_device_that_settles_what_is_open(proxied: Proxied) -> None:
    system, proxy, api = proxied
    bob = ChatClient("bob-t5")
    await bob.connect(system.urls[0])
    async with Browser() as browser:
        tab = await browser.tab()
        first = await tab.start(api, "alice-t5")
        await tab.call("send", to="@bob-t5", body="before", wait="acked")
        proxy.pass_event = lambda event: event["type"] != "ack"
        await tab.call("send", to="@bob-t5", body="open")
        await bob.has("d:alice-t5:bob-t5", 2)
        await tab.wipe()
        proxy.pass_event = lambda event: 1
        await tab.call("send", to="@bob-t5", body="after", wait="acked")
        assert (await tab.call("acked", name="open"))["state"] == "acked"
        assert (await tab.call("status"))["device"] != first["device"]
        shown = [message["body"] for message in await tab.call("messages", to="@bob-t5")]
        assert shown[-1] == "after"  # by the conversation that the application has had from the beginning
        burst = [f"in the middle {number}" for number in range(40)]
        storing = asyncio.create_task(tab.call("send_many", to="@bob-t5", bodies=burst))
        await tab.until(type="handle", name=burst[9], state="queued")
        await tab.wipe()  # while transactions are open
        await storing
        await tab.call("acked", name=burst[-1])
        assert [report for report in tab.reports if report["type"] == "error"] == []
    assert sorted(bob.bodies("d:alice-t5:bob-t5")) == sorted(["after", "before", "open", *burst])
    assert bob.whole("d:alice-t5:bob-t5")


async def test_store_that_the_browser_removes_is_lost_and_opened_again() -> None:
    """Whatever the store is doing then, it fails as lost. The store that is opened next is durable, too."""
    async with Browser() as browser:
        tab = await browser.tab()
        await tab.page.evaluate(WRITERS)
        assert browser.context is not None
        devtools = await browser.context.new_cdp_session(tab.page)
        for _ in range(5):
            await tab.page.evaluate("() => window.written()")
            origin = {"origin": await tab.page.evaluate("location.origin"), "storageTypes": "indexeddb"}
            await devtools.send("Storage.clearDataForOrigin", origin)
        await tab.page.evaluate("() => window.written()")
        assert await tab.page.evaluate(ENDED) == ["StoreLost", "StoreLost"]
        assert set(await tab.page.evaluate("() => window.failures")) == {"StoreLost"}


async def test_tabs_of_no_secure_context_are_devices_of_their_own_from_a_pool_of_four(proxied: Proxied) -> None:
    """A fifth tab is in memory and says so; one that is loaded again has its store again, and sends what was stored."""
    system, proxy, api = proxied
    bob = ChatClient("bob-t6")
    await bob.connect(system.urls[0])
    async with Browser(host="insecure.test") as browser:
        tabs = [await browser.tab() for _ in range(5)]
        assert not await tabs[0].page.evaluate("() => isSecureContext")
        opened = [await tab.open(api, "alice-t6") for tab in tabs]
        assert [one["durable"] for one in opened] == [True, True, True, True, False]
        assert len({one["device"] for one in opened}) == 5
        await tabs[1].call("send", to="@bob-t6", body="kept")
        await tabs[1].load()
        assert (await tabs[1].start(api, "alice-t6"))["device"] == opened[1]["device"]
        assert await bob.has("d:alice-t6:bob-t6", 1) == ["kept"]
        await tabs[4].start(api, "alice-t6")
        await tabs[4].call("send", to="@bob-t6", body="from memory", wait="acked")
        assert proxy.count("hello") == 2
        assert await bob.has("d:alice-t6:bob-t6", 2) == ["kept", "from memory"]


async def test_tab_whose_place_was_taken_takes_another(proxied: Proxied) -> None:
    """It slept longer than its lease: it goes on under another name, and the other tab sends what it had stored."""
    system, _, api = proxied
    bob = ChatClient("bob-t7")
    await bob.connect(system.urls[0])
    expired = (
        "(tab) => new Promise((done) => { const opening = indexedDB.open(tab);"
        " opening.onsuccess = () => { const t = opening.result.transaction('meta', 'readwrite');"
        " t.objectStore('meta').put({ tab: 'gone', until: 0 }, 'lease');"
        " t.oncomplete = () => { opening.result.close(); done(); }; }; })"
    )
    async with Browser(host="insecure.test") as browser:
        first, second = await browser.tab(), await browser.tab()
        before = await first.open(api, "alice-t7")
        await first.call("send", to="@bob-t7", body="stored before")
        await first.page.evaluate(expired, f"linnet:{api}:alice-t7:1:outbox")
        assert (await second.start(api, "alice-t7"))["device"] == before["device"]
        assert await bob.has("d:alice-t7:bob-t7", 1) == ["stored before"]
        sent = await first.call("send", to="@bob-t7", body="stored after", wait=None)
        assert sent
        assert await bob.has("d:alice-t7:bob-t7", 2) == ["stored before", "stored after"]
        assert (await first.call("status"))["device"] != before["device"]
