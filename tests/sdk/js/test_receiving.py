"""Receiving with the JavaScript SDK: each event once, and acked only when the application has it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.sdk.js.conftest import Proxied
from tests.support import eventually


async def test_events_sent_twice_are_handed_over_once(proxied: Proxied, store: Path) -> None:
    system, proxy, api = proxied
    proxy.pass_event = lambda event: 2 if event["type"] == "message" else 1
    async with NodeApplication() as app:
        await app.start(api, "alice-r1", store)
        bob = ChatClient("bob-r1")
        await bob.connect(system.urls[0])
        for i in range(10):
            await bob.sent("@alice-r1", f"m{i}")
        await bob.sent("@alice-r1", "last")
        assert (await app.handed(11))[:10] == [f"m{i}" for i in range(10)]
        assert len(app.bodies()) == 11
        assert [m["body"] for m in await app.call("messages", to="@bob-r1")] == app.bodies()


async def test_hole_is_asked_for_and_filled_in_order(proxied: Proxied, store: Path) -> None:
    system, proxy, api = proxied
    proxy.pass_event = lambda event: 0 if event.get("body") in ("m3", "m4") and event["type"] == "message" else 1
    async with NodeApplication() as app:
        await app.start(api, "alice-r2", store)
        bob = ChatClient("bob-r2")
        await bob.connect(system.urls[0])
        for i in range(10):
            await bob.sent("@alice-r2", f"m{i}")
        assert await app.handed(10) == [f"m{i}" for i in range(10)]
        assert proxy.count("history") == 1


async def test_only_what_the_handler_had_is_acked(proxied: Proxied, store: Path) -> None:
    """Killed while the handler runs: the event is handed over again, and what came before it is not."""
    system, proxy, api = proxied
    bob = ChatClient("bob-r3")
    await bob.connect(system.urls[0])
    async with NodeApplication() as app:
        await app.start(api, "alice-r3", store, handler="gated")
        first = await bob.sent("@alice-r3", "first")
        second = await bob.sent("@alice-r3", "second")
        await app.call("pass", body="first")
        await app.handed(1)
        await eventually(lambda: acked(proxy.commands, first["conversation"]) == first["seq"])
        await app.call("status")
        await app.kill()
    assert acked(proxy.commands, first["conversation"]) == first["seq"]
    async with NodeApplication() as app:
        await app.start(api, "alice-r3", store)
        third = await bob.sent("@alice-r3", "third")
        assert await app.handed(2) == ["second", "third"]
        await eventually(lambda: acked(proxy.commands, first["conversation"]) == third["seq"])
    assert second["seq"] > first["seq"]


def acked(commands: list[dict[str, object]], conversation: str) -> int:
    """The highest seq of the conversation that clients have acked, in `ack` or `hello`."""
    cursors = [command["cursors"] for command in commands if "cursors" in command]
    return max((int(c.get(conversation, 0)) for c in cursors if isinstance(c, dict)), default=0)


async def test_slow_handler_delays_no_send_and_loses_nothing(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-r4", store, handler="gated")
        bob = ChatClient("bob-r4")
        await bob.connect(chat.urls[0])
        bodies = [f"m{i}" for i in range(50)]
        for body in bodies:
            await bob.sent("@alice-r4", body)
        await app.call("send", to="@bob-r4", body="meanwhile", wait="acked")
        assert app.bodies() == []
        for body in [*bodies, "meanwhile"]:
            await app.call("pass", body=body)
        assert await app.handed(51) == [*bodies, "meanwhile"]


async def test_handler_may_send_and_wait_for_the_ack(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-r5", store, handler="echo")
        bob = ChatClient("bob-r5")
        await bob.connect(chat.urls[0])
        await bob.sent("@alice-r5", "one")
        await bob.sent("@alice-r5", "two")
        await bob.until(lambda: {"echo one", "echo two"} <= set(bob.bodies("d:alice-r5:bob-r5")))


async def test_iterator_has_an_event_when_the_next_is_asked_for(chat: System, api: str, store: Path) -> None:
    bob = ChatClient("bob-r6")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        await app.open(api, "alice-r6", store)
        bodies = asyncio.create_task(app.call("iterate", count=3))
        await app.until(type="status", status="live")
        for body in ("a", "b", "c"):
            await bob.sent("@alice-r6", body)
        assert await bodies == ["a", "b", "c"]
        await app.kill()
    async with NodeApplication() as app:
        await app.start(api, "alice-r6", store)
        await bob.sent("@alice-r6", "d")
        await eventually(lambda: app.bodies()[-2:] == ["c", "d"])


async def test_reconnecting_receives_what_was_sent_meanwhile(proxied: Proxied, store: Path) -> None:
    system, _proxy, api = proxied
    async with NodeApplication() as app:
        await app.start(api, "alice-r7", store)
        bob = ChatClient("bob-r7")
        await bob.connect(system.urls[0])
        await bob.sent("@alice-r7", "before")
        await app.handed(1)
        await app.kill()
        for i in range(20):
            await bob.sent("@alice-r7", f"m{i}")
        async with NodeApplication() as later:
            await later.start(api, "alice-r7", store)
            await eventually(lambda: later.bodies()[-20:] == [f"m{i}" for i in range(20)])


async def test_model_shows_edits_deletes_reactions_and_unread_counts(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-r8", store)
        bob = ChatClient("bob-r8")
        await bob.connect(chat.urls[0])
        acks = [await bob.sent("@alice-r8", f"m{i}") for i in range(4)]
        conversation, seqs = acks[0]["conversation"], [ack["seq"] for ack in acks]
        edit = {"conversation": conversation, "seq": seqs[0], "n": bob.next_n(), "body": "edited"}
        assert (await bob.ask("edit", **edit))["type"] == "ack"
        await bob.ask("delete", conversation=conversation, seq=seqs[1], n=bob.next_n())
        await bob.ask("react", conversation=conversation, seq=seqs[2], n=bob.next_n(), emoji="+")
        await app.call("act", to=conversation, action="react", args=[seqs[2], "+"])

        async def shown() -> bool:
            first, second, third, fourth = await app.call("messages", to=conversation)
            assert (first["body"], first["edited"]) == ("edited", True)
            assert (second["body"], second["deleted"]) == (None, True)
            assert {user: sorted(users) for user, users in third["reactions"].items()} == {"+": ["alice-r8", "bob-r8"]}
            return bool(fourth["body"] == "m3")

        await eventually(shown)
        assert (await app.call("view", to=conversation))["unread"] == 4
        await app.call("mark_read", to=conversation, seq=seqs[2])
        assert (await app.call("view", to=conversation))["unread"] == 1
        await bob.event("receipt", conversation=conversation, user="alice-r8", read=seqs[2])
        await bob.say("read", conversation=conversation, seq=seqs[3])
        assert (await app.call("view", to=conversation))["reads"] == {"bob-r8": seqs[3]}
        await app.call("load_reads", to=conversation)
        assert (await app.call("view", to=conversation))["reads"]["bob-r8"] == seqs[3]


async def test_older_messages_are_loaded_with_their_later_edits(chat: System, api: str, store: Path) -> None:
    """A new device begins 100 events back; what it loads then has been edited by an event that it has seen already."""
    bob, alice = ChatClient("bob-r9"), ChatClient("alice-r9")
    await bob.connect(chat.urls[0])
    await alice.connect(chat.urls[0])
    first = await bob.sent("@alice-r9", "m0")
    for i in range(1, 130):
        await bob.sent("@alice-r9", f"m{i}")
    await bob.ask("edit", conversation=first["conversation"], seq=first["seq"], n=bob.next_n(), body="edited")
    await alice.say("read", conversation=first["conversation"], seq=(await bob.sent("@alice-r9", "end"))["seq"])
    await bob.event("receipt", user="alice-r9")
    async with NodeApplication() as app:
        await app.start(api, "alice-r9", store)
        await app.until(type="handed")
        await eventually(lambda: "end" in app.bodies())
        new = [m["body"] for m in await app.call("messages", to="@bob-r9", limit=500)]
        assert len(new) < 130
        while await app.call("load_older", to="@bob-r9", limit=50):
            pass
        shown = [m["body"] for m in await app.call("messages", to="@bob-r9", limit=500)]
        assert shown == ["edited", *(f"m{i}" for i in range(1, 130)), "end"]


async def test_gap_of_expired_events_is_applied_and_announced(proxied: Proxied, store: Path) -> None:
    """The model drops what is gone; the next event follows."""
    system, proxy, api = proxied
    async with NodeApplication() as app:
        await app.start(api, "alice-r10", store)
        bob = ChatClient("bob-r10")
        await bob.connect(system.urls[0])
        ack = await bob.sent("@alice-r10", "kept")
        await app.handed(1)
        gap = {"type": "gap", "conversation": ack["conversation"], "from": 1, "to": ack["seq"], "reason": "expired"}
        await proxy.inject(gap)
        await app.until(type="gap", reason="expired")
        await bob.sent("@alice-r10", "next")
        assert await app.handed(2) == ["kept", "next"]
        assert [m["body"] for m in await app.call("messages", to="@bob-r10")] == ["next"]


async def test_removal_from_a_group_is_shown_and_acked(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-r11", store)
        await chat.api("POST", "/v1/conversations", {"kind": "group", "title": "t", "members": {}}, user="bob-r11")
        group = await chat.group("bob-r11", "alice-r11")

        async def view() -> dict[str, object]:
            found: dict[str, object] = await app.call("view", to=group)
            return found

        async def is_member() -> bool:
            return (await view())["role"] == "member"

        await eventually(is_member)
        await chat.api("DELETE", f"/v1/conversations/{group}/members/alice-r11")

        async def is_gone() -> bool:
            return (await view())["gone"] == "removed"

        await eventually(is_gone)
