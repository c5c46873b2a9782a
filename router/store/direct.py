"""Creation of a direct conversation by its first message: the one rule for gateways and the HTTP API."""

from __future__ import annotations

from collections.abc import Callable

from router.contract import keys
from router.contract.errors import Blocked, LinnetError, NotFound
from router.store.conversations import Conversations
from router.store.pairs import Change, Pairs
from router.store.profiles import MessagesFrom, Profiles
from router.store.users import Users

Reply = Callable[[bool | LinnetError], None]


class DirectConversations:
    """`rate_us`: cost and burst of a device's sends in a conversation, in µs."""

    def __init__(
        self,
        users: Users,
        conversations: Conversations,
        pairs: Pairs,
        profiles: Profiles,
        rate_us: tuple[int, int],
    ) -> None:
        self._users = users
        self._conversations = conversations
        self._pairs = pairs
        self._profiles = profiles
        self._rate_us = rate_us

    def create(self, user: str, other: str, limited: bool, reply: Reply) -> None:
        """Create the conversation if `other` exists and, with `limited`, if `user` may begin another one now.

        `reply` receives whether this call created it, or NotFound or RateLimited. If one of the two takes messages from
        contacts only, their record says so before the conversation exists.
        """
        selective: list[tuple[str, str, int]] = []  # user, other, number of the setting

        def read_other(found: MessagesFrom | LinnetError | None) -> None:
            if found is None or isinstance(found, LinnetError):
                reply(NotFound("no such user") if found is None else found)
                return
            note(other, user, found)
            self._profiles.messages_from(user, read_own)

        def read_own(found: MessagesFrom | LinnetError | None) -> None:
            if isinstance(found, LinnetError):
                reply(found)
                return
            if found is not None:
                note(user, other, found)
            if limited:
                self._users.spend_opening(user, allowed)
            else:
                allowed(None)

        def note(one: str, towards: str, found: MessagesFrom) -> None:
            if found.contacts_only and one != towards:
                selective.append((one, towards, found.number))

        def allowed(refusal: LinnetError | None) -> None:
            if refusal is not None:
                reply(refusal)
            elif selective:
                one, towards, number = selective.pop()
                self._pairs.change(one, towards, "only", "1", number, recorded)
            else:
                self._conversations.create_direct(user, other, *self._rate_us, reply)

        def recorded(change: Change | LinnetError) -> None:
            allowed(change if isinstance(change, LinnetError) else None)

        self._profiles.messages_from(other, read_other)

    def may_create(self, user: str, other: str, reply: Callable[[LinnetError | None], None]) -> None:
        """Ask whether a first message of `user` to `other` would create the conversation and be accepted now: None, or
        the error with which it would be refused. Nothing is changed."""

        def read_other(found: MessagesFrom | LinnetError | None) -> None:
            if found is None:
                reply(NotFound("no such user"))
            elif isinstance(found, LinnetError):
                reply(found)
            else:
                self._pairs.may_open(user, other, found.contacts_only, looked)

        def looked(opens: bool | LinnetError) -> None:
            if isinstance(opens, LinnetError):
                reply(opens)
            else:
                self._users.may_take(user, "opens", reply)

        self._profiles.messages_from(other, read_other)

    def refused(
        self, user: str, conversation: str, blocked: Blocked, reply: Callable[[LinnetError | None], None]
    ) -> None:
        """Work out anew whether the user may write, after an event was blocked. None: append it again.

        The other user may take messages from everybody by now, or may have written to this one since, which opens the
        way. NotFound: the other user's account has ended, as for a first message.
        """
        other = keys.other_party(conversation, user)

        def read(found: MessagesFrom | LinnetError | None) -> None:
            if found is None:
                reply(NotFound("no such user"))
            elif isinstance(found, LinnetError) or other == user:
                reply(blocked)
            else:
                only = "1" if found.contacts_only else "0"
                self._pairs.change(other, user, "only", only, found.number, looked)

        def looked(change: Change | LinnetError) -> None:
            reply(None if not isinstance(change, LinnetError) and change.others_role == "m" else blocked)

        self._profiles.messages_from(other, read)
