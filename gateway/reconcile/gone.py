"""Notices of conversations that a device had and that its user no longer has.

A group was deleted, its user was removed, or the other user of a direct conversation was deleted. In each case the
user's row says that the conversation was left, and at which change. Each session of a device that had the conversation
gets one entry `gone`, live or in the lists after `hello`, until the device has acked that change. The mark of that ack
is a field `-<conversation>` among the device's cursors, so that the cursor itself stays valid: events from before the
change are still delivered.

If the reason of an entry cannot be read now, the entry is left out; it is sent with the next `hello`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract import keys, wire
from router.contract.errors import LinnetError
from router.store.conversations import Conversations
from router.store.heads import Head
from router.store.rows import Row
from router.store.users import Users

Told = Callable[[list[wire.ConversationState]], None]


class Gone:
    def __init__(self, users: Users, conversations: Conversations) -> None:
        self._users = users
        self._conversations = conversations

    def notify(self, session: Session, row: Row) -> bool:
        """Notify a live session if the row is new to its device; return whether it is."""
        found = [row] if is_news(session, row) else []
        if found:
            self.entries(session, found, partial(_send, session))
        return bool(found)

    def entries(self, session: Session, rows: Iterable[Row], done: Told) -> None:
        """Call `done` with the entries of the rows that are gone and new to the device; the session counts as notified
        of them."""
        news = [row for row in rows if row.left and is_news(session, row)]
        if not news:
            done([])
            return
        for row in news:
            session.note_gone(row.conversation, row.changed)
        groups = [row.conversation for row in news if row.kind != keys.DIRECT]
        direct = [row.conversation for row in news if row.kind == keys.DIRECT]
        entries: list[wire.ConversationState] = []
        left = 1 + len(direct)

        def finish() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done(entries)

        def heads(answer: list[Head | LinnetError | None] | LinnetError) -> None:
            if isinstance(answer, LinnetError):
                session.forget_gone(*groups)
            else:
                for conversation, head in zip(groups, answer, strict=True):
                    if isinstance(head, LinnetError):
                        session.forget_gone(conversation)
                        continue
                    entries.append(_entry(conversation, "deleted" if head is None else "removed"))
            finish()

        def exists(conversation: str, answer: bool | LinnetError) -> None:
            if isinstance(answer, LinnetError):
                session.forget_gone(conversation)
            else:
                entries.append(_entry(conversation, "deleted" if answer else "user_deleted"))
            finish()

        for conversation in direct:
            other = keys.other_party(conversation, session.user)
            self._users.exists(other, partial(exists, conversation))
        if groups:
            self._conversations.heads(groups, heads)
        else:
            finish()


def is_news(session: Session, row: Row) -> bool:
    """Return whether the device had a conversation that is gone, and neither the device nor this session knows that."""
    if not row.left:
        return False
    if row.gone_acked or (session.gone is not None and session.gone.get(row.conversation) == row.changed):
        # Known, unless the session is inside: then the user was added again, and a failover took that back.
        return session.is_inside(row.conversation)
    return row.cursor is not None or session.received_upto(row.conversation) > 0  # received live, and not acked yet


def _send(session: Session, entries: list[wire.ConversationState]) -> None:
    if entries and session.state is State.READY:
        session.answer(wire.ConversationsEvent(conversations=entries, more=False))


def _entry(conversation: str, reason: str) -> wire.ConversationState:
    return wire.ConversationState(
        conversation=conversation, kind=keys.KIND_NAMES[conversation[0]], gone=True, reason=reason
    )
