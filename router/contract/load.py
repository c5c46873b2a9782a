"""The load of a process, as its lease has it."""

from __future__ import annotations

from msgspec import Struct


class Load(Struct, frozen=True):
    """The greatest lag of the event loop (ms) and the share of a core (percent), since the lease was renewed last."""

    lag_ms: int = 0
    cpu: int = 0
