"""What a client's commands do: the table, and a handler each.

A command goes frame → struct (`wire`) → state table → rate → handler; a handler validates what only it can know, calls
the store and answers in the reply's callback. Nothing here awaits: the order of a session's commands is the order in
which they reach Redis. Every refusal is one `error` event, through `refuse`.

Adding a command: struct in `wire.py`, handler here, row in `TABLE`, a limit, a test, a row in the README.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.session import Session, State
from router.contract import errors, keys, metrics, signals, stamp, wire
from router.contract.errors import BadCommand, Internal, LinnetError, NotFound, RateLimited, Unavailable
from router.contract.tokens import Identity, UnknownKey
from router.store.conversations import Action, Append, Appended, Page, Place
from router.store.durability import Kept

if TYPE_CHECKING:
    from gateway.node import Node

log = logging.getLogger("linnet.commands")

# A command that is not a send costs a quarter of one; a flood that goes on while it is refused is cut off.
LIGHT: Final = 0.25
FLOOD_S: Final = 10.0
RECEIPT_MEMBERS: Final = 32
TYPING_EVERY_S: Final = 1.0
MAX_OPENING: Final = 64
MAX_PAGES: Final = 64
FULL_RETRY_S: Final = 10.0


class _Named(msgspec.Struct):
    """As much of a bad command as lets the client find which it was."""

    id: Any = None
    n: Any = None


class Sending:
    """One event on its way: what its reply needs, without a closure per field."""

    __slots__ = ("append", "began", "command", "session")

    def __init__(self, session: Session, command: wire.Command, append: Append) -> None:
        self.session = session
        self.command = command
        self.append = append
        self.began = perf_counter()


class CommandHandlers:
    """Handlers of one node's sessions."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cost = 1 / node.settings.sends_per_s
        self._burst = node.settings.send_burst * self._cost
        # Until when typing is not passed on again, in that order; bounded by what one second's rate lets through.
        self._typed: OrderedDict[tuple[Session, str], float] = OrderedDict()
        # Sends that wait for their direct conversation to be made, in order, by session and conversation.
        self._opening: dict[tuple[Session, str], deque[Sending]] = {}
        self.in_flight = 0

    def handle(self, session: Session, data: bytes) -> None:
        """One message of a client."""
        command: wire.Commands | None = None
        try:
            command = session.codec.decode(data)
            handler = TABLE[session.state].get(type(command))
            if handler is None:
                raise BadCommand("say hello first" if session.state is State.HELLO else "not now")
            self._spend(session, self._cost if isinstance(command, HEAVY) else self._cost * LIGHT)
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
        session.answer(
            wire.ErrorEvent(
                id=command.id,
                n=getattr(command, "n", None),
                code=error.code,
                message=error.message,
                retry_after=error.retry_after,
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
        now = self._node.loop.time()
        session.tat = max(session.tat, now) + cost
        return session.tat - now - self._burst

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
        conversation = self._target(session, command.to)
        fields = {"media": wire.pack(command.media), "body": wire.pack_body(command.body)}
        if command.reply_to is not None:
            fields["reply_to"] = wire.pack(command.reply_to)
        self._append(session, command, conversation, "message", 0, fields)

    def edit(self, session: Session, command: wire.Edit) -> None:
        fields = {"target": wire.pack(command.seq), "body": wire.pack_body(command.body)}
        self._append(session, command, self._known(session, command.conversation), "edit", command.seq, fields)

    def delete(self, session: Session, command: wire.Delete) -> None:
        fields = {"target": wire.pack(command.seq)}
        self._append(session, command, self._known(session, command.conversation), "delete", command.seq, fields)

    def react(self, session: Session, command: wire.React) -> None:
        fields = {
            "target": wire.pack(command.seq),
            "emoji": wire.pack(command.emoji),
            "remove": wire.pack(command.remove),
        }
        self._append(session, command, self._known(session, command.conversation), "react", command.seq, fields)

    def _append(
        self,
        session: Session,
        command: wire.Send | wire.Edit | wire.Delete | wire.React,
        conversation: str,
        action: Action,
        target: int,
        fields: dict[str, bytes],
    ) -> None:
        if self._node.lease.full:
            raise Unavailable("the store is full", FULL_RETRY_S)
        append = Append(
            conversation=conversation,
            user=session.user,
            device=session.device,
            n=command.n,
            done=command.done,
            fingerprint=stamp.fingerprint(wire.pack(action), *fields.values()),
            tail=stamp.tail(action, conversation, session.user, session.device, command.n, fields),
            action=action,
            target=target,
            seen=session.given(conversation),
        )
        self.in_flight += 1
        sending = Sending(session, command, append)
        opening = self._opening.get((session, conversation))
        if opening is not None:
            self._wait(opening, sending)
        else:
            self._node.conversations.append(append, partial(self._appended, sending))

    def _appended(self, sending: Sending, answer: Appended | LinnetError) -> None:
        session, append = sending.session, sending.append
        if isinstance(answer, LinnetError):
            if isinstance(answer, NotFound) and append.conversation[0] == keys.DIRECT and append.action == "message":
                self._open(sending)
            else:
                self._failed(sending, answer)
            return
        delivered: Callable[[object], None] = _ignore
        kept: Kept = partial(self._kept, sending, answer)
        if not answer.duplicate:
            if (tracer := self._node.tracer) is not None:
                where = append.conversation, answer.seq, append.action
                delivered, kept = tracer.appended(*where, sending.began, kept)
            if append.conversation[0] == keys.DIRECT:
                if not self._node.conversations.delivers:
                    self._deliver(append, answer, delivered)
            else:
                self._mark_read(session, append.conversation, answer.seq, answer.count)
        self._node.durability.when_kept(answer.replid, kept)

    def _kept(self, sending: Sending, answer: Appended, error: LinnetError | None) -> None:
        if error is not None:
            self._failed(sending, error)
            return
        self.in_flight -= 1
        metrics.APPEND_SECONDS.observe(perf_counter() - sending.began)
        sending.session.answer(
            wire.AckEvent(
                id=sending.command.id,
                n=sending.append.n,
                conversation=sending.append.conversation,
                seq=answer.seq,
                at=answer.at,
                duplicate=answer.duplicate,
            )
        )

    def _failed(self, sending: Sending, error: LinnetError) -> None:
        self.in_flight -= 1
        self.refuse(sending.session, sending.command, error)

    def _deliver(self, append: Append, answer: Appended, reply: Callable[[object], None]) -> None:
        """A direct event goes onto both users' channels; a router repeats it if this process dies here."""
        slots = stamp.Slots(answer.seq, answer.prev, answer.count, answer.at)
        event = stamp.fill(append.tail, slots)
        author, other = append.user, keys.other_party(append.conversation, append.user)
        deliver = partial(self._node.users.deliver, conv=append.conversation, seq=answer.seq, count=answer.count)
        if other != author:
            deliver(other, other=author, event=event, author=False, reply=reply)
        deliver(author, other=other, event=event, author=True, reply=reply)

    # -- the first message of a direct conversation makes it

    def _open(self, sending: Sending) -> None:
        """Makes the conversation, if both users exist; sends that come meanwhile wait behind this one."""
        place = (sending.session, sending.append.conversation)
        if (opening := self._opening.get(place)) is not None:
            self._wait(opening, sending)
            return
        self._opening[place] = deque([sending])
        other = keys.other_party(sending.append.conversation, sending.session.user)
        self._node.users.exists(other, partial(self._exists, place))

    def _wait(self, opening: deque[Sending], sending: Sending) -> None:
        if len(opening) < MAX_OPENING:
            opening.append(sending)
        else:
            self._failed(sending, RateLimited("wait for the first ack", 1.0))

    def _exists(self, place: tuple[Session, str], answer: bool | LinnetError) -> None:
        if answer is True:
            self._node.users.open(place[0].user, partial(self._may_open, place))
        else:
            self._not_opened(place, answer if isinstance(answer, LinnetError) else NotFound("no such user"))

    def _may_open(self, place: tuple[Session, str], refusal: LinnetError | None) -> None:
        if refusal is not None:
            self._not_opened(place, refusal)
            return
        session, conversation = place
        other = keys.other_party(conversation, session.user)
        cost, burst = round(self._cost * 1e6), round(self._burst * 1e6)
        self._node.conversations.create_direct(session.user, other, cost, burst, partial(self._opened, place))

    def _opened(self, place: tuple[Session, str], answer: bool | LinnetError) -> None:
        if isinstance(answer, LinnetError):
            self._not_opened(place, answer)
            return
        # In the order of n: a send that came while the first ones were being refused overtook them here.
        for sending in sorted(self._opening.pop(place), key=_by_n):
            self._node.conversations.append(sending.append, partial(self._appended_again, sending))

    def _appended_again(self, sending: Sending, answer: Appended | LinnetError) -> None:
        if isinstance(answer, NotFound):
            self._failed(sending, answer)
        else:
            self._appended(sending, answer)

    def _not_opened(self, place: tuple[Session, str], error: LinnetError) -> None:
        for sending in self._opening.pop(place):
            self._failed(sending, error)

    # -- what the device has and the user has read

    def ack(self, session: Session, command: wire.Ack) -> None:
        """Counts up to what this session was given, whatever it claims."""
        acks = session.acks if session.acks is not None else {}
        cursors = dict(command.cursors)
        if command.conversation is not None:
            cursors[command.conversation] = command.seq
        for conversation, seq in cursors.items():
            seq = min(seq, session.given(conversation))
            if seq > acks.get(conversation, 0):
                acks[conversation] = seq
        if acks:
            session.acks = acks
            self._node.clock.marked(session)

    def read(self, session: Session, command: wire.Read) -> None:
        conversation = self._known(session, command.conversation)
        reply = partial(self._placed, session, command)
        self._node.conversations.place(conversation, session.user, command.seq, reply)

    def _placed(self, session: Session, command: wire.Read, place: Place | LinnetError) -> None:
        if isinstance(place, LinnetError):
            self.refuse(session, command, place)
            return
        reply = partial(self._was_read, session, command, place)
        self._node.users.read(session.user, command.conversation, place.seq, place.count, reply)

    def _was_read(self, session: Session, command: wire.Read, place: Place, raised: bool | LinnetError) -> None:
        """Tells the others, in direct conversations and small groups; the user's own devices hear it from `read`."""
        if isinstance(raised, LinnetError):
            self.refuse(session, command, raised)
        elif raised and place.size <= RECEIPT_MEMBERS:
            receipt = signals.encode(signals.Receipt(command.conversation, session.user, place.seq))
            self._whisper(session.user, command.conversation, receipt)

    def _mark_read(self, session: Session, conversation: str, seq: int, count: int) -> None:
        """Writing marks as read; in groups a little later, joined with what else is to be written."""
        if session.state is not State.CLOSED:
            session.reads = session.reads or {}
            session.reads[conversation] = (seq, count)
            self._node.clock.marked(session)

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
        conversation = self._target(session, command.to)
        now, typed = self._node.loop.time(), self._typed
        while typed and next(iter(typed.values())) <= now:
            typed.popitem(last=False)
        if (session, conversation) in typed:
            return
        typed[session, conversation] = now + TYPING_EVERY_S
        self._whisper(session.user, conversation, signals.encode(signals.Typing(conversation, session.user)))

    def history(self, session: Session, command: wire.History) -> None:
        """Pages are read one after the other and only for who takes them: each may have a megabyte."""
        self._known(session, command.conversation)
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
            store.range(command.conversation, session.user, command.after, wire.MAX_INTEGER, command.limit, reply)
        else:
            before = wire.MAX_INTEGER if command.before is None else command.before
            store.before(command.conversation, session.user, before, command.limit, reply)

    def _history(self, session: Session, command: wire.History, page: Page | LinnetError) -> None:
        session.paging = False
        if isinstance(page, LinnetError):
            self.refuse(session, command, page)
        else:
            events = [msgspec.Raw(session.codec.logged(event)) for event in page.events]
            session.answer(
                wire.HistoryEvent(id=command.id, conversation=command.conversation, events=events, more=page.more)
            )
            session.flush()  # so that it is known whether there is room for another
        if session.state is not State.CLOSED:
            self.next_page(session)

    def presence(self, session: Session, command: wire.Presence) -> None:
        self._node.watches.presence(session, command)

    # -- names

    def _target(self, session: Session, to: str) -> str:
        """The conversation that `to` names: an id, or @user."""
        if not to.startswith("@"):
            return self._known(session, to)
        if not wire.is_name(to[1:]):
            raise NotFound("no such user")
        return keys.direct(session.user, to[1:])

    def _known(self, session: Session, conversation: str) -> str:
        """The id, if it can be one and is none of other users' direct conversations."""
        if not keys.is_conversation(conversation):
            raise NotFound()
        if conversation[0] == keys.DIRECT:
            first, second = keys.parties(conversation)
            if session.user not in (first, second) or first > second:
                raise NotFound()
        return conversation


def _named(codec: wire.Codec, data: bytes) -> _Named:
    """The `id` and `n` of a command that is no good otherwise; empty where there is nothing to find."""
    decode = msgspec.json.decode if codec.text else msgspec.msgpack.decode
    try:
        named = decode(data, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Named()
    long = type(named.id) is str and len(named.id) > wire.MAX_ID
    if long or (type(named.id) is not str and not _is_integer(named.id)):
        named.id = None
    if not _is_integer(named.n):
        named.n = None
    return named


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) <= wire.MAX_INTEGER


def _by_n(sending: Sending) -> int:
    return sending.append.n


def _name(command: wire.Command) -> str:
    return type(command).__name__.lower()


def _ignore(_: object) -> None:
    """A deliver that failed is repeated by a router."""


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
