"""Putting an event into a log: send, edit, delete and react, from the struct to the `ack` or the refusal.

What lives here: the event's one encoding, the call that appends it, what follows its answer (a direct event brought to
its users where `append` cannot, the sender's read mark in a group), the making of a direct conversation by its first
message, and which conversation a client may name. What never does: decoding, states and rates (`commands.py`), and
whether an event may be written (the function that writes it).

Invariants
- Every command ends in exactly one answer, its `ack` or one `error`; `in_flight` counts those that have none yet.
- A session's events reach a conversation in the order of its commands: those that come while a direct conversation is
  made wait behind the one that makes it, at most MAX_OPENING of them.
- An ack leaves when the event is kept (`store/durability.py`), never before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import lru_cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

from gateway.delivery.session import TIMED, Session, State
from router.contract import keys, metrics, stamp, wire
from router.contract.errors import Blocked, LinnetError, NotFound, RateLimited, Unavailable
from router.contract.packing import pack, pack_body
from router.store.conversations import Action, Append, Appended
from router.store.durability import Kept

if TYPE_CHECKING:
    from gateway.node import Node

MAX_OPENING: Final = 64
FULL_RETRY_S: Final = 10.0


class Sending:
    """One event on its way: what its reply needs, without a closure per field."""

    __slots__ = ("append", "began", "command", "session")

    def __init__(self, session: Session, command: wire.Command, append: Append) -> None:
        self.session = session
        self.command = command
        self.append = append
        self.began = perf_counter()


class Sends:
    """Events on their way from one node's sessions."""

    def __init__(self, node: Node) -> None:
        self._node = node
        cost = 1 / node.settings.sends_per_s
        self._rate_us = round(cost * 1e6), round(node.settings.send_burst * cost * 1e6)
        # Sends that wait for their direct conversation to be made, in order, by session and conversation.
        self._opening: dict[tuple[Session, str], deque[Sending]] = {}
        self.in_flight = 0

    def send(self, session: Session, command: wire.Send) -> None:
        conversation = target_of(session, command.to)
        fields = {"media": pack(command.media), "body": pack_body(command.body)}
        if command.reply_to is not None:
            fields["reply_to"] = pack(command.reply_to)
        self._append(session, command, conversation, "message", command.reply_to or 0, fields)

    def edit(self, session: Session, command: wire.Edit) -> None:
        fields = {"target": pack(command.seq), "body": pack_body(command.body)}
        self._append(session, command, visible(session, command.conversation), "edit", command.seq, fields)

    def delete(self, session: Session, command: wire.Delete) -> None:
        fields = {"target": pack(command.seq)}
        self._append(session, command, visible(session, command.conversation), "delete", command.seq, fields)

    def react(self, session: Session, command: wire.React) -> None:
        fields = {
            "target": pack(command.seq),
            "emoji": pack(command.emoji),
            "remove": pack(command.remove),
        }
        self._append(session, command, visible(session, command.conversation), "react", command.seq, fields)

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
        self._node.durability.require_fit()
        append = Append(
            conversation=conversation,
            user=session.user,
            device=session.device,
            n=command.n,
            done=command.done,
            fingerprint=stamp.fingerprint(pack(action), *fields.values()),
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
            elif isinstance(answer, Blocked) and append.conversation[0] == keys.DIRECT:
                other = keys.other_party(append.conversation, session.user)
                self._node.users.exists(other, partial(self._blocked, sending, answer))
            else:
                self._failed(sending, answer)
            return
        delivered: Callable[[object], None] = _ignore
        kept: Kept = partial(self._kept, sending, answer)
        if answer.written:
            if (tracer := self._node.tracer) is not None:
                where = append.conversation, answer.seq, append.action
                delivered, kept = tracer.appended(*where, sending.began, kept)
            if append.conversation[0] == keys.DIRECT:
                if not self._node.conversations.delivers:
                    self._deliver(append, answer, delivered)
            elif append.action == "message":
                self._mark_read(session, append.conversation, answer.seq, answer.count)
        self._node.durability.when_kept(answer.replid, kept)

    def _kept(self, sending: Sending, answer: Appended, error: LinnetError | None) -> None:
        if error is not None:
            self._failed(sending, error)
            return
        self.in_flight -= 1
        if not answer.seq & TIMED:
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

    def _blocked(self, sending: Sending, answer: Blocked, exists: bool | LinnetError) -> None:
        """By the other user, or by the end of her account: then she is not found, as for a first message."""
        self._failed(sending, answer if exists is not False else NotFound("no such user"))

    def _failed(self, sending: Sending, error: LinnetError) -> None:
        self.in_flight -= 1
        self._node.commands.refuse(sending.session, sending.command, error)

    def _deliver(self, append: Append, answer: Appended, reply: Callable[[object], None]) -> None:
        """A direct event goes onto both users' channels; a router repeats it if this process dies here."""
        slots = stamp.Slots(answer.seq, answer.prev, answer.count, answer.at)
        event = stamp.fill(append.tail, slots)
        author, other = append.user, keys.other_party(append.conversation, append.user)
        target = append.target if append.action == "delete" else 0
        deliver = partial(self._node.users.deliver, conv=append.conversation, seq=answer.seq, count=answer.count,
                          event=event, target=target, reply=reply)  # fmt: skip
        if other != author:
            deliver(other, other=author, marks=False)
        deliver(author, other=other, marks=append.action == "message")

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
        self._node.conversations.create_direct(session.user, other, *self._rate_us, partial(self._opened, place))

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

    def _mark_read(self, session: Session, conversation: str, seq: int, count: int) -> None:
        """Writing marks as read; in groups a little later, joined with what else is to be written."""
        if session.state is not State.CLOSED:
            session.reads = session.reads or {}
            session.reads[conversation] = (seq, count)
            self._node.clock.marked(session)


def target_of(session: Session, to: str) -> str:
    """The conversation that `to` names: an id, or @user."""
    return _direct(session.user, to[1:]) if to[0] == "@" else visible(session, to)


def visible(session: Session, conversation: str) -> str:
    """The id, if it can be one and is none of other users' direct conversations."""
    if not keys.is_conversation(conversation):
        raise NotFound()
    if conversation[0] == keys.DIRECT:
        first, second = keys.parties(conversation)
        if session.user not in (first, second) or first > second:
            raise NotFound()
    return conversation


@lru_cache(maxsize=1 << 14)
def _direct(user: str, other: str) -> str:
    if not wire.is_name(other):
        raise NotFound("no such user")
    return keys.direct(user, other)


def _by_n(sending: Sending) -> int:
    return sending.append.n


def _ignore(_: object) -> None:
    """A deliver that failed is repeated by a router."""
