"""Users: accounts with a password, users that a token or a backend has created, and names of deleted users.

The user hash is written here. A password hash is an opaque string; `router/api/passwords.py` makes and checks it.

Invariants
- A name is given out once. A deletion leaves a tombstone, which creating, ensuring, registering and delivering check.
- No account is created with a name that differs only in case from that of another user, deleted ones included. Users of
  tokens may differ only in case, because their issuer decides. A name that an earlier release or a gateway gave out is
  known from the next login, ensuring or deletion on, and before that if it is in lower case.
- A user exists exactly while their hash has the field `created`.
- Only `create`, `ensure` and the registering of a session create a user; reading about a user never does.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias, cast

from msgspec import Struct

from router.contract import keys, signals
from router.contract.errors import Conflict, FunctionError, RateLimited, from_function
from router.contract.tokens import TokenId
from router.store.cursor_keys import naming_devices
from router.store.redis.client import Client
from router.store.redis.connection import RedisArg

GUESS_COST_US, GUESS_BURST_US = 12_000_000, 60_000_000
SOURCE_CHARACTERS: Final = 16
Role: TypeAlias = Literal["moderator", "admin"]
ROLES: Final[tuple[Role, ...]] = ("moderator", "admin")  # by rank, from 1 (`rank_of` in prelude_user.lua)
ADMIN_RANK: Final = 2
SERVER_RANK: Final = 3
RESET_S: Final = 3600
CLAIM_MS: Final = 60_000  # far longer than a router takes from the claim of a name to the account


def rank_of(roles: Sequence[str]) -> int:
    """The rank of these roles, 0 for none."""
    return max((ROLES.index(role) + 1 for role in ROLES if role in roles), default=0)


class GuessSource(Struct, frozen=True):
    """The source of a guess at a password, as digests of `SOURCE_CHARACTERS`.

    `token` is a token of the user that the caller has shown; empty if there was none.
    """

    address: str
    token: str = ""


class Known(Struct, frozen=True):
    """A user who exists: the generation of their tokens, and their roles in the deployment."""

    generation: int
    roles: tuple[Role, ...] = ()


class Accounts:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, user: str, password: str, name: str) -> None:
        """Create an account with this password hash; `Conflict` if the name, or one like it, is or ever was taken."""
        await self._claim(user)
        await self._fcall("create_account", (keys.user(user),), (password, name))

    async def ensure(self, user: str, token: TokenId | None = None) -> Known:
        """Create the user if they do not exist. `Blocked` if they were deleted.

        `token`: the one that names the user, `Unauthorized` if it was ended, `Blocked` if the user is suspended.
        """
        given: tuple[str | int, ...] = ()
        if token is not None:
            given = token.id, "" if token.generation is None else token.generation, token.issued_s
        new, generation, roles = await self._fcall("ensure_user", (keys.user(user),), given)
        if new:
            await self._claim_name(user)
        return Known(int(generation), cast("tuple[Role, ...]", tuple(roles.decode().split())))

    async def set_roles(self, user: str, roles: Sequence[Role]) -> None:
        """Set the user's roles in the deployment; `NotFound` if there is no such user."""
        given = " ".join(role for role in ROLES if role in roles)
        await self._fcall("set_roles", (keys.user(user), _audit(user)), (user, given))

    async def roles(self, user: str) -> tuple[Role, ...] | None:
        """The user's roles in the deployment; None if there is no such user."""
        created, roles = await self._client.fetch("HMGET", keys.user(user), "created", "roles")
        return cast("tuple[Role, ...]", tuple((roles or b"").decode().split())) if created else None

    async def suspend(self, user: str, rank: int, by: str, until: int, reason: str) -> None:
        """Suspend the user until then (ms; 0: no end). `rank` and `by` are of the one who decides ("": a server key).

        `Forbidden` if the user's own rank is not lower.
        """
        await self._suspend(user, rank, by, until, reason, 1)

    async def unsuspend(self, user: str, rank: int, by: str) -> bool:
        """End the suspension; False if there is none."""
        return await self._suspend(user, rank, by, 0, "", 0)

    async def _suspend(self, user: str, rank: int, by: str, until: int, reason: str, suspends: int) -> bool:
        channels = self._client.channels
        where = keys.user(user), keys.devices(user), keys.convs(user), keys.recent(user), _audit(user)
        signalled = (
            channels.user(user),
            signals.encode(signals.Kick("")),
            channels.presence(user),
            signals.encode(signals.Touched(user)),
        )
        return bool(await self._fcall("suspend", where, (user, *signalled, rank, by, until, reason, suspends)))

    async def end_token(self, user: str, token: TokenId, expires_s: int, forget: Sequence[str]) -> bytes:
        """Log a token out, and forget these devices, whose sessions it opened."""
        return await self._end_tokens(user, "token", token.id, expires_s, forget)

    async def end_device(self, user: str, device: str) -> bytes:
        """Log the token of a device's last session out, and forget the device; `NotFound` if there is none."""
        return await self._end_tokens(user, "device", forget=(device,))

    async def end_all_tokens(self, user: str, spared: str, forget: Sequence[str]) -> bytes:
        """End all tokens of the user but the one with the id `spared`, and forget these devices."""
        return await self._end_tokens(user, "all", spared, forget=forget)

    async def change_password(self, user: str, password: str, stored: str, spared: str) -> bytes:
        """Replace the hash `stored`; all tokens but the one with the id `spared` end. `Conflict`: another is stored."""
        return await self._end_tokens(user, "all", spared, password=password, expected=stored)

    async def offer_reset(self, user: str, digest: str, by: str = "") -> int:
        """Note the digest of the user's only reset token; return when (s) it expires. `NotFound` without a password.

        `by`: an admin, who cannot do it for a user with a role in the deployment; "": a server key.
        """
        return int(await self._fcall("offer_reset", (keys.user(user), _audit(user)), (digest, RESET_S, user, by)))

    async def reset_password(self, user: str, password: str, digest: str) -> bytes:
        """Set a password by a reset token, which is used up; all tokens end. `Conflict` if the token is void."""
        return await self._end_tokens(user, "all", password=password, expected=f"reset:{digest}")

    async def has_reset(self, user: str, digest: str) -> bool:
        """Whether this is the digest of the user's reset token; it may have expired."""
        value: bytes | None = await self._client.fetch("HGET", keys.user(user), "reset")
        return value is not None and hmac.compare_digest(value.split(b" ")[0], digest.encode())

    async def _end_tokens(
        self,
        user: str,
        mode: str,
        token: str = "",
        expires_s: int = 0,
        forget: Sequence[str] = (),
        password: str = "",
        expected: str = "",
    ) -> bytes:
        """Return the replication id of the server that wrote, for `Durability.when_kept`."""
        channels = self._client.channels
        replid: bytes = await self._fcall(
            "end_tokens",
            (
                keys.user(user),
                keys.devices(user),
                keys.convs(user),
                keys.recent(user),
                *(keys.cursor(user, device) for device in forget),
            ),
            (
                channels.user(user),
                signals.encode(signals.Kick("")),
                channels.presence(user),
                signals.encode(signals.Touched(user)),
                mode,
                token,
                expires_s,
                password,
                expected,
                *forget,
            ),
        )
        return replid

    async def _claim(self, user: str) -> None:
        """Claim all names that differ from this one only in case; `Conflict` if another user has or had one of them."""
        replaced = ""
        for _try in range(2):
            holder, held_ms = await self._claim_name(user, replaced)
            if holder == user:
                break
            if held_ms < CLAIM_MS or await self._ever_was(holder):
                raise Conflict("the name is taken")
            replaced = holder  # the router that claimed the name died before it created the account
        else:
            raise Conflict("the name is taken")
        if keys.folded(user) != user and await self._ever_was(keys.folded(user)):
            raise Conflict("the name is taken")

    async def _claim_name(self, user: str, replaced: str = "") -> tuple[str, int]:
        holder, held_ms = await self._fcall("claim_name", (keys.names(user),), (user, replaced))
        return holder.decode(), int(held_ms)

    async def _ever_was(self, user: str) -> bool:
        return any(await self._client.fetch("HMGET", keys.user(user), "created", "deleted"))

    async def password(self, user: str) -> tuple[bytes | None, int]:
        """The password hash of an account (None if there is no account with a password), and the generation of the
        user's tokens. A token for this password has this generation: a change of the password ends it."""
        stored, generation = await self._client.fetch("HMGET", keys.user(user), "pw", "gen")
        return stored, int(generation or 0)

    async def take_guess(self, user: str, source: GuessSource) -> None:
        """Count a guess at the password; `RateLimited` after too many. No data is stored for an unknown user.

        A source that is known to be the user's has a rate of its own; all others share one.
        """
        args = (GUESS_COST_US, GUESS_BURST_US, source.address, source.token)
        await self._fcall("take_guess", (keys.user(user),), args)

    async def confirm_guess(self, user: str, source: GuessSource) -> None:
        """Record a right password: earlier guesses from this source no longer count, and its address becomes known.

        `Blocked` if the user is suspended.
        """
        if await self._fcall("confirm_guess", (keys.user(user),), (source.address, source.token)):
            await self._claim_name(user)

    async def end(self, user: str) -> None:
        """End the user as `delete` does, but keep their rows, from which the caller finds the conversations to close.

        No row is added from now on.
        """
        await self._delete(user, rows=False)
        await self._claim_name(user)

    async def delete(self, user: str) -> list[str]:
        """End the user for ever: their sessions, then all their data; return the groups they are still in.

        From the first call on, the user no longer exists for other users. Remove them from the groups and call again
        until there are none. The rows are deleted only then, so that another caller can continue after one that died.
        """
        return await self._delete(user, rows=True)

    async def _delete(self, user: str, rows: bool) -> list[str]:
        kicked = signals.encode(signals.Kick(""))
        touched = signals.encode(signals.Touched(user))
        channels = self._client.channels
        where = (
            keys.user(user),
            keys.devices(user),
            keys.groups(user),
            keys.convs(user),
            keys.recent(user),
            keys.pushes(user),
            keys.push(keys.partition(user)),
            keys.state(user),
            keys.versions(user),
            keys.removed(user),
            keys.people(user),
            keys.ends(user),
            keys.uploads(user),
            keys.uploading(user),
            keys.unfinished(user),
        )
        args = (user, channels.user(user), kicked, channels.presence(user), touched, int(rows))

        async def call(devices: list[str], cursors: list[str]) -> Any:
            return await self._fcall("delete_account", (*where, *cursors), (*args, *devices))

        value: list[bytes] = await naming_devices(self._client, user, call)
        return [group.decode() for group in value]

    async def _fcall(self, function: str, names: Sequence[str], args: Sequence[RedisArg]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            if error.reply_code == "RATE":
                # The words of the API for a name that no user has: the answer must not show whether the user exists.
                raise RateLimited("too many attempts", round(int(error.detail) / 1e6, 3)) from None
            raise from_function(error) from None


def _audit(user: str) -> str:
    return keys.audit_of_users(keys.partition(user))
