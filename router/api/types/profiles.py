"""Requests and answers about the caller's and other users' profiles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from router.api.types.common import VISIBLE
from router.contract import text
from router.contract.files import Sha256

DisplayName = Annotated[str, Meta(max_length=128, description=f"As others see it. {VISIBLE}")]
About = Annotated[str, Meta(max_length=512, description=VISIBLE)]
StatusText = Annotated[str, Meta(max_length=128, description=VISIBLE)]


class Status(Struct, frozen=True):
    """`until`: the time (ms) at which the status is over."""

    text: StatusText
    until: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None

    def __post_init__(self) -> None:
        text.check("status.text", self.text)


class Privacy(Struct, frozen=True):
    """Who may write to the user directly, add them to groups, see their presence; whether requests reach them, and
    whether they send receipts."""

    messages: Literal["everyone", "contacts"]
    groups: Literal["everyone", "contacts"]
    presence: Literal["everyone", "contacts"]
    requests: Literal["everyone", "nobody"]
    receipts: Literal["everyone", "nobody"]


class PrivacyChange(Struct, frozen=True):
    messages: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    groups: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    presence: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    requests: Literal["everyone", "nobody"] | UnsetType | None = UNSET
    receipts: Literal["everyone", "nobody"] | UnsetType | None = UNSET


class ProfileChange(Struct, frozen=True):
    """A change; a field that is left out is not changed, null clears it.

    `avatar`: a picture that the caller has uploaded within a day.
    """

    name: DisplayName | UnsetType | None = UNSET
    about: About | UnsetType | None = UNSET
    avatar: Sha256 | UnsetType | None = UNSET
    status: Status | UnsetType | None = UNSET
    extra: Any = UNSET
    privacy: PrivacyChange | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.name is not UNSET:
            text.check("name", self.name or "")
        if self.about is not UNSET:
            text.check("about", self.about or "", lines=True)


class User(Struct, frozen=True, kw_only=True):
    """A user's profile as others see it."""

    user: str
    name: str
    about: str | None
    avatar: str | None
    status: Any
    extra: Any


class Me(User, frozen=True, kw_only=True):
    """The caller's own profile. `roles` in the deployment: none yet."""

    privacy: Privacy
    roles: list[str]


class UsersQuery(Struct, frozen=True):
    """Either names, or the start of a name or display name."""

    users: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64}){0,199}$(?!\n)",
                description="At most 200 names, with commas between them.",
            ),
        ]
        | None
    ) = None
    prefix: Annotated[str, Meta(min_length=1, max_length=128)] | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.prefix is None):
            raise ValueError("give `users` or `prefix`")


class Users(Struct, frozen=True):
    users: list[User]
    more: bool
