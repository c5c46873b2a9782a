"""Signals that no log keeps: typing, and receipts for the other members of a conversation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.delivery.session import Session
from router.contract import keys, signals, wire
from router.contract.addressing import target_of
from router.contract.errors import Blocked, LinnetError
from router.store.conversations import CLOSED_ROLES, Conversations
from router.store.users import Users

TYPING_EVERY_S: Final = 1.0


class Ephemeral:
    def __init__(self, users: Users, conversations: Conversations, time: Callable[[], float]) -> None:
        self._users = users
        self._conversations = conversations
        self._time = time
        # The time until which typing is not passed on again, in that order; bounded by the rate of one second.
        self._typed: OrderedDict[tuple[Session, str], float] = OrderedDict()

    def typing(self, session: Session, command: wire.Typing) -> None:
        """Pass `typing` on, at most once a second per session and conversation."""
        conversation = target_of(session.user, command.to)
        now, typed = self._time(), self._typed
        while typed and next(iter(typed.values())) <= now:
            typed.popitem(last=False)
        if (session, conversation) in typed:
            return
        typed[session, conversation] = now + TYPING_EVERY_S
        if conversation[0] == keys.DIRECT:
            reply = partial(self._may_write, session, command, conversation)
            self._conversations.roles(conversation, [session.user], reply)
        else:
            self._type(session, conversation)

    def _may_write(
        self, session: Session, command: wire.Typing, conversation: str, roles: list[str] | LinnetError
    ) -> None:
        if isinstance(roles, LinnetError):
            return  # typing may be lost
        if roles[0] in CLOSED_ROLES:
            session.refuse(command, Blocked())
        elif roles[0]:
            self._type(session, conversation)

    def _type(self, session: Session, conversation: str) -> None:
        self.whisper(session.user, conversation, signals.encode(signals.Typing(conversation, session.user)))

    def whisper(self, user: str, conversation: str, payload: bytes) -> None:
        """Publish a signal of `user` to the other members of a conversation."""
        if conversation[0] == keys.DIRECT:
            other = keys.other_party(conversation, user)
            if other != user:
                self._users.whisper(other, conversation, payload)
        else:
            self._conversations.whisper(conversation, user, payload)
