"""Profiles, moderation and reports with the Python client, against a real router."""

from __future__ import annotations

import time

import pytest
from linnet_client import Client, Moderation, Profiles, Refused, Reports, Status, Stopped

from tests.flow.client import token
from tests.flow.conftest import Names, System
from tests.support import SERVER_KEY


def client(system: System, user: str, of: str = "") -> Client:
    assert system.router is not None
    return Client(system.router.url, user, of or token(user))


async def test_profile_and_privacy_are_changed_and_seen(chat: System, names: Names) -> None:
    """A client that is not open makes calls, too."""
    ann, bob = names("ann", "bob")
    await chat.group(ann, bob)
    own, others = Profiles(client(chat, ann)), Profiles(client(chat, bob))
    made = await own.change({"name": f"Ann {ann}", "about": "here", "privacy": {"messages": "contacts"}})
    assert (made["privacy"]["messages"], made["privacy"]["groups"]) == ("contacts", "everyone")
    assert await own.me() == made
    assert (await others.get(ann))["about"] == "here"
    many = await others.of([ann, *(f"nobody{number}" for number in range(300))])
    assert [profile["name"] for profile in many.values()] == [f"Ann {ann}"]
    assert [found["user"] for found in await others.find(f"Ann {ann}")] == [ann]
    assert (await own.change({"about": None}))["about"] is None


async def test_group_is_moderated_and_reports_are_closed(chat: System, names: Names) -> None:
    ann, bob = names("ann", "bob")
    group = await chat.group(ann, bob)
    backend = client(chat, "backend", SERVER_KEY)
    owner, judge, desk = Moderation(client(chat, ann)), Moderation(backend), Reports(backend)
    async with client(chat, bob) as member:
        talk = member.conversation(group)
        first = await talk.send("one").acked

        await owner.mute(group, bob, until=time.time_ns() // 1_000_000 + 3_600_000, reason="loud")
        with pytest.raises(Refused) as refused:
            await talk.send("two").acked
        assert refused.value.code == "read_only"
        await owner.unmute(group, bob)
        await talk.send("three").acked

        await owner.change(group, {"posting": "admins", "slow_s": 5})
        rules = await owner.rules(group)
        assert (rules["posting"], rules["adding"], rules["reacting"], rules["slow_s"]) == ("admins", "admins", "all", 5)
        await owner.ban(group, bob, reason="spam")
        assert [(ban["user"], ban["reason"]) for ban in await owner.bans(group)] == [(bob, "spam")]
        await owner.unban(group, bob)
        assert await owner.bans(group) == []

        reports = Reports(member)
        made = [await reports.message(group, first.seq, "rude"), await reports.user(ann, "unfair")]
        found = {report["id"]: report for report in (await desk.read("open"))["reports"]}
        assert [found[report]["reason"] for report in made] == ["rude", "unfair"]
        assert found[made[0]]["event"]["body"] == "one"
        await desk.close(made[0], "dismissed", "it was not")
        closed = {report["id"]: report for report in (await desk.read())["reports"]}[made[0]]
        assert (closed["state"], closed["note"]) == ("dismissed", "it was not")

        await judge.suspend(bob, reason="enough")
        with pytest.raises(Stopped, match="banned"):
            await member.until(Status.IDLE)  # it never is
        await judge.unsuspend(bob)
    page = await judge.audit()
    entries = page["entries"]
    while page["more"]:
        page = await judge.audit(after=entries[-1]["id"])
        entries += page["entries"]
    assert page["missing"] == 0
    acts = {entry["action"] for entry in entries if entry["target"].get("user") == bob}
    assert "suspend" in acts  # those in a group are added by a round of a router
