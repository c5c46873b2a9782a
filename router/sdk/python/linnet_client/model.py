"""The model of a conversation: messages with edits, deletes and reactions, read marks and unread, ready to be shown.

The model is in memory. It contains what this client has received or loaded since it started, and the messages of the
outbox. An optimistic message and its event are one `MessageView`. A snapshot from the server removes nothing queued.
Functions here have no I/O; the receiver applies each event exactly once, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import linnet_client.events as events
from linnet_client.events import Logged
from linnet_client.wire import ConversationState, SharedFile

EntryState = Literal["saving", "queued", "sent", "acked", "failed"]
MAX_ENTRIES: Final = 2000  # of one conversation; the oldest are dropped and can be loaded again


@dataclass(slots=True, eq=False)
class MessageView:
    """A message as a user interface shows it. `seq` is None until the server has given it one."""

    sender: str
    device: str
    n: int
    body: Any
    media: str = "text"
    reply_to: int | None = None
    seq: int | None = None
    at: int | None = None
    count: int = 0
    state: EntryState = "acked"
    edited: bool = False
    deleted: bool = False
    reactions: dict[str, set[str]] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)


def own_files(files: Sequence[str | SharedFile] | None) -> list[dict[str, Any]]:
    """Return the files of a message that the server does not have yet: their hashes alone."""
    return [{"sha256": file if isinstance(file, str) else file["sha256"]} for file in files or ()]


class ConversationView:
    """One conversation as it can be shown.

    `entries`: messages by seq, in their order; `queued`: this device's messages without a seq; `unread`, `read`: of the
    user; `reads`: how far each other user has read; `head`: the last seq; `kind`, `title`, `other` (of a direct one),
    `role`: as the server lists them; `posting`: who may send and edit in a group or channel, `all` or `admins`, which
    includes owners; `muted_until`: until when (ms) the user is muted there, None for ever, 0 not at all; `gone`: why
    the conversation is gone, else None; `held`: its part of the server does not answer now, so its events come later.
    """

    def __init__(self, conversation: str, user: str) -> None:
        self.conversation = conversation
        self.user = user
        self.kind: str | None = "direct" if conversation.startswith("d:") else None
        self.title = ""
        self.other: str | None = None
        self.role: str | None = None
        self.posting: str | None = None
        self.muted_until: int | None = 0
        self.gone: str | None = None
        self.held = False
        self.head = 0
        self.unread = 0
        self.read = 0
        self.reads: dict[str, int] = {}
        self.entries: dict[int, MessageView] = {}
        self.queued: list[MessageView] = []
        self._begins: int | None = None  # `entries` has every message above it: no hole, also after `load_older`
        self._counted = 0  # `unread` includes everything up to this seq
        self._later: dict[int, list[Logged]] = {}  # of messages that are not loaded, by target

    # -- snapshots

    def apply_state(self, state: ConversationState) -> None:
        """Take over an entry of `welcome` or `conversations`."""
        self.gone, self.held = None, False
        self._describe(state)
        self.posting, self.muted_until = state.get("posting"), state.get("muted_until", 0)
        self.head = max(self.head, state.get("head", 0))
        self.read = max(self.read, state.get("read", 0))
        if state.get("head", 0) >= self._counted:
            self.unread, self._counted = state.get("unread", self.unread), state.get("head", 0)

    def hold(self, state: ConversationState) -> None:
        """Take over an entry with `held`, which has no numbers; if it is false, those before count again."""
        self.held = state["held"]
        self._describe(state)

    def _describe(self, state: ConversationState) -> None:
        self.kind = state.get("kind", self.kind)
        self.title = state.get("title", self.title)
        self.other = state.get("with", self.other)
        self.role = state.get("role", self.role)

    def begin(self, seq: int) -> None:
        """Note the cursor with which the view begins; earlier events are added by `load` alone."""
        if self._begins is None:
            self._begins = seq

    @property
    def oldest(self) -> int | None:
        """The seq before which older events are to be asked for; None: ask for the newest."""
        first = next(iter(self.entries), None)
        return first if first is not None or self._begins is None else self._begins + 1

    # -- own messages

    def queue(self, entry: MessageView) -> None:
        self.queued.append(entry)

    def unqueue(self, entry: MessageView) -> None:
        if entry in self.queued:
            self.queued.remove(entry)

    def settle(self, entry: MessageView) -> None:
        """Move an acked message to its place. One whose event an earlier life was given is among what is not loaded."""
        if entry in self.queued and entry.seq is not None:
            self.queued.remove(entry)
            if entry.seq > (self._begins or 0):
                self._insert(entry.seq, entry)

    # -- events

    def apply(self, event: Logged) -> None:
        """Apply an event of the log; the caller gives each once, in order."""
        self.head = max(self.head, event.seq)
        new = event.seq > self._counted
        self._counted = max(self._counted, event.seq)
        match event:
            case events.Message():
                self._message(event, new)
            case events.Title():
                self.title, self.posting = event.title, event.posting or self.posting
            case events.Member() if event.user == self.user:
                self._member(event)
            case events.Edit() | events.Delete() | events.React():
                self._change(event, new)

    def _member(self, event: events.Member) -> None:
        match event.action:
            case "role":
                self.role = event.role
            case "mute":
                self.muted_until = event.until
            case "unmute":
                self.muted_until = 0

    def load(self, event: Logged) -> None:
        """Add an older event that was asked for; it changes no counts."""
        self._begins = event.seq - 1 if self._begins is None else min(self._begins, event.seq - 1)
        match event:
            case events.Message() if event.seq not in self.entries:
                self._add(event)
            case events.Edit() | events.Delete() | events.React():
                self._change(event, new=False)

    def _message(self, event: events.Message, new: bool) -> None:
        self._add(event)
        while len(self.entries) > MAX_ENTRIES:
            del self.entries[next(iter(self.entries))]
        if event.sender == self.user and not event.server:
            self._read_to(event.seq)
        elif new:
            self.unread += 1

    def _add(self, event: events.Message) -> None:
        own = event.sender == self.user
        entry = next((q for q in self.queued if own and q.n == event.n and q.device == event.device), None)
        if entry is not None:
            self.queued.remove(entry)
        else:
            entry = self.entries.get(event.seq) or MessageView(event.sender, event.device, event.n, event.body)
        entry.body, entry.media, entry.reply_to = event.body, event.media, event.reply_to
        entry.files = event.files or []
        entry.seq, entry.at, entry.count = event.seq, event.at, event.count
        self._insert(event.seq, entry)
        for change in self._later.pop(event.seq, ()):
            self._change(change, new=False)

    def _insert(self, seq: int, entry: MessageView) -> None:
        last = next(reversed(self.entries), 0)
        self.entries[seq] = entry
        if seq < last:
            self.entries = dict(sorted(self.entries.items()))

    def _change(self, event: Logged, new: bool) -> None:
        assert isinstance(event, (events.Edit, events.Delete, events.React))
        entry = self.entries.get(event.target)
        if new and isinstance(event, events.Delete) and event.target > self.read and self.unread:
            own = entry is not None and (entry.sender == self.user or entry.deleted)
            self.unread -= not own
        if entry is None:
            if len(self._later) < MAX_ENTRIES:
                self._later.setdefault(event.target, []).append(event)
            return
        if isinstance(event, events.Edit):
            entry.body, entry.edited = event.body, True
        elif isinstance(event, events.Delete):
            entry.body, entry.deleted, entry.reactions, entry.files = None, True, {}, []
        else:
            users = entry.reactions.setdefault(event.emoji, set())
            (users.discard if event.remove else users.add)(event.sender)
            if not users:
                del entry.reactions[event.emoji]

    def gap(self, gap: events.Gap) -> None:
        """Remove what is no longer kept (`expired`), or what never existed (`failover`)."""
        first = 0 if gap.reason == "expired" else gap.first
        for seq in [seq for seq in self.entries if first <= seq <= gap.last]:
            del self.entries[seq]
        for target, changes in list(self._later.items()):
            kept = [change for change in changes if not first <= change.seq <= gap.last]
            if kept:
                self._later[target] = kept
            else:
                del self._later[target]

    def receipt(self, user: str, read: int) -> None:
        """Note how far a user has read."""
        self.reads[user] = max(self.reads.get(user, 0), read)
        if user == self.user:
            self._read_to(read)

    def _read_to(self, seq: int) -> None:
        if seq <= self.read:
            return
        self.read = seq
        self.reads[self.user] = seq
        if seq >= self.head:
            self.unread = 0
        else:
            later = [e for e in self.entries.values() if (e.seq or 0) > seq and e.sender != self.user and not e.deleted]
            self.unread = min(self.unread, len(later)) if self.entries and min(self.entries) <= seq else self.unread
