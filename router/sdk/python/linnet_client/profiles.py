"""Profiles and privacy."""

from __future__ import annotations

from typing import Any, Final, Literal, NotRequired, Protocol, TypedDict
from urllib.parse import quote

USERS: Final = 200  # of one call


class Caller(Protocol):
    """The client, as its profiles need it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class UserStatus(TypedDict):
    text: str
    until: NotRequired[int | None]


class Profile(TypedDict):
    """A user's profile as others see it. `avatar`: the hash of a picture."""

    user: str
    name: str
    about: str | None
    avatar: str | None
    status: UserStatus | None
    extra: Any


class Privacy(TypedDict, total=False):
    """Who may write to the user, add them to groups and see their presence; whether requests reach them, and whether
    others get their receipts."""

    messages: Literal["everyone", "contacts"]
    groups: Literal["everyone", "contacts"]
    presence: Literal["everyone", "contacts"]
    requests: Literal["everyone", "nobody"]
    receipts: Literal["everyone", "nobody"]


class Me(Profile):
    """The own profile. `roles`: in the deployment."""

    privacy: Privacy
    roles: list[str]


class ProfileChange(TypedDict, total=False):
    """A change: what is left out stays as it is, None clears it. `avatar`: a picture that was uploaded within a day."""

    name: str | None
    about: str | None
    avatar: str | None
    status: UserStatus | None
    extra: Any
    privacy: Privacy


class Profiles:
    """The user's own profile, and those of others."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def me(self) -> Me:
        """Return the own profile, with privacy and roles. To follow changes: `client.state.watch("me", …)`."""
        found: Me = await self._caller.call("GET", "/v1/me")
        return found

    async def change(self, change: ProfileChange) -> Me:
        """Change the own profile or privacy; return it."""
        made: Me = await self._caller.call("PATCH", "/v1/me", change)
        return made

    async def get(self, user: str) -> Profile:
        """Return the profile of a user."""
        found: Profile = await self._caller.call("GET", f"/v1/users/{quote(user)}")
        return found

    async def find(self, prefix: str) -> list[Profile]:
        """Return contacts, and members of common groups, whose id or name begins so: at most 20."""
        found: list[Profile] = (await self._caller.call("GET", f"/v1/users?prefix={quote(prefix)}"))["users"]
        return found

    async def of(self, users: list[str]) -> dict[str, Profile]:
        """Return profiles by user; unknown users are left out."""
        found = dict[str, Profile]()
        for first in range(0, len(users), USERS):
            some = ",".join(map(quote, users[first : first + USERS]))
            answer = await self._caller.call("GET", f"/v1/users?users={some}")
            found |= {profile["user"]: profile for profile in answer["users"]}
        return found
