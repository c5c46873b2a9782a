"""What is received is handed over once, in order, without a hole; only what was handed over is acked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from linnet_client import Client, Event, Gap, Gone, Joined, Message, Status, Stopped, values
from linnet_client import receiving as inbox

from tests.sdk.python.gateway import scripted
from tests.sdk.python.test_sending import client
from tests.support import eventually


async def bodies(ann: Client, count: int) -> list[object]:
    """The bodies of the next messages; the last one is not yet handed over."""
    found: list[object] = []
    events = ann.events()
    async with asyncio.timeout(40):
        while len(found) < count:
            event = await anext(events)
            if isinstance(event, Message):
                found.append(event.body)
    return found


async def test_event_that_comes_twice_is_handed_over_once() -> None:
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        gateway.doubled = True
        for i in range(5):
            await gateway.message(i)
        assert await bodies(ann, 5) == [0, 1, 2, 3, 4]
        assert len(ann.conversation("g:1").view.entries) == 5


async def test_resend_that_made_a_second_event_is_handed_over_once() -> None:
    """The same (from, device, n) under another seq is the same message."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        for n, body in ((7, "x"), (7, "x"), (8, "y")):
            await gateway.deliver(gateway.append("g:1", "bob", "phone", n, {"media": "text", "body": body}))
        assert await bodies(ann, 2) == ["x", "y"]


async def test_hole_is_asked_for_and_filled_in_order() -> None:
    """Two events are lost on the way; the next one shows it, and what comes meanwhile waits."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        gateway.hidden = {2, 3}
        for i in range(1, 8):
            await gateway.message(i)
        assert await bodies(ann, 7) == [1, 2, 3, 4, 5, 6, 7]
        assert [command["after"] for command in gateway.of("history")] == [1]


async def test_prev_that_names_a_deleted_event_is_no_hole() -> None:
    """The history does not have it, so nothing is missing."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        gateway.hidden = {2}
        for i in range(1, 3):
            await gateway.message(i)
        del gateway.logs["g:1"][1]
        event = {**gateway.logs["g:1"][0], "seq": 3, "prev": 2, "body": 3}
        gateway.logs["g:1"].append(event)
        await gateway.deliver(event)
        assert await bodies(ann, 2) == [1, 3]


async def test_only_what_the_application_has_is_acked(tmp_path: Path) -> None:
    """The application has an event when it asks for the next one. Until then no cursor is stored and none acked."""
    async with scripted() as gateway:
        async with client(gateway, tmp_path / "s") as ann:
            await ann.until(Status.LIVE)
            for i in range(1, 4):
                await gateway.message(i)
            assert await bodies(ann, 1) == [1]
            await ann.ask({"type": "history", "conversation": "g:1"})  # all three are here
        assert gateway.cursors == {}
        async with client(gateway, tmp_path / "s") as ann:
            assert await bodies(ann, 2) == [1, 2]
            await gateway.until(1, "ack")
        assert gateway.cursors == {"g:1": 1}
        async with client(gateway, tmp_path / "s") as ann:
            assert await bodies(ann, 2) == [2, 3]


def test_cursors_of_the_longest_ids_fit_into_one_frame() -> None:
    """The server closes a connection that sends a larger one, and would do so on every later one."""
    cursors = {f"d:{'a' * 64}:{i:064}": 2**53 - 1 for i in range(inbox.ACK_CURSORS)}
    assert len(values.encode({"type": "ack", "cursors": cursors}).encode()) <= values.MAX_COMMAND_BYTES


async def test_event_is_given_again_after_a_crash_before_its_ack(tmp_path: Path) -> None:
    """The server's cursor is behind the stored one: `hello` says how far this device is."""
    async with scripted() as gateway:
        async with client(gateway, tmp_path / "s") as ann:
            await ann.until(Status.LIVE)
            for i in range(1, 4):
                await gateway.message(i)
            assert await bodies(ann, 3) == [1, 2, 3]
            await gateway.close(1012, "retry_after=3600")  # no ack comes through
        gateway.cursors.clear()
        async with client(gateway, tmp_path / "s") as ann:
            assert await bodies(ann, 1) == [3]
            assert gateway.of("hello")[-1]["cursors"] == {"g:1": 2}


async def test_handler_may_send_and_wait_for_the_ack() -> None:
    """The application runs outside of the read loop, which goes on reading meanwhile."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        seen: list[int] = []
        got_two = asyncio.Event()

        async def handler(event: Event) -> None:
            if isinstance(event, Message) and event.sender == "bob":
                seen.append((await ann.conversation("g:1").send("answer").acked).seq)
                if len(seen) == 2:
                    got_two.set()

        listening = asyncio.create_task(ann.listen(handler))
        await gateway.message("one")
        await gateway.message("two")
        async with asyncio.timeout(40):
            await got_two.wait()
        assert len(gateway.of("send")) == 2
        listening.cancel()
        await asyncio.wait([listening])


async def test_event_of_a_handler_that_raised_is_given_again() -> None:
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        await gateway.message("x")

        async def handler(event: Event) -> None:
            if isinstance(event, Message):
                raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                await ann.listen(handler)


async def test_slow_application_bounds_memory_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the inbox events are not kept; they are read from the history when there is room."""
    monkeypatch.setattr(inbox, "INBOX", 8)
    monkeypatch.setattr(inbox, "RESUME_AT", 4)
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        for i in range(50):
            await gateway.message(i)
        await eventually(lambda: ann.conversation("g:1").view.head >= 7)
        assert ann._receiving is not None
        assert len(ann._receiving._inbox) <= 9
        assert await bodies(ann, 50) == list(range(50))


async def test_gap_is_handed_over_and_applied_to_the_model() -> None:
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        for i in range(1, 4):
            await gateway.message(i)
        await gateway.say({"type": "gap", "conversation": "g:1", "from": 2, "to": 3, "reason": "failover"})
        found: list[Event] = []
        async for event in ann.events():
            found.append(event)
            if isinstance(event, Gap):
                break
        assert found[-1] == Gap(conversation="g:1", first=2, last=3, reason="failover")
        assert list(ann.conversation("g:1").view.entries) == [1]


async def test_conversation_that_is_gone_is_handed_over_and_acked() -> None:
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        state = {"conversation": "g:9", "kind": "group", "gone": True, "reason": "removed"}
        for _ in range(2):
            await gateway.say({"type": "conversations", "conversations": [state], "more": False})
        await gateway.message("after")
        found: list[Event] = []
        async for event in ann.events():
            found.append(event)
            if isinstance(event, Message):
                break
        assert [event for event in found if not isinstance(event, Joined)][:-1] == [
            Gone(conversation="g:9", reason="removed")
        ]
        assert (await gateway.until(1, "ack"))[0]["conversation"] == "g:9"


async def test_conversation_whose_part_does_not_answer_is_shown_and_begins_later() -> None:
    """Its numbers count once the entry without `held` comes: nothing is read from the first event on."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        state: dict[str, Any] = {"conversation": "g:9", "kind": "group", "title": "walks"}
        view = ann.conversation("g:9").view
        await gateway.say({"type": "conversations", "conversations": [state | {"held": True}], "more": False})
        await eventually(lambda: view.held and view.title == "walks")
        numbers = {"head": 7, "cursor": 7, "read": 7, "unread": 0}
        await gateway.say({"type": "conversations", "conversations": [state | numbers], "more": False})
        await eventually(lambda: not view.held)
        assert view.head == 7
        # As of a session that was connected before.
        await gateway.say({"type": "conversations", "conversations": [state | {"held": True}], "more": False})
        await eventually(lambda: view.held)
        await gateway.say({"type": "conversations", "conversations": [state | {"held": False}], "more": False})
        await eventually(lambda: not view.held)
        assert (view.head, view.unread) == (7, 0)
        await gateway.message("after")
        events = ann.events()
        async with asyncio.timeout(20):
            while not isinstance(await anext(events), Message):
                pass
            asked = asyncio.ensure_future(anext(events))  # asking for the next event acks the message
            await gateway.until(1, "ack")
            asked.cancel()
        assert not gateway.of("history")


async def test_closed_client_says_goodbye() -> None:
    """The gateway sees a normal close, so that the user is offline at once."""
    async with scripted() as gateway:
        async with client(gateway) as ann:
            await ann.until(Status.LIVE)
        await eventually(lambda: gateway.closes == [1000])
        assert ann.status is Status.IDLE


@pytest.mark.parametrize(("code", "why"), [(4409, "replaced"), (4502, "banned"), (4504, "ended")])
async def test_close_codes_that_forbid_a_reconnect_stop_the_client(code: int, why: str) -> None:
    """The events that came are still handed over; then the consumer gets `Stopped`."""
    async with scripted() as gateway, client(gateway) as ann:
        await ann.until(Status.LIVE)
        await gateway.message("x")
        await gateway.close(code)
        await ann.until(Status.STOPPED)
        found: list[Event] = []

        async def handler(event: Event) -> None:
            found.append(event)

        with pytest.raises(Stopped) as stopped:
            await ann.listen(handler)
        assert stopped.value.reason == ann.stopped == why
        assert [event.body for event in found if isinstance(event, Message)] == ["x"]


async def test_refused_token_is_replaced_and_not_used_again() -> None:
    """4501 asks the token source for another token, with the reason; the same token again stops the client."""
    reasons: list[str] = []

    async def source(reason: str) -> str:
        reasons.append(reason)
        return "second" if len(reasons) > 1 else "first"

    async with scripted() as gateway:
        options = {"gateways": [gateway.url]}
        async with Client("http://127.0.0.1:9", "ann", source, **options) as ann:  # type: ignore[arg-type]
            await ann.until(Status.LIVE)
            await gateway.close(4501)
            await gateway.until(2, "hello")
            await ann.until(Status.LIVE)
            await gateway.close(4500)
            await ann.until(Status.STOPPED)
        assert [command["token"] for command in gateway.of("hello")] == ["first", "second"]
        assert reasons == ["connect", "token_expired", "unauthorized"]


async def test_view_has_no_hole_where_an_earlier_life_sent_a_message(tmp_path: Path) -> None:
    """Its event was given to the earlier life, its ack comes in the later one: it is loaded with its neighbours."""
    async with scripted() as gateway:
        gateway.silent = True
        async with client(gateway, tmp_path / "s") as ann:
            ann.conversation("g:1").send("mine")
            await gateway.until(1, "send")
            await gateway.message("theirs")
            assert await bodies(ann, 3 - 1) == ["mine", "theirs"]
            await gateway.message("later")
            await bodies(ann, 2)
        gateway.silent = False
        async with client(gateway, tmp_path / "s") as ann:
            (recovered,) = ann.outbox
            await recovered.acked
            await gateway.message("new")
            assert "new" in await bodies(ann, 2)
            conversation = ann.conversation("g:1")

            def shown() -> list[object]:
                return [entry.body for entry in conversation.messages()]

            assert shown()[-2:] == ["later", "new"]
            assert "mine" not in shown()
            assert await conversation.load_older() > 0
            assert shown() == ["mine", "theirs", "later", "new"]
