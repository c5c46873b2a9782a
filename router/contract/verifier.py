"""The token keys of a process, and when it fetches the identity provider's key set again.

Invariants
- Time and the fetch of the key set are passed in. `Verifier` fetches the set again if a token names an unknown key or
  the set is old, at most once in `REFRESH_S`. A failed fetch leaves the present keys as they are.
- A token with an unknown key is refused only after a fetch has succeeded that began after the token arrived. Until then
  it is `Unavailable`, because the provider may have just begun to use the key and a refusal would log the user out. The
  arrival times of the last `MAX_PENDING` such tokens are kept; a token that a flood evicts is `Unavailable` once more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import sha256
from time import monotonic
from typing import Final

import msgspec

from router.contract import metrics
from router.contract.clocks import Clocks
from router.contract.errors import Unauthorized, Unavailable
from router.contract.settings import Settings
from router.contract.tokens import (
    LOGIN,
    Identity,
    Rules,
    UnknownKey,
    authentic,
    key_set,
    read_object,
    secret_key,
    signed,
    verify,
)

REFRESH_S: Final = 5.0
MAX_AGE_S: Final = 600.0
MAX_PENDING: Final = 1024
TICK_S: Final = 0.01  # the most by which a timer may be early
AFTER_S: Final = 0.5  # time for the fetch itself: a client waits it in addition to the time until the fetch may begin
NEVER: Final = float("-inf")

log = logging.getLogger("linnet.tokens")

Fetch = Callable[[], Awaitable[bytes]]


class Verifier:
    """The keys of a process. `fetch` gets the provider's key set, limits its own time and size, and raises OSError."""

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = monotonic,
        clocks: Clocks | None = None,
    ) -> None:
        self.clocks = clocks or Clocks()
        self._own = (secret_key(settings.jwt_secret),) if settings.jwt_secret else ()
        self._keys = self._own
        self._rules = Rules(settings.jwt_audience, settings.jwt_issuer, settings.jwt_user_claim)
        self._fetch = fetch if settings.jwks_url else None
        self._clock = clock
        self._fetch_began_at = self._fetched_at = NEVER
        self._current_from = NEVER  # start of the fetch that got the present keys
        self._fetching: asyncio.Task[None] | None = None
        self._fetch_timer: asyncio.TimerHandle | None = None
        self._pending: dict[bytes, float] = {}  # first arrival of tokens with unknown keys, by digest; oldest first

    def check(self, token: str, now_ms: int) -> Identity:
        """Check the token with the present keys. After `UnknownKey`, `identity` may succeed."""
        if self._fetch is not None and self._clock() - self._fetched_at > MAX_AGE_S:
            self._start_fetch(self._fetch)
        return verify(token, self._keys, self._rules, *self.clocks.moments(now_ms))

    def once_issued_to(self, token: str) -> str | None:
        """The user that a token was issued to, even if it has expired; None if no present key has signed it.

        This proves that its holder was that user once, and gives no rights.
        """
        try:
            return authentic(token, self._keys, self._rules)[0]
        except Unauthorized:
            return None

    def login_s(self, token: str) -> int | None:
        """Return when (s since the epoch) the user of a token logged in; None if the token is from no login here."""
        try:
            login = read_object(signed(token, self._own)[0]).get(LOGIN)
        except (Unauthorized, msgspec.DecodeError):
            return None
        return login if type(login) is int else None

    async def identity(self, token: str, now_ms: int) -> Identity:
        """Check the token as `check` does; if its key is unknown, fetch the provider's key set first."""
        try:
            return self.check(token, now_ms)
        except UnknownKey:
            if (fetch := self._fetch) is None:
                raise
        digest = sha256(token.encode()).digest()
        arrived_at = self._pending.pop(digest, self._clock())
        if arrived_at > self._current_from and (fetching := self._start_fetch(fetch)) is not None:
            await asyncio.wait({fetching})
        try:
            return self.check(token, now_ms)
        except UnknownKey:
            if arrived_at <= self._current_from:
                raise
        self._pending[digest] = arrived_at
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        raise Unavailable(
            "the key of this token is not known yet: try again after the next fetch of the identity provider's keys",
            self._schedule_fetch(fetch),
        )

    def _schedule_fetch(self, fetch: Fetch) -> float:
        """Schedule the next fetch unless one is scheduled; return the seconds after which its keys should be known."""
        wait_s = max(0.0, self._fetch_began_at + REFRESH_S - self._clock())
        if self._fetch_timer is None:
            self._fetch_timer = asyncio.get_running_loop().call_later(wait_s + TICK_S, self._fetch_if_pending, fetch)
        return round(wait_s + AFTER_S, 3)

    def _fetch_if_pending(self, fetch: Fetch) -> None:
        self._fetch_timer = None
        if self._pending:
            self._start_fetch(fetch)

    def _start_fetch(self, fetch: Fetch) -> asyncio.Task[None] | None:
        """The fetch that is running, or a new one; None if none is running and the last began within `REFRESH_S`."""
        if self._fetching is None and self._clock() - self._fetch_began_at >= REFRESH_S:
            self._fetch_began_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch_keys(fetch))
        return self._fetching

    async def _fetch_keys(self, fetch: Fetch) -> None:
        """Replace the provider's keys; keep the present ones if the fetch fails."""
        began = self._clock()
        try:
            self._keys = (*self._own, *key_set(await fetch()))
            self._current_from, self._fetched_at = began, self._clock()
            metrics.JWKS_FETCHES.labels("ok").inc()
        except (OSError, ValueError) as error:
            metrics.JWKS_FETCHES.labels("failed").inc()
            log.warning("could not fetch the identity provider's key set: %s: %s", type(error).__name__, error)
        finally:
            self._fetching = None
