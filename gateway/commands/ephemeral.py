"""Signals that no log keeps: typing, and receipts for the other members of a conversation.

A session remembers two settings of its user (`SignalSettings`): whether they send receipts, and whether a block hides
them from another user. If one does, the signal in a group is `Discreet`: each gateway asks from whom the user is hidden
before it passes the signal on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from gateway.delivery.session import Session
from router.contract import keys, signals, wire
from router.contract.addressing import target_of
from router.contract.errors import Blocked, LinnetError, ReadOnly
from router.store.conversations import CLOSED_ROLES, Conversations
from router.store.profiles import Profiles, SignalSettings
from router.store.users import Users

TYPING_EVERY_S: Final = 1.0
SIGNAL_SETTINGS_S: Final = 60.0  # a signal that they changed may have been lost

Sent = Callable[[int | LinnetError], None]


class Ephemeral:
    def __init__(
        self, users: Users, conversations: Conversations, profiles: Profiles, time: Callable[[], float]
    ) -> None:
        self._users = users
        self._conversations = conversations
        self._profiles = profiles
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
            self._type(session, command, conversation)

    def _may_write(
        self, session: Session, command: wire.Typing, conversation: str, roles: list[str] | LinnetError
    ) -> None:
        if isinstance(roles, LinnetError):
            return  # typing may be lost
        if roles[0] in CLOSED_ROLES:
            session.refuse(command, Blocked())
        elif roles[0]:
            self._type(session, command, conversation)

    def _type(self, session: Session, command: wire.Typing, conversation: str) -> None:
        if conversation[0] == keys.DIRECT:
            signal = signals.encode(signals.Typing(conversation, session.user))
            self._whisper(session.user, conversation, signal)
        else:
            self._with_manners(session, conversation, 0, partial(self._typed_in_group, session, command))

    def _typed_in_group(self, session: Session, command: wire.Typing, answer: int | LinnetError) -> None:
        if isinstance(answer, ReadOnly):  # the user is muted; other failures may be lost
            session.refuse(command, answer)

    def receipt(self, session: Session, conversation: str, read: int) -> None:
        """Send a receipt to the other members of a conversation, if the user sends receipts."""
        self._with_manners(session, conversation, read, None)

    def _with_manners(self, session: Session, conversation: str, read: int, sent: Sent | None) -> None:
        known = session.signal_settings
        if known is not None and self._time() < known[0]:
            self._announce(session, conversation, read, sent, known[1])
        else:
            self._profiles.signal_settings(session.user, partial(self._learned, session, conversation, read, sent))

    def _learned(
        self, session: Session, conversation: str, read: int, sent: Sent | None, settings: SignalSettings | LinnetError
    ) -> None:
        if not isinstance(settings, LinnetError):  # else typing or a receipt is lost
            session.signal_settings = (self._time() + SIGNAL_SETTINGS_S, settings)
            self._announce(session, conversation, read, sent, settings)

    def _announce(
        self, session: Session, conversation: str, read: int, sent: Sent | None, settings: SignalSettings
    ) -> None:
        user = session.user
        signal: signals.Signals
        if read and not settings.receipts:
            return
        if settings.hides and conversation[0] != keys.DIRECT:
            signal = signals.Discreet(conversation, user, read)
        elif read:
            signal = signals.Receipt(conversation, user, read)
        else:
            signal = signals.Typing(conversation, user)
        self._whisper(user, conversation, signals.encode(signal), sent)

    def _whisper(self, user: str, conversation: str, payload: bytes, sent: Sent | None = None) -> None:
        """Publish a signal of `user` to the other members of a conversation; `sent`: it is typing in a group."""
        if conversation[0] == keys.DIRECT:
            other = keys.other_party(conversation, user)
            if other != user:
                self._users.whisper(other, conversation, payload)
        else:
            self._conversations.whisper(conversation, user, payload, sent, types=sent is not None)
