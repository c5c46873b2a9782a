"""The user's role in many conversations, and where a new device begins there, as a connect asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from router.contract import keys
from router.store.answers import Reply
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

CONVERSATIONS_PER_CALL: Final = 200  # roles; of starts, starts.lua bounds what it reads
READ_BYTES: Final = 1 << 20  # of one log, to find a start


class Wanted(msgspec.Struct, frozen=True):
    """A conversation of `openings`. `read`: the read mark of the user whose device begins; None: only the role."""

    conversation: str
    read: int | None


class Opening(msgspec.Struct, frozen=True):
    """A user's role char in a conversation, "" if they are no present member; and the cursor at which a new device
    begins, None if none was asked or the user does not see the conversation."""

    role: str
    start: int | None


class OpeningsRead:
    """The calls of one `openings`, and its one reply. Each call is about conversations of one server, and is answered
    for itself; what a call had no time to look at is asked again."""

    __slots__ = ("_client", "_found", "_missing", "_reply", "_user", "_wanted")

    def __init__(self, client: Client, user: str, wanted: Sequence[Wanted], reply: Reply[list[Opening | None]]) -> None:
        self._client = client
        self._user = user
        self._wanted = wanted
        self._reply = reply
        self._found: list[Opening | None] = [None] * len(wanted)
        self._missing = 1
        self._ask(range(len(wanted)))
        self._finish()

    def _ask(self, positions: Sequence[int]) -> None:
        for group in self._client.groups(positions, self._partition, CONVERSATIONS_PER_CALL):
            begins = [at for at in group if self._wanted[at].read is not None]
            others = [at for at in group if self._wanted[at].read is None]
            where = [key for at in begins for key in keys.of_conversation(self._wanted[at].conversation)[:2]]
            where += [keys.conversation(self._wanted[at].conversation) for at in others]
            reads = [self._wanted[at].read or 0 for at in begins]
            self._missing += 1
            received = partial(self._received, begins, others)
            self._client.call("starts", where, (self._user, READ_BYTES, *reads), received)

    def _partition(self, at: int) -> int:
        return keys.partition(self._wanted[at].conversation)

    def _received(self, begins: list[int], others: list[int], value: Any) -> None:
        if not isinstance(value, Exception):
            try:
                self._take(begins, others, value)
            except Exception as error:  # noqa: BLE001 - one unreadable answer must not cost the others theirs
                unreadable(error)
        self._finish()

    def _take(self, begins: list[int], others: list[int], value: Any) -> None:
        roles, *starts = value
        starts += [None] * len(others)
        again: list[int] = []
        for at, role, start in zip((*begins, *others), roles.decode(), starts, strict=True):
            if start == b"":
                again.append(at)
            else:
                self._found[at] = Opening("" if role == "-" else role, start)
        self._ask(again)

    def _finish(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._reply(self._found)
