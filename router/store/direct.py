"""Creation of a direct conversation by its first message: the one rule for gateways and the HTTP API."""

from __future__ import annotations

from collections.abc import Callable

from router.contract import keys
from router.contract.errors import Blocked, LinnetError, NotFound
from router.store.conversations import Conversations
from router.store.pairs import Change, Pairs
from router.store.users import Users

Reply = Callable[[bool | LinnetError], None]


class DirectConversations:
    """`rate_us`: cost and burst of a device's sends in a conversation, in µs."""

    def __init__(self, users: Users, conversations: Conversations, pairs: Pairs, rate_us: tuple[int, int]) -> None:
        self._users = users
        self._conversations = conversations
        self._pairs = pairs
        self._rate_us = rate_us

    def create(self, user: str, other: str, limited: bool, reply: Reply) -> None:
        """Create the conversation if `other` exists and, with `limited`, if `user` may begin another one now.

        `reply` receives whether this call created it, or NotFound or RateLimited.
        """

        def exists(answer: bool | LinnetError) -> None:
            if answer is not True:
                reply(answer if isinstance(answer, LinnetError) else NotFound("no such user"))
            elif limited:
                self._users.spend_opening(user, allowed)
            else:
                allowed(None)

        def allowed(refusal: LinnetError | None) -> None:
            if refusal is not None:
                reply(refusal)
            else:
                self._conversations.create_direct(user, other, *self._rate_us, reply)

        self._users.exists(other, exists)

    def refused(
        self, user: str, conversation: str, blocked: Blocked, reply: Callable[[LinnetError | None], None]
    ) -> None:
        """Work out anew whether the user may write, after an event was blocked. None: append it again.

        A user who takes messages from contacts only, and has written to this one since, opened the way. NotFound: the
        other user's account has ended, as for a first message.
        """
        other = keys.other_party(conversation, user)

        def looked(change: Change | LinnetError) -> None:
            if not isinstance(change, LinnetError) and change.role == "m":
                reply(None)
            else:
                self._users.exists(other, exists)

        def exists(answer: bool | LinnetError) -> None:
            reply(blocked if answer is not False else NotFound("no such user"))

        if other == user:
            self._users.exists(other, exists)
        else:
            self._pairs.change(user, other, "look", "", 0, looked)
