"""The outbox at work: stores commands, writes them to the connection, and settles them by their answers.

Theory of operation:
1. `put` gives the command to the store and returns its handle. When the row is stored, its conversation is due.
2. A due conversation is issued if the connection is live: the store marks the rows as written and returns them with
   `done`, then they are written. `unanswered` has what this process has written in a conversation and is not answered.
3. A new connection issues every written row again, in order, and then new ones.
4. `ack`: the row is removed from the store, and only then is the handle acked.
5. `error` with a wait (`unavailable`; `rate_limited` up to 60 s): the row is written again after the wait with the same
   n. Until all that is written is answered, the conversation issues nothing new, so the order is kept. Of rows that
   wait the oldest goes first and alone, because refused commands count against the rate, too; each answer doubles how
   many go at once, each refusal doubles the wait.
6. `conflict` `old` or `answered` for the first write of n: n was not accepted, so the row gets a new n from `next`. For
   a later write the n may have been accepted: the history is searched for it. Found: acked. Else: failed.
7. Any other error is final: the row is stored as failed and shown.
8. If an own event has the n of a refused command, the command is acked: an earlier copy was delayed and accepted later.
   After `conflict` this does not hold, because the n may be that of another command.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import linnet_client.outbox as outbox
import linnet_client.values as values
from linnet_client.errors import (
    Cancelled,
    ClientError,
    InvalidValue,
    NotConnected,
    Refused,
    StoreError,
    StoreLost,
    retry_at,
)
from linnet_client.messages import Ack, MessageHandle
from linnet_client.model import MessageView
from linnet_client.store import Store
from linnet_client.wire import AckEvent

MAX_WAIT_S: Final = 60.0
MAX_BACKOFF_S: Final = 15.0
JITTER: Final = 1.3
DEFAULT_WAIT_S: Final = 1.0
STORE_RETRY_S: Final = 5.0
ANSWER_S: Final = 30.0  # a command without an answer for so long: the connection is broken
SEARCH_PAGES: Final = 50
SEARCH_LIMIT: Final = 200

log = logging.getLogger("linnet_client")


class Link(Protocol):
    """The live connection, as the sender needs it."""

    @property
    def live(self) -> bool: ...

    def write(self, command: dict[str, Any]) -> None: ...

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]: ...


class Owner(Protocol):
    """The calls from the sender to the client. None of them waits."""

    def settled(self, handle: MessageHandle) -> None:
        """The command is acked."""

    def cancelled(self, handle: MessageHandle) -> None:
        """The command was removed from the store."""

    def copied(self) -> None:
        """An answer shows that another store uses the device name."""

    def lost(self) -> None:
        """The store takes no new commands: its file is gone."""


@dataclass(slots=True)
class _Pause:
    """A conversation in which a command waits: nothing new is issued until all that was written is answered.

    `waiting`: n to write again; `burst`: how many of them at once, doubled by each answer; `refusals`: in a row.
    """

    waiting: dict[int, None] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    due: float = 0.0
    burst: int = 1
    refusals: int = 0

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def stop(self) -> None:
        """Forget what waits: a new connection writes everything again."""
        self.stop_timer()
        self.waiting.clear()


class Sending:
    """The commands of one device."""

    def __init__(self, store: Store, link: Link, owner: Owner) -> None:
        self.handles: dict[int, MessageHandle] = {}
        self._store = store
        self._link = link
        self._owner = owner
        self._attempts: dict[int, int] = {}
        self._landed: dict[int, Ack] = {}  # acks made from own events, by n, of commands that have no answer yet
        self._refused: set[int] = set()  # n of commands that have failed or are about to, but for `conflict`
        self._unanswered: dict[str, dict[int, float]] = {}  # by conversation: n and when it was written last
        self._paused: dict[str, _Pause] = {}
        self._due: set[str] = set()
        self._held: list[tuple[MessageHandle, str]] = []  # came while the store was lost
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the application's side

    def put(self, conversation: str, command: dict[str, Any], entry: MessageView | None) -> MessageHandle:
        """Store a command; return its handle at once."""
        handle = MessageHandle(self, conversation, command, entry)
        try:
            text = values.encode(command)
            if len(text.encode()) > values.MAX_COMMAND_BYTES:
                raise InvalidValue(f"a command may have {values.MAX_COMMAND_BYTES} bytes")
        except (InvalidValue, ValueError) as error:
            handle.was_not_stored(error)
            return handle
        self._save(handle, text)
        return handle

    def _save(self, handle: MessageHandle, text: str) -> None:
        if self._store.lost:
            self._held.append((handle, text))
            self._owner.lost()
            return
        future = self._store.run(lambda db: outbox.put(db, handle.conversation, text, time.time_ns() // 1000))
        future.add_done_callback(partial(self._saved, handle, text))

    def _saved(self, handle: MessageHandle, text: str, future: asyncio.Future[int]) -> None:
        if error := future.exception():
            handle.was_not_stored(error if isinstance(error, ClientError) else StoreError(str(error)))
            return
        if self._store.lost:  # the row is in a file that no later process finds
            _consume(self._store.run(lambda db: outbox.remove(db, future.result())))
            self._held.append((handle, text))
            self._owner.lost()
            return
        self.handles[future.result()] = handle
        handle.was_stored(future.result())
        self.wake(handle.conversation)

    async def cancel(self, handle: MessageHandle) -> bool:
        await handle.stored
        n = handle.n
        if handle.state == "acked" or not await self._store.run(lambda db: outbox.remove(db, n)):
            return False
        self._drop(n)
        self._forget(handle.conversation, n)
        handle.was_refused(Cancelled("the message was cancelled"))
        self._owner.cancelled(handle)
        return True

    async def retry(self, handle: MessageHandle) -> None:
        if handle.state != "failed" or handle.n not in self.handles:
            raise ClientError("only a command that has failed, and was not cancelled, can be retried")
        old = handle.n
        try:
            n = await self._store.run(lambda db: outbox.retry(db, old, time.time_ns() // 1000))
        except LookupError:
            return  # it was acked or cancelled meanwhile
        self._moved(handle, old, n)
        handle.queued_again(n)
        self.wake(handle.conversation)

    def recover(self, rows: list[outbox.Row], entries: Callable[[outbox.Row], MessageView | None]) -> None:
        """Make the handles of what an earlier process has left."""
        for row in rows:
            handle = MessageHandle(self, row.conversation, row.command, entries(row))
            handle.was_stored(row.n)
            self.handles[row.n] = handle
            self._attempts[row.n] = row.attempts
            if row.failed is not None:
                if row.failed["code"] != "conflict":
                    self._refused.add(row.n)
                handle.was_refused(_refusal(row.failed))

    # -- the connection's side

    def connected(self) -> None:
        """Issue what earlier connections have left without an answer, and what is new."""
        self._unanswered.clear()
        for pause in self._paused.values():
            pause.stop()
        for conversation in {handle.conversation for handle in self.handles.values() if handle.state != "failed"}:
            self._issue(conversation, None, fresh=conversation not in self._paused)

    def wake(self, conversation: str) -> None:
        """Issue what is new in a conversation, with all that becomes new in this turn of the loop."""
        if self._link.live and conversation not in self._paused and conversation not in self._due:
            self._due.add(conversation)
            asyncio.get_running_loop().call_soon(self._issue_due, conversation)

    def _issue_due(self, conversation: str) -> None:
        self._due.discard(conversation)
        if self._link.live and conversation not in self._paused:
            self._issue(conversation, (), fresh=True)

    def _issue(self, conversation: str, again: tuple[int, ...] | None, *, fresh: bool) -> None:
        future = self._store.run(lambda db: outbox.issue(db, conversation, again, fresh))
        future.add_done_callback(partial(self._issued, conversation, again, fresh))

    def _issued(
        self,
        conversation: str,
        again: tuple[int, ...] | None,
        fresh: bool,
        future: asyncio.Future[tuple[list[outbox.Row], int]],
    ) -> None:
        if error := future.exception():
            log.error("the outbox cannot be read: %s", error)
            issue = partial(self._issue, conversation, again, fresh=fresh)
            asyncio.get_running_loop().call_later(STORE_RETRY_S, issue)
            return
        rows, done = future.result()
        for row in rows:
            self._attempts[row.n] = row.attempts + 1
            if not self._link.live:
                continue  # a later connection writes it again
            self._unanswered.setdefault(conversation, {})[row.n] = time.monotonic()
            self._link.write({**row.command, "n": row.n, "id": row.n, "done": done})
            if (handle := self.handles.get(row.n)) is not None:
                handle.move("sent")
        if self._link.live:
            self._go_on(conversation)  # ends a pause in which nothing is open any more

    def overdue(self) -> bool:
        """Return whether a command has no answer for too long."""
        now = time.monotonic()
        return any(now - at > ANSWER_S for written in self._unanswered.values() for at in written.values())

    async def all_settled(self) -> None:
        """Wait until every command is acked or failed."""
        while waiting := [handle for handle in self.handles.values() if handle.state != "failed"]:
            for handle in waiting:
                await handle.settled()

    # -- answers

    def ack(self, event: AckEvent) -> None:
        handle = self.handles.get(event["n"])
        if handle is None:
            return
        if event["duplicate"] and self._attempts.get(handle.n, 0) == 1:
            self._owner.copied()
        self._settle(handle, Ack(event["conversation"], event["seq"], event["at"], event["duplicate"]))

    def landed(self, event: dict[str, Any]) -> None:
        """Take an own event of this device: it acks a command that was refused, or is refused later."""
        handle = self.handles.get(event["n"])
        if handle is None:
            return
        ack = Ack(event["conversation"], event["seq"], event["at"], duplicate=True)
        if handle.n in self._refused:
            self._settle(handle, ack)
        elif handle.state != "failed":
            self._landed[handle.n] = ack

    def _settle(self, handle: MessageHandle, ack: Ack) -> None:
        n = handle.n
        future = self._store.run(lambda db: outbox.answer(db, n))
        future.add_done_callback(partial(self._answered, handle, n, lambda: handle.was_acked(ack)))

    def _fail(self, handle: MessageHandle, error: dict[str, Any]) -> None:
        if error["code"] != "conflict":  # after which n may be of another command
            if (landed := self._landed.get(handle.n)) is not None:
                self._settle(handle, landed)  # at once: a refusal that is stored first would outlast a crash
                return
            self._refused.add(handle.n)
        at = retry_at(error.get("retry_after"))
        stored = {"code": error["code"], "message": error.get("message", ""), "retry_at": at}
        n = handle.n
        future = self._store.run(lambda db: outbox.fail(db, n, stored))
        future.add_done_callback(partial(self._answered, handle, n, lambda: handle.was_refused(_refusal(stored))))

    def _answered(
        self, handle: MessageHandle, n: int, settle: Callable[[], None], future: asyncio.Future[None]
    ) -> None:
        if handle.n != n:
            return  # it was refused, and the application has tried it again
        if error := future.exception():
            log.error("an answer cannot be stored: %s", error)
            if handle.state != "failed":
                self._again(handle, STORE_RETRY_S)
            return
        settle()
        if handle.ack is not None:
            self._drop(n)
            self._owner.settled(handle)
        self._forget(handle.conversation, n)

    def _drop(self, n: int) -> None:
        """Remove a command that is acked, cancelled, or goes on under another n."""
        self.handles.pop(n, None)
        self._refused.discard(n)

    def _forget(self, conversation: str, n: int) -> None:
        """Note that n is answered; go on with what is new."""
        self._attempts.pop(n, None)
        self._landed.pop(n, None)
        self._unanswered.get(conversation, {}).pop(n, None)
        if (pause := self._paused.get(conversation)) is not None:
            pause.waiting.pop(n, None)
            pause.refusals = 0
        if not self._unanswered.get(conversation):
            self._unanswered.pop(conversation, None)
        self._go_on(conversation)
        self.wake(conversation)

    def error(self, event: dict[str, Any]) -> None:
        handle = self.handles.get(event["n"])
        if handle is None or handle.n not in self._unanswered.get(handle.conversation, {}):
            return
        code, retry_after, reason = event["code"], event.get("retry_after"), event.get("reason")
        if code == "unavailable":
            self._again(handle, retry_after or DEFAULT_WAIT_S)
        elif code == "rate_limited" and retry_after is not None and retry_after <= MAX_WAIT_S:
            self._again(handle, retry_after)
        elif code == "conflict" and reason in ("old", "answered"):
            self._conflict(handle, event)
        else:
            self._fail(handle, event)

    def _again(self, handle: MessageHandle, wait_s: float) -> None:
        """Write a command again after a wait, which doubles while the server goes on refusing."""
        self._unanswered.get(handle.conversation, {}).pop(handle.n, None)
        pause = self._paused.setdefault(handle.conversation, _Pause())
        pause.waiting[handle.n] = None
        pause.burst = 1
        wait_s = min(wait_s * 2.0**pause.refusals, max(wait_s, MAX_BACKOFF_S)) * random.uniform(1, JITTER)
        due = time.monotonic() + wait_s
        if pause.timer is None or due > pause.due:
            pause.stop_timer()
            pause.due = due
            pause.timer = asyncio.get_running_loop().call_later(wait_s, self._probe, handle.conversation, pause)

    def _probe(self, conversation: str, pause: _Pause) -> None:
        """Write the oldest of the commands that wait."""
        pause.stop_timer()
        if self._link.live and self._paused.get(conversation) is pause and pause.waiting:
            pause.refusals += 1  # until an answer says otherwise
            due = tuple(sorted(pause.waiting))[: pause.burst]
            for n in due:
                del pause.waiting[n]
                self._unanswered.setdefault(conversation, {})[n] = time.monotonic()
            self._issue(conversation, due, fresh=False)

    def _go_on(self, conversation: str) -> None:
        """After an answer: write more of what waits, or end the pause."""
        pause = self._paused.get(conversation)
        if pause is None or self._unanswered.get(conversation):
            return
        if not pause.waiting:
            pause.stop()
            del self._paused[conversation]
            self.wake(conversation)
        elif pause.timer is None:
            pause.burst *= 2
            self._probe(conversation, pause)

    def _conflict(self, handle: MessageHandle, event: dict[str, Any]) -> None:
        if self._attempts.get(handle.n, 0) == 1 and event.get("next"):
            old = handle.n
            future = self._store.run(lambda db: outbox.renumber(db, old, event["next"]))
            future.add_done_callback(partial(self._renumbered, handle, old))
            return
        self._start(self._search(handle, event))

    def _renumbered(self, handle: MessageHandle, old: int, future: asyncio.Future[int]) -> None:
        if future.exception():
            self._again(handle, STORE_RETRY_S)
            return
        self._moved(handle, old, future.result())
        handle.move("queued")
        self._forget(handle.conversation, old)

    def _moved(self, handle: MessageHandle, old: int, new: int) -> None:
        self._drop(old)
        self.handles[new] = handle
        handle.renumbered(new)

    async def _search(self, handle: MessageHandle, event: dict[str, Any]) -> None:
        """Look for an n that may have been accepted in the history."""
        self._unanswered.get(handle.conversation, {}).pop(handle.n, None)
        before: int | None = None
        try:
            for _ in range(SEARCH_PAGES):
                asked = {"type": "history", "conversation": handle.conversation, "limit": SEARCH_LIMIT}
                page = await self._link.ask(asked if before is None else {**asked, "before": before})
                for found in page["events"]:
                    if found["device"] == self._store.device and found["n"] == handle.n:
                        self._settle(handle, Ack(handle.conversation, found["seq"], found["at"], True))
                        return
                if not page["more"] or not page["events"]:
                    break
                before = page["events"][0]["seq"]
        except NotConnected:
            return  # the next connection writes it again, and meets the same conflict
        except Refused as error:
            if error.wait_s is not None:
                self._again(handle, error.wait_s)
                return
        self._fail(handle, event)

    def _start(self, task: Any) -> None:
        made = asyncio.get_running_loop().create_task(task)
        self._tasks.add(made)
        made.add_done_callback(self._tasks.discard)

    # -- a new store or device

    async def give_up_written(self) -> None:
        """Fail what was written without an answer: under another device name the server cannot tell it from new."""
        error = {"code": "conflict", "message": "sent under an earlier device name; it may have been accepted"}
        written = [
            handle for handle in self.handles.values() if handle.state != "failed" and self._attempts.get(handle.n)
        ]
        for handle in written:
            self._fail(handle, error)
        for handle in written:
            await handle.settled()

    def move_to(self, store: Store) -> None:
        """Go on with a new store. Rows of the old one must be settled; what came meanwhile is stored now."""
        self._store = store
        held, self._held = self._held, []
        for handle, text in held:
            if handle.entry is not None:
                handle.entry.device = store.device
            self._save(handle, text)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for pause in self._paused.values():
            pause.stop()
        for handle, _ in self._held:
            handle.was_not_stored(StoreLost("the store was lost"))


def _refusal(error: dict[str, Any]) -> Refused:
    return Refused(error["code"], error.get("message", ""), error.get("retry_at"))


def _consume(future: asyncio.Future[Any]) -> None:
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
