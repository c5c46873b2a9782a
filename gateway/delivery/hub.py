"""Where events of one channel meet the sessions on this node.

A `Hub` belongs to a group or channel with members here. It has one position for all its live sessions: `seq`, the last
event it has, and `written`, the last event that it has given to every live session. An event follows if its `prev` is
`seq`; anything else is a hole, and holes are read from the log (`repair.py`), never guessed. All is plain `def`: a hub
cannot wait, and there is no task, queue or encode per recipient.

Invariant: a session in `live` has every event up to `written` (or is in `rest`, the part of a large fan-out that is
still to be written, and has every event up to `before`). A session leaves `live` only through `stop_live`, which
returns that position, and enters it only through `go_live`, when its own position is `written`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, repeat
from typing import Any, Final

from gateway.delivery.session import Session
from gateway.delivery.shared_frames import JSON_BIT, VARIANTS, control_frame, event_frames
from router.contract import metrics, signals, stamp, wire
from router.process.isolate import fault
from router.process.tracing import Tracer
from router.store.conversations import Head

# A larger fan-out goes on in the loop's next turn, so that one large group does not hold up the others.
CHUNK: Final = 512
DELETIONS: Final = 256  # as many as the store keeps


class HubPorts:
    """The calls that hubs make upward, one object for all hubs of a node; `node.py` connects them once."""

    __slots__ = ("member_left", "now_ms", "repair", "soon", "tracer")

    repair: Callable[[Hub, str], None]  # read the log from `hub.seq` on and give the events to `hub.accept`; the cause
    member_left: Callable[[Hub, str], None]  # this user is no member any more

    def __init__(self, soon: Callable[..., Any], now_ms: Callable[[], int], tracer: Tracer | None) -> None:
        self.soon = soon
        self.now_ms = now_ms
        self.tracer = tracer


class Hub:
    """One group or channel: its position, its sessions by frame variant, and what this tick has for them."""

    __slots__ = (
        "at",
        "before",
        "channel",
        "confirmed",
        "conversation",
        "count",
        "deleted",
        "live",
        "marks",
        "members",
        "pending",
        "ports",
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

    def __init__(self, ports: HubPorts, conversation: str, channel: str) -> None:
        self.ports = ports
        self.conversation = conversation
        self.channel = channel
        self.confirmed = False  # subscribed, and the head was read
        self.waiting: list[Callable[[bool], None]] = []  # who waits for that
        self.members: dict[Session, None] = {}
        self.live: dict[int, dict[Session, None]] = {}
        self.seq = self.written = self.before = 0
        self.count = self.at = self.version = 0
        self.title = ""
        self.size = 0  # members, here and elsewhere; 0 while it is not known
        self.deleted: tuple[int, ...] = ()  # seqs of the messages that were deleted last
        self.marks: dict[str, int] = {}  # how far members have read, as told here; in small conversations only
        self.receipts: dict[str, int] = {}  # marks that follow from messages in `pending` and are new
        self.seen = 0  # the highest seq that a live event named while the position was not known
        self.repairing = False
        self.pending: list[bytes] = []
        self.rest: dict[Session, bytes] = {}

    # -- sessions

    def add_member(self, session: Session) -> None:
        """The session's user is a member; the session becomes live by `go_live`."""
        self.members[session] = None

    def remove_member(self, session: Session) -> None:
        self.stop_live(session)
        self.members.pop(session, None)

    def go_live(self, session: Session) -> None:
        """The session's position is `written`: from here on the hub writes to it."""
        self.live.setdefault(session.variant, {})[session] = None

    def stop_live(self, session: Session) -> int:
        """Take the session out of the live set; return the seq up to which it was given everything."""
        live = self.live.get(session.variant)
        if live is not None:
            live.pop(session, None)
        if session in self.rest:
            del self.rest[session]
            return self.before
        return self.written

    # -- events

    def place(self, head: Head) -> None:
        """The position that a new hub starts from: the head as read after the subscription was confirmed."""
        self.seq = self.written = self.before = head.seq
        self.count, self.at, self.version, self.title = head.count, head.at, head.version, head.title
        self.size, self.deleted = head.size, head.deleted
        self.confirmed = True
        if self.seen > head.seq:
            self.ports.repair(self, "subscribe")

    def receive(self, event: bytes) -> None:
        """A live event."""
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
        """The next event in order, live or from a repair."""
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
            self.title = stamp.decode(event)["title"]
        elif deleted := stamp.author(event).deletes:
            self.deleted = (*self.deleted, deleted)[-DELETIONS:]

    def void(self, prev: int) -> None:
        """The log was rolled back below `seq`: what stood in (prev, seq] never was, and is announced as such."""
        self._finish()
        self._gap(prev + 1, self.seq, "failover")

    def expired(self, floor: int) -> None:
        """The log was trimmed past `seq` before this hub could read it."""
        self._finish()
        self._gap(self.seq + 1, floor, "expired")
        self.seq = self.written = self.before = floor

    def flush(self) -> None:
        """Writes what is pending to all live sessions: one joined write each, the same bytes for all of a variant."""
        if not self.pending or self.rest:
            return  # a fan-out under way flushes again when it is through
        events, self.pending = self.pending, []
        self.before, self.written = self.written, self.seq
        total = 0
        for variant in VARIANTS:
            if live := self.live.get(variant):
                frames = event_frames(events, variant)
                if self.receipts:
                    frames += self._receipt_frames(variant)
                sessions = list(live)  # a write may make a session leave
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
        """The next part of a large fan-out, and after the last what came meanwhile."""
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
        """Writes everything, however large: what is said next must not overtake it."""
        while self.rest or self.pending:
            self._write_rest(len(self.rest))
            self.flush()

    def whisper(self, frames: list[bytes], except_user: str) -> None:
        """Writes an ephemeral event, given as one frame per variant, to the live sessions of everybody else."""
        for variant, live in self.live.items():
            for session in list(live):
                if session.user != except_user:
                    session.write(frames[variant])

    # -- how far members have read

    def note_mark(self, user: str, read: int) -> bool:
        """Note how far a member has read; return whether that is new here."""
        if read <= self.marks.get(user, 0):
            return False
        if len(self.marks) >= 2 * signals.RECEIPT_MEMBERS:
            self.marks.clear()  # marks of members who came and went
        self.marks[user] = read
        return True

    def _author_has_read(self, event: bytes, seq: int, before: int) -> None:
        """The author of a message has read what is above it. A receipt leaves with the event itself, unless the author
        was known to have read what is before it."""
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
        codec = wire.JSON if variant & JSON_BIT else wire.MSGPACK
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
        if change.action == "remove":
            self.flush()  # who leaves sees that, and nothing after it
            self.ports.member_left(self, change.user)


def _give(frames_of: Iterable[tuple[Session, bytes]]) -> None:
    """Writes at once, or where this turn has something for a session already (the ack of who sent it), with that."""
    for session, frames in frames_of:
        try:
            if session.out is None:
                session.connection.write(frames)
            else:
                session.out.append(frames)
        except Exception as error:  # noqa: BLE001 - one session's mistake must not keep the event from the others
            fault("fan-out", error)
