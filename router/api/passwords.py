"""Password hashes: argon2id in a few threads, with a bound on what waits for them.

What lives here: what a new password must be, making and checking hashes. What never does: where they are kept, or how
often one may guess.

A password is hashed in the form of RFC 8265, OpaqueString: composed characters (NFC), one kind of space. So it matches
however a keyboard composes "é". Hashes that were made of a password as it was typed still match that.

Invariants
- At most `THREADS` hashes run and `WAITING` wait; whatever comes on top is `Unavailable` at once. A flood of logins
  costs those who log in, never the event loop, the memory, or the rest of the API.
- Checking the password of a user who does not exist (`stored` None) takes as long as of one who does, and the number of
  hashes (two if the form differs from what was typed) depends on the given password alone.
- Work whose caller went away still counts until its thread is done with it.

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
    """`await passwords.hash(…)` and `verify(…)`; `close()` at the end. A new password needs `minimum` characters."""

    def __init__(self, minimum: int) -> None:
        self._minimum = minimum
        self._threads = ThreadPoolExecutor(THREADS, "password")
        self._working = 0
        self._nobodys = _hasher.hash("nobody's")

    async def hash(self, password: str, user: str) -> bytes:
        """The hash of a new password for this user; `BadCommand` says what is wrong with the password."""
        prepared = self._new(password, user)
        return await self._run(lambda: _hasher.hash(prepared).encode())

    async def verify(self, stored: bytes | None, password: str) -> bool:
        """Whether it is the password behind the hash; never for no hash, after the same work."""
        forms = dict.fromkeys((prepare(password) or password, password))
        hashed = stored.decode() if stored else self._nobodys
        matches = await self._run(lambda: any(_matches(hashed, form) for form in forms))
        return matches and stored is not None

    def _new(self, password: str, user: str) -> str:
        prepared = prepare(password)
        if prepared is None:
            raise BadCommand("a password may not contain control, invisible or unassigned characters")
        if len(prepared) < self._minimum:
            raise BadCommand(f"the password is too short: it needs at least {self._minimum} characters")
        if prepared.casefold() == user.casefold():
            raise BadCommand("the password must not be the user's name")
        return prepared

    async def _run(self, work: Callable[[], T]) -> T:
        if self._working >= THREADS + WAITING:
            raise Unavailable("too many passwords are being checked", 1.0)
        self._working += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, PASSWORD_SECONDS.time()(work))
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, _: object) -> None:
        self._working -= 1

    def close(self) -> None:
        """Forget what waits; what runs ends by itself within milliseconds."""
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
