"""The admin view in a real Chromium: what an admin does there, and that nothing of it is kept in the browser."""

from __future__ import annotations

import httpx
import pytest
from playwright.async_api import Page

from tests.flow.conftest import System
from tests.router.web.people import EXECUTABLE, PASSWORD, Person, town
from tests.router.web.test_accessibility import Judge
from tests.router.web.test_files import TWICE
from tests.support import SERVER_KEY, eventually

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")

SERVER = {"Authorization": f"Bearer {SERVER_KEY}"}


async def section(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).click()
    await page.get_by_role("heading", name=name, exact=True).first.wait_for()


async def test_admin_finds_suspends_reads_with_a_reason_and_closes_a_report(system: System, address: str) -> None:
    assert system.router is not None
    place = f"http://127.0.0.1:{system.router.admin_port}/admin"
    async with httpx.AsyncClient(base_url=address, headers=SERVER, timeout=60, trust_env=False) as http:
        for user in ("adm-boss", "adm-bob", "adm-ann"):
            answer = await http.post("/v1/accounts", json={"user": user, "password": PASSWORD, "name": user.title()})
            assert answer.status_code in (201, 409), answer.text
        await http.put("/v1/roles/adm-boss", json={"roles": ["admin"]})
        made = await http.post(
            "/v1/conversations", json={"kind": "group", "title": "Bakery", "members": ["adm-bob", "adm-ann"]}
        )
        group = made.json()["conversation"]
        sent = await http.post("/v1/messages", json={"from": "adm-bob", "to": group, "body": "<b>rude</b>"})
        report = {"conversation": group, "seq": sent.json()["seq"], "reason": "rude"}
        assert (await http.post("/v1/reports", json=report, headers={"Linnet-User": "adm-ann"})).status_code == 201

        async with town(address) as people:
            boss = await people.person("adm-boss", viewport={"width": 1280, "height": 800})
            page = boss.page
            judge = Judge(boss, 1280)
            await page.goto(place)
            await page.get_by_label("Name").fill("adm-bob")
            await page.get_by_label("Password").fill(PASSWORD)
            await page.get_by_role("button", name="Log in").click()
            await page.get_by_role("alert").filter(has_text="takes a role").wait_for()
            await judge.look("admin, login")
            await page.get_by_label("Name").fill("adm-boss")
            await page.get_by_role("button", name="Log in").click()

            prefix = page.get_by_label("Name begins with")
            await prefix.fill("no name")
            assert await prefix.evaluate("(field) => field.validity.patternMismatch")
            await prefix.fill("adm-bob")
            await page.get_by_role("button", name="Find").click()
            row = page.get_by_role("row").filter(has_text="adm-bob")
            await row.get_by_role("button", name="Suspend").click()
            await page.get_by_label("Reason").fill("spam")
            await judge.look("admin, question")
            await page.get_by_role("dialog").get_by_role("button", name="Suspend").click()
            await row.get_by_text("suspended", exact=True).wait_for()
            await judge.look("admin, users")
            refused = await http.post("/v1/login", json={"user": "adm-bob", "password": PASSWORD})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "blocked")
            await row.get_by_role("button", name="End suspension").click()
            await page.get_by_role("dialog").get_by_role("button", name="End").click()
            await row.get_by_role("button", name="Reset password").click()
            await page.get_by_role("dialog").get_by_role("button", name="Reset").evaluate(TWICE)
            await page.get_by_role("dialog").get_by_text("adm-bob.").wait_for()
            await page.get_by_role("dialog").get_by_role("button", name="Close").click()
            await row.get_by_role("button", name="End sessions").click()
            async with page.expect_response("**/v1/sessions/adm-bob") as ended:
                await page.get_by_role("dialog").get_by_role("button", name="End").click()
            assert (await ended.value).status == 204
            audit = (await http.get("/v1/audit?limit=200")).json()
            assert not audit["more"]
            done = [one["action"] for one in audit["entries"] if one["target"].get("user") == "adm-bob"]
            assert done == ["suspend", "unsuspend", "password_reset", "sessions_ended"]

            await section(page, "Conversations")
            await page.get_by_label("Id").fill(group)
            await page.get_by_role("button", name="Find").click()
            await page.get_by_role("row").filter(has_text="Bakery").get_by_role("button", name="Open").click()
            await page.get_by_role("row").filter(has_text="no device").first.wait_for()
            await page.get_by_role("button", name="Read the log").click()
            await page.get_by_label("Reason").fill("a report")
            await page.get_by_role("dialog").get_by_role("button", name="Read the log").click()
            await page.get_by_text("<b>rude</b>").wait_for()
            await judge.look("admin, conversation")

            await section(page, "Reports")
            row = page.get_by_role("row").filter(has_text="adm-bob").filter(has_text="rude")
            await judge.look("admin, reports")
            await row.first.get_by_role("button", name="Resolve").click()
            await page.get_by_role("dialog").get_by_role("button", name="Resolve").click()
            await eventually(lambda: _none(row), 30)

            await section(page, "Audit")
            await page.get_by_role("row").filter(has_text="conversation read").filter(has_text="a report").wait_for()
            await judge.look("admin, audit")
            await page.get_by_role("button", name="Nodes").click()
            await page.get_by_role("row").filter(has_text="alive").nth(1).wait_for()
            await judge.look("admin, nodes")
            await page.set_viewport_size({"width": 360, "height": 740})
            narrow = Judge(boss, 360)
            await narrow.look("admin, nodes on a phone")
            await nothing_is_kept(boss)


async def _none(row: object) -> bool:
    return await row.count() == 0  # type: ignore[attr-defined, no-any-return]


async def nothing_is_kept(one: Person) -> None:
    """No storage, no cookie, no worker; a reload asks for the password again; no report of the policy."""
    kept = await one.page.evaluate(
        """async () => [localStorage.length, sessionStorage.length, (await indexedDB.databases()).length,
             document.cookie, (await navigator.serviceWorker.getRegistrations()).length]"""
    )
    assert kept == [0, 0, 0, "", 0]
    await one.page.reload()
    await one.page.get_by_label("Password").wait_for()
    assert one.errors == []
