"""Requests and answers about passwords and sessions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from router.api.types.common import NewPassword, Password
from router.contract.wire import Name


class PasswordChange(Struct, frozen=True):
    old: Password
    new: NewPassword


class ResetRequest(Struct, frozen=True):
    user: Name


class ResetToken(Struct, frozen=True):
    user: str
    token: str
    expires_at: int


class PasswordReset(Struct, frozen=True):
    token: Annotated[str, Meta(max_length=256)]
    new: NewPassword


class SessionEntry(Struct, frozen=True):
    """The last session of a device; times in milliseconds since the epoch."""

    device: str
    online: bool
    started: int
    last_seen: int | None
    current: bool


class Sessions(Struct, frozen=True):
    sessions: list[SessionEntry]


class Logout(Struct, frozen=True):
    """Which tokens end; without a field the calling one."""

    everywhere: bool = False
    others: bool = False
    device: Name | None = None

    def __post_init__(self) -> None:
        if self.everywhere + self.others + (self.device is not None) > 1:
            raise ValueError("give one of `everywhere`, `others` and `device`")
