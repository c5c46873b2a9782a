"""`ack`, the events that a device has, and `read`, the messages that its user has read."""

from __future__ import annotations

from functools import partial

from gateway.commands.ephemeral import Ephemeral
from gateway.commands.marks import Marks
from gateway.delivery.session import Session
from router.contract import wire
from router.contract.addressing import visible
from router.contract.errors import LinnetError
from router.contract.signals import RECEIPT_MEMBERS
from router.store.conversations import Conversations, ReadPosition
from router.store.users import Users


class Cursors:
    def __init__(self, users: Users, conversations: Conversations, marks: Marks, ephemeral: Ephemeral) -> None:
        self._users = users
        self._conversations = conversations
        self._marks = marks
        self._ephemeral = ephemeral

    def ack(self, session: Session, command: wire.Ack) -> None:
        """Note the acked events, at most up to the position that this session has received."""
        cursors = dict(command.cursors)
        if command.conversation is not None:
            cursors[command.conversation] = command.seq
        for conversation, seq in cursors.items():
            self._marks.acked_gone(session, conversation)
            self._marks.acked(session, conversation, min(seq, session.received_upto(conversation)))

    def read(self, session: Session, command: wire.Read) -> None:
        """Raise the user's read mark, at most to the head."""
        conversation = visible(session.user, command.conversation)
        reply = partial(self._located, session, command)
        self._conversations.read_position(conversation, session.user, command.seq, reply)

    def _located(self, session: Session, command: wire.Read, position: ReadPosition | LinnetError) -> None:
        if isinstance(position, LinnetError):
            session.refuse(command, position)
            return
        reply = partial(self._was_read, session, command, position)
        self._users.read(
            session.user, command.conversation, position.seq, position.count, reply, position.deleted_above
        )

    def _was_read(
        self, session: Session, command: wire.Read, position: ReadPosition, raised: bool | LinnetError
    ) -> None:
        """Send a receipt to the other members of a small group, or of a direct one in which both may write. The
        function `read` sends one to the user's own devices."""
        if isinstance(raised, LinnetError):
            session.refuse(command, raised)
        elif raised and position.open and position.size <= RECEIPT_MEMBERS:
            self._ephemeral.receipt(session, command.conversation, position.seq)
