"""What a client's commands do: the table, and a handler each.

A command goes frame → struct (`wire`) → state table → rate → handler; a handler validates what only it can know, calls
the store and answers in the reply's callback. Nothing here awaits: the order of a session's commands is the order in
which they reach Redis. Every refusal is one `error` event, through `refuse`. What puts an event into a log (send, edit,
delete, react) is in `sending.py`, all else that a ready session may say is here.

Adding a command: struct in `wire.py`, handler here, row in `TABLE`, a limit, a test, a row in the README.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.commands.sending import target_of, visible
from gateway.delivery.session import Session, State
from router.contract import errors, keys, metrics, signals, wire
from router.contract.errors import BadCommand, Conflict, Internal, LinnetError, RateLimited
from router.contract.integers import as_integer
from router.contract.packing import MAX_BODY_BYTES, MAX_INTEGER
from router.contract.signals import RECEIPT_MEMBERS
from router.contract.tokens import Identity, UnknownKey
from router.store.conversations import Page, Place

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("linnet.commands")

# A command that is not a send costs a quarter of one; a flood that goes on while it is refused is cut off.
LIGHT: Final = 0.25
FLOOD_S: Final = 10.0
TYPING_EVERY_S: Final = 1.0
MAX_PAGES: Final = 64
PAGE_BYTES: Final = MAX_BODY_BYTES  # of a page of history, for one send of the rate; the first are free


class _Named(msgspec.Struct):
    """As much of a bad command as lets the client find which it was."""

    id: Any = None
    n: Any = None


class CommandHandlers:
    """Handlers of one node's sessions."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._time = node.loop.time
        self._cost = 1 / node.settings.sends_per_s
        self._costs = {kind: self._cost if kind in HEAVY else self._cost * LIGHT for kind in OK}
        self._burst = node.settings.send_burst * self._cost
        # Until when typing is not passed on again, in that order; bounded by what one second's rate lets through.
        self._typed: OrderedDict[tuple[Session, str], float] = OrderedDict()

    def handle(self, session: Session, data: bytes) -> None:
        """One message of a client."""
        command: wire.Commands | None = None
        try:
            command = session.codec.decode(data)
            handler = TABLE[session.state].get(type(command))
            if handler is None:
                raise BadCommand("say hello first" if session.state is State.HELLO else "not now")
            self._spend(session, self._costs[type(command)])
            handler(self, session, command)
        except LinnetError as error:
            self._refused(session, command, data, error)
        except Exception:  # a bug of ours: the client gets `internal`, the log the trace, everybody else nothing
            log.exception("a command failed")
            self._refused(session, command, data, Internal())
        else:
            OK[type(command)].inc()

    def refuse(self, session: Session, command: wire.Command, error: LinnetError) -> None:
        """The error event of a command that was understood."""
        metrics.COMMANDS.labels(_name(command), error.code).inc()
        reason, following = (error.reason, error.next) if isinstance(error, Conflict) else (None, None)
        session.answer(
            wire.ErrorEvent(
                id=command.id,
                n=getattr(command, "n", None),
                code=error.code,
                message=error.message,
                retry_after=error.retry_after,
                reason=reason,
                next=following,
            )
        )

    def _refused(self, session: Session, command: wire.Commands | None, data: bytes, error: LinnetError) -> None:
        if command is None:
            metrics.COMMANDS.labels("invalid", error.code).inc()
            self._charge(session, self._cost)
            named = _named(session.codec, data)
            session.answer(wire.ErrorEvent(id=named.id, n=named.n, code=error.code, message=error.message))
        else:
            self.refuse(session, command, error)
        if session.state is State.HELLO:
            code = errors.CLOSE_OF.get(error.code, errors.CLOSE_INTERNAL)
            session.close(code, error.code)
        elif session.tat - self._node.loop.time() > self._burst + FLOOD_S:
            session.close(errors.CLOSE_RATE_LIMITED, errors.retry_reason(FLOOD_S))

    # -- rates (GCRA: `tat` is when everything taken so far would have been due)

    def _charge(self, session: Session, cost: float) -> float:
        now, tat = self._time(), session.tat
        session.tat = tat = max(now, tat) + cost
        return tat - now - self._burst

    def _spend(self, session: Session, cost: float) -> None:
        wait = self._charge(session, cost)
        if wait > 0:
            raise RateLimited("too many commands on this connection", max(0.001, round(wait, 3)))

    # -- hello, auth, ping

    def hello(self, session: Session, command: wire.Hello) -> None:
        self._node.connects.hello(session, command)

    def auth(self, session: Session, command: wire.Auth) -> None:
        try:
            identity = self._node.verifier.check(command.token, self._node.now_ms())
        except UnknownKey:
            self._node.spawn(self._ask(session, command))
        else:
            self._refreshed(session, command, identity)

    async def _ask(self, session: Session, command: wire.Auth) -> None:
        """The token is signed with a key that is not here yet: the provider is asked."""
        try:
            self._refreshed(session, command, await self._node.verifier.identity(command.token, self._node.now_ms()))
        except LinnetError as error:
            self.refuse(session, command, error)

    def _refreshed(self, session: Session, command: wire.Auth, identity: Identity) -> None:
        if identity.user != session.user:
            raise errors.Unauthorized("the token is another user's")
        if session.state is not State.READY:
            return  # it ended while the provider was asked
        session.expires_at = identity.expires_at
        self._node.clock.ready(session)
        session.answer(wire.Ok(id=command.id, expires_at=identity.expires_at))

    def ping(self, session: Session, command: wire.Ping) -> None:
        session.answer(wire.Pong(id=command.id, at=self._node.now_ms()))

    # -- events

    def send(self, session: Session, command: wire.Send) -> None:
        self._node.sends.send(session, command)

    def edit(self, session: Session, command: wire.Edit) -> None:
        self._node.sends.edit(session, command)

    def delete(self, session: Session, command: wire.Delete) -> None:
        self._node.sends.delete(session, command)

    def react(self, session: Session, command: wire.React) -> None:
        self._node.sends.react(session, command)

    # -- what the device has and the user has read

    def ack(self, session: Session, command: wire.Ack) -> None:
        """Counts up to what this session was given, whatever it claims."""
        acks = session.acks if session.acks is not None else {}
        cursors = dict(command.cursors)
        if command.conversation is not None:
            cursors[command.conversation] = command.seq
        for conversation, seq in cursors.items():
            if session.gone is not None and conversation in session.gone:
                acks[f"-{conversation}"] = session.gone[conversation]
            seq = min(seq, session.given(conversation))
            if seq > acks.get(conversation, 0):
                acks[conversation] = seq
        if acks:
            session.acks = acks
            self._node.clock.marked(session)

    def read(self, session: Session, command: wire.Read) -> None:
        conversation = visible(session, command.conversation)
        reply = partial(self._placed, session, command)
        self._node.conversations.place(conversation, session.user, command.seq, reply)

    def _placed(self, session: Session, command: wire.Read, place: Place | LinnetError) -> None:
        if isinstance(place, LinnetError):
            self.refuse(session, command, place)
            return
        reply = partial(self._was_read, session, command, place)
        self._node.users.read(session.user, command.conversation, place.seq, place.count, reply, place.gone)

    def _was_read(self, session: Session, command: wire.Read, place: Place, raised: bool | LinnetError) -> None:
        """Tells the others, in direct conversations and small groups; the user's own devices hear it from `read`."""
        if isinstance(raised, LinnetError):
            self.refuse(session, command, raised)
        elif raised and place.size <= RECEIPT_MEMBERS:
            receipt = signals.encode(signals.Receipt(command.conversation, session.user, place.seq))
            self._whisper(session.user, command.conversation, receipt)

    def _whisper(self, user: str, conversation: str, payload: bytes) -> None:
        """An ephemeral signal to the others of a conversation."""
        if conversation[0] == keys.DIRECT:
            other = keys.other_party(conversation, user)
            if other != user:
                self._node.users.whisper(other, conversation, payload)
        else:
            self._node.conversations.whisper(conversation, user, payload)

    # -- the rest

    def typing(self, session: Session, command: wire.Typing) -> None:
        """Passed on at most once a second per session and conversation."""
        conversation = target_of(session, command.to)
        now, typed = self._node.loop.time(), self._typed
        while typed and next(iter(typed.values())) <= now:
            typed.popitem(last=False)
        if (session, conversation) in typed:
            return
        typed[session, conversation] = now + TYPING_EVERY_S
        self._whisper(session.user, conversation, signals.encode(signals.Typing(conversation, session.user)))

    def history(self, session: Session, command: wire.History) -> None:
        """Pages are read one after the other and only for who takes them: each may have a megabyte."""
        visible(session, command.conversation)
        if session.pages is None:
            session.pages = deque()
        if len(session.pages) >= MAX_PAGES:
            raise RateLimited("wait for the pages that you have asked for", 1.0)
        session.pages.append(command)
        self.next_page(session)

    def next_page(self, session: Session) -> None:
        """Reads the next page, unless one is under way or the client does not take what it has been given."""
        if not session.pages or session.paging or (session.behind is not None and session.behind.paused):
            return
        session.paging = True
        command = session.pages.popleft()
        reply = partial(self._history, session, command)
        store = self._node.conversations
        if command.after is not None:
            store.range(command.conversation, session.user, command.after, MAX_INTEGER, command.limit, reply)
        else:
            before = MAX_INTEGER if command.before is None else command.before
            store.before(command.conversation, session.user, before, command.limit, reply)

    def _history(self, session: Session, command: wire.History, page: Page | LinnetError) -> None:
        session.paging = False
        if isinstance(page, LinnetError):
            self.refuse(session, command, page)
        else:
            # What is read counts as what is written does, or a hundred bytes would fetch a megabyte at any rate.
            self._charge(session, self._cost * (sum(map(len, page.events)) // PAGE_BYTES))
            events = [msgspec.Raw(session.codec.logged(event)) for event in page.events]
            session.answer(
                wire.HistoryEvent(id=command.id, conversation=command.conversation, events=events, more=page.more)
            )
            session.flush()  # so that it is known whether there is room for another
        if session.state is not State.CLOSED:
            self.next_page(session)

    def presence(self, session: Session, command: wire.Presence) -> None:
        self._node.watches.presence(session, command)


def _named(codec: wire.Codec, data: bytes) -> _Named:
    """The `id` and `n` of a command that is no good otherwise; empty where there is nothing to find."""
    decode = msgspec.json.decode if codec.text else msgspec.msgpack.decode
    try:
        named = decode(data, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Named()
    named.id, named.n = as_integer(named.id), as_integer(named.n)
    long = type(named.id) is str and len(named.id) > wire.MAX_ID
    if long or (type(named.id) is not str and not _is_integer(named.id)):
        named.id = None
    if not _is_integer(named.n):
        named.n = None
    return named


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) <= MAX_INTEGER


def _name(command: wire.Command) -> str:
    return type(command).__name__.lower()


Handler = Callable[[CommandHandlers, Session, Any], None]

HEAVY: Final = (wire.Send, wire.Edit, wire.Delete, wire.React, wire.History, wire.Presence)

_READY: Final[dict[type[wire.Command], Handler]] = {
    wire.Auth: CommandHandlers.auth,
    wire.Send: CommandHandlers.send,
    wire.Edit: CommandHandlers.edit,
    wire.Delete: CommandHandlers.delete,
    wire.React: CommandHandlers.react,
    wire.Ack: CommandHandlers.ack,
    wire.Read: CommandHandlers.read,
    wire.Typing: CommandHandlers.typing,
    wire.History: CommandHandlers.history,
    wire.Presence: CommandHandlers.presence,
    wire.Ping: CommandHandlers.ping,
}

# What a client may send in each state; everything else is `bad_command`. CONNECTING takes nothing: what comes then
# waits until the session is READY.
TABLE: Final[dict[State, dict[type[wire.Command], Handler]]] = {
    State.HELLO: {wire.Hello: CommandHandlers.hello},
    State.CONNECTING: {},
    State.READY: _READY,
    State.CLOSED: {},
}

_KINDS: Final[tuple[type[wire.Command], ...]] = (wire.Hello, *_READY)
OK: Final = {kind: metrics.COMMANDS.labels(kind.__name__.lower(), "ok") for kind in _KINDS}
