"""What is stored is sent, once, in order, or shown as failed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from linnet_client import (
    Cancelled,
    Client,
    ClientError,
    InvalidValue,
    MessageHandle,
    Refused,
    Status,
    StoreError,
    StoreInUse,
    StoreMismatch,
    sending,
)
from linnet_client import outbox as tables
from linnet_client.store import SCHEMA

from tests.sdk.python.gateway import Gateway, scripted
from tests.support import eventually

NOWHERE = "ws://127.0.0.1:9/ws"  # the discard port: nothing listens


def client(gateway: Gateway | str, store: Path | None = None, **options: Any) -> Client:
    url = gateway if isinstance(gateway, str) else gateway.url
    return Client("http://127.0.0.1:9", "ann", "a-token", store=store, gateways=[url], **options)


def memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(SCHEMA)
    return db


async def test_handle_goes_from_saving_to_acked(tmp_path: Path) -> None:
    """`send` returns at once; `stored`, then the ack; the model's entry and its event are one object."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        handle = ann.conversation("g:1").send({"text": "hi", "raw": b"\x00"})
        assert handle.state == "saving"
        assert await handle.stored == handle.n
        ack = await handle.acked
        assert (ack.seq, ack.duplicate, handle.state) == (1, False, "acked")
        model = ann.conversation("g:1").view
        await eventually(lambda: model.entries.get(1) is handle.entry and not model.queued)
        assert ann.outbox == []
        assert gateway.of("send")[0]["body"] == {"text": "hi", "raw": {"$b64": "AA=="}}


async def test_stored_message_is_sent_by_the_next_process(tmp_path: Path) -> None:
    """Queued while no gateway answers, then the client ends: the next one on this store sends it under the same n."""
    async with client(NOWHERE, tmp_path / "s") as ann:
        handle = ann.conversation("@bob").send("kept")
        await handle.stored
        device, n = ann.device, handle.n
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        (recovered,) = ann.outbox
        assert (await recovered.acked).seq == 1
        (sent,) = gateway.of("send")
        assert (sent["to"], sent["body"], sent["n"], ann.device) == ("@bob", "kept", n, device)


async def test_unanswered_message_is_sent_again_with_its_n(tmp_path: Path) -> None:
    """The ack is lost with the connection: the resend has the same n, and the message takes effect once."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.silent = True
        handle = ann.conversation("g:1").send("x")
        await gateway.until(1, "send")
        gateway.silent = False
        await gateway.close(1012, "retry_after=0.01")
        assert (await handle.acked).duplicate
        assert [command["n"] for command in gateway.of("send")] == [handle.n] * 2
        assert len(gateway.logs["g:1"]) == 1
        assert ann.stopped is None


def test_n_is_never_used_twice_whatever_the_clock_says() -> None:
    """A clock that was put back between two processes, or does not move, gives higher n all the same."""
    db = memory()
    given = [tables.put(db, "g:1", "{}", clock) for clock in (1000, 1000, 5, 2000)]
    tables.answer(db, given[-1])
    given.append(tables.put(db, "g:1", "{}", 1))
    assert given == [1000, 1001, 1002, 2000, 2001]


async def test_done_is_below_what_an_earlier_process_left_open(tmp_path: Path) -> None:
    """`done` comes from the store: a new process knows what the one before has not settled."""
    async with scripted() as gateway:
        async with client(gateway, tmp_path / "s") as ann:
            gateway.refusals.append({"code": "unavailable", "retry_after": 3600})
            first = ann.conversation("g:1").send("open")
            await gateway.until(1, "send")
        gateway.silent = True
        async with client(gateway, tmp_path / "s") as ann:
            await ann.until(Status.LIVE)
            await gateway.until(2, "send")
            later = ann.conversation("g:1").send("later")
            await gateway.until(3, "send")
            assert [command["done"] for command in gateway.of("send")] == [first.n - 1] * 3
            gateway.silent = False
            await gateway.close(1012, "retry_after=0.01")
            await later.acked
            last = ann.conversation("g:1").send("last")
            await last.acked
            assert gateway.of("send")[-1]["done"] == last.n - 1


async def test_at_most_32_commands_are_issued_before_the_first_is_answered(tmp_path: Path) -> None:
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.silent = True
        handles = [ann.conversation("g:1").send(i) for i in range(40)]
        await gateway.until(32, "send")
        await ann.ask({"type": "history", "conversation": "g:1"})  # goes the same way, behind the others
        assert [command["body"] for command in gateway.of("send")] == list(range(32))
        gateway.silent = False
        await gateway.close(1012, "retry_after=0.01")
        await asyncio.gather(*(handle.settled() for handle in handles))
        assert [event["body"] for event in gateway.logs["g:1"]] == list(range(40))


def test_window_counts_from_the_oldest_command_without_an_answer() -> None:
    """The server remembers 32 n: as long as the first is open, the 33rd waits, whatever else is answered."""
    db = memory()
    given = [tables.put(db, "g:1", "{}", 1) for _ in range(40)]
    rows, done = tables.issue(db, "g:1", None, True)
    assert ([row.n for row in rows], done) == (given[:32], given[0] - 1)
    for n in given[1:32]:
        tables.answer(db, n)
    assert tables.issue(db, "g:1", (), True)[0] == []
    tables.answer(db, given[0])
    rows, done = tables.issue(db, "g:1", (), True)
    assert ([row.n for row in rows], done) == (given[32:], given[32] - 1)


async def test_message_that_must_wait_is_not_overtaken(tmp_path: Path) -> None:
    """After `unavailable` nothing new is issued in the conversation until the message is answered."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.refusals.extend([{"code": "unavailable", "retry_after": 0.05}])
        first = ann.conversation("g:1").send("first")
        await gateway.until(1, "send")
        await eventually(lambda: first.state == "sent")
        second = ann.conversation("g:1").send("second")
        await first.acked
        await second.acked
        assert [event["body"] for event in gateway.logs["g:1"]] == ["first", "second"]
        assert gateway.of("send")[0]["n"] == gateway.of("send")[1]["n"] == first.n


async def test_refused_commands_do_not_keep_each_other_out(tmp_path: Path) -> None:
    """Refused commands count against the server's rate. So the oldest goes alone, and some go through in the end."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.spacing_s = 0.02
        handles = [ann.conversation("g:1").send(i) for i in range(32)]
        async with asyncio.timeout(30):
            await asyncio.gather(*(handle.settled() for handle in handles))
        assert {handle.state for handle in handles} == {"acked"}
        assert len(gateway.of("send")) < 8 * len(handles)


@pytest.mark.parametrize("refusal", [{"code": "not_found"}, {"code": "rate_limited", "retry_after": 61.0}])
async def test_refused_message_is_shown_as_failed_and_can_be_retried(tmp_path: Path, refusal: dict[str, Any]) -> None:
    """A final refusal, or a wait of more than a minute: failed, also for the next process; the retry has a new n."""
    async with scripted() as gateway:
        async with client(gateway, tmp_path / "s") as ann:
            gateway.refusals.append(refusal)
            handle = ann.conversation("g:1").send("x")
            with pytest.raises(Refused) as refused:
                await handle.acked
            assert refused.value.code == refusal["code"]
            assert (refused.value.wait_s is None) == ("retry_after" not in refusal)
        async with client(gateway, tmp_path / "s") as ann:
            (handle,) = ann.outbox
            assert handle.state == "failed"
            old = handle.n
            await handle.retry()
            await handle.acked
            assert handle.n > old
            assert gateway.of("send")[-1]["n"] == handle.n


@pytest.mark.parametrize("first", ["refusal", "event"])
async def test_refused_message_whose_delayed_copy_is_accepted_is_acked(tmp_path: Path, first: str) -> None:
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        handle = ann.conversation("g:1").send("x")
        await handle.stored
        event = {"media": "text", "body": "x"}
        if first == "refusal":
            gateway.refusals.append({"code": "read_only"})
            with pytest.raises(Refused):
                await handle.acked
            await gateway.deliver(gateway.append("g:1", "ann", ann.device, handle.n, event))
        else:
            gateway.silent = True
            await gateway.until(1, "send")
            await gateway.say({"type": "error", "code": "read_only", "message": "no", "n": handle.n})
        await eventually(lambda: handle.state == "acked")
        ack = await handle.acked
        assert (ack.seq, ann.outbox, handle.error) == (1, [], None)
        entry = ann.conversation("g:1").view.entries[1]
        assert (entry is handle.entry, entry.state) == (True, "acked")


async def test_crash_after_a_late_refusal_leaves_an_accepted_message_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event came first, and does not come again: a stored refusal would show it as failed for ever."""
    async with scripted() as gateway:
        gateway.silent = True
        with monkeypatch.context() as crash:
            answers: list[int] = []

            def ends(_db: object, n: int) -> None:
                answers.append(n)
                raise sqlite3.OperationalError("the process ends here")

            crash.setattr(tables, "answer", ends)
            async with client(gateway, tmp_path / "s") as ann:
                handle = ann.conversation("g:1").send("x")
                await eventually(lambda: 1 in ann.conversation("g:1").view.entries)
                await gateway.say({"type": "error", "code": "read_only", "message": "no", "n": handle.n})
                await eventually(lambda: bool(answers))
        gateway.silent = False
        async with client(gateway, tmp_path / "s") as ann:
            (handle,) = ann.outbox
            assert (await handle.acked).seq == 1


async def test_refused_message_that_is_cancelled_leaves_the_outbox(tmp_path: Path) -> None:
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.refusals.append({"code": "read_only"})
        handle = ann.conversation("g:1").send("x")
        with pytest.raises(Refused):
            await handle.acked
        assert await handle.cancel()
        assert ann.outbox == []


async def test_event_does_not_ack_a_message_whose_number_another_has_taken(tmp_path: Path) -> None:
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.refusals.append({"code": "conflict", "reason": "content"})
        handle = ann.conversation("g:1").send("x")
        with pytest.raises(Refused):
            await handle.acked
        await gateway.deliver(gateway.append("g:1", "ann", ann.device, handle.n, {"media": "text", "body": "y"}))
        await eventually(lambda: 1 in ann.conversation("g:1").view.entries)
        assert handle.state == "failed"


async def test_message_that_was_not_written_can_be_cancelled(tmp_path: Path) -> None:
    async with client(NOWHERE, tmp_path / "s") as ann:
        handle = ann.conversation("g:1").send("x")
        assert await handle.cancel()
        with pytest.raises(Cancelled):
            await handle.acked
        assert ann.outbox == []
        assert ann.conversation("g:1").view.queued == []


async def test_message_that_was_written_cannot_be_cancelled(tmp_path: Path) -> None:
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.silent = True
        handle = ann.conversation("g:1").send("x")
        await gateway.until(1, "send")
        assert not await handle.cancel()


async def test_conflict_of_a_first_write_takes_the_next_n(tmp_path: Path) -> None:
    """`old` for an n that was written for the first time: it was not accepted, so it goes on from `next`."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        next_n = 2**52
        gateway.refusals.append({"code": "conflict", "reason": "old", "next": next_n})
        handle = ann.conversation("g:1").send("x")
        await handle.acked
        assert handle.n == next_n
        later = ann.conversation("g:1").send("y")
        await later.acked
        assert later.n == next_n + 1


@pytest.mark.parametrize("accepted", [True, False])
async def test_conflict_of_a_resend_is_looked_up_in_the_history(tmp_path: Path, accepted: bool) -> None:
    """`answered` for an n that may have been accepted: in the history it counts as acked, else it is failed."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.silent = True
        if not accepted:
            gateway.refusals.append({"code": "unavailable", "retry_after": 3600})
        handle: MessageHandle = ann.conversation("g:1").send("x")
        await gateway.until(1, "send")
        gateway.refusals.append({"code": "conflict", "reason": "answered", "next": 2**52})
        await gateway.close(1012, "retry_after=0.01")
        await handle.settled()
        assert handle.state == ("acked" if accepted else "failed")
        assert len(gateway.logs["g:1"]) == accepted


async def test_duplicate_of_a_first_write_stops_the_client(tmp_path: Path) -> None:
    """Another process uses a copy of the store: this one does not go on under the same device name."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        await ann.until(Status.LIVE)
        handle = ann.conversation("g:1").send("x")
        n = await handle.stored
        gateway.accepted["g:1", n] = {"seq": 1}
        await handle.settled()
        await ann.until(Status.STOPPED)
        assert ann.stopped == "copied"


async def test_replaced_client_goes_on_under_a_new_device_name(tmp_path: Path) -> None:
    """What was written under the old name may have been accepted: it is failed. What was not is sent anew."""
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        gateway.silent = True
        written = ann.conversation("g:1").send("written")
        await gateway.until(1, "send")
        await gateway.close(4409)
        await ann.until(Status.STOPPED)
        old, kept = ann.device, ann.conversation("g:1").send("kept")
        await kept.stored
        with pytest.raises(ClientError):
            await ann.connect()
        gateway.silent = False
        await ann.connect(new_device=True)
        await kept.acked
        assert (written.state, ann.stopped) == ("failed", None)
        assert old != ann.device == gateway.of("hello")[-1]["device"]
        assert [event["body"] for event in gateway.logs["g:1"]] == ["written", "kept"]


async def test_answer_that_cannot_be_stored_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the ack comes: the handle is not acked, and the command is sent again until it is."""
    failures = iter([True])

    def full(db: sqlite3.Connection, n: int) -> None:
        if next(failures, False):
            raise sqlite3.OperationalError("database or disk is full")
        answer(db, n)

    answer = tables.answer
    monkeypatch.setattr(tables, "answer", full)
    monkeypatch.setattr(sending, "STORE_RETRY_S", 0.01)
    async with scripted() as gateway, client(gateway, tmp_path / "s") as ann:
        assert (await ann.conversation("g:1").send("x").acked).duplicate
        assert len(gateway.of("send")) == 2
        assert (ann.stopped, ann.outbox) == (None, [])


async def test_message_that_cannot_be_stored_is_failed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(tables, "put", full)
    async with client(NOWHERE, tmp_path / "s") as ann:
        handle = ann.conversation("g:1").send("x")
        with pytest.raises(StoreError):
            await handle.stored
        assert handle.state == "failed"


@pytest.mark.parametrize("body", [{1: 2}, 2**53, float("nan"), "\ud800", object(), [b"x", {"a": set()}]])
async def test_body_that_the_wire_cannot_carry_is_refused_at_once(body: Any) -> None:
    async with client(NOWHERE) as ann:
        with pytest.raises(InvalidValue):
            await ann.conversation("g:1").send(body).acked
        assert ann.outbox == []


async def test_command_larger_than_a_frame_is_failed_without_being_stored() -> None:
    async with client(NOWHERE) as ann:
        handle = ann.conversation("g:1").send("x" * 131_072)
        with pytest.raises(InvalidValue):
            await handle.stored
        assert (handle.state, ann.outbox) == ("failed", [])


async def test_store_has_one_process_and_one_owner(tmp_path: Path) -> None:
    async with client(NOWHERE, tmp_path / "s"):
        with pytest.raises(StoreInUse):
            await client(NOWHERE, tmp_path / "s").open()
    with pytest.raises(StoreMismatch):
        await Client("http://127.0.0.1:9", "bob", "t", store=tmp_path / "s", gateways=[NOWHERE]).open()


async def test_new_store_has_a_new_device_name(tmp_path: Path) -> None:
    names = set()
    for store in (tmp_path / "a", tmp_path / "b", None):
        async with client(NOWHERE, store, device="laptop") as ann:
            names.add(ann.device)
            assert ann.durable == (store is not None)
    assert len(names) == 3
    assert all(name.startswith("laptop.") and len(name) == 15 for name in names)


async def test_store_lost_while_running_is_settled_under_the_old_name_first(tmp_path: Path) -> None:
    """What is open goes on under the old device name; what comes meanwhile is stored in the new store, and sent."""
    store = tmp_path / "s"
    async with scripted() as gateway, client(gateway, store) as ann:
        await ann.until(Status.LIVE)
        gateway.refusals.append({"code": "unavailable", "retry_after": 0.05})
        old = ann.device
        opened = ann.conversation("g:1").send("open")
        await gateway.until(1, "send")
        for file in tmp_path.iterdir():
            file.unlink()
        later = ann.conversation("g:1").send("later")
        assert later.state == "saving"
        await later.acked
        assert opened.state == "acked"
        assert ann.device != old
        assert store.exists()
        assert [event["device"] for event in gateway.logs["g:1"]] == [old, ann.device]


def test_row_is_renumbered_in_its_place() -> None:
    """A renumbered row keeps its position, so a later message does not overtake it."""
    db = memory()
    first, second = (tables.put(db, "g:1", json.dumps({"i": i}), 1) for i in range(2))
    new = tables.renumber(db, first, 1000)
    rows, done = tables.issue(db, "g:1", None, True)
    assert [row.n for row in rows] == [new, second]
    assert done == second - 1
