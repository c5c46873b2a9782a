"""What people do at the page, in a real Chromium, with real gateways."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from playwright.async_api import Error, Route, WebSocketRoute, expect

from deploy.web import PAGE
from loadtest.chaos.proxy import Proxy
from loadtest.ports import free_ports
from tests.flow.client import token as signed_token
from tests.flow.conftest import System
from tests.router.web.people import EXECUTABLE, PASSWORD, Person, town
from tests.support import SERVER_KEY, eventually

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

DEADLINE_MS = 30_000
expect.set_options(timeout=DEADLINE_MS)


async def test_two_people_talk_while_gateways_are_killed(address: str, system: System) -> None:
    """They write, reply, edit, react, forward and delete; both see the same, and what was written without a gateway."""
    async with town(address) as people:
        ann, bob = await people.person("ann-p1"), await people.person("bob-p1", viewport={"width": 360, "height": 740})
        await ann.register(f"#/@{bob.name}")  # by bob's invitation, though he is not there yet
        await bob.register()
        await ann.say("Shall we meet?")
        await expect(bob.row(ann.name).get_by_label("1 unread message")).to_be_visible()
        await bob.row(ann.name).click()
        await bob.sees("Shall we meet?")
        await expect(ann.message("Shall we meet?").get_by_label("Read")).to_be_visible()
        await bob.page.get_by_label("Write a message").press_sequentially("At si", delay=1)
        await expect(ann.page.locator(".chat-title")).to_contain_text(f"{bob.name} is typing")
        await bob.say("At six")
        await ann.act("At six", "Reply")
        await ann.say("Where?")
        await expect(bob.message("Where?").locator(".quote")).to_contain_text("At six")
        await bob.page.get_by_label("Write a message").fill("Begun before the edit")
        await bob.act("At six", "Edit")
        await bob.say("At seven")
        await expect(bob.page.get_by_label("Write a message")).to_have_value("Begun before the edit")
        await bob.page.get_by_label("Write a message").fill("")
        await expect(ann.message("At seven")).to_contain_text("edited")
        await ann.act("At seven", "React with 👍")
        await bob.page.get_by_role("button", name="👍, 1 person").click()
        await expect(ann.page.get_by_role("button", name="👍, 2 people")).to_be_visible()

        killed = system.gateways
        for gateway in killed:
            gateway.kill()
        await expect(ann.page.locator(".banner")).to_contain_text("No connection")
        await ann.say("Written without a gateway")
        await expect(ann.message("Written without").get_by_label("Waiting to be sent")).to_be_visible()
        await ann.page.locator(".banner button").click()
        await expect(ann.page.get_by_role("dialog", name="Outbox")).to_contain_text(bob.name)
        await ann.page.keyboard.press("Escape")
        system.gateways = [system.gateway(), system.gateway()]
        await system.ready()
        await bob.sees("Written without a gateway")
        await expect(ann.page.locator(".banner")).to_have_count(0)
        await expect(ann.message("Written without").get_by_label("Read")).to_be_visible()

        await ann.act("Where?", "Delete")
        await ann.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(bob.page.get_by_text("Message deleted")).to_have_count(1)
        await bob.act("At seven", "Forward")
        await bob.page.get_by_role("dialog").get_by_role("button", name=ann.name).click()
        await expect(ann.page.get_by_text(f"Forwarded from {bob.name}")).to_be_visible()
        assert await ann.texts() == await bob.texts()


async def test_group_has_members_roles_and_mentions(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-p2"), await people.person("bob-p2")
        sockets: list[WebSocketRoute] = []

        def between(route: WebSocketRoute) -> None:
            route.connect_to_server()
            sockets.append(route)

        await bob.page.route_web_socket(re.compile("/ws$"), between)
        await ann.register()
        await bob.register()
        await ann.page.locator("#main").get_by_role("button", name="Make a group").click()
        dialog = ann.page.get_by_role("dialog")
        await dialog.get_by_label("Title").fill("Harbour walk")
        await dialog.get_by_label("People").fill(bob.name)
        await dialog.get_by_role("button", name="Create").click()
        await expect(ann.page.locator(".chat-title")).to_contain_text("Harbour walk")
        await ann.page.get_by_label("Write a message").press_sequentially("Hello @bo")
        await ann.page.get_by_role("option", name=f"@{bob.name}").wait_for()
        await ann.page.keyboard.press("Enter")
        await ann.page.keyboard.press("Enter")
        await bob.row("Harbour walk").click()
        await expect(bob.page.locator(".mention.me")).to_have_text(f"@{bob.name}")
        await shows_held(bob, sockets[-1], "Harbour walk")
        await bob.page.locator(".chat-title").click()
        await expect(bob.page.get_by_role("dialog")).to_contain_text("Owner")
        await expect(bob.page.get_by_role("dialog").get_by_label("Add a person by name")).to_have_count(0)
        await bob.page.keyboard.press("Escape")
        await ann.page.locator(".chat-title").click()
        await dialog.get_by_role("button", name=f"What to do with {bob.name}").click()
        await dialog.get_by_role("menuitem", name="Make reader").click()
        await expect(dialog).to_contain_text("Reader")
        await expect(bob.page.get_by_text("You can read here, but not write.")).to_be_visible()
        await bob.page.locator(".chat-title").click()
        await bob.page.get_by_role("dialog").get_by_role("button", name="Leave").click()
        await expect(bob.page.get_by_role("button", name="Really leave")).to_be_visible()  # the first press only asks
        await bob.page.keyboard.press("Escape")
        await dialog.get_by_role("button", name=f"What to do with {bob.name}").click()
        await dialog.get_by_role("menuitem", name="Remove").click()
        await expect(bob.page.locator(".closed")).to_contain_text("You are no longer a member")


async def shows_held(person: Person, socket: WebSocketRoute, title: str) -> None:
    """The list and the open conversation say that its part of the server does not answer, until it does."""
    id_ = unquote((await person.page.evaluate("location.hash")).removeprefix("#/c/"))
    mark = person.row(title).get_by_role("img", name="does not answer")
    for held in (True, False):
        entry = {"conversation": id_, "kind": "group", "title": title, "held": held}
        socket.send(json.dumps({"type": "conversations", "conversations": [entry], "more": False}))
        await expect(mark).to_have_count(int(held))
        await expect(person.page.get_by_text("A part of the server does not answer")).to_have_count(int(held))


async def test_long_history_is_a_window_that_keeps_the_place(address: str) -> None:
    """440 messages: never more than 400 in the page, in their order, and the one that is read stays where it is."""
    async with town(address) as people:
        ann = await people.person("ann-p3")
        await ann.register()
        async with httpx.AsyncClient(base_url=address, headers=server(), timeout=60, trust_env=False) as http:
            for i in range(440):
                body = {"to": f"@{ann.name}", "from": "teller-p3", "body": f"line {i}"}
                assert (await http.post("/v1/messages", json=body)).status_code == 200
        await ann.write_to("teller-p3")
        log = ann.page.get_by_role("log")

        async def up_to(seen: str) -> bool:
            await log.evaluate("(log) => { log.scrollTop = 200; }")
            numbers = [int(text.removeprefix("line ")) for text in await ann.texts()]
            assert numbers == sorted(numbers)
            assert len(numbers) <= 400
            return f"line {numbers[0]}" == seen

        await eventually(lambda: up_to("line 0"), 60)
        await ann.page.get_by_role("button", name="To the newest message").click()
        await ann.sees("line 439")
        await expect(ann.page.get_by_role("button", name="To the newest message")).to_have_count(0)
        await expect(ann.row("teller-p3").locator(".count")).to_have_count(0)


async def test_socket_does_not_wait_for_the_views(address: str) -> None:
    """The views are held back until the socket of the page has been opened."""
    async with town(address) as people:
        ann = await people.person("ann-p22", service_workers="block")  # it would answer in the place of the route
        await ann.register()
        opened = asyncio.Event()

        async def hold(route: Route) -> None:
            await opened.wait()
            await route.continue_()

        await ann.page.route("**/shell.js", hold)
        ann.page.on("websocket", lambda _: opened.set())
        await ann.open()
        await ann.live()


async def test_list_of_a_distant_page_needs_at_most_fifteen_modules(address: str) -> None:
    """A round trip takes 150 ms, the browser has kept no file, the user is logged in, and reads German, which is one
    module more. The time is only printed."""
    (port,) = free_ports(1)
    proxy = Proxy(port, int(address.rpartition(":")[2]))
    await proxy.start()
    try:
        async with town(f"http://127.0.0.1:{port}") as people:
            ann = await people.person("ann-p23", service_workers="block")
            await ann.register()
            await ann.write_to(await people.account("bob-p23"))
            await ann.say("Hello")
            await expect(ann.message("Hello").get_by_label("Stored by the server")).to_be_visible()
            await ann.page.evaluate("localStorage.setItem('linnet-language', 'de')")
            await ann.page.goto("about:blank")
            devtools = await ann.context.new_cdp_session(ann.page)
            await devtools.send("Network.clearBrowserCache")
            await ann.page.add_init_script(NOTE_FIRST_ROW)
            proxy.delay_s = 0.075
            await ann.open()
            await ann.row("bob-p23").wait_for()
            shown_ms, modules = await ann.page.evaluate(LOADED_BEFORE_FIRST_ROW)
    finally:
        await proxy.close()
    print(f"the list is shown after {shown_ms:.0f} ms at 150 ms for a round trip, with {len(modules)} modules")
    assert any(path.endswith("/lang/de.js") for path in modules), modules
    assert 3 <= len(modules) <= 15, modules


NOTE_FIRST_ROW = """new MutationObserver((_, observer) => {
    if (!document.querySelector(".conversations a")) return;
    window.firstRow = performance.now();
    observer.disconnect();
}).observe(document, { subtree: true, childList: true });"""
LOADED_BEFORE_FIRST_ROW = """() => [window.firstRow, performance.getEntriesByType("resource")
    .filter(({ startTime }) => startTime < window.firstRow)
    .map(({ name }) => new URL(name).pathname)
    .filter((path) => path.startsWith("/web/") && path.endsWith(".js"))]"""


async def test_blocked_person_reaches_nobody_until_unblocked(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-p8"), await people.person("bob-p8")
        await ann.register()
        await bob.register()
        await ann.write_to(bob.name)
        await ann.say("Hello")
        await bob.row(ann.name).click()
        await bob.page.locator(".chat-title").click()
        await bob.page.get_by_role("button", name="Block", exact=True).click()
        await expect(bob.page.get_by_role("dialog")).to_contain_text("You have blocked this person.")
        await ann.say("Are you there?")
        await expect(ann.message("Are you there?")).to_contain_text("Not sent")
        await bob.page.get_by_role("button", name="Unblock").click()
        await bob.page.get_by_role("button", name="Block", exact=True).wait_for()
        await ann.message("Are you there?").get_by_role("button", name="Send again").click()
        await bob.sees("Are you there?")


NOTE_QUESTION = """Object.defineProperty(Notification, "permission", { get: () => "default" });
Notification.requestPermission = async () => { window.askedToNotify = true; return "default"; };"""


async def test_conversation_shows_who_is_there_its_days_and_what_is_new(address: str) -> None:
    """Presence and last seen, the line before what is unread, the search; only a click asks for notifications."""
    async with town(address) as people:
        ann, bob = await people.person("ann-p24"), await people.person("bob-p24")
        await ann.page.add_init_script(NOTE_QUESTION)
        await ann.register()
        await bob.register()
        await ann.write_to(bob.name)
        await expect(ann.page.locator(".chat-title")).to_contain_text("online")
        await ann.say("Seen before")
        await bob.row(ann.name).click()
        await bob.sees("Seen before")
        await expect(bob.page.locator(".day")).to_have_text(["Today"])
        await expect(ann.message("Seen before").get_by_label("Read")).to_be_visible()
        await bob.page.evaluate("location.hash = '#/'")
        for text in ("New one", "New two"):
            await ann.say(text)
        await bob.row(ann.name).get_by_label("2 unread messages").click()
        line = bob.page.locator(".unread-line")
        await expect(line).to_have_text("New messages")
        assert await line.evaluate("(line) => line.nextElementSibling.querySelector('.text').textContent") == "New one"
        for query, found in (("no such", 0), ("new two", 1)):
            await bob.page.get_by_role("searchbox", name="Search").fill(query)
            await expect(bob.row(ann.name)).to_have_count(found)
        await bob.page.goto("about:blank")
        await expect(ann.page.locator(".chat-title")).to_contain_text("last seen just now")
        assert await ann.page.evaluate("window.askedToNotify") is None
        await ann.menu("Show notifications")
        await ann.until("window.askedToNotify === true")


async def test_page_that_cannot_connect_names_the_setting_that_is_wrong(address: str) -> None:
    """Nothing is refused before the socket is open but by a setting: the page asks the API and says which."""
    async with town(address) as people:
        ann = await people.person("ann-p25", service_workers="block")
        await ann.register()
        gateways: list[str] = []

        async def answer(route: Route) -> None:
            await route.fulfill(json={"gateways": gateways})

        await ann.page.route("**/v1/gateways", answer)
        refusing = f"{address.replace('http', 'ws')}/ws"  # a router, which takes no sockets
        for given, said in (
            ([], "no gateway is running"),
            ([refusing], "LINNET_ORIGINS lacks this page's origin"),
            (["ws://elsewhere.example/ws"], "LINNET_WEB_CONNECT must name it: ws://elsewhere.example"),
        ):
            gateways[:] = given
            await ann.page.reload()
            await expect(ann.page.locator(".banner.bad")).to_contain_text(said)
        assert all("Content Security Policy" in error for error in ann.errors)
        ann.errors.clear()


async def test_picture_that_is_received_is_shown(address: str) -> None:
    async with town(address) as people:
        ann, bob = await people.person("ann-p9"), await people.person("bob-p9")
        await ann.register()
        await bob.register()
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
            login = {"user": bob.name, "password": PASSWORD, "device": "script"}
            token = (await http.post("/v1/login", json=login)).json()["token"]
            by = {"Authorization": f"Bearer {token}"}
            picture = {"Content-Type": "image/png", "Linnet-Name": "icon.png"}
            body = (PAGE / "icon-192.png").read_bytes()
            file = (await http.post("/v1/uploads", content=body, headers={**by, **picture})).json()
            sent = {"to": f"@{ann.name}", "body": "Look", "media": "image", "files": [file["sha256"]]}
            assert (await http.post("/v1/messages", json=sent, headers=by)).status_code == 200
        await ann.row(bob.name).click()
        await ann.sees("Look")
        await expect(ann.message("Look").get_by_role("img", name="icon.png")).to_be_visible()
        await ann.until("document.querySelector('.picture img')?.naturalWidth > 0")


def server() -> dict[str, str]:
    return {"Authorization": f"Bearer {SERVER_KEY}"}


ATTACKS = (
    "<img src=x onerror=\"document.body.dataset.owned='1'\">",
    "<script>document.body.dataset.owned='1'</script>",
    "\"><svg/onload=document.body.dataset.owned='1'>",
    "javascript:document.body.dataset.owned='1'",
    "https://x.example/\"onmouseover=\"document.body.dataset.owned='1'",
    "data:text/html,<script>document.body.dataset.owned='1'</script>",
    "{{constructor.constructor('document.body.dataset.owned=1')()}}",
    "@<b>x</b> mailto:javascript:alert(1)@x.example",
)
BODIES: tuple[Any, ...] = (
    {"text": ATTACKS[0], "forwarded": ATTACKS[1], "mentions": [ATTACKS[2], {"a": 1}]},
    {"text": {"type": "img", "props": {"onerror": ATTACKS[0]}}, "forwarded": {"constructor": None, "type": "script"}},
    {"type": "script", "props": {"dangerouslySetInnerHTML": {"__html": ATTACKS[1]}}, "constructor": None},
    {"text": "x", "forwarded": {"toString": 1}}, [ATTACKS[0]], 7, True, {"__proto__": {"text": ATTACKS[1]}},
)  # fmt: skip


async def test_script_of_a_stranger_adds_no_element(address: str) -> None:
    """In every field that a stranger controls: nothing runs, nothing but text is shown, and the policy has no work."""
    async with town(address) as people:
        ann = await people.person("ann-p4")
        await ann.register()
        async with httpx.AsyncClient(base_url=address, headers=server(), timeout=60, trust_env=False) as http:
            titled = {"kind": "group", "title": ATTACKS[0], "members": [ann.name]}
            made = await http.post("/v1/conversations", json=titled, headers={"Linnet-User": "eve-p4"})
            group = made.json()["conversation"]
            for body in (*ATTACKS, *BODIES):
                for to in (group, f"@{ann.name}"):
                    media = ATTACKS[1][:64] if body == ATTACKS[0] else "text"
                    sent = {"to": to, "from": "eve-p4", "body": body, "media": media}
                    assert (await http.post("/v1/messages", json=sent)).status_code == 200
        await expect(ann.row(ATTACKS[0])).to_be_visible()
        for row in (ann.row(ATTACKS[0]), ann.row("eve-p4")):
            await row.click()
            await expect(ann.page.locator(".message")).to_have_count(len(ATTACKS) + len(BODIES))
            for tag in ("img", "script", "iframe", "style", "object"):
                await expect(ann.page.locator(f"#app {tag}")).to_have_count(0)
            for link in await ann.page.locator(".message a").all():
                assert str(await link.get_attribute("href")).split(":")[0] in ("http", "https", "mailto")
                assert await link.get_attribute("onmouseover") is None
        await ann.page.locator(".chat-title").click()
        await ann.page.keyboard.press("Escape")
        for hash_ in ("#/@<img src=x>", "#/c/%", "#/join/%", "#/join/../..", "#/@%3Cscript%3E", "#/c/__proto__"):
            await ann.page.evaluate("(hash) => { location.hash = hash; }", hash_)
        await expect(ann.page.locator("body[data-owned]")).to_have_count(0)


TOKEN = """() => new Promise((resolve) => {
  indexedDB.open("linnet-web").onsuccess = ({ target: { result } }) => {
    result.transaction("accounts").objectStore("accounts").getAll().onsuccess = (event) => {
      result.close();
      resolve(event.target.result[0].token);
    };
  };
})"""


async def test_logging_out_deletes_everything_in_all_tabs(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-p5")
        await ann.register()
        await ann.write_to("bob-p5")
        second = Person(await ann.context.new_page(), ann.context, address, ann.name)
        await second.open()  # a tab without an account of its own uses the last one
        await second.live()
        token = await ann.page.evaluate(TOKEN)

        async def slow(route: Route) -> None:
            """The other tab is mostly there before this is answered."""
            with suppress(Error):
                await second.page.get_by_role("button", name="Create account and enter").wait_for(timeout=1000)
            await route.continue_()

        await ann.page.route("**/v1/logout", slow)
        await ann.menu("Log out")
        for tab in (ann, second):
            await expect(tab.page.get_by_role("button", name="Create account and enter")).to_be_visible()
        kept = await ann.page.evaluate(
            "async () => [(await indexedDB.databases()).map(({ name }) => name), Object.values(sessionStorage)]"
        )
        assert [name for name in kept[0] if ann.name in name] == []
        assert ann.name not in json.dumps(kept[1])
        assert await ann.context.cookies() == []
        await until_ended(token, address)


# Keeps a token as a page does that could not end it.
KEEP = """(token) => new Promise((resolve) => {
  const request = indexedDB.open("linnet-ended", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("accounts", { keyPath: "token" });
  request.onsuccess = () => {
    const transaction = request.result.transaction("accounts", "readwrite");
    transaction.objectStore("accounts").put({ token, expiresAt: Date.now() + 3600_000 });
    transaction.oncomplete = () => (request.result.close(), resolve());
  };
})"""

# Holds the lock of these tokens until `release()`.
HOLD = """() => new Promise((locked) => {
  const holding = (release) => (globalThis.release = release, locked());
  void navigator.locks.request("linnet-ended", () => new Promise(holding));
})"""

DATABASES = "async () => (await indexedDB.databases()).map(({ name }) => name)"


async def test_token_that_was_logged_out_without_a_connection_is_ended_later(address: str) -> None:
    """Also one that another tab keeps just as this one is about to delete the database, and one that has expired."""
    async with town(address) as people:
        ben = await people.person("ben-p5", service_workers="block")
        await ben.register()
        first = await ben.page.evaluate(TOKEN)
        await ben.page.route("**/v1/logout", lambda route: route.abort())  # as without a connection
        await ben.menu("Log out")
        await ben.page.get_by_role("button", name="Create account and enter").wait_for()
        assert not await is_ended(first, address)
        await ben.page.unroute_all()

        tab = await ben.context.new_page()
        await tab.goto(f"{address}/v1/me")  # of the same origin, without the page's modules
        await tab.evaluate(HOLD)
        await tab.evaluate(KEEP, signed_token(ben.name, -3600))
        await ben.open()

        async def waits() -> bool:
            return bool(await tab.evaluate("async () => (await navigator.locks.query()).pending.length"))

        await eventually(waits, 30, every_s=0.05)
        second = signed_token(ben.name)
        await tab.evaluate(KEEP, second)
        await tab.evaluate("() => release()")
        await ben.open()

        async def is_deleted() -> bool:
            return "linnet-ended" not in await tab.evaluate(DATABASES)

        await eventually(is_deleted, 90, every_s=0.1)  # a page tries again after 30 s
        await until_ended(first, address)
        await until_ended(second, address)

        await ben.page.bring_to_front()  # a page in the background draws seldom, and a click waits for it
        await ben.log_in()
        third = await ben.page.evaluate(TOKEN)
        await tab.evaluate("""() => new Promise((resolve) => {
          indexedDB.open("linnet-ended", 2).onsuccess = ({ target }) => (target.result.close(), resolve());
        })""")  # pages cannot open it in this version, as on a full disk
        async with ben.page.expect_request("**/v1/logout") as request:
            await ben.menu("Log out")
        assert (await request.value).headers["authorization"] == f"Bearer {third}"
        await ben.page.get_by_role("button", name="Create account and enter").wait_for()
        assert [name for name in await ben.page.evaluate(DATABASES) if ben.name in name] == []


async def until_ended(token: str, address: str) -> None:
    await eventually(lambda: is_ended(token, address), 90, every_s=0.1)


async def is_ended(token: str, address: str) -> bool:
    async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as http:
        return (await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401


async def test_page_that_is_too_old_offers_to_load_it_again(address: str) -> None:
    async with town(address) as people:
        ann = await people.person("ann-p10")
        await ann.register()
        await ann.page.route_web_socket("**/ws", lambda socket: socket.close(code=4503))
        await ann.page.reload()
        await expect(ann.page.get_by_role("alert")).to_contain_text("too old for the server")
        async with ann.page.expect_event("load"):
            await ann.page.get_by_role("alert").get_by_role("button", name="Update").click()
        await expect(ann.page.get_by_role("alert")).to_contain_text("too old")  # nobody is logged out


async def test_second_person_in_a_new_tab_is_somebody_else(address: str) -> None:
    """The account is the tab's: a reload keeps it, and the menu offers the other one."""
    async with town(address) as people:
        ann = await people.person("ann-p6")
        await ann.register()
        async with ann.context.expect_page() as opened:
            await ann.page.locator("#main").get_by_role("link", name="Open a second person").click()
        ben = Person(await opened.value, ann.context, address, "ben-p6")
        await ben.page.get_by_label("Name", exact=True).fill(ben.name)
        await ben.page.get_by_label("Password").fill(PASSWORD)
        await ben.page.get_by_role("button", name="Create account and enter").click()
        await ben.live()
        await ben.write_to(ann.name)
        await ben.say("It is me")
        await ann.row(ben.name).click()
        await ann.sees("It is me")
        await ann.page.reload()
        await ann.live()
        await expect(ann.page.get_by_role("button", name=ann.name, exact=True)).to_be_visible()
        await ann.page.get_by_role("button", name=ann.name, exact=True).click()
        await expect(ann.page.get_by_role("menuitem", name=f"Switch to {ben.name}")).to_be_visible()


REGISTER = """async () => {
  try {
    await navigator.serviceWorker.register("/sw.js");
  } catch (error) {
    return error.name;
  }
}"""


async def test_installed_page_opens_without_the_server(address: str) -> None:
    """The worker has the whole version and nothing of the API; messages that were here can be read. Behind a visit it
    fetches the page again, with its policy."""
    async with town(address) as people:
        ann = await people.person("ann-p7")
        await ann.register()
        bob = await people.person("bob-p7")
        await bob.register()
        await ann.write_to(bob.name)
        await ann.say("To be read offline")
        await ann.message("To be read").get_by_label("Stored by the server").wait_for()
        await ann.page.evaluate("navigator.serviceWorker.ready.then(() => undefined)")
        await ann.until("navigator.serviceWorker.controller !== null")
        names = await ann.page.evaluate(
            "async () => { const found = []; for (const name of await caches.keys())"
            " for (const { url } of await (await caches.open(name)).keys()) found.push(new URL(url).pathname);"
            " return found; }"
        )
        assert "/" in names
        assert await ann.page.evaluate(REGISTER) == "TypeError"  # only the page's own policy may name a worker
        assert all("Trusted" in error for error in ann.errors)
        ann.errors.clear()
        assert [name for name in names if name.startswith("/v1")] == []
        await ann.page.evaluate(
            "async () => { const cache = await caches.open((await caches.keys())[0]);"
            " const page = await cache.match('/');"
            " const headers = new Headers(page.headers); headers.set('x-day', 'yesterday');"
            " headers.delete('content-encoding');"
            " await cache.put('/', new Response(await page.text(), { headers })); }"
        )
        await ann.page.reload()

        async def fetched() -> bool:
            fresh = "async () => (await caches.match('/')).headers.get('x-day') === null"
            return bool(await ann.page.evaluate(fresh))

        await eventually(fetched)
        await ann.context.set_offline(True)
        await ann.page.reload()
        await ann.sees("To be read offline")
        await ann.context.set_offline(False)
