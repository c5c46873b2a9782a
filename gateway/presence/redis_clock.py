"""Redis's clock, which decides about leases, device rows and the age of sessions.

Each node advances it by its own monotonic clock, and asks Redis again with every renewal of its lease. So if a node's
wall clock is wrong or jumps, no living gateway looks dead, and no session looks older than the one that it replaces.
(Tokens are judged by the wall clock, like their issuer's, as long as Redis's clock agrees with it.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil, floor
from time import monotonic


class RedisClock:
    def __init__(
        self, ask_ms: Callable[[], Awaitable[int]], wall_ms: int, clock: Callable[[], float] = monotonic
    ) -> None:
        self._ask_ms = ask_ms
        self._clock = clock
        self._ahead_ms = wall_ms - round(clock() * 1000)  # until Redis has answered, the wall clock

    def now_ms(self) -> int:
        return self._ahead_ms + round(self._clock() * 1000)

    async def set(self) -> int:
        """Ask Redis for the time; return by how many milliseconds the answer moves this clock.

        The clock moves no further than the answer proves, because a slow answer may be old.
        """
        was_ms = self._ahead_ms
        asked = self._clock()
        now_ms = await self._ask_ms()
        answered = self._clock()
        least, most = now_ms - ceil(answered * 1000), now_ms + 1 - floor(asked * 1000)
        self._ahead_ms = min(max(was_ms, least), most)
        return self._ahead_ms - was_ms
