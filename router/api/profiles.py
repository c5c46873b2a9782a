"""Profiles, privacy, and finding users.

Profiles are no secret: each caller may read them by name. Only a search by prefix is limited, to people whom the caller
knows: contacts, and members of common groups.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from msgspec import UNSET, structs, to_builtins

from router.api.call import Call
from router.api.review import review_profile
from router.api.types.profiles import Me, Privacy, ProfileChange, User, Users, UsersQuery
from router.api.uploads import pinned_picture
from router.contract import keys
from router.contract.errors import Blocked, NotFound, TooLarge
from router.contract.packing import canonical, jsonable, pack
from router.store.answers import reply_of
from router.store.files import USER
from router.store.heads import Head
from router.store.profiles import Profile

MAX_FOUND: Final = 20
MAX_EXTRA_BYTES: Final = 4096
SEARCHED_GROUPS: Final = 50
SEARCHED_MEMBERS: Final = 256  # of a group; larger ones, and channels, are not searched
SEARCHED_NAMES: Final = 2000

NOT_ADDED: Final = "this user cannot be added by you"


async def get_me(call: Call, _: None) -> Me:
    """Get one's own profile and privacy."""
    profile = await call.services.profiles.read(call.user)
    if profile is None:
        raise NotFound("no such user")
    return _me(call.user, profile)


def _me(user: str, profile: Profile) -> Me:
    return Me(
        user=user,
        name=profile.name,
        about=profile.about,
        avatar=profile.avatar,
        status=jsonable(profile.status),
        extra=jsonable(profile.extra),
        privacy=Privacy(**to_builtins(profile.privacy)),
        roles=list(profile.roles),
    )


async def patch_me(call: Call, given: ProfileChange) -> Me:
    """Change fields of one's own profile and privacy. Fields that are left out stay; null clears one."""
    given_fields = {name: value for name in structs_fields(given) if (value := getattr(given, name)) is not UNSET}
    privacy = given_fields.pop("privacy", None)
    changes: dict[str, Any] = {name: _plain(name, value) for name, value in given_fields.items()}
    written = dict(changes)
    if privacy is not None:
        changes |= {name: value for name in structs_fields(privacy) if (value := getattr(privacy, name)) is not UNSET}
    if (avatar := changes.get("avatar")) is not None:
        profile = await call.services.profiles.read(call.user)
        if profile is not None and profile.avatar == avatar:
            del changes["avatar"]
        else:
            changes["avatar"] = await pinned_picture(call, f"{USER}{call.user}", avatar)
    if changes:
        await review_profile(call, written)
        await call.services.profiles.change(call.user, changes)
    profile = await call.services.profiles.read(call.user)
    if profile is None:
        raise NotFound("no such user")
    if changes:
        await call.services.contacts.put_me(call.user, profile)
    return _me(call.user, profile)


def structs_fields(struct: Any) -> list[str]:
    return [field.name for field in structs.fields(struct)]


def _plain(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "status":
        return to_builtins(value)
    if name == "extra":
        value = canonical(value)
        if len(pack(value)) > MAX_EXTRA_BYTES:
            raise TooLarge(f"`extra` must have at most {MAX_EXTRA_BYTES} bytes as msgpack")
    return value


def public(user: str, profile: Profile, now: int) -> User:
    """The profile as others see it; a status that is over is none."""
    status = profile.status
    if status is not None and status.get("until") is not None and status["until"] <= now:
        status = None
    return User(
        user=user,
        name=profile.name,
        about=profile.about,
        avatar=profile.avatar,
        status=jsonable(status),
        extra=jsonable(profile.extra),
    )


async def get_user(call: Call, _: None) -> User:
    """Get a user's profile."""
    user = call.path["user"]
    profile = await call.services.profiles.read(user)
    if profile is None:
        raise NotFound("no such user")
    return public(user, profile, await call.services.presence.clock_ms())


async def list_users(call: Call, given: UsersQuery) -> Users:
    """Get the profiles of these users, without those who do not exist; or find known users by the start of their name.

    Found are contacts and members of the groups that one is in, not of channels and large groups, and nobody who
    blocks or is blocked.
    """
    if given.users is not None:
        found = await _profiles(call, given.users.split(","))
        return Users(found, False)
    await reply_of(call.services.users.spend_search, call.user)
    wanted = (given.prefix or "").casefold()
    candidates = await _known(call)
    profiles = await _profiles(call, sorted(candidates)[:SEARCHED_NAMES])
    hits = [one for one in profiles if one.user.casefold().startswith(wanted) or one.name.casefold().startswith(wanted)]
    return Users(hits[:MAX_FOUND], len(hits) > MAX_FOUND)


async def _profiles(call: Call, users: list[str]) -> list[User]:
    names = list(dict.fromkeys(users))
    now = await call.services.presence.clock_ms()
    found = await call.services.profiles.read_all(names)
    return [public(user, profile, now) for user, profile in zip(names, found, strict=True) if profile is not None]


async def _known(call: Call) -> set[str]:
    """Contacts and members of common groups, without the caller and users with a block between."""
    services, user = call.services, call.user
    people = await services.people.everybody(user)
    page = await services.users.conversations(user)
    groups = [row.conversation for row in page.rows if row.kind == keys.GROUP and not row.left][:SEARCHED_GROUPS]
    heads = await reply_of(services.conversations.heads, groups)
    small = [
        g for g, head in zip(groups, heads, strict=True) if isinstance(head, Head) and head.size <= SEARCHED_MEMBERS
    ]
    members = await asyncio.gather(*(services.conversations.members.all(group) for group in small))
    known = {name for name, person in people.items() if person.kind == "c"}.union(*members)
    return known - {user} - {name for name, person in people.items() if person.hidden}


async def refused_additions(call: Call, users: list[str]) -> list[str]:
    """Those of `users` whom the caller may not add: they block the caller, or are added by their contacts only."""
    actor = call.actor
    others = [user for user in users if user != actor]
    if actor is None or not others:
        return []
    records = await call.services.pairs.read_all(actor, others)
    profiles = await call.services.profiles.read_all(others)
    return [
        user
        for user, record, profile in zip(others, records, profiles, strict=True)
        if (record is not None and record.of[user].blocked)
        or (
            profile is not None and profile.privacy.groups == "contacts" and not (record is not None and record.contact)
        )
    ]


async def require_addable(call: Call, user: str) -> None:
    """Raise Blocked if the caller may not add the user."""
    if await refused_additions(call, [user]):
        raise Blocked(NOT_ADDED)
