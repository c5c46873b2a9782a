"""User state, contacts and blocks with the JavaScript SDK: all devices and all tabs agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.sdk.js.browser import EXECUTABLE, Browser
from tests.sdk.js.conftest import Proxied
from tests.support import eventually


async def test_state_is_the_same_on_all_devices(proxied: Proxied, tmp_path: Path) -> None:
    """Live, after a lost event, and with `expect`."""
    _, proxy, api = proxied
    async with NodeApplication() as phone, NodeApplication() as laptop:
        await phone.start(api, "alice-u1", tmp_path / "phone")
        await laptop.start(api, "alice-u1", tmp_path / "laptop")
        await laptop.call("watch_state", prefix="draft/")
        assert await laptop.call("state", action="entries") == {}
        await phone.call("state", action="set", args=["draft/1", {"text": "hé"}])
        assert await phone.call("state", action="get", args=["draft/1"]) == {"text": "hé"}
        await laptop.until(type="state", key="draft/1", value={"text": "hé"})
        proxy.pass_event = lambda event: event["type"] != "state"
        await phone.call("state", action="set", args=["draft/2", "lost on the way"])
        proxy.pass_event = lambda event: 1
        await phone.call("state", action="set", args=["draft/3", "seen"])
        await laptop.until(type="state", key="draft/2", value="lost on the way")
        await laptop.until(type="state", key="draft/3", value="seen")
        version = await phone.call("state", action="versionOf", args=["draft/1"])
        with pytest.raises(AssertionError, match="conflict"):
            await laptop.call("state", action="set", args=["draft/1", "late", {"expect": version + 1}])
        await laptop.call("state", action="remove", args=["draft/1", {"expect": version}])
        await laptop.until(type="state", key="draft/1", value=None)
        wanted = {"draft/2": "lost on the way", "draft/3": "seen"}

        async def agree() -> bool:
            return [await app.call("state", action="entries") for app in (phone, laptop)] == [wanted, wanted]

        await eventually(agree)


async def test_contacts_and_blocks_are_followed(chat: System, api: str, tmp_path: Path) -> None:
    for user in ("alice-u2", "bob-u2"):
        await chat.api("POST", "/v1/tokens", {"user": user})
    async with NodeApplication() as alice, NodeApplication() as bob:
        await alice.start(api, "alice-u2", tmp_path / "alice")
        await bob.start(api, "bob-u2", tmp_path / "bob")

        async def shows(app: NodeApplication, user: str, state: str | None) -> None:
            async def reached() -> bool:
                found: dict[str, Any] = await app.call("people", action="contacts")
                return (found.get(user) or {}).get("state") == state

            await eventually(reached)

        await alice.call("people", action="request", args=["bob-u2", "hi"])
        await shows(bob, "alice-u2", "incoming")
        await bob.call("people", action="accept", args=["alice-u2"])
        await shows(alice, "bob-u2", "contact")
        await alice.call("people", action="block", args=["bob-u2"])
        assert await alice.call("people", action="blocked") == ["bob-u2"]
        await shows(bob, "alice-u2", None)
        with pytest.raises(AssertionError, match="blocked"):
            await bob.call("send", to="@alice-u2", body="no", wait="acked")
        await alice.call("people", action="unblock", args=["bob-u2"])
        await bob.call("send", to="@alice-u2", body="yes", wait="acked")


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")
async def test_tab_that_does_not_lead_follows_the_state(chat: System, api: str) -> None:
    other = ChatClient("alice-u3")
    await other.connect(chat.urls[0])
    async with Browser() as browser:
        leader, follower = await browser.tab(), await browser.tab()
        await leader.start(api, "alice-u3")
        await follower.start(api, "alice-u3")
        assert await leader.leads()
        await follower.call("watch_state", prefix="")
        assert await follower.call("state", action="entries") == {}
        await other.say("state", key="theme", value="dark", id=7)
        await follower.until(type="state", key="theme", value="dark")
        await follower.call("state", action="set", args=["theme", "light"])
        assert await leader.call("state", action="get", args=["theme"]) == "light"
