"""Rates by key in this process (GCRA), for callers that no user slot can count: addresses, and names nobody has.

Bound: `SIZE` keys. A key whose rate has recovered is as good as absent, so those go first; a flood of keys beyond that
pushes out the ones seen longest ago, which is all a flood of addresses can gain.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from router.contract.errors import RateLimited

SIZE: Final = 10_000


class Limiter:
    """`burst` at once, then one per `every_s`."""

    def __init__(self, every_s: float, burst: int, clock: Callable[[], float] = monotonic) -> None:
        self._every = every_s
        self._burst = every_s * burst
        self._clock = clock
        self._due: dict[str, float] = {}  # when everything taken so far would have been due; seen longest ago first

    def spend(self, key: str) -> None:
        """Take one; `RateLimited` says when to come back, and takes nothing."""
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
