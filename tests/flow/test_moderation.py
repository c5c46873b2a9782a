"""Mutes, bans and slow mode on whole systems: they hold on all devices and gateways, whatever the clocks there say."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from loadtest.chaos.clocks import FAKETIME, Clock
from tests.flow.client import ChatClient, token
from tests.flow.conftest import Names, Start, System
from tests.support import SERVER_KEY, eventually

STEP_S: Final = 300.0


async def test_three_devices_on_two_gateways_share_one_slow_mode_window(chat: System, names: Names) -> None:
    """Of three messages at once one is accepted. The others learn when to try again; a resend is acked."""
    ann, bob = names("ann", "bob")
    group = await chat.group(ann, bob)
    await chat.api("PATCH", f"/v1/conversations/{group}", {"slow_s": 600}, user=ann)
    devices = [ChatClient(bob, device) for device in ("phone", "tablet", "laptop")]
    for number, device in enumerate(devices):
        await device.connect(chat.urls[number % 2])
    ns = [device.next_n() for device in devices]
    sends = (device.send(group, device.device, n=n) for device, n in zip(devices, ns, strict=True))
    answers = await asyncio.gather(*sends)
    refused = [answer for answer in answers if answer["type"] == "error"]
    assert [(one["code"], 500 < one["retry_after"] <= 600) for one in refused] == [("rate_limited", True)] * 2
    first = next(number for number, answer in enumerate(answers) if answer["type"] == "ack")
    again = await devices[first].send(group, devices[first].device, n=ns[first])
    assert (again["type"], again["duplicate"]) == ("ack", True)
    assert await devices[0].has(group, 1) == [devices[first].device]
    assert (await chat.api("GET", f"/v1/conversations/{group}", user=bob))["slow_s"] == 600


async def test_mute_holds_on_all_devices_and_is_announced(chat: System, names: Names) -> None:
    """Also over HTTP, and after leaving and coming back. The end of it is in the refusal, and it is lifted at once."""
    ann, bob = names("ann", "bob")
    channel = await chat.group(ann, bob, kind="channel")
    phone, tablet, other = ChatClient(bob), ChatClient(bob, "tablet", codec="msgpack"), ChatClient(ann)
    for number, client in enumerate((phone, tablet, other)):
        await client.connect(chat.urls[number % 2])
    seq = (await phone.sent(channel, "before"))["seq"]
    until = (await phone.ask("ping"))["at"] + 3_600_000
    where = f"/v1/conversations/{channel}/members/{bob}"
    await chat.api("PUT", f"{where}/mute", {"until": until, "reason": "spam"}, user=ann)
    for client in (phone, tablet, other):
        muted = await client.event("member", conversation=channel, user=bob, action="mute")
        assert (muted["until"], muted["from"], "reason" in muted) == (until, ann, False)
    for client in (phone, tablet):
        refused = [
            await client.send(channel, "x"),
            await client.ask("edit", conversation=channel, seq=seq, body="x", n=client.next_n()),
            await client.ask("react", conversation=channel, seq=seq, emoji="+", n=client.next_n()),
            await client.ask("typing", to=channel),
        ]
        assert {(one["code"], 3000 < one["retry_after"] <= 3600) for one in refused} == {("read_only", True)}
    await chat.api("DELETE", where, user=bob)
    await chat.api("POST", f"/v1/conversations/{channel}/join", user=bob)
    await chat.api("PUT", where, {"role": "member"}, user=ann)
    async with httpx.AsyncClient(base_url=chat.router.url if chat.router else "", trust_env=False, timeout=60) as http:
        answer = await http.post(
            "/v1/messages", json={"to": channel, "body": "x"}, headers={"Authorization": f"Bearer {token(bob)}"}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "read_only")
    members = await chat.api("GET", f"/v1/conversations/{channel}/members", user=ann)
    assert {"user": bob, "role": "member"} in members["members"]
    await chat.api("DELETE", f"{where}/mute", user=ann)
    await phone.event("member", conversation=channel, user=bob, action="unmute")
    await phone.sent(channel, "after")
    assert await other.has(channel, 2) == ["before", "after"]


async def test_ban_removes_a_member_whom_no_caller_can_add_again(chat: System, names: Names) -> None:
    """The user gets the removal as their last event; a stranger's ban is no event. Lifting it opens the way."""
    ann, bob, eve = names("ann", "bob", "eve")
    channel = await chat.group(ann, bob, kind="channel")
    await chat.api("POST", "/v1/tokens", {"user": eve})
    clients = ChatClient(ann), ChatClient(bob)
    for client, url in zip(clients, chat.urls, strict=True):
        await client.connect(url)
    bans = f"/v1/conversations/{channel}/bans"
    await chat.api("PUT", f"{bans}/{bob}", {"reason": "spam"}, user=ann)
    await chat.api("PUT", f"{bans}/{eve}", {}, user=ann)
    for client in clients:
        removal = await client.event("member", conversation=channel, user=bob, action="remove")
        assert (removal["banned"], removal["until"]) == (True, None)
    assert (await clients[1].send(channel, "x"))["code"] == "not_found"
    where = f"/v1/conversations/{channel}"
    async with httpx.AsyncClient(base_url=chat.router.url if chat.router else "", trust_env=False, timeout=60) as http:
        for method, path, who in (
            ("POST", f"{where}/join", token(bob)),
            ("POST", f"{where}/join", token(eve)),
            ("PUT", f"{where}/members/{bob}", token(ann)),
            ("PUT", f"{where}/members/{bob}", SERVER_KEY),
        ):
            headers = {"Authorization": f"Bearer {who}"}
            answer = await http.request(method, path, json={}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    listed = (await chat.api("GET", bans, user=ann))["bans"]
    assert {(one["user"], one["by"], one["reason"]) for one in listed} == {(bob, ann, "spam"), (eve, ann, "")}
    await chat.api("DELETE", f"{bans}/{bob}", user=ann)
    await chat.api("POST", f"{where}/join", user=bob)
    await clients[1].event("member", conversation=channel, user=bob, action="add")
    assert [event for event in clients[0].received[channel].values() if event.get("user") == eve] == []


async def audited(chat: System, caller: str, **target: object) -> list[tuple[str, str | None]]:
    """The action and actor of all acts in the audit with this target."""
    found, after, more = [], "0", True
    while more:
        page = await chat.api("GET", f"/v1/audit?after={after}&limit=200", admin=caller)
        found += page["entries"]
        after, more = page["entries"][-1]["id"] if page["entries"] else after, page["more"]
    return [(one["action"], one["actor"]) for one in found if target.items() <= one["target"].items()]


async def test_moderator_acts_anywhere_and_the_audit_names_them(chat: System, names: Names) -> None:
    """Within a router's round, each act once. The events name nobody; the group's owner cannot touch a moderator."""
    ann, bob, mod, other = names("ann", "bob", "mod", "other")
    group = await chat.group(ann, bob, other)
    await chat.api("PUT", f"/v1/conversations/{group}/members/{mod}", {})
    await chat.api("PUT", f"/v1/roles/{mod}", {"roles": ["moderator"]})
    await chat.api("DELETE", f"/v1/conversations/{group}/members/{mod}", user=mod)
    assert (await chat.api("GET", "/v1/me", user=mod))["roles"] == ["moderator"]
    client = ChatClient(ann)
    await client.connect(chat.urls[0])
    seq = (await client.sent(group, "an insult"))["seq"]
    deletion = {"type": "delete", "conversation": group, "seq": seq, "n": 1}
    first = (await chat.api("POST", "/v1/commands", deletion, admin=mod))["event"]
    assert (await chat.api("POST", "/v1/commands", deletion, admin=mod))["event"]["duplicate"]
    await chat.api("PUT", f"/v1/conversations/{group}/members/{ann}/mute", {"reason": "insults"}, admin=mod)
    await chat.api("PUT", f"/v1/conversations/{group}/bans/{bob}", {}, admin=mod)
    assert {one["user"] for one in (await chat.api("GET", f"/v1/conversations/{group}/bans", admin=mod))["bans"]} == {
        bob
    }
    deleted = await client.event("delete", conversation=group, target=seq)
    assert (deleted["seq"], deleted["from"], mod in str(deleted)) == (first["seq"], "", False)
    muted = await client.event("member", conversation=group, user=ann, action="mute")
    assert muted["from"] == ""
    assert (await client.send(group, "x"))["code"] == "read_only"
    expected = [("message_deleted", mod), ("mute", mod), ("ban", mod)]

    async def complete() -> bool:
        return await audited(chat, mod, conversation=group) == expected

    await eventually(complete)


async def test_suspended_user_is_closed_out_of_both_gateways_and_comes_back(chat: System, names: Names) -> None:
    """Sockets end with 4502, login and calls are 403, the user is offline at once, and messages to them wait."""
    ann, bob, mod = names("ann", "bob", "mod")
    await chat.api("POST", "/v1/tokens", {"user": ann})
    await chat.api("POST", "/v1/tokens", {"user": mod})
    await chat.api("PUT", f"/v1/roles/{mod}", {"roles": ["moderator"]})
    login = {"user": bob, "password": "correct horse battery", "device": "phone"}
    await chat.api("POST", "/v1/accounts", {"user": bob, "password": login["password"], "name": ""})
    phone, tablet, other = ChatClient(bob), ChatClient(bob, "tablet"), ChatClient(ann)
    for number, client in enumerate((phone, tablet, other)):
        await client.connect(chat.urls[number % 2])
    await chat.api("PUT", f"/v1/accounts/{bob}/suspension", {"reason": "spam"}, admin=mod)
    assert (await other.ask("presence", users=[bob]))["users"][bob]["online"] is False
    assert [(await client.gone())[0] for client in (phone, tablet)] == [4502, 4502]
    direct = (await other.sent(f"@{bob}", "are you there?"))["conversation"]
    assert (await phone.connect(chat.urls[1]))["code"] == "blocked"
    assert (await phone.gone())[0] == 4502
    async with httpx.AsyncClient(base_url=chat.router.url if chat.router else "", trust_env=False, timeout=60) as http:
        refused = [
            await http.post("/v1/login", json=login),
            await http.get("/v1/me", headers={"Authorization": f"Bearer {token(bob)}"}),
        ]
        wrong = await http.post("/v1/login", json=login | {"password": "wrong"})
    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(403, "blocked")] * 2
    assert wrong.status_code == 401
    await chat.api("DELETE", f"/v1/accounts/{bob}/suspension", admin=mod)
    await phone.connect(chat.urls[0])
    assert await phone.has(direct, 1) == ["are you there?"]
    assert await audited(chat, mod, user=bob) == [("suspend", mod), ("unsuspend", mod)]


async def test_report_of_a_message_reaches_the_moderators(chat: System, names: Names) -> None:
    """With a copy of the message; the same report again is 200 with the same id."""
    ann, bob, mod = names("ann", "bob", "mod")
    group = await chat.group(ann, bob)
    await chat.api("POST", "/v1/tokens", {"user": mod})
    await chat.api("PUT", f"/v1/roles/{mod}", {"roles": ["admin"]})
    client = ChatClient(bob)
    await client.connect(chat.urls[0])
    seq = (await client.sent(group, {"text": "an insult", "b": {"$b64": "AA=="}}))["seq"]
    report = {"conversation": group, "seq": seq, "reason": "rude"}
    made = await chat.api("POST", "/v1/reports", report, user=ann)
    assert await chat.api("POST", "/v1/reports", report, user=ann) == made

    async def found() -> bool:
        reports = (await chat.api("GET", "/v1/reports?state=open&limit=200", admin=mod))["reports"]
        own = [one for one in reports if one["conversation"] == group]
        return [(one["id"], one["reporter"], one["user"], one["event"]["body"]) for one in own] == [
            (made["id"], ann, bob, {"text": "an insult", "b": {"$b64": "AA=="}})
        ]

    await eventually(found)
    closed = await chat.api("PATCH", f"/v1/reports/{made['id']}", {"state": "resolved", "note": "warned"}, admin=mod)
    assert (closed["state"], closed["note"]) == ("resolved", "warned")


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
async def test_mute_and_ban_end_by_the_clock_of_redis_while_other_clocks_step(start: Start, tmp_path: Path) -> None:
    """One gateway and the router are ahead then, and the other gateway is behind, by more than the test waits."""
    system = await start(gateways=0, router=False)
    clocks = [Clock(tmp_path / f"clock-{number}") for number in range(3)]
    system.gateways = [system.start("gateway", **clock.env) for clock in clocks[:2]]
    system.router = system.start("router", **clocks[2].env)
    await system.ready()
    group = await system.group("ann", "bob", "cem", kind="channel")
    devices = [ChatClient("bob", "phone"), ChatClient("bob", "tablet")]
    for device, url in zip(devices, system.urls, strict=True):
        await device.connect(url)
    until = round(time.time() * 1000) + 8000
    await system.api("PUT", f"/v1/conversations/{group}/members/bob/mute", {"until": until}, user="ann")
    await system.api("PUT", f"/v1/conversations/{group}/bans/cem", {"until": until}, user="ann")
    for clock, step_s in zip(clocks, (STEP_S, -STEP_S, STEP_S), strict=True):
        clock.set(step_s)

    async def joined() -> bool:
        return bool(await system.api("POST", f"/v1/conversations/{group}/join", user="cem"))

    async def accepted(device: ChatClient) -> int:
        async def tried() -> int:
            answer = await device.send(group, "x")
            assert (answer["type"], answer.get("code", "read_only")) in (("ack", "read_only"), ("error", "read_only"))
            return int(answer["at"]) if answer["type"] == "ack" else 0

        return int(await eventually(tried, STEP_S / 2, every_s=0.2))

    async def stepped(device: ChatClient) -> bool:
        return bool(abs((await device.ask("ping"))["at"] - time.time() * 1000) > STEP_S * 500)

    for device in devices:
        await eventually(partial(stepped, device))
    times = await asyncio.gather(*map(accepted, devices), eventually(joined, STEP_S / 2, every_s=0.2))
    joins = await devices[0].event("member", conversation=group, user="cem", action="add")
    assert min(*times[:2], joins["at"]) >= until
