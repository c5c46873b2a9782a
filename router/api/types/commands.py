"""The answer to a command of the client protocol as an HTTP call."""

from __future__ import annotations

from msgspec import Struct

from router.contract import wire


class CommandAnswer(Struct, frozen=True):
    """The event that a socket would answer."""

    event: wire.AckEvent | wire.StateEvent
