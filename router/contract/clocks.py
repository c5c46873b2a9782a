"""The wall clocks of this node and of Redis, and whether they agree.

A token expires at a time of its issuer's clock. The clock of this node may be wrong, and so may Redis's, and the node
cannot find out which of them is. While the two agree, the node's time is used. If they do not agree, a decision that
depends on the time is made only if it is the same at both times.

Between two readings of Redis's clock its time is computed with the monotonic clock of this process, so a step of the
node's wall clock is noticed at once. A reading is known only to lie between the request and the reply: if a reply took
long, the offset is the smallest one that the reading proves.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from time import monotonic
from typing import Final

AGREE_MS: Final = 2000


class Clocks:
    """Redis's time as `received` last, and the `moments` that may be the present time."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._ahead: tuple[int, int] | None = None  # bounds of Redis's clock minus the monotonic clock (ms)

    def now(self) -> float:
        return self._clock()

    def received(self, redis_ms: int, asked: float, answered: float) -> None:
        """Store a reading of Redis's clock that was taken between these two moments of the monotonic clock."""
        self._ahead = redis_ms - ceil(answered * 1000), redis_ms + 1 - floor(asked * 1000)

    def offset_ms(self, now_ms: int) -> int:
        """The least by which `now_ms`, this node's time, is ahead of Redis's clock; 0 before the first reading."""
        if self._ahead is None:
            return 0
        local = round(self._clock() * 1000)
        least, most = (now_ms - local - ahead for ahead in reversed(self._ahead))
        return least if least > 0 else min(most, 0)

    def moments(self, now_ms: int) -> tuple[int, ...]:
        """This node's time, followed by Redis's if the two do not agree."""
        offset = self.offset_ms(now_ms)
        return (now_ms,) if abs(offset) <= AGREE_MS else (now_ms, now_ms - offset)
