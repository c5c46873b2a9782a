"""Password hashes: argon2id in a few threads, with a bound on what waits for them.

What lives here: making and checking hashes. What never does: where they are kept, or how often one may guess.

Invariants
- At most `THREADS` hashes run and `WAITING` wait; whatever comes on top is `Unavailable` at once. A flood of logins
  costs those who log in, never the event loop, the memory, or the rest of the API.
- Checking the password of a user who does not exist (`stored` None) takes as long as of one who does.
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

from router.contract.errors import Unavailable
from router.contract.metrics import PASSWORD_SECONDS

THREADS: Final = 2
WAITING: Final = 64

T = TypeVar("T")

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


class Passwords:
    """`await passwords.hash(…)`, `await passwords.verify(…)`; `close()` at the end."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "password")
        self._working = 0
        self._nobodys = _hasher.hash("nobody's")

    async def hash(self, password: str) -> bytes:
        return await self._run(lambda: _hasher.hash(password).encode())

    async def verify(self, stored: bytes | None, password: str) -> bool:
        """Whether it is the password behind the hash; never for no hash, after the same work."""
        matches = await self._run(lambda: _matches(stored.decode() if stored else self._nobodys, password))
        return matches and stored is not None

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


def _matches(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False
