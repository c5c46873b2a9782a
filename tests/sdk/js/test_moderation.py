"""Profiles, moderation and reports with the JavaScript SDK, from the entry points beside its core."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.support import SERVER_KEY


class Extra:
    """One class of an entry point, used by an application."""

    def __init__(self, app: NodeApplication, module: str, part: str, **caller: str) -> None:
        self._app, self._of = app, {"module": module, "part": part, **caller}

    async def __call__(self, action: str, *args: Any) -> Any:
        return await self._app.call("extra", **self._of, action=action, args=list(args))


async def test_profile_and_privacy_are_changed_and_seen(chat: System, api: str, store: Path) -> None:
    await chat.group("alice-p1", "bob-p1")
    async with NodeApplication() as alice, NodeApplication() as bob:
        await alice.open(api, "alice-p1", store / "alice")
        await bob.open(api, "bob-p1", store / "bob")
        own, others = Extra(alice, "profiles", "Profiles"), Extra(bob, "profiles", "Profiles")
        made = await own("change", {"name": "Alice P", "about": "here", "privacy": {"messages": "contacts"}})
        assert made["name"] == "Alice P"
        assert (made["privacy"]["messages"], made["privacy"]["groups"]) == ("contacts", "everyone")
        assert await own("me") == made
        assert (await others("get", "alice-p1"))["about"] == "here"
        many = await others("of", ["alice-p1", "nobody-p1", *(f"no{number}-p1" for number in range(300))])
        assert [many[user]["name"] for user in many] == ["Alice P"]
        assert [found["user"] for found in await others("find", "Alice P")] == ["alice-p1"]
        assert (await own("change", {"about": None}))["about"] is None


async def test_group_is_moderated_and_reports_are_closed(chat: System, api: str, store: Path) -> None:
    group = await chat.group("alice-p2", "bob-p2")
    async with NodeApplication() as alice, NodeApplication() as bob:
        await alice.open(api, "alice-p2", store / "alice")
        await bob.start(api, "bob-p2", store / "bob")
        owner, reports = Extra(alice, "moderation", "Moderation"), Extra(bob, "moderation", "Reports")
        server = {"api": api, "token": SERVER_KEY}
        judge, desk = (Extra(alice, "moderation", part, **server) for part in ("Moderation", "Reports"))
        seq = (await bob.call("send", to=group, body="one", wait="acked"))["seq"]

        until = (time.time_ns() // 1_000_000) + 3_600_000
        await owner("mute", group, "bob-p2", {"until": until, "reason": "loud"})
        with pytest.raises(AssertionError, match="read_only"):
            await bob.call("send", to=group, body="two", wait="acked")
        await owner("unmute", group, "bob-p2")
        await bob.call("send", to=group, body="three", wait="acked")

        await owner("change", group, {"posting": "admins", "slow_s": 5})
        rules = await owner("rules", group)
        assert (rules["posting"], rules["adding"], rules["reacting"], rules["slow_s"]) == ("admins", "admins", "all", 5)
        await owner("ban", group, "bob-p2", {"reason": "spam"})
        assert [(ban["user"], ban["reason"]) for ban in await owner("bans", group)] == [("bob-p2", "spam")]
        await owner("unban", group, "bob-p2")
        assert await owner("bans", group) == []

        made = [await reports("message", group, seq, "rude"), await reports("user", "alice-p2", "unfair")]
        page = await desk("read", {"state": "open"})
        found = {report["id"]: report for report in page["reports"]}
        assert [found[report]["reason"] for report in made] == ["rude", "unfair"]
        assert found[made[0]]["event"]["body"] == "one"
        await desk("close", made[0], "dismissed", "it was not")
        closed = {report["id"]: report for report in (await desk("read"))["reports"]}[made[0]]
        assert (closed["state"], closed["note"]) == ("dismissed", "it was not")

        await judge("suspend", "bob-p2", {"reason": "enough"})
        await bob.until(type="status", status="stopped")
        await judge("unsuspend", "bob-p2")
        entries: list[dict[str, Any]] = []
        page = {"more": True}
        while page["more"]:
            page = await judge("audit", {"after": entries[-1]["id"] if entries else "0"})
            entries += page["entries"]
        acts = {entry["action"] for entry in entries if entry["target"].get("user") == "bob-p2"}
        assert "suspend" in acts  # those in a group are added by a round of a router
