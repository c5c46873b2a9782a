"""The hub of one group or channel: its events are written to the sessions on this node.

A hub exists while members of the group or channel have sessions here. It has one position for all live sessions: `seq`,
the last event that the hub has, and `written`, the last event that it has written to every live session. An event
follows if its `prev` is `seq`. Otherwise events are missing: they are read from the log (`repair.py`). A hub never
waits, and there is no task, queue or encode per recipient.

Invariant: a session in `live` has every event up to `written`. A session that is also in `rest`, the part of a large
fan-out that is still to be written, has every event up to `before`. A session leaves `live` only through `stop_live`,
which returns that position, and enters it only through `go_live`, when its own position is `written`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, repeat
from typing import Any, Final

from gateway.delivery.session import Session
from gateway.delivery.shared_frames import JSON_BIT, VARIANTS, control_frame, event_frames
from router.contract import codecs, metrics, signals, stamp, wire
from router.contract.packing import MAX_INTEGER
from router.process.isolate import fault
from router.process.tracing import Tracer
from router.store.heads import Head

# A larger fan-out continues in the next turn of the event loop, so that one large group does not delay the others.
CHUNK: Final = 512
DELETIONS: Final = 256  # as many as the store keeps


class HubPorts:
    """The calls that hubs make upward, one object for all hubs of a node; `node.py` connects them once."""

    __slots__ = ("member_left", "now_ms", "repair", "soon", "tracer")

    repair: Callable[[Hub, str], None]  # read the log from `hub.seq` on, and call `hub.accept`; the cause
    member_left: Callable[[Hub, str], None]  # remove the sessions of a user who is no longer a member

    def __init__(self, soon: Callable[..., Any], now_ms: Callable[[], int], tracer: Tracer | None) -> None:
        self.soon = soon
        self.now_ms = now_ms
        self.tracer = tracer


class Hub:
    """One group or channel: its position, its sessions by frame variant, and the events that wait to be written."""

    __slots__ = (
        "at",
        "before",
        "channel",
        "confirmed",
        "conversation",
        "count",
        "deleted",
        "failed",
        "live",
        "marks",
        "members",
        "mutes_until",
        "pending",
        "ports",
        "posting",
        "receipts",
        "repairing",
        "rest",
        "seen",
        "seq",
        "size",
        "title",
        "version",
        "waiting",
        "written",
    )  # fmt: skip

    def __init__(self, ports: HubPorts, conversation: str, channel: bytes) -> None:
        self.ports = ports
        self.conversation = conversation
        self.channel = channel
        self.confirmed = False  # subscribed, and the head was read
        self.failed = False  # subscribed, but the head could not be read; it is tried again
        self.waiting: list[Callable[[bool], None]] = []  # called once it is confirmed, or gone
        self.members: dict[Session, None] = {}  # the sessions of members here, live or behind
        self.live: dict[int, dict[Session, None]] = {}  # frame variant -> the live ones among them
        self.seq = self.written = self.before = 0
        self.count = self.at = self.version = 0  # messages, ms of the last event, version of the membership
        self.title = ""
        self.posting = ""  # who may send: `all` or `admins`
        self.mutes_until = 0  # ms; until then some member may be muted, 0: none is
        self.size = 0  # members, here and elsewhere; 0 while unknown
        self.deleted: tuple[int, ...] = ()  # seqs of the messages that were deleted last
        self.marks: dict[str, int] = {}  # member -> read mark, as sent to sessions here; in small conversations only
        self.receipts: dict[str, int] = {}  # new read marks that follow from messages in `pending`
        self.seen = 0  # the highest seq of a live event that came while the hub could not accept it
        self.repairing = False
        self.pending: list[bytes] = []  # accepted events that are not written yet
        self.rest: dict[Session, bytes] = {}  # frames of a large fan-out that are still to be written

    # -- sessions

    def add_member(self, session: Session) -> None:
        """Add a session of a member; it goes live later, with `go_live`."""
        self.members[session] = None

    def remove_member(self, session: Session) -> None:
        self.stop_live(session)
        self.members.pop(session, None)

    def go_live(self, session: Session) -> None:
        """Write to the session from here on: its position is `written`."""
        self.live.setdefault(session.variant, {})[session] = None

    def stop_live(self, session: Session) -> int:
        """Remove the session from the live set; return the seq up to which it has received everything."""
        live = self.live.get(session.variant)
        if live is not None:
            live.pop(session, None)
        if session in self.rest:
            del self.rest[session]
            return self.before
        return self.written

    # -- events

    def start_at(self, head: Head) -> None:
        """Set the position of a new hub: the head, which was read after the subscription was confirmed."""
        self.seq = self.written = self.before = head.seq
        self.count, self.at, self.version, self.title = head.count, head.at, head.version, head.title
        self.size, self.deleted = head.size, head.deleted
        self.posting, self.mutes_until = head.rules.posting, head.mutes_until
        self.confirmed, self.failed = True, False
        if self.seen > head.seq:
            self.ports.repair(self, "subscribe")

    def receive(self, event: bytes) -> None:
        """Take a live event: accept it if it follows, else start a repair."""
        seq, prev, count, at = stamp.slots(event)
        if not self.confirmed or self.repairing:
            self.seen = max(self.seen, seq)
        elif seq <= self.seq:
            return
        elif prev == self.seq:
            self.accept(event, seq, count, at)
        elif prev < self.seq:
            self.void(prev)
            self.accept(event, seq, count, at)
        else:
            self.seen = seq
            self.ports.repair(self, "hole")

    def accept(self, event: bytes, seq: int, count: int, at: int) -> None:
        """Accept the next event in order, live or from a repair."""
        before = self.seq
        self.seq, self.count, self.at = seq, count, at
        self.pending.append(event)
        if stamp.is_message(event):
            if 0 < self.size <= signals.RECEIPT_MEMBERS:
                self._author_has_read(event, seq, before)
            return
        if stamp.is_member(event):
            self._member_changed(event)
        elif stamp.is_title(event):
            changed = stamp.decode(event)
            self.title, self.posting = changed["title"], changed.get("posting") or self.posting
        elif deleted := stamp.author(event).deletes:
            self.deleted = (*self.deleted, deleted)[-DELETIONS:]

    def void(self, prev: int) -> None:
        """Announce a gap: a failover rolled the log back, and the events in (prev, seq] no longer exist."""
        self._finish()
        self._gap(prev + 1, self.seq, "failover")

    def expired(self, floor: int) -> None:
        """Announce a gap: the log was trimmed past `seq` before this hub could read it."""
        self._finish()
        self._gap(self.seq + 1, floor, "expired")
        self.seq = self.written = self.before = floor

    def flush(self) -> None:
        """Write the pending events to all live sessions: one joined write each, the same bytes for all of a variant."""
        if not self.pending or self.rest:
            return  # a fan-out that is under way flushes again at its end
        events, self.pending = self.pending, []
        self.before, self.written = self.written, self.seq
        total = 0
        for variant in VARIANTS:
            if live := self.live.get(variant):
                frames = event_frames(events, variant)
                if self.receipts:
                    frames += self._receipt_frames(variant)
                sessions = list(live)  # a write may remove a session from the live set
                total += len(sessions)
                metrics.WRITTEN_BYTES.inc(len(frames) * len(sessions))
                if len(sessions) > CHUNK:
                    self.rest.update(dict.fromkeys(sessions[CHUNK:], frames))
                    del sessions[CHUNK:]
                _give(zip(sessions, repeat(frames), strict=False))
        self.receipts.clear()
        if self.rest:
            self.ports.soon(self._go_on)
        if total:
            metrics.DELIVERIES_LIVE.inc(total * len(events))
            metrics.DELIVERY_SECONDS.observe(max(0, self.ports.now_ms() - self.at) / 1000)
            if (tracer := self.ports.tracer) is not None:
                for event in events:
                    tracer.written(self.conversation, event, total)

    def _go_on(self) -> None:
        """Write the next part of a large fan-out, and after the last part the events that came meanwhile."""
        self._write_rest(CHUNK)
        if self.rest:
            self.ports.soon(self._go_on)
        else:
            self.flush()

    def _write_rest(self, limit: int) -> None:
        some = list(islice(self.rest.items(), limit))
        for session, _ in some:
            del self.rest[session]
        _give(some)

    def _finish(self) -> None:
        """Write everything, however large, so that the caller's next event does not overtake it."""
        while self.rest or self.pending:
            self._write_rest(len(self.rest))
            self.flush()

    def whisper(self, frames: list[bytes], except_user: str, hidden: frozenset[str] = frozenset()) -> None:
        """Write an ephemeral event, one frame per variant, to the live sessions of all other users, but not to those in
        `hidden`."""
        for variant, live in self.live.items():
            for session in list(live):
                if session.user != except_user and session.user not in hidden:
                    session.write(frames[variant])

    # -- how far members have read

    def note_mark(self, user: str, read: int) -> bool:
        """Note the read mark of a member; return whether it is new here."""
        if read <= self.marks.get(user, 0):
            return False
        if len(self.marks) >= 2 * signals.RECEIPT_MEMBERS:
            self.marks.clear()  # most are marks of former members
        self.marks[user] = read
        return True

    def _author_has_read(self, event: bytes, seq: int, before: int) -> None:
        """Note that the author of a message has read up to it. A receipt is written with the event, unless the author's
        mark was already at the message before."""
        about = stamp.author(event)
        if not about.marks:
            return
        if self.marks.get(about.from_, 0) < before or about.from_ in self.receipts:
            self.receipts[about.from_] = seq
            for session in self.members:
                if session.user == about.from_ and session.backlog is None:
                    session.note_read(self.conversation, seq)
        self.note_mark(about.from_, seq)

    def _receipt_frames(self, variant: int) -> bytes:
        codec = codecs.JSON if variant & JSON_BIT else codecs.MSGPACK
        found = [
            control_frame(wire.ReceiptEvent(conversation=self.conversation, user=user, read=read), codec)
            for user, read in self.receipts.items()
        ]
        return b"".join(found)

    def _gap(self, first: int, last: int, reason: str) -> None:
        for session in list(self.members):
            session.gap(self.conversation, first, last, reason)

    def _member_changed(self, event: bytes) -> None:
        self.version += 1
        change = stamp.author(event)
        self.size += (change.action == "add") - (change.action == "remove")
        if change.action == "mute":
            self.mutes_until = max(self.mutes_until, stamp.decode(event)["until"] or MAX_INTEGER)
        if change.action == "remove":
            self.flush()  # the removed member receives the removal, and nothing after it
            self.ports.member_left(self, change.user)


def _give(frames_of: Iterable[tuple[Session, bytes]]) -> None:
    """Write at once; if this turn already has frames for a session (the ack of the sender), write after those."""
    for session, frames in frames_of:
        try:
            if session.out is None:
                session.connection.write(frames)
            else:
                session.out.append(frames)
        except Exception as error:  # noqa: BLE001 - one session that raises must not keep the event from the others
            fault("fan-out", error)
