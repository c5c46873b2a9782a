"""The rule for conversation ids in commands and calls: which of them a user may name. Pure.

Gateways and the HTTP API both use it. A conversation that the user must not know about is answered with the same
`not_found` as one that does not exist.
"""

from __future__ import annotations

from functools import lru_cache

from router.contract import keys, wire
from router.contract.errors import NotFound


def target_of(user: str, to: str) -> str:
    """Return the conversation that `to` names for `user`: an id, or `@user` for a direct conversation."""
    return _direct(user, to[1:]) if to[0] == "@" else visible(user, to)


def visible(user: str | None, conversation: str) -> str:
    """Return the id if it is valid and no other users' direct conversation. If `user` is None, a backend asks."""
    if not keys.is_conversation(conversation):
        raise NotFound("no such conversation")
    if conversation[0] == keys.DIRECT:
        first, second = keys.parties(conversation)
        if first > second or (user is not None and user not in (first, second)):
            raise NotFound("no such conversation")
    return conversation


@lru_cache(maxsize=1 << 14)
def _direct(user: str, other: str) -> str:
    if not wire.is_name(other):
        raise NotFound("no such user")
    return keys.direct(user, other)
