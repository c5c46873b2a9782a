"""One connection's session: its state, the positions up to which it has received events, and the writes to it.

The connection calls its session on every message and every change of its transport; hubs and the catch-up write through
the session. A session never waits and never calls Redis: it reaches the parts that do through `SessionPorts`.

A session as a whole is *live* or *behind* (`feed.py`). A live session has received everything that its hubs have
written. Of a direct conversation that moved since the session connected, or of a group that its user has left, it has
received everything up to `direct[conversation]`.
Invariant: `backlog` is None exactly while `feed` is LIVE.
Bounds: `direct`, `gone`, `sent_read` and `other_read` hold `MAX_DIRECT` conversations each; if one is dropped, its
events are read from the log, or its notice is sent, once more. `early` holds the messages of one read of the socket,
`pages` the `MAX_PAGES` requests for history that wait, and `out` the frames of one turn of the event loop. All other
bytes are in the transport, which is bounded by its high mark.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from random import uniform
from typing import Final, Protocol

from msgspec import Raw, Struct
from msgspec.structs import replace

from gateway.delivery.backlog import Backlog
from gateway.delivery.feed import FULL, NEXT_FEED, Asking, Feed, FeedEvent, State
from gateway.delivery.shared_frames import BINARY, TEXT, control_frame, event_frame, variant_of
from gateway.websocket.connection import WebSocketConnection
from gateway.websocket.frames import frame
from router.contract import codecs, errors, metrics, signals, stamp, wire
from router.contract.errors import Conflict, LinnetError
from router.contract.tokens import TokenId
from router.process.tracing import Tracer
from router.store.profiles import SignalSettings

MAX_DIRECT: Final = 1024
RETURN_S: Final = 1.0  # the longest wait of a client that is asked to reconnect
NO_CONFLICT: Final = Conflict()  # what an error that is no conflict says of `n` and of versions
STATE_LIVE: Final = metrics.STATE_EVENTS.labels("live")
TIMED: Final = 0b111  # one direct delivery in eight is timed, because observing costs as much as the write


class SessionHub(Protocol):
    """A group's or channel's hub as its sessions see it."""

    conversation: str
    written: int
    mutes_until: int
    members: dict[Session, None]

    def go_live(self, session: Session) -> None: ...
    def stop_live(self, session: Session) -> int: ...
    def remove_member(self, session: Session) -> None: ...


class SessionUserHub(Protocol):
    """The hub of a session's user."""

    user: str
    sessions: list[Session]


class Holding(Struct, frozen=True):
    """What a session has of a conversation that is held out of it."""

    position: int  # the seq up to which the session has received everything; 0: the device's cursor says that
    new: bool  # the server had never seen the device, so without a cursor it does not begin at the first event
    head: int = 0  # the highest seq of a live event that came meanwhile


class SessionPorts:
    """The calls that sessions make upward, one object for all sessions of a node; `node.py` connects them once."""

    __slots__ = (
        "ask",
        "closed",
        "fall_behind",
        "flush_later",
        "handle",
        "hubs",
        "now_ms",
        "read_direct",
        "replaced",
        "resume",
        "tracer",
    )  # fmt: skip

    handle: Callable[[Session, bytes], None]  # handle a client's message
    closed: Callable[[Session, int], None]  # clean up: the connection has ended with this code
    flush_later: Callable[[Session], None]  # call `flush` at the end of this turn of the event loop
    fall_behind: Callable[[Session], None]  # feed the session from the log: its transport is full
    resume: Callable[[Session], None]  # go on feeding the session: its transport has drained
    read_direct: Callable[[Session, str, int, str], None]  # read a direct conversation up to a seq; cause of the repair
    ask: Callable[[Session], None]  # ask Redis which conversations moved
    replaced: Callable[[Session, str], None]  # check whether another session, of this instance, replaced this one

    def __init__(self, hubs: Mapping[str, SessionHub], tracer: Tracer | None, now_ms: Callable[[], int]) -> None:
        self.hubs = hubs
        self.tracer = tracer
        self.now_ms = now_ms


class Session:
    """One device's session. `write` joins frames with the others of this turn; `connection.write` writes at once."""

    __slots__ = (
        "acks", "address", "age_deadline", "asking", "backlog", "codec", "connection", "deadline", "device",
        "direct", "early", "entering", "expires_at", "feed", "gone", "held", "hubs", "id", "instance", "mutes",
        "other_read", "out", "pages", "paging", "ports", "reads", "roles", "sent_read", "sent_state", "signal_settings",
        "since", "started", "state", "tat", "token", "token_id", "user", "user_hub", "variant", "watches",
    )  # fmt: skip

    def __init__(
        self,
        ports: SessionPorts,
        connection: WebSocketConnection,
        codec: codecs.Codec,
        token: str | None,
        address: str = "",
    ) -> None:
        self.ports = ports
        self.connection = connection
        self.codec = codec
        self.variant = variant_of(codec, connection.deflate)
        self.state = State.HELLO
        self.token = token  # the token of the upgrade request, until `hello`
        self.token_id = TokenId()  # of the last token of `hello` or `auth`
        self.address = address
        self.user = self.device = self.id = self.instance = ""
        self.started = 0  # ms, by Redis's clock; on a cluster by that of the user's server
        self.expires_at = 0  # ms, of the token
        self.deadline = 0  # the second in which `deadlines.py` checks this session again
        self.age_deadline = 0.0
        self.user_hub: SessionUserHub | None = None  # set once the session registers
        self.hubs: list[SessionHub] = []
        self.direct: dict[str, int] = {}  # conversation -> the seq up to which the session has received everything
        self.since = b""  # the position among the user's changes up to which Redis has answered
        self.asking = Asking.NOTHING
        self.feed = Feed.LIVE
        self.backlog: Backlog | None = None
        self.early: list[tuple[bytes, bool]] | None = None  # messages that came before the welcome
        self.out: list[bytes] | None = None  # frames that leave at the end of this turn of the event loop
        self.pages: deque[wire.History] | None = None  # requests for history that wait
        self.paging = False  # a page of history is being read
        self.acks: dict[str, int] | None = None  # conversation -> acked seq, not written yet
        self.gone: dict[str, int] | None = (
            None  # conversation -> the change by which it was gone, as sent to the client
        )
        self.entering: set[str] | None = None  # groups and channels that it is about to enter
        self.held: dict[str, Holding] | None = None  # conversations that it waits for (`reconcile/held.py`)
        self.reads: dict[str, tuple[int, int]] | None = None  # conversation -> read mark, not written yet
        self.sent_read: dict[str, int] | None = None  # conversation -> the user's read mark, as sent to the client
        self.sent_state = 0  # the version of the user's state, as sent to the client
        # Until they are sent to the client, by conversation: the user's role, and the end (ms; 0: none) of their mute.
        self.roles: dict[str, str] | None = None
        self.mutes: dict[str, int] | None = None
        self.other_read: dict[str, int] | None = None  # direct conversation -> the other user's mark, as far as known
        self.signal_settings: tuple[float, SignalSettings] | None = None  # known until that time; None: to be read
        self.watches: set[str] | None = None  # users whose presence the client watches
        self.tat = 0.0  # rate of commands: the time at which all commands so far would have been due (GCRA)

    def fed(self, event: FeedEvent) -> None:
        """Change the state of the feed; a pair of state and event that is not in the table is a bug."""
        self.feed = NEXT_FEED[self.feed, event]

    # -- called by the connection

    def message_received(self, data: bytes, text: bool) -> None:
        if self.state is State.CONNECTING:
            self.early = [*(self.early or ()), (data, text)]
        elif text != self.codec.text:
            expected = f"{self.codec.subprotocol} expects {'text' if self.codec.text else 'binary'} frames"
            self.close(errors.CLOSE_UNSUPPORTED_DATA, f"wrong frame type: {expected}")
        else:
            self.ports.handle(self, data)

    def writing_paused(self) -> None:
        """Fall behind: the transport holds more than its high mark."""
        if self.state is State.READY:
            self.ports.fall_behind(self)

    def writing_resumed(self) -> None:
        if self.backlog is not None:
            self.ports.resume(self)

    def connection_closed(self, code: int, reason: str) -> None:
        self.state = State.CLOSED
        self.ports.closed(self, code)

    # -- writing

    def write(self, frames: bytes) -> None:
        """Write frames at the end of this turn of the event loop."""
        if self.out is None:
            self.out = [frames]
            self.ports.flush_later(self)
        else:
            self.out.append(frames)

    def flush(self) -> None:
        out, self.out = self.out, None
        if out and self.state is not State.CLOSED:
            self.connection.write(out[0] if len(out) == 1 else b"".join(out))

    def answer(self, event: wire.Event) -> None:
        """Write an event that is for this session alone."""
        if self.state is not State.CLOSED:
            self.write(frame(self.codec.encode(event), TEXT if self.codec.text else BINARY))

    def refuse(self, command: wire.Command, error: LinnetError) -> None:
        """Answer a command that was decoded with an `error` event."""
        metrics.COMMANDS.labels(type(command).__name__.lower(), error.code).inc()
        conflict = error if isinstance(error, Conflict) else NO_CONFLICT
        self.answer(
            wire.ErrorEvent(
                id=command.id,
                n=getattr(command, "n", None),
                code=error.code,
                message=error.message,
                retry_after=error.retry_after,
                reason=conflict.reason,
                next=conflict.next,
                version=conflict.version,
            )
        )

    def gap(self, conversation: str, first: int, last: int, reason: str) -> None:
        metrics.GAPS.labels(reason).inc()
        self.answer(wire.GapEvent(conversation=conversation, from_=first, to=last, reason=reason))
        self.flush()  # before the events that follow the gap, which a hub writes at once

    def close(self, code: int, reason: str = "") -> None:
        """End the session now; the connection ends when its peer has answered the close frame."""
        if self.state is not State.CLOSED:
            self.flush()
            self.connection.close(code, reason)
            self.connection_closed(code, reason)

    def rotate(self, code: int) -> None:
        """Ask the client to reconnect after a short random wait, and close."""
        retry_after = round(uniform(0.05, RETURN_S), 3)
        if self.state is State.READY:
            self.answer(wire.DrainEvent(retry_after=retry_after))
        self.close(code, errors.retry_reason(retry_after))

    # -- direct conversations

    def direct_event(self, conversation: str, seq: int, prev: int, event: bytes) -> None:
        """Take a live event of a direct conversation, whose position each session keeps itself."""
        if self.held is not None and (holding := self.held.get(conversation)) is not None:
            self.held[conversation] = replace(holding, head=max(holding.head, seq))
            return
        if self.backlog is not None:
            self.backlog.moved(conversation, seq)
            return
        last = self.direct.get(conversation)
        if last is None and prev:
            self.ports.read_direct(self, conversation, seq, "")
        elif last is not None and seq <= last:
            return
        elif last is not None and prev > last:
            self.ports.read_direct(self, conversation, seq, "hole")
        else:
            if last is None:
                self.note_received(conversation, seq)
            else:
                if prev < last:
                    self.gap(conversation, prev + 1, last, "failover")
                self.direct[conversation] = seq
            frames = event_frame(event, self.variant)
            self.write(frames)
            metrics.DELIVERIES_LIVE.inc()
            metrics.WRITTEN_BYTES.inc(len(frames))
            if not seq & TIMED:
                metrics.DELIVERY_SECONDS.observe(max(0, self.ports.now_ms() - stamp.slots(event)[3]) / 1000)
            if self.ports.tracer is not None:
                self.ports.tracer.written(conversation, event, 1)

    def note_received(self, conversation: str, seq: int) -> None:
        """Note that this session has received everything up to `seq` of a direct conversation."""
        direct = self.direct
        if len(direct) >= MAX_DIRECT and conversation not in direct:
            del direct[next(iter(direct))]
        direct[conversation] = seq

    def note_gone(self, conversation: str, changed: int) -> None:
        """Note that the client is notified: its user no longer has the conversation, as of this change."""
        gone = self.gone = self.gone if self.gone is not None else {}
        if len(gone) >= MAX_DIRECT and conversation not in gone:
            del gone[next(iter(gone))]
        gone[conversation] = changed

    def forget_gone(self, *conversations: str) -> None:
        """Forget such notices: the user has the conversations again, or a notice could not be sent."""
        for conversation in conversations:
            if self.gone is not None:
                self.gone.pop(conversation, None)

    def waits_for(self, conversation: str) -> bool:
        """Return whether the conversation is held out of this session."""
        return self.held is not None and conversation in self.held

    def received_upto(self, conversation: str) -> int:
        """Return the seq up to which this session has received everything, 0 if nothing moved since it connected."""
        if self.backlog is not None and (position := self.backlog.positions.get(conversation)) is not None:
            claims = self.backlog.claims
            return claims[conversation] or 0 if conversation in claims else position
        if conversation in self.direct:
            return self.direct[conversation]
        if self.held is not None and conversation in self.held:
            return self.held[conversation].position
        return self.ports.hubs[conversation].written if self.is_inside(conversation) else 0

    def is_inside(self, conversation: str) -> bool:
        """Return whether the session gets the events of this group or channel from its hub."""
        hub = self.ports.hubs.get(conversation)
        return hub is not None and self in hub.members

    # -- the user's own read marks

    def send_read(self, conversation: str, read: int) -> None:
        """Send the user's read mark to the client if it is new, whether it came by a receipt or an audit."""
        if read <= (self.sent_read or {}).get(conversation, 0):
            return
        self.note_read(conversation, read)
        receipt = wire.ReceiptEvent(conversation=conversation, user=self.user, read=read)
        self.write(control_frame(receipt, self.codec))

    # -- read marks that follow from messages: the author has read up to the message

    def author_has_read(self, about: stamp.Author, seq: int, prev: int) -> None:
        """Note that the author of a live direct message has read up to it; send the mark if it is new."""
        conversation = about.conversation
        if self.state is not State.READY:
            return
        own = about.from_ == self.user
        if own and about.device != self.device:
            self.send_read(conversation, seq)
            return
        marks = self.sent_read if own else self.other_read
        known = None if marks is None else marks.get(conversation)
        if not own and (known or 0) < prev:
            if self.feed in FULL:
                return  # a full connection gets no more frames
            receipt = wire.ReceiptEvent(conversation=conversation, user=about.from_, read=seq)
            self.write(control_frame(receipt, self.codec))
        if marks is not None and known is not None:  # nearly always, so without the call
            if seq > known:
                marks[conversation] = seq
        elif own:
            self.sent_read = _noted(marks, conversation, seq)
        else:
            self.other_read = _noted(marks, conversation, seq)

    def note_read(self, conversation: str, read: int) -> None:
        """Note that the client knows this read mark of its user."""
        self.sent_read = _noted(self.sent_read, conversation, read)

    def note_other_read(self, conversation: str, read: int) -> None:
        self.other_read = _noted(self.other_read, conversation, read)

    # -- the user's state

    def state_changed(self, change: signals.State) -> None:
        """Send a change of the user's state. A session that is behind is sent the version alone, once it is live."""
        if self.backlog is not None:
            self.backlog.state = change.version
            return
        if self.state is not State.READY:
            return
        self.sent_state = change.version
        STATE_LIVE.inc()
        self.answer(state_event(self.codec, change.key, change.value, change.version, change.prev))

    def send_state_version(self, version: int, cause: str) -> None:
        """Send the version of the user's state, from which the client sees whether it must ask for changes."""
        self.sent_state = version
        metrics.STATE_EVENTS.labels(cause).inc()
        self.answer(wire.StateEvent(version=version))

    # -- signals

    def signal(self, signal: signals.Signals) -> None:
        if isinstance(signal, signals.State):  # also while the session connects: it may be newer than the welcome
            self.state_changed(signal)
            return
        if self.state is not State.READY:
            return
        match signal:
            case signals.Typing(conversation, user):
                self.write(control_frame(wire.TypingEvent(conversation=conversation, from_=user), self.codec))
            case signals.Receipt(conversation, user, read) if user == self.user:
                self.send_read(conversation, read)
            case signals.Receipt(conversation, user, read):
                self.note_other_read(conversation, read)
                receipt = wire.ReceiptEvent(conversation=conversation, user=user, read=read)
                self.write(control_frame(receipt, self.codec))
            case signals.Taken(device, session, instance):
                if device == self.device and session != self.id:
                    self.ports.replaced(self, instance)
            case signals.Kick(device):
                if device in ("", self.device):
                    self.ports.ask(self)
            case signals.Moved():
                self.ports.ask(self)
            case signals.Hidden():
                self.signal_settings = None
            case _:
                pass


def state_event(
    codec: codecs.Codec, key: str, value: bytes, version: int, prev: int, command_id: wire.CommandId = None
) -> wire.StateEvent:
    """Return the event of a change of the user's state; `value` is msgpack."""
    return wire.StateEvent(id=command_id, key=key, value=Raw(codec.value(value)), version=version, prev=prev)


def _noted(marks: dict[str, int] | None, conversation: str, read: int) -> dict[str, int]:
    """Return the marks with this one; beyond MAX_DIRECT the oldest is dropped."""
    if marks is None:
        return {conversation: read}
    known = marks.get(conversation)
    if known is None and len(marks) >= MAX_DIRECT:
        del marks[next(iter(marks))]
    if known is None or read > known:
        marks[conversation] = read
    return marks
