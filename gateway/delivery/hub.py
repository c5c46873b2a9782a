"""Where events of one channel meet the sessions on this node.

A `Hub` stands for a group or channel with members here, a `UserHub` for a user with sessions here. A hub knows one
position for all its live sessions: `seq`, the last event it has, and `written`, the last event that it has given to
every live session. An event follows if its `prev` is `seq`; anything else is a hole, and holes are read from the log
(`Repairs` below), never guessed. All is plain `def`: nothing here can wait, and there is no task, queue or encode per
recipient.

Invariant: a session in `live` has every event up to `written` (or stands in `rest`, the part of a large fan-out that
is still to be written, and has every event up to `before`). A session leaves `live` only through `leave`, which tells
it that position, and enters only where it stands at `written`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice, repeat
from typing import TYPE_CHECKING, Protocol

from gateway.delivery.shared_frames import JSON_BIT, VARIANTS, control_frame, event_frames
from router.contract import metrics, signals, stamp, wire
from router.process.isolate import fault
from router.store.conversations import Head

if TYPE_CHECKING:
    from gateway.delivery.session import Session
    from router.process.tracing import Tracer

# A larger fan-out goes on in the loop's next turn, so that one large group does not hold up the others.
CHUNK = 512
DELETIONS = 256  # as many as the store keeps


class Owner(Protocol):
    """What a hub asks of its node."""

    @property
    def tracer(self) -> Tracer | None: ...

    def repair(self, hub: Hub, cause: str) -> None:
        """Read the log from `hub.seq` on and give the events to `hub.accept`."""

    def soon(self, callback: Callable[[], None]) -> None: ...

    def member_left(self, hub: Hub, user: str) -> None: ...

    def now_ms(self) -> int: ...


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
        "owner",
        "pending",
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

    def __init__(self, owner: Owner, conversation: str, channel: str) -> None:
        self.owner = owner
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
        self.receipts: dict[str, int] = {}  # marks that follow from messages in `pending` and are news
        self.seen = 0  # the highest seq that a live event named while the position was not known
        self.repairing = False
        self.pending: list[bytes] = []
        self.rest: dict[Session, bytes] = {}

    # -- sessions

    def add(self, session: Session) -> None:
        """A session's user is a member; it becomes live by `join`."""
        self.members[session] = None

    def remove(self, session: Session) -> None:
        self.leave(session)
        self.members.pop(session, None)

    def join(self, session: Session) -> None:
        """The session stands at `written`: from here on it is live."""
        self.live.setdefault(session.variant, {})[session] = None

    def leave(self, session: Session) -> int:
        """Takes the session out of the live set; the seq up to which it was given everything."""
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
            self.owner.repair(self, "subscribe")

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
            self.owner.repair(self, "hole")

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
            self.owner.soon(self._go_on)
        if total:
            metrics.DELIVERIES_LIVE.inc(total * len(events))
            metrics.DELIVERY_SECONDS.observe(max(0, self.owner.now_ms() - self.at) / 1000)
            if (tracer := self.owner.tracer) is not None:
                for event in events:
                    tracer.written(self.conversation, event, total)

    def _go_on(self) -> None:
        """The next part of a large fan-out, and after the last what came meanwhile."""
        self._write_rest(CHUNK)
        if self.rest:
            self.owner.soon(self._go_on)
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

    # -- who has read how far

    def has_read(self, user: str, read: int) -> bool:
        """Note how far a member has read; return whether that is news here."""
        if read <= self.marks.get(user, 0):
            return False
        if len(self.marks) >= 2 * signals.RECEIPT_MEMBERS:
            self.marks.clear()  # of members who came and went
        self.marks[user] = read
        return True

    def _author_has_read(self, event: bytes, seq: int, before: int) -> None:
        """Who writes has read what is above; told with the event itself, unless it was known of what is before it."""
        about = stamp.author(event)
        if not about.marks:
            return
        if self.marks.get(about.from_, 0) < before or about.from_ in self.receipts:
            self.receipts[about.from_] = seq
            for session in self.members:
                if session.user == about.from_ and session.behind is None:
                    session.note_read(self.conversation, seq)
        self.has_read(about.from_, seq)

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
            self.owner.member_left(self, change.user)


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


class UserHub:
    """One user's channel: direct events, signals, and the user's sessions on this node."""

    __slots__ = ("channel", "confirmed", "sessions", "user", "waiting")

    def __init__(self, user: str, channel: str) -> None:
        self.user = user
        self.channel = channel
        self.confirmed = False
        self.waiting: list[Callable[[bool], None]] = []
        self.sessions: list[Session] = []

    def receive(self, payload: bytes) -> None:
        if stamp.is_event(payload):
            seq, prev, _, _ = stamp.slots(payload)
            about = stamp.author(payload)
            for session in self.sessions:
                try:
                    session.direct_event(about.conversation, seq, prev, payload)
                    if about.marks:
                        session.wrote(about, seq, prev)
                except Exception as error:  # noqa: BLE001 - as above, for the user's other sessions
                    fault("fan-out", error)
        else:
            signal = signals.decode(payload)
            if signal is not None:
                for session in list(self.sessions):
                    session.signal(signal)
