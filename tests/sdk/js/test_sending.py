"""Sending with the JavaScript SDK: what is stored is sent once, whatever becomes of the process and the connection."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tests.flow.client import ChatClient
from tests.flow.conftest import System
from tests.sdk.js.application import NodeApplication
from tests.sdk.js.conftest import Proxied
from tests.support import eventually


async def test_message_is_acked_and_received_once(chat: System, api: str, store: Path) -> None:
    bob = ChatClient("bob-s1")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        opened = await app.start(api, "alice-s1", store)
        assert opened["durable"]
        assert opened["device"].startswith("js.")
        sent = await app.call("send", to="@bob-s1", body="hello", wait="acked")
        assert sent["state"] == "acked"
        assert sent["seq"] > 0
        states = [report["state"] for report in app.reports if report["type"] == "handle"]
        assert states == ["queued", "sent", "acked"]
        assert await bob.has("d:alice-s1:bob-s1", 1) == ["hello"]
        assert await app.handed(1) == ["hello"]


async def test_stored_message_is_sent_after_the_process_was_killed(chat: System, api: str, store: Path) -> None:
    """Between put and send: the process is killed before it had a connection."""
    async with NodeApplication() as app:
        first = await app.open(api, "alice-s2", store)
        await app.call("send", to="@bob-s2", body="kept")
        await app.kill()
    bob = ChatClient("bob-s2")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        assert (await app.start(api, "alice-s2", store))["device"] == first["device"]
        assert await bob.has("d:alice-s2:bob-s2", 1) == ["kept"]
        assert await app.handed(1) == ["kept"]
    assert bob.whole("d:alice-s2:bob-s2")


async def test_message_whose_ack_was_lost_takes_effect_once(proxied: Proxied, store: Path) -> None:
    """Killed between send and ack: the next process resends with the same n."""
    system, proxy, api = proxied
    bob = ChatClient("bob-s3")
    await bob.connect(system.urls[0])
    proxy.pass_event = lambda event: event["type"] != "ack"
    async with NodeApplication() as app:
        await app.start(api, "alice-s3", store)
        await app.call("send_many", to="@bob-s3", bodies=[f"m{i}" for i in range(5)])
        await bob.has("d:alice-s3:bob-s3", 5)
        await app.kill()
    proxy.pass_event = lambda event: 1
    async with NodeApplication() as app:
        await app.start(api, "alice-s3", store)
        await app.call("send", to="@bob-s3", body="last", wait="acked")
        assert await app.call("outbox", to="@bob-s3") == []
    assert await bob.has("d:alice-s3:bob-s3", 6) == ["m0", "m1", "m2", "m3", "m4", "last"]
    assert bob.whole("d:alice-s3:bob-s3")


async def test_connection_lost_between_send_and_ack_resends(proxied: Proxied, store: Path) -> None:
    system, proxy, api = proxied
    bob = ChatClient("bob-s4")
    await bob.connect(system.urls[0])
    async with NodeApplication() as app:
        await app.start(api, "alice-s4", store)
        proxy.pass_event = lambda event: event["type"] != "ack"
        await app.call("send_many", to="@bob-s4", bodies=["a", "b", "c"])
        await bob.has("d:alice-s4:bob-s4", 3)
        proxy.pass_event = lambda event: 1
        since = len(app.reports)
        await proxy.cut()
        await app.until(since=since, type="status", status="live")
        for name in ("a", "b", "c"):
            assert (await app.call("acked", name=name))["state"] == "acked"
    assert bob.bodies("d:alice-s4:bob-s4") == ["a", "b", "c"]
    assert bob.whole("d:alice-s4:bob-s4")


async def test_at_most_32_of_a_conversation_are_open(proxied: Proxied, store: Path) -> None:
    """The 33rd is written only after the first was answered, and all arrive in order."""
    system, proxy, api = proxied
    sends: list[int] = []
    acked: list[int] = []
    most = 0

    def answered(event: dict[str, object]) -> int:
        if event["type"] in ("ack", "error"):
            acked.append(1)
        return 1

    def written(command: dict[str, object]) -> bool:
        nonlocal most
        if command["type"] == "send":
            sends.append(1)
            most = max(most, len(sends) - len(acked))
            assert int(str(command["done"])) < int(str(command["n"]))
        return True

    proxy.pass_event, proxy.pass_command = answered, written
    bob = ChatClient("bob-s5")
    await bob.connect(system.urls[0])
    bodies = [f"m{i}" for i in range(150)]
    async with NodeApplication() as app:
        await app.open(api, "alice-s5", store)
        await app.call("send_many", to="@bob-s5", bodies=bodies)
        await app.call("connect", handler="record")
        assert await bob.has("d:alice-s5:bob-s5", 150) == bodies
        await app.handed(150)
    proxy.pass_event, proxy.pass_command = lambda event: 1, lambda command: True
    assert len(sends) >= 150  # a slow server may answer `unavailable`
    assert most <= 32


async def test_refused_message_is_shown_as_failed_until_it_is_removed(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-s6", store)
        await app.call("send", to="@nobody-s6", body="to nobody")
        assert (await app.until(type="handle", state="failed"))["code"] == "not_found"
        await app.kill()
    async with NodeApplication() as app:
        await app.start(api, "alice-s6", store)
        [failed] = await app.call("outbox", to="@nobody-s6")
        assert failed["state"] == "failed"
        [shown] = await app.call("messages", to="@nobody-s6")
        assert (shown["body"], shown["state"]) == ("to nobody", "failed")


async def test_failed_message_is_retried_with_a_new_number(chat: System, api: str, store: Path) -> None:
    async with NodeApplication() as app:
        await app.start(api, "alice-s7", store)
        await app.call("send", to="@bob-s7", body="again", name="m")
        await app.until(type="handle", name="m", state="failed")
        bob = ChatClient("bob-s7")
        await bob.connect(chat.urls[0])
        assert await app.call("retry", name="m")
        assert (await app.call("acked", name="m"))["state"] == "acked"
        assert await bob.has("d:alice-s7:bob-s7", 1) == ["again"]
        assert not await app.call("cancel", name="m")


async def test_queued_message_can_be_cancelled_and_a_sent_one_not(chat: System, api: str, store: Path) -> None:
    bob = ChatClient("bob-s8")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        await app.open(api, "alice-s8", store)
        await app.call("send", to="@bob-s8", body="no")
        await app.call("send", to="@bob-s8", body="yes")
        assert await app.call("cancel", name="no")
        await app.call("connect")
        await app.call("acked", name="yes")
        assert not await app.call("cancel", name="yes")
    assert await bob.has("d:alice-s8:bob-s8", 1) == ["yes"]


async def test_store_in_memory_is_not_durable(api: str) -> None:
    async with NodeApplication() as app:
        assert not (await app.open(api, "alice-s9", None))["durable"]


async def test_second_process_cannot_open_the_store(api: str, store: Path) -> None:
    async with NodeApplication() as app, NodeApplication() as other:
        await app.open(api, "alice-s10", store)
        refused = await asyncio.gather(other.open(api, "alice-s10", store), return_exceptions=True)
        assert "in use by another process" in str(refused[0])


async def test_lost_events_store_is_a_new_device_after_the_old_name_was_settled(
    chat: System, api: str, store: Path
) -> None:
    bob = ChatClient("bob-s11")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        first = await app.open(api, "alice-s11", store)
        await app.call("send", to="@bob-s11", body="under the old name")
        await app.kill()
    for file in store.glob("events.sqlite*"):
        file.unlink()
    async with NodeApplication() as app:
        second = await app.open(api, "alice-s11", store)
        assert second["device"] != first["device"]
        await app.call("send", to="@bob-s11", body="under the new name")
        await app.call("connect", handler="record")
        await app.call("acked", name="under the new name")
    assert sorted(await bob.has("d:alice-s11:bob-s11", 2)) == ["under the new name", "under the old name"]
    devices = {event["body"]: event["device"] for event in bob.received["d:alice-s11:bob-s11"].values()}
    assert devices == {"under the old name": first["device"], "under the new name": second["device"]}


async def test_message_whose_device_name_was_taken_over_is_looked_up(proxied: Proxied, store: Path) -> None:
    """It was accepted, and its ack lost: the history says so, and it is not sent again."""
    system, proxy, api = proxied
    bob = ChatClient("bob-s13")
    await bob.connect(system.urls[0])
    async with NodeApplication() as app:
        opened = await app.start(api, "alice-s13", store)
        proxy.pass_event = lambda event: event["type"] != "ack"
        await app.call("send", to="@bob-s13", body="accepted")
        await bob.has("d:alice-s13:bob-s13", 1)
        proxy.pass_event = lambda event: 1
        twin = ChatClient("alice-s13", opened["device"])
        await twin.connect(system.urls[0])
        assert (await app.call("acked", name="accepted"))["state"] == "acked"
        await app.call("send", to="@bob-s13", body="next", wait="acked")
    assert await bob.has("d:alice-s13:bob-s13", 2) == ["accepted", "next"]


async def test_copied_store_takes_a_new_device_name(chat: System, api: str, store: Path, tmp_path: Path) -> None:
    """Both copies hold the same queued message: it takes effect once, and they go on as two devices."""
    bob = ChatClient("bob-s14")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        opened = await app.open(api, "alice-s14", store)
        await app.call("send", to="@bob-s14", body="queued")
        await app.call("close")
    shutil.copytree(store, tmp_path / "copy")
    async with NodeApplication() as app:
        await app.start(api, "alice-s14", store)
        await bob.has("d:alice-s14:bob-s14", 1)
        await app.call("close")
    async with NodeApplication() as copy:
        await copy.start(api, "alice-s14", tmp_path / "copy")
        await copy.call("send", to="@bob-s14", body="next", wait="acked")

        async def renamed() -> bool:
            return bool((await copy.call("status"))["device"] != opened["device"])

        await eventually(renamed)
    assert await bob.has("d:alice-s14:bob-s14", 2) == ["queued", "next"]


async def test_device_name_that_another_client_uses_is_given_up(chat: System, api: str, store: Path) -> None:
    """A copied store: the later session replaces the earlier one, which takes a new name and goes on."""
    async with NodeApplication() as app:
        opened = await app.start(api, "alice-s12", store)
        twin = ChatClient("alice-s12", opened["device"])
        await twin.connect(chat.urls[0])
        waiting = await app.until(type="status", status="waiting")
        await app.until(since=app.reports.index(waiting), type="status", status="live")
        assert (await app.call("status"))["device"] != opened["device"]
        assert twin.closed is None


async def test_connection_cut_again_and_again_loses_and_doubles_nothing(proxied: Proxied, store: Path) -> None:
    """Both directions at once; every 60th frame that the client gets is its connection's last."""
    system, proxy, api = proxied
    frames = 0
    cuts: set[asyncio.Task[None]] = set()

    def cut_sometimes(_event: dict[str, object]) -> int:
        nonlocal frames
        frames += 1
        if frames % 60 == 0:
            cuts.add(asyncio.create_task(proxy.cut()))
        return 1

    proxy.pass_event = cut_sometimes
    bob = ChatClient("bob-s15")
    await bob.connect(system.urls[0])
    sent, answers = [f"a{i}" for i in range(100)], [f"b{i}" for i in range(100)]
    async with NodeApplication() as app:
        await app.start(api, "alice-s15", store)
        await app.call("send_many", to="@bob-s15", bodies=sent)
        for body in answers:
            await bob.sent("@alice-s15", body)
        received = await app.handed(200, 60)
        assert await bob.has("d:alice-s15:bob-s15", 200) == received
        await asyncio.gather(*cuts)
    # The order is not judged: on a slow machine a send may be answered with `unavailable`, and those that were written
    # after it are accepted first.
    assert sorted(received) == sorted(sent + answers)
    assert proxy.count("hello") > 3
    assert bob.whole("d:alice-s15:bob-s15")


async def test_store_that_is_removed_under_the_client_is_a_new_device(chat: System, api: str, store: Path) -> None:
    """What is stored after that survives a kill: it is not written into a file that no later process finds."""
    bob = ChatClient("bob-s20")
    await bob.connect(chat.urls[0])
    async with NodeApplication() as app:
        first = await app.open(api, "alice-s20", store)
        await app.call("send", to="@bob-s20", body="before")
        shutil.rmtree(store)
        await app.call("send", to="@bob-s20", body="after")
        await app.call("acked", name="before")
        assert (await app.call("status"))["device"] != first["device"]
        await app.call("acked", name="after")
    assert sorted(await bob.has("d:alice-s20:bob-s20", 2)) == ["after", "before"]
