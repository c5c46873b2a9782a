"""Commands that append an event to a log: send, edit, delete and react, up to their `ack` or `error`.

An event is encoded once here and appended by one call. After the answer a direct event is delivered to its users where
`append` cannot do that, the sender's read mark in a group is noted, and the first message of a direct conversation
creates the conversation. The function that writes an event decides whether it is allowed.

Invariants
- Every command ends in exactly one answer, its `ack` or one `error`; `in_flight` counts the commands without one.
- The events of a session reach a conversation in the order of its commands. While a direct conversation is created,
  further commands wait behind the one that creates it, at most MAX_WAITING of them. So they do while the files of a
  message are looked up.
- A message whose files its author may not use is appended all the same: the function refuses it if its `n` is new, and
  acks it if it was accepted before.
- An ack is sent once the event is kept (`store/durability.py`), never before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Final

import msgspec

from gateway.commands.marks import Marks
from gateway.delivery.session import TIMED, Session
from gateway.presence.lease import Lease
from router.contract import keys, metrics, stamp, wire
from router.contract.addressing import target_of, visible
from router.contract.errors import Blocked, Internal, LinnetError, NotFound, RateLimited, Unavailable
from router.contract.files import SharedFile, content, shared
from router.contract.packing import pack, pack_body
from router.process.hooked import Appends
from router.process.isolate import fault
from router.process.tracing import Tracer
from router.store.appends import Action, Append, Appended
from router.store.attaching import REFUSED, Attached
from router.store.conversations import Conversations
from router.store.direct import DirectConversations
from router.store.durability import Durability, Kept
from router.store.files import Files
from router.store.users import Users

MAX_WAITING: Final = 64
FULL_RETRY_S: Final = 10.0


class Sending(msgspec.Struct, eq=False):
    """One event on its way: the values that the answers need, and of a message the files to look up."""

    session: Session
    command: wire.Command
    append: Append
    fields: dict[str, bytes]
    files: Sequence[SharedFile]
    began: float
    answered: bool = False

    def attach(self, attached: Attached) -> None:
        """Put the files, as the server knows them, into the event; TooLarge if it is too large with them."""
        append, fields = self.append, self.fields
        if attached.infos:
            fields = fields | {"files": pack(attached.infos)}
        tail = stamp.tail(append.action, append.conversation, append.user, append.device, append.n, fields)
        self.append = msgspec.structs.replace(append, tail=tail, files=attached.pins)


class Sends:
    """The handlers of the commands that append an event. `appends` is `conversations` itself, unless a hook is set."""

    def __init__(
        self,
        conversations: Conversations,
        appends: Appends,
        users: Users,
        direct: DirectConversations,
        durability: Durability,
        marks: Marks,
        lease: Lease,
        files: Files,
        tracer: Tracer | None,
    ) -> None:
        self._files = files
        self._conversations = conversations
        self._appends = appends
        self._users = users
        self._direct = direct
        self._durability = durability
        self._marks = marks
        self._lease = lease
        self._tracer = tracer
        # Sends that wait for their direct conversation to be created, in order, by session and conversation.
        self._opening: dict[tuple[Session, str], deque[Sending]] = {}
        # Commands that wait for the files of the first one to be looked up, in order, by session and conversation.
        self._looking: dict[tuple[Session, str], deque[Sending]] = {}
        self.in_flight = 0

    def send(self, session: Session, command: wire.Send) -> None:
        conversation = target_of(session.user, command.to)
        fields = {"media": pack(command.media), "body": pack_body(command.body)}
        if command.reply_to is not None:
            fields["reply_to"] = pack(command.reply_to)
        files = shared(command.files) if command.files else ()
        self._append(session, command, conversation, "message", command.reply_to or 0, fields, files)

    def edit(self, session: Session, command: wire.Edit) -> None:
        fields = {"target": pack(command.seq), "body": pack_body(command.body)}
        self._append(session, command, visible(session.user, command.conversation), "edit", command.seq, fields)

    def delete(self, session: Session, command: wire.Delete) -> None:
        fields = {"target": pack(command.seq)}
        self._append(session, command, visible(session.user, command.conversation), "delete", command.seq, fields)

    def react(self, session: Session, command: wire.React) -> None:
        fields = {
            "target": pack(command.seq),
            "emoji": pack(command.emoji),
            "remove": pack(command.remove),
        }
        self._append(session, command, visible(session.user, command.conversation), "react", command.seq, fields)

    def _append(
        self,
        session: Session,
        command: wire.Send | wire.Edit | wire.Delete | wire.React,
        conversation: str,
        action: Action,
        target: int,
        fields: dict[str, bytes],
        files: Sequence[SharedFile] = (),
    ) -> None:
        if self._lease.full:
            raise Unavailable("the store is full", FULL_RETRY_S)
        self._durability.at_conversation(conversation).require_fit()
        append = Append(
            conversation=conversation,
            user=session.user,
            device=session.device,
            n=command.n,
            done=command.done,
            fingerprint=stamp.fingerprint(pack(action), *fields.values(), *(content(files) if files else ())),
            tail=stamp.tail(action, conversation, session.user, session.device, command.n, fields),
            action=action,
            target=target,
            seen=session.received_upto(conversation),
        )
        self.in_flight += 1
        sending = Sending(session, command, append, fields, files, perf_counter())
        if files or self._looking:
            self._look_up(sending)
        elif self._opening:
            self._go(sending)
        else:
            self._appends.append(append, partial(self._appended, sending))

    def _go(self, sending: Sending) -> None:
        opening = self._opening.get((sending.session, sending.append.conversation))
        if opening is not None:
            self._wait(opening, sending)
        else:
            self._appends.append(sending.append, partial(self._appended, sending))

    # -- the files of a message are looked up before it is appended; later commands for its conversation wait

    def _look_up(self, sending: Sending) -> None:
        place = sending.session, sending.append.conversation
        if (looking := self._looking.get(place)) is not None:
            self._wait(looking, sending)
        elif sending.files:
            self._looking[place] = deque([sending])
            self._ask(place, sending)
        else:
            self._go(sending)

    def _ask(self, place: tuple[Session, str], sending: Sending) -> None:
        self._files.attach(sending.append.user, place[1], sending.files, partial(self._looked_up, place))

    def _looked_up(self, place: tuple[Session, str], answer: Attached | LinnetError) -> None:
        """Append the first message that waits, and what needs no lookup behind it."""
        looking = self._looking[place]
        sending = looking.popleft()
        try:
            if isinstance(answer, LinnetError):
                raise answer
            sending.attach(answer)
            self._go(sending)
        except LinnetError as error:
            self._failed(sending, error)
        while looking and not looking[0].files:
            self._go(looking.popleft())
        if looking:
            self._ask(place, looking[0])
        else:
            del self._looking[place]

    def _appended(self, sending: Sending, answer: Appended | LinnetError) -> None:
        try:
            session, append = sending.session, sending.append
            if isinstance(answer, LinnetError):
                if (
                    isinstance(answer, NotFound)
                    and append.conversation[0] == keys.DIRECT
                    and append.action == "message"
                    and append.files != REFUSED.pins
                ):
                    self._open(sending)
                elif isinstance(answer, Blocked) and append.conversation[0] == keys.DIRECT:
                    self._direct.refused(session.user, append.conversation, answer, partial(self._refused, sending))
                else:
                    self._failed(sending, answer)
                return
            delivered: Callable[[object], None] = _ignore
            kept: Kept = partial(self._kept, sending, answer)
            if answer.written:
                if (tracer := self._tracer) is not None:
                    where = append.conversation, answer.seq, append.action
                    delivered, kept = tracer.appended(*where, sending.began, kept)
                if append.conversation[0] == keys.DIRECT:
                    if not self._conversations.delivers:
                        self._deliver(append, answer, delivered)
                elif append.action == "message":
                    self._marks.read(session, append.conversation, answer.seq, answer.count)
            self._durability.at_conversation(append.conversation).when_kept(answer.replid, kept)
        except Exception as error:  # noqa: BLE001 - a bug: the client must get an answer, and the log has the trace
            fault("sends", error)
            self._failed(sending, Internal())

    def _refused(self, sending: Sending, error: LinnetError | None) -> None:
        """Append an event again that was blocked, if the way is open now; else answer with the error."""
        if error is None:
            self._appends.append(sending.append, partial(self._appended_again, sending))
        else:
            self._failed(sending, error)

    def _kept(self, sending: Sending, answer: Appended, error: LinnetError | None) -> None:
        if error is not None:
            self._failed(sending, error)
            return
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
        self.in_flight -= 1
        sending.answered = True

    def _failed(self, sending: Sending, error: LinnetError) -> None:
        if not sending.answered:
            self.in_flight -= 1
            sending.answered = True
            sending.session.refuse(sending.command, error)

    def _deliver(self, append: Append, answer: Appended, reply: Callable[[object], None]) -> None:
        """Publish a direct event on both users' channels; if this process dies here, a router does it."""
        slots = stamp.Slots(answer.seq, answer.prev, answer.count, answer.at)
        event = stamp.fill(answer.tail or append.tail, slots)
        author, other = append.user, keys.other_party(append.conversation, append.user)
        target = append.target if append.action == "delete" else 0
        deliver = partial(self._users.deliver, conv=append.conversation, seq=answer.seq, count=answer.count,
                          event=event, target=target, reply=reply)  # fmt: skip
        if other != author:
            deliver(other, other=author, marks=False)
        deliver(author, other=other, marks=append.action == "message")

    # -- the first message of a direct conversation creates it

    def _open(self, sending: Sending) -> None:
        """Create the conversation; sends that come meanwhile wait behind this one."""
        session, conversation = place = (sending.session, sending.append.conversation)
        if (opening := self._opening.get(place)) is not None:
            self._wait(opening, sending)
            return
        self._opening[place] = deque([sending])
        other = keys.other_party(conversation, session.user)
        self._direct.create(session.user, other, True, partial(self._opened, place))

    def _wait(self, opening: deque[Sending], sending: Sending) -> None:
        if len(opening) < MAX_WAITING:
            opening.append(sending)
        else:
            self._failed(sending, RateLimited("too many commands wait for this conversation: wait for their acks", 1.0))

    def _opened(self, place: tuple[Session, str], answer: bool | LinnetError) -> None:
        if isinstance(answer, LinnetError):
            self._not_opened(place, answer)
            return
        # In the order of n, because a send that came while earlier ones were being refused overtook them in this queue.
        for sending in sorted(self._opening.pop(place), key=_by_n):
            self._appends.append(sending.append, partial(self._appended_again, sending))

    def _appended_again(self, sending: Sending, answer: Appended | LinnetError) -> None:
        if isinstance(answer, NotFound):
            self._failed(sending, answer)
        else:
            self._appended(sending, answer)

    def _not_opened(self, place: tuple[Session, str], error: LinnetError) -> None:
        for sending in self._opening.pop(place):
            self._failed(sending, error)


def _by_n(sending: Sending) -> int:
    return sending.append.n


def _ignore(_: object) -> None:
    """Ignore the answer: a router repeats a delivery that failed."""
