"""Password hashes: argon2id in a few threads, with a bounded number of waiting calls, and the rules for new passwords.

A password is hashed in the form of RFC 8265, OpaqueString: composed characters (NFC), one kind of space. So it matches
independent of how a keyboard composes "é". Hashes that were made of a password as it was typed still match that.

Invariants
- At most `THREADS` hashes run and `WAITING` wait; further calls are `Unavailable` at once. A flood of logins delays
  logins, but never the event loop, the memory, or the rest of the API.
- The check for a user who does not exist (`stored` None) takes as long as for one who does, and the number of hashes
  (two if the form differs from what was typed) depends only on the given password.
- Work whose caller was cancelled counts until its thread has finished it.

Parameters: 19 MiB, two passes, one lane; the OWASP floor for argon2id, and about 30 ms of one core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from precis_i18n import get_profile

from router.contract.errors import BadCommand, Unavailable
from router.contract.metrics import PASSWORD_SECONDS

THREADS: Final = 2
WAITING: Final = 64

T = TypeVar("T")

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


_opaque = get_profile("OpaqueString")


class Passwords:
    """Hashes and verifies passwords; `close` it at the end. A new password needs at least `minimum` characters."""

    def __init__(self, minimum: int) -> None:
        self._minimum = minimum
        self._threads = ThreadPoolExecutor(THREADS, "password")
        self._working = 0
        self._decoy = _hasher.hash("of no user")

    async def hash(self, password: str, user: str) -> bytes:
        """The hash of a new password for this user; `BadCommand` if the password breaks a rule."""
        prepared = self.require_good(password, user)
        return await self._run(lambda: _hasher.hash(prepared).encode())

    async def verify(self, stored: bytes | None, password: str) -> bool:
        """Whether the password matches the hash; False without a hash, after the same work."""
        forms = dict.fromkeys((prepare(password) or password, password))
        hashed = stored.decode() if stored else self._decoy
        matches = await self._run(lambda: any(_matches(hashed, form) for form in forms))
        return matches and stored is not None

    def require_good(self, password: str, user: str) -> str:
        """The form of a new password that is hashed; `BadCommand` if the password breaks a rule."""
        prepared = prepare(password)
        if prepared is None:
            raise BadCommand("the password must not contain control, invisible or unassigned characters")
        if len(prepared) < self._minimum:
            raise BadCommand(f"the password is too short: it needs at least {self._minimum} characters")
        if prepared.casefold() == user.casefold():
            raise BadCommand("the password must not be the user's name")
        return prepared

    async def _run(self, work: Callable[[], T]) -> T:
        if self._working >= THREADS + WAITING:
            raise Unavailable("too many passwords are being checked now: try again", 1.0)
        self._working += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, PASSWORD_SECONDS.time()(work))
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, _: object) -> None:
        self._working -= 1

    def close(self) -> None:
        """Drop waiting work; running work ends by itself within milliseconds."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def prepare(password: str) -> str | None:
    """The form in which a password is hashed (RFC 8265, OpaqueString); None if a character is not allowed."""
    try:
        return _opaque.enforce(password)
    except UnicodeEncodeError:
        return None


def _matches(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
