"""Who exists: accounts with a password, users that a token or a backend has made, and names that are gone for good.

What lives here: the user hash. What never does: hashing or checking a password (the API does; here it is an opaque
string).

Invariants
- A name is given out once. Deleting leaves a tombstone, and creating, ensuring, registering and delivering all see it.
- No account is made whose name differs in case alone from that of a user, also of a deleted one. Users that tokens make
  may differ so, as their issuer decides. Names that an earlier release or a gateway gave out are known from the next
  login, ensuring or deletion on, and before it where they are in lower case.
- `created` stands in the hash exactly while the user exists: that one field is the question "is there such a user?".
- Only `create` and `ensure` (and a session's registering) make a user; asking about one never does.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from router.contract import keys, signals
from router.contract.errors import Conflict, FunctionError, RateLimited, from_function
from router.store.redis.client import Client

GUESS_COST_US, GUESS_BURST_US = 12_000_000, 60_000_000
SOURCE_CHARACTERS: Final = 16
CLAIM_MS: Final = 60_000  # far longer than a router takes from the claim of a name to the account


class GuessSource(Struct, frozen=True):
    """Where a guess at a password comes from, as digests of `SOURCE_CHARACTERS`.

    `token` is one of the user's that the caller has shown; empty if there was none."""

    address: str
    token: str = ""


class Accounts:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(self, user: str, password: str, name: str) -> None:
        """A new account with this password hash; `Conflict` if the name, or one like it, is or ever was taken."""
        await self._claim(user)
        await self._fcall("create_account", (keys.user(user),), (password, name))

    async def ensure(self, user: str) -> bool:
        """Make the user unless she exists; True if she is new, `Blocked` if she was deleted."""
        new = bool(await self._fcall("ensure_user", (keys.user(user),), ()))
        if new:
            await self._claim_name(user)
        return new

    async def _claim(self, user: str) -> None:
        """Take the names that differ from this one in case alone; `Conflict` if another user has or had one."""
        replaced = ""
        for _try in range(2):
            holder, held_ms = await self._claim_name(user, replaced)
            if holder == user:
                break
            if held_ms < CLAIM_MS or await self._ever_was(holder):
                raise Conflict("the name is taken")
            replaced = holder  # its router died before it made the account
        else:
            raise Conflict("the name is taken")
        if keys.folded(user) != user and await self._ever_was(keys.folded(user)):
            raise Conflict("the name is taken")

    async def _claim_name(self, user: str, replaced: str = "") -> tuple[str, int]:
        holder, held_ms = await self._fcall("claim_name", (keys.names(user),), (user, replaced))
        return holder.decode(), int(held_ms)

    async def _ever_was(self, user: str) -> bool:
        return any(await self._client.fetch("HMGET", keys.user(user), "created", "deleted"))

    async def password(self, user: str) -> bytes | None:
        """The password hash; None without an account that has one."""
        value: bytes | None = await self._client.fetch("HGET", keys.user(user), "pw")
        return value

    async def guess(self, user: str, source: GuessSource) -> None:
        """Take one guess at the password: `RateLimited` after too many. Nothing is stored for an unknown user.

        A source that has proved to be the user's has a rate of its own; all others share one.
        """
        args = (GUESS_COST_US, GUESS_BURST_US, source.address, source.token)
        await self._fcall("guess", (keys.user(user),), args)

    async def guessed(self, user: str, source: GuessSource) -> None:
        """The password was right: earlier guesses from there no longer count, and the address is remembered."""
        if await self._fcall("guessed", (keys.user(user),), (source.address, source.token)):
            await self._claim_name(user)

    async def end(self, user: str) -> None:
        """`delete`, but her rows stay: no other comes from now on, so that they tell what is to be closed with her."""
        await self._delete(user, rows=False)
        await self._claim_name(user)

    async def delete(self, user: str) -> list[str]:
        """End the user for ever: her sessions, then everything of hers; answers the groups she is still in.

        From the first call on she is gone to everybody. Take her out of the groups and call again until there are
        none: only then her rows go, so that a caller who dies in between can be followed by another.
        """
        return await self._delete(user, rows=True)

    async def _delete(self, user: str, rows: bool) -> list[str]:
        kicked = signals.encode(signals.Kick(""))
        touched = signals.encode(signals.Touched(user))
        value: list[bytes] = await self._fcall(
            "delete_account",
            (keys.user(user),),
            (
                keys.devices(user),
                keys.cursor(user, ""),
                keys.groups(user),
                keys.convs(user),
                keys.recent(user),
                keys.pushes(user),
                keys.push(keys.partition(user)),
                user,
                self._client.channels.user(user),
                kicked,
                self._client.channels.presence(user),
                touched,
                int(rows),
            ),
        )
        return [group.decode() for group in value]

    async def _fcall(self, function: str, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except FunctionError as error:
            if error.reply_code == "RATE":
                raise RateLimited("too many attempts", round(int(error.detail) / 1e6, 3)) from None
            raise from_function(error) from None
