"""From frames to the application: each event once, in order, without a silent hole.

Theory of operation:
1. `taken` is the seq up to which a conversation was put into the inbox. An event at or below it is ignored. If `prev`
   is `taken`, the event is next.
2. If `prev` is above `taken`, something is missing here, or was deleted on the server. The history after `taken` is
   read; what arrives meanwhile is held. What the history does not have does not exist any more.
3. A `gap` moves `taken`, changes the model, and is an event for the application.
4. The inbox has a bound. If the application falls behind, further events are not taken; when there is room, the history
   after `taken` is read. A slow application costs no memory and loses nothing.
5. The application has an event when it asks for the next one. Only then the cursor moves; it is stored, and only a
   stored cursor is acked, every second or every 32 events.
The functions called by the read loop never wait and never call the application.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import linnet_client.events as events
import linnet_client.outbox as outbox
from linnet_client.errors import NotConnected, Refused, Stopped
from linnet_client.events import Event, Logged
from linnet_client.model import ConversationView
from linnet_client.store import Store
from linnet_client.wire import ConversationState, GapEvent

INBOX: Final = 1024
RESUME_AT: Final = INBOX // 2
HELD: Final = 256
RECENT: Final = 512
PAGE: Final = 200
ACK_EVENTS: Final = 32
ACK_CURSORS: Final = 800  # of the longest ids, in a frame of 128 KiB

log = logging.getLogger("linnet_client")


class Link(Protocol):
    """The live connection, as the receiver needs it."""

    @property
    def live(self) -> bool: ...

    def write(self, command: dict[str, Any]) -> None: ...

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(slots=True)
class _Log:
    """The position in one conversation. `held`: raw events that came while its history is read, in their order."""

    taken: int | None = None
    reading: asyncio.Task[None] | None = None
    held: list[dict[str, Any]] = field(default_factory=list)
    overflow: bool = False  # held ones were dropped: read on to the end
    behind: bool = False  # the inbox was full
    recent: OrderedDict[tuple[str, str, int], int] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class _Item:
    event: Event
    conversation: str | None = None  # with a cursor: the application has it up to `seq`
    seq: int = 0


class Receiving:
    """The inbox of one client, and the positions of its conversations."""

    def __init__(self, store: Store, link: Link, model: Callable[[str], ConversationView]) -> None:
        self._store = store
        self._link = link
        self._model = model
        self._logs: dict[str, _Log] = {}
        self._gone: set[str] = set()
        self._inbox: deque[_Item] = deque()
        self._arrived = asyncio.Event()
        self._consumer: EventStream | None = None
        self._stopped: str | None = None
        self.stored: dict[str, tuple[int, int]] = {}  # the stored and the acked cursor of each conversation
        self._moved: dict[str, int] = {}  # the application has these; not stored yet
        self._storing: asyncio.Future[None] | None = None
        self._unacked: dict[str, int] = {}  # stored, not acked
        self._gone_unacked: set[str] = set()
        self._since_ack = 0

    # -- starting and connecting

    def restore(self, cursors: dict[str, tuple[int, int]]) -> None:
        """Begin at the stored cursors."""
        self.stored = dict(cursors)
        for conversation, (seq, _) in cursors.items():
            self._logs[conversation] = _Log(taken=seq)

    @property
    def cursors(self) -> dict[str, int]:
        return {conversation: seq for conversation, (seq, _) in self.stored.items()}

    def connected(self) -> None:
        """Forget what was held for the connection before."""
        for entry in self._logs.values():
            if entry.reading is not None:
                entry.reading.cancel()
            entry.reading, entry.held, entry.overflow = None, [], False

    def states(self, states: list[ConversationState]) -> None:
        """Entries of `welcome` and `conversations`."""
        for state in states:
            conversation = state["conversation"]
            if state.get("gone"):
                self._went(conversation, state.get("reason") or "removed")
                continue
            if "held" in state:  # without numbers; if another entry follows, it has them
                self._model(conversation).hold(state)
                continue
            self._gone.discard(conversation)
            new = conversation not in self._logs
            entry = self._logs.setdefault(conversation, _Log())
            self._model(conversation).apply_state(state)
            cursor = state.get("cursor", 0)
            if entry.taken is None:
                entry.taken = cursor
            elif cursor > entry.taken:
                self._read(conversation, entry)
            self._model(conversation).begin(entry.taken)
            if new:
                self._put(_Item(events.Joined(conversation=conversation)), ephemeral=True)

    def _went(self, conversation: str, reason: str) -> None:
        if conversation not in self._gone:
            self._gone.add(conversation)
            self._model(conversation).gone = reason
            self._inbox.append(_Item(events.Gone(conversation=conversation, reason=reason), conversation, -1))
            self._arrived.set()

    # -- events

    def logged(self, raw: dict[str, Any]) -> None:
        """An event of a log, or a `gap`, as it came from the connection."""
        conversation = raw["conversation"]
        entry = self._logs.setdefault(conversation, _Log())
        if entry.reading is not None:
            if len(entry.held) < HELD:
                entry.held.append(raw)
            else:
                entry.held, entry.overflow = [], True
            return
        self._next(conversation, entry, raw, trusted=False)

    def _next(self, conversation: str, entry: _Log, raw: dict[str, Any], *, trusted: bool) -> bool:
        """Take an event, if it is next; return whether it is dealt with."""
        if raw["type"] == "gap":
            return self._gap(conversation, entry, cast("GapEvent", raw))
        seq, prev = raw["seq"], raw["prev"]
        if entry.taken is None:
            entry.taken = prev
            self._model(conversation).begin(prev)
        if seq <= entry.taken:
            return True
        if entry.behind or len(self._inbox) >= INBOX:
            entry.behind = True
            return False
        if prev > entry.taken and not trusted:
            entry.held = [raw]
            self._read(conversation, entry)
            return True
        self._take(conversation, entry, raw)
        return True

    def _take(self, conversation: str, entry: _Log, raw: dict[str, Any]) -> None:
        entry.taken = raw["seq"]
        make = events.LOGGED.get(raw["type"])
        key = (raw["from"], raw["device"], raw["n"])
        if make is None or (raw["n"] and key in entry.recent):
            return
        entry.recent[key] = raw["seq"]
        if len(entry.recent) > RECENT:
            entry.recent.popitem(last=False)
        event = make(raw)
        self._model(conversation).apply(event)
        self._put(_Item(event, conversation, event.seq))

    def _gap(self, conversation: str, entry: _Log, raw: GapEvent) -> bool:
        gap = events.Gap(conversation=conversation, first=raw["from"], last=raw["to"], reason=raw["reason"])
        self._model(conversation).gap(gap)
        if gap.reason == "failover":
            entry.recent = OrderedDict((k, seq) for k, seq in entry.recent.items() if not gap.first <= seq <= gap.last)
        entry.taken = max(entry.taken or 0, gap.last)
        self._put(_Item(gap, conversation, gap.last))
        return True

    def ephemeral(self, event: Event) -> None:
        """A receipt, typing or presence; dropped while the application is far behind."""
        if isinstance(event, events.Receipt):
            self._model(event.conversation).receipt(event.user, event.read)
        self._put(_Item(event), ephemeral=True)

    def _put(self, item: _Item, *, ephemeral: bool = False) -> None:
        if ephemeral and len(self._inbox) >= RESUME_AT:
            return
        self._inbox.append(item)
        self._arrived.set()

    # -- holes

    def _read(self, conversation: str, entry: _Log) -> None:
        if entry.reading is None and self._link.live:
            entry.reading = asyncio.get_running_loop().create_task(self._fill(conversation, entry))

    async def _fill(self, conversation: str, entry: _Log) -> None:
        """Read the history after `taken`, then go on with what was held."""
        me = asyncio.current_task()
        try:
            more = True
            while more and not entry.behind:
                more = await self._page(conversation, entry)
        except NotConnected:
            entry.held = []  # the next connection sends it again
        finally:
            if entry.reading is me:
                entry.reading = None
        held, entry.held = entry.held, []
        for raw in held:
            if entry.reading is None:
                self._next(conversation, entry, raw, trusted=raw is held[0])
            else:
                entry.held.append(raw)

    async def _page(self, conversation: str, entry: _Log) -> bool:
        asked = {"type": "history", "conversation": conversation, "after": entry.taken or 0, "limit": PAGE}
        try:
            page = await self._link.ask(asked)
        except Refused as error:
            if error.wait_s is None:
                log.warning("the history of %s cannot be read: %s", conversation, error)
                return False
            await asyncio.sleep(error.wait_s)
            return True
        for raw in page["events"]:
            if not self._next(conversation, entry, raw, trusted=True):
                return False
        if not page["more"] and entry.overflow:
            entry.overflow = False
            return True
        return bool(page["more"])

    # -- the application

    def stream(self) -> EventStream:
        """Return an iterator of events, which replaces the one before it."""
        self._consumer = EventStream(self)
        return self._consumer

    async def first(self) -> _Item:
        """Wait for the first item of the inbox; it stays there until it is handed over."""
        while not self._inbox:
            if self._stopped is not None:
                raise Stopped(self._stopped)
            self._arrived.clear()
            await self._arrived.wait()
        return self._inbox[0]

    def consumed(self, stream: EventStream, item: _Item | None) -> None:
        """The consumer asks for the next event: it has this one."""
        if stream is not self._consumer:
            raise RuntimeError("another iterator of this client's events was made after this one")
        if item is not None:
            self._inbox.popleft()
            self._handed(item)

    def _handed(self, item: _Item) -> None:
        """The application has this event."""
        if item.conversation is not None and item.seq < 0:
            self._gone_unacked.add(item.conversation)
            self._logs.pop(item.conversation, None)
        elif item.conversation is not None:
            self._moved[item.conversation] = item.seq
            self._since_ack += 1
        self._save()
        if len(self._inbox) == RESUME_AT:
            self.resume()

    def resume(self) -> None:
        """Read on where the inbox was full."""
        if not self._link.live:
            return
        for conversation, entry in self._logs.items():
            if entry.behind and len(self._inbox) < INBOX:
                entry.behind = False
                self._read(conversation, entry)

    def _save(self) -> None:
        """Store the cursors that have moved, one transaction at a time."""
        if self._storing is not None or not self._moved:
            return
        moved, self._moved = self._moved, {}
        self._storing = self._store.run(lambda db: outbox.set_cursors(db, moved.items()))

        def stored(future: asyncio.Future[None]) -> None:
            self._storing = None
            if error := future.exception():
                log.error("cursors cannot be stored: %s", error)
                self._moved = {**moved, **self._moved}
                return  # with the next event, or the next second
            self._unacked.update(moved)
            for name, seq in moved.items():
                self.stored[name] = (seq, self.stored.get(name, (0, 0))[1])
            if self._since_ack >= ACK_EVENTS:
                self.ack()
            self._save()

        self._storing.add_done_callback(stored)

    def ack(self) -> None:
        """Ack what is stored; called every second, too."""
        self._save()
        if not self._link.live or not (self._unacked or self._gone_unacked):
            return
        self._since_ack = 0
        cursors = dict(list(self._unacked.items())[:ACK_CURSORS])
        for conversation, seq in cursors.items():
            del self._unacked[conversation]
            self.stored[conversation] = (self.stored[conversation][0], seq)
        gone, self._gone_unacked = self._gone_unacked, set()
        if cursors:
            self._link.write({"type": "ack", "cursors": cursors})
        for conversation in gone:
            self.stored.pop(conversation, None)
            self._link.write({"type": "ack", "conversation": conversation, "seq": cursors.get(conversation, 1)})
        future = self._store.run(lambda db: _acked(db, cursors, gone))
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def flush(self) -> None:
        """Store the cursors of everything that the application has."""
        while self._storing is not None or self._moved:
            self._save()
            if self._storing is not None:
                await asyncio.wait([self._storing])
            if self._moved and self._storing is None:
                return  # the store refuses; the events come again

    def start(self) -> None:
        """Let the consumer wait for events again, after `stop`."""
        self._stopped = None

    def stop(self, reason: str) -> None:
        """Let the consumer end when the inbox is empty."""
        self._stopped = reason
        self._arrived.set()

    def close(self) -> None:
        self.connected()

    def move_to(self, store: Store) -> None:
        """Go on with a new store: all positions are stored anew, under the new device name."""
        self._store, self.stored, self._unacked = store, {}, {}
        self._moved = {name: entry.taken for name, entry in self._logs.items() if entry.taken is not None}
        for item in self._inbox:  # the application has these not yet
            if item.conversation is not None and isinstance(item.event, Logged):
                self._moved[item.conversation] = min(self._moved.get(item.conversation, 0), item.event.prev)
        self._save()


class EventStream:
    """An iterator of events. The application has an event when it asks for the next one."""

    def __init__(self, receiving: Receiving) -> None:
        self._receiving = receiving
        self._item: _Item | None = None

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        item, self._item = self._item, None
        self._receiving.consumed(self, item)
        self._item = await self._receiving.first()
        return self._item.event


def _acked(db: Any, cursors: dict[str, int], gone: set[str]) -> None:
    outbox.set_acked(db, cursors.items())
    for conversation in gone:
        outbox.forget(db, conversation)
