"""The rules of a group or channel: who may post and add members, and slow mode; in one field, `rules`."""

from __future__ import annotations

from struct import Struct as Packing
from typing import Final, Literal

import msgspec

Allowed = Literal["all", "admins"]  # who may post, or add members

_RULES: Final = Packing(">Icc")  # as prelude_rules.lua has them


class Rules(msgspec.Struct, frozen=True):
    """Who may post and add members, and the seconds between two messages of a member."""

    posting: Allowed = "all"
    adding: Allowed = "admins"
    slow_s: int = 0


class RulesChange(msgspec.Struct, frozen=True):
    """A change of rules; None leaves one as it is."""

    posting: Allowed | None = None
    adding: Allowed | None = None
    slow_s: int | None = None

    def named(self) -> dict[str, str | int]:
        """The rules that change, by the names that events have for them."""
        fields = {"posting": self.posting, "adding": self.adding, "slow_s": self.slow_s}
        return {name: value for name, value in fields.items() if value is not None}


DEFAULTS: Final = Rules()
NO_CHANGE: Final = RulesChange()


def rules_of(packed: bytes | None) -> Rules:
    """The rules from their field, which is absent while all of them have their defaults."""
    if not packed:
        return DEFAULTS
    slow_s, posting, adding = _RULES.unpack(packed)
    return Rules("admins" if posting == b"a" else "all", "all" if adding == b"*" else "admins", slow_s)
