"""The wall clocks of this node and of Redis, and whether they agree.

Tokens are valid until a time by their issuer's clock. This node's own clock may be wrong, and so may Redis's, and
neither knows which: as long as they agree the node's counts, and else what depends on the time is decided only where
both come to the same result.

Redis's clock is carried on by this process's monotonic one, so a step of the node's clock shows at once. An answer that
took long proves little: the clocks differ by no less than it proves.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor
from time import monotonic
from typing import Final

AGREE_MS: Final = 2000


class Clocks:
    """`heard` what Redis's clock says; `moments` that it may be now."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._ahead: tuple[int, int] | None = None  # Redis's of the monotonic clock: at least, at most (ms)

    def now(self) -> float:
        return self._clock()

    def heard(self, redis_ms: int, asked: float, answered: float) -> None:
        """Redis's time, which was read between these two moments of the monotonic clock."""
        self._ahead = redis_ms - ceil(answered * 1000), redis_ms + 1 - floor(asked * 1000)

    def offset_ms(self, now_ms: int) -> int:
        """By how much this node's clock, which says `now_ms`, is ahead of Redis's at least; 0 before Redis has said."""
        if self._ahead is None:
            return 0
        local = round(self._clock() * 1000)
        least, most = (now_ms - local - ahead for ahead in reversed(self._ahead))
        return least if least > 0 else min(most, 0)

    def moments(self, now_ms: int) -> tuple[int, ...]:
        """This node's time; and Redis's, if they do not agree."""
        offset = self.offset_ms(now_ms)
        return (now_ms,) if abs(offset) <= AGREE_MS else (now_ms, now_ms - offset)
