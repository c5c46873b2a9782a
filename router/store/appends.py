"""The arguments and the answer of an append, packed as `append.lua` has them. The call is in `conversations`."""

from __future__ import annotations

from struct import Struct as Packing
from typing import Any, Final, Literal

import msgspec

from router.contract.stamp import Tail

Action = Literal["message", "edit", "delete", "react"]

FACTS: Final = Packing(">QQQQ8sBc")  # as append.lua reads them
RATED: Final = 1
ROWS_OF_FORMAT_2: Final = 2
_ANSWER: Final = Packing(">QQQQB16s")


class Append(msgspec.Struct, frozen=True):
    """One event to append. If `n` is 0, no row for detecting a resend is stored. A rate applies to users' `n` only.

    `files`: the pins of a message's files (`store/files.py`), None if it has none.
    """

    conversation: str
    user: str
    device: str
    n: int
    done: int
    fingerprint: bytes
    tail: Tail
    action: Action = "message"
    target: int = 0
    seen: int = 0
    server: bool = False
    files: bytes | None = None


class Appended(msgspec.Struct, frozen=True):
    """The result of an append. `prev` and `count` are 0 if no event was written, that is, for a duplicate and for a
    reaction that exists already; `at` is 0 if the event is no longer in the log. `how` is the outcome of append.lua.
    `tail`: the event's bytes, if they are not those of the call (`process/hooked.py`).
    """

    seq: int
    prev: int
    count: int
    at: int
    how: int
    replid: bytes
    tail: Tail | None = None

    @property
    def written(self) -> bool:
        return self.how == 0

    @property
    def duplicate(self) -> bool:
        return self.how == 1


def appended(value: Any) -> Appended:
    return Appended(*_ANSWER.unpack(value))
