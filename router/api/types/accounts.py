"""Requests and answers about accounts, tokens, gateways and presence."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from router.api.types.common import VISIBLE, NewPassword, Password
from router.contract import text, wire
from router.contract.wire import Name

AccountName = Annotated[
    str,
    Meta(
        pattern=wire.NAME_PATTERN.replace("^", r"^(?!\.{1,2}$|[eE][xX][tT]--)", 1),
        description="A user's name, except `.` and `..`, which URL libraries resolve in paths, and except names that"
        f" begin with `{wire.MAPPED}` (in any case), which are reserved for users of the identity provider.",
    ),
]


class NewAccount(Struct, frozen=True):
    user: AccountName
    password: NewPassword
    name: Annotated[str, Meta(max_length=128, description=f"As others see it. {VISIBLE}")] = ""

    def __post_init__(self) -> None:
        text.check("name", self.name)


class AccountMade(Struct, frozen=True):
    user: str
    name: str


class LoginRequest(Struct, frozen=True):
    user: Name
    password: Password
    device: Name = "default"
    scope: Annotated[
        Literal["admin"] | None,
        Meta(description="`admin`: a token for the admin view; only its own listener takes it."),
    ] = None


class LoginAnswer(Struct, frozen=True):
    """A token, and the URLs of gateways to connect to, the least loaded first."""

    user: str
    device: str
    token: str
    expires_at: int
    gateways: list[str]


class Renewal(Struct, frozen=True):
    """A renewed token, and the URLs of gateways to connect to, the least loaded first."""

    token: str
    expires_at: int
    gateways: list[str]


class Gateways(Struct, frozen=True):
    """URLs of the live gateways, the least loaded first."""

    gateways: list[str]


class TokenRequest(Struct, frozen=True):
    user: Name


class TokenAnswer(Struct, frozen=True):
    user: str
    token: str
    expires_at: int


class PresenceQuery(Struct, frozen=True):
    users: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64}){0,199}$(?!\n)",
            description="At most 200 names, with commas between them.",
        ),
    ]


class PresenceAnswer(Struct, frozen=True):
    users: dict[str, wire.PresenceState]
