"""One connection's session: what it may do now, what it has been given, and how it is written to.

The protocol calls a session on every message and every change of its transport; the hubs and the catch-up write
through it. Nothing here waits and nothing here talks to Redis: what a command does is in `commands.py`.

A session as a whole is *live* or *behind*, because it is the connection that is slow. Live: `behind` is None, it has
everything that its hubs have written and, of a direct conversation that moved since it connected (or a group that its
user has left), everything up to `direct[conversation]`. Behind: `catchup.py` feeds it from the log, and whatever
happens live is only noted.
Bounds: `direct`, `gone`, `told_read` and `other_read` hold `MAX_DIRECT` conversations (one that was dropped is read
from the log, or told, again), `early` what came in one read of the socket, `pages` the `MAX_PAGES` requests for history
that wait, `out` what one turn of the loop has for it; beyond that the transport's high mark decides.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from gateway.delivery.shared_frames import BINARY, TEXT, control_frame, event_frame, variant_of
from gateway.websocket.frames import frame
from router.contract import errors, metrics, signals, stamp, wire

if TYPE_CHECKING:
    from gateway.delivery.catchup import Behind
    from gateway.delivery.hub import Hub, UserHub
    from gateway.node import Node
    from gateway.websocket.connection import WebSocketConnection

MAX_DIRECT: Final = 1024
TIMED: Final = 0b111  # one direct delivery in eight is timed: observing costs as much as the write


class State(IntEnum):
    """The life of a session; what a client may send in each stands in `commands.TABLE`."""

    HELLO = 0
    CONNECTING = 1
    READY = 2
    CLOSED = 3


class Session:
    """See above. `connection.write` writes frames at once; `write` joins them with what else this turn has."""

    __slots__ = (
        "acks", "again", "age_deadline", "behind", "codec", "connection", "deadline", "device", "direct", "early",
        "expires_at", "gone", "hubs", "id", "instance", "node", "other_read", "out", "pages", "paging", "reads",
        "roles", "since", "started", "state", "syncing", "tat", "token", "told_read", "user", "user_hub", "variant",
        "watches",
    )  # fmt: skip

    def __init__(self, node: Node, connection: WebSocketConnection, codec: wire.Codec, token: str | None) -> None:
        self.node = node
        self.connection = connection
        self.codec = codec
        self.variant = variant_of(codec, connection.deflate)
        self.state = State.HELLO
        self.token = token
        self.user = self.device = self.id = self.instance = ""
        self.started = 0
        self.expires_at = 0
        self.deadline = 0  # the second in which the clock looks at this session again
        self.age_deadline = 0.0
        self.user_hub: UserHub | None = None
        self.hubs: list[Hub] = []
        self.direct: dict[str, int] = {}
        self.since = b""
        self.syncing = False
        self.again = False  # another question is wanted after that
        self.behind: Behind | None = None
        self.early: list[tuple[bytes, bool]] | None = None
        self.out: list[bytes] | None = None
        self.pages: deque[wire.History] | None = None
        self.paging = False
        self.acks: dict[str, int] | None = None
        self.gone: dict[str, int] | None = None  # conversation -> the change by which it was, as told here
        self.reads: dict[str, tuple[int, int]] | None = None
        self.told_read: dict[str, int] | None = None  # conversation -> the user's read mark, as told here
        self.roles: dict[str, str] | None = None  # conversation -> the user's role, until that is told
        self.other_read: dict[str, int] | None = None  # direct conversation -> the other user's, as far as known here
        self.watches: set[str] | None = None
        self.tat = 0.0

    # -- called by the protocol

    def message_received(self, data: bytes, text: bool) -> None:
        if self.state is State.CONNECTING:
            self.early = [*(self.early or ()), (data, text)]
        elif text != self.codec.text:
            self.close(errors.CLOSE_UNSUPPORTED_DATA, f"{self.codec.subprotocol} has other frames")
        else:
            self.node.commands.handle(self, data)

    def writing_paused(self) -> None:
        """The transport holds more than its high mark."""
        if self.state is State.READY:
            self.node.catchup.paused(self)

    def writing_resumed(self) -> None:
        if self.behind is not None:
            self.node.catchup.resumed(self)

    def connection_closed(self, code: int, reason: str) -> None:
        self.state = State.CLOSED
        self.node.closed(self, code)

    # -- writing

    def write(self, frames: bytes) -> None:
        """Frames to leave with this turn of the loop."""
        if self.out is None:
            self.out = [frames]
            self.node.to_flush(self)
        else:
            self.out.append(frames)

    def flush(self) -> None:
        out, self.out = self.out, None
        if out and self.state is not State.CLOSED:
            self.connection.write(out[0] if len(out) == 1 else b"".join(out))

    def answer(self, event: wire.Event) -> None:
        """An event of this session alone."""
        if self.state is not State.CLOSED:
            self.write(frame(self.codec.encode(event), TEXT if self.codec.text else BINARY))

    def gap(self, conversation: str, first: int, last: int, reason: str) -> None:
        metrics.GAPS.labels(reason).inc()
        self.answer(wire.GapEvent(conversation=conversation, from_=first, to=last, reason=reason))
        self.flush()  # a hub writes at once what comes after it

    def close(self, code: int, reason: str = "") -> None:
        """Ends the session now; the connection follows when its peer has answered."""
        if self.state is not State.CLOSED:
            self.flush()
            self.connection.close(code, reason)
            self.connection_closed(code, reason)

    # -- direct conversations

    def direct_event(self, conversation: str, seq: int, prev: int, event: bytes) -> None:
        """A live event of a direct conversation; its position is this session's own."""
        if self.behind is not None:
            self.behind.moved(conversation, seq)
            return
        last = self.direct.get(conversation)
        if last is None and prev:
            self.node.catchup.hole(self, conversation, seq)
        elif last is not None and seq <= last:
            return
        elif last is not None and prev > last:
            self.node.catchup.hole(self, conversation, seq, "hole")
        else:
            if last is not None and prev < last:
                self.gap(conversation, prev + 1, last, "failover")
            self.has(conversation, seq)
            frames = event_frame(event, self.variant)
            self.write(frames)
            metrics.DELIVERIES_LIVE.inc()
            metrics.WRITTEN_BYTES.inc(len(frames))
            if not seq & TIMED:
                metrics.DELIVERY_SECONDS.observe(max(0, self.node.now_ms() - stamp.slots(event)[3]) / 1000)
            if self.node.tracer is not None:
                self.node.tracer.written(conversation, event, 1)

    def has(self, conversation: str, seq: int) -> None:
        """This session was given everything up to `seq` of a direct conversation."""
        direct = self.direct
        if len(direct) >= MAX_DIRECT and conversation not in direct:
            del direct[next(iter(direct))]
        direct[conversation] = seq

    def lost(self, conversation: str, changed: int) -> None:
        """This session is told that its user has the conversation no more, as of this change."""
        gone = self.gone = self.gone if self.gone is not None else {}
        if len(gone) >= MAX_DIRECT and conversation not in gone:
            del gone[next(iter(gone))]
        gone[conversation] = changed

    def untold(self, *conversations: str) -> None:
        """The session's user has these conversations again, or could not be told why not."""
        for conversation in conversations:
            if self.gone is not None:
                self.gone.pop(conversation, None)

    def given(self, conversation: str) -> int:
        """The seq up to which this session was given everything, 0 when nothing moved since it connected."""
        if self.behind is not None and (position := self.behind.positions.get(conversation)) is not None:
            return self.behind.claims[conversation] or 0 if conversation in self.behind.claims else position
        if conversation in self.direct:
            return self.direct[conversation]
        hub = self.node.subscriptions.hubs.get(conversation)
        return hub.written if hub is not None and self in hub.members else 0

    # -- the user's own read marks

    def has_read(self, conversation: str, read: int) -> None:
        """The user has read up to here: told where it is news, whether a receipt said so or an audit."""
        if read <= (self.told_read or {}).get(conversation, 0):
            return
        self.note_read(conversation, read)
        receipt = wire.ReceiptEvent(conversation=conversation, user=self.user, read=read)
        self.write(control_frame(receipt, self.codec))

    # -- read marks that follow from messages: their author has read up to them

    def wrote(self, about: stamp.Author, seq: int, prev: int) -> None:
        """The author of a live message in a direct conversation has read up to it: tell it where that is news."""
        conversation = about.conversation
        if self.state is not State.READY:
            return
        if about.from_ != self.user:
            if (self.other_read or {}).get(conversation, 0) < prev:
                if self.behind is not None and self.behind.paused:
                    return  # nothing is queued for a connection that is full
                receipt = wire.ReceiptEvent(conversation=conversation, user=about.from_, read=seq)
                self.write(control_frame(receipt, self.codec))
            self.other_has_read(conversation, seq)
        elif about.device != self.device:
            self.has_read(conversation, seq)
        else:
            self.note_read(conversation, seq)

    def note_read(self, conversation: str, read: int) -> None:
        """The client knows that its user has read up to here."""
        self.told_read = _noted(self.told_read, conversation, read)

    def other_has_read(self, conversation: str, read: int) -> None:
        self.other_read = _noted(self.other_read, conversation, read)

    # -- signals

    def signal(self, signal: signals.Signals) -> None:
        if self.state is not State.READY:
            return
        match signal:
            case signals.Typing(conversation, user):
                self.write(control_frame(wire.TypingEvent(conversation=conversation, from_=user), self.codec))
            case signals.Receipt(conversation, user, read) if user == self.user:
                self.has_read(conversation, read)
            case signals.Receipt(conversation, user, read):
                self.other_has_read(conversation, read)
                receipt = wire.ReceiptEvent(conversation=conversation, user=user, read=read)
                self.write(control_frame(receipt, self.codec))
            case signals.Taken(device, session, instance):
                if device == self.device and session != self.id:
                    self.node.audits.replaced(self, instance)
            case signals.Kick(device):
                if device in ("", self.device):
                    self.node.audits.sync(self)
            case signals.Moved():
                self.node.audits.sync(self)
            case _:
                pass


def _noted(marks: dict[str, int] | None, conversation: str, read: int) -> dict[str, int]:
    """The marks with this one; of more than MAX_DIRECT the oldest goes."""
    marks = marks if marks is not None else {}
    if len(marks) >= MAX_DIRECT and conversation not in marks:
        del marks[next(iter(marks))]
    marks[conversation] = max(read, marks.get(conversation, 0))
    return marks
