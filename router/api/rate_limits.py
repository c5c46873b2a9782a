"""Rates by key in this process (GCRA), for keys that have no user slot: addresses, and names of unknown users.

At most `SIZE` keys are kept. A key whose rate has recovered is the same as an absent one, so those are removed first; a
flood of further keys evicts the ones seen longest ago, which is all that an attacker with many addresses can gain.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from router.contract.errors import RateLimited

SIZE: Final = 10_000


class Limiter:
    """A rate for each key: `burst` at once, then one per `every_s`."""

    def __init__(self, every_s: float, burst: int, clock: Callable[[], float] = monotonic) -> None:
        self._every = every_s
        self._burst = every_s * burst
        self._clock = clock
        self._due: dict[str, float] = {}  # the time at which the key's rate has recovered; seen longest ago first

    def spend(self, key: str) -> None:
        """Count one; `RateLimited` with the time to wait if the rate is used up, which counts nothing."""
        now = self._clock()
        due = max(self._due.get(key, now), now) + self._every
        if due - now > self._burst:
            raise RateLimited("too many attempts", round(due - now - self._burst, 3))
        self._due.pop(key, None)
        self._due[key] = due
        while len(self._due) > SIZE or self._due[next(iter(self._due))] <= now:
            del self._due[next(iter(self._due))]

    def __len__(self) -> int:
        return len(self._due)
