"""Redis's clock, which judges leases, device rows and the age of sessions.

Each node carries it on by its own monotonic clock and asks again with every renewal of its lease. So a wall clock that
is wrong or steps makes no living gateway look dead, and no session look older than the one it replaces. (Tokens are
judged by the wall clock, as their issuer's are, as long as Redis's agrees.)"""

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
        """Ask Redis for the time; return by how many milliseconds that moves this clock.

        It moves no further than the answer proves: a slow answer proves little.
        """
        was_ms = self._ahead_ms
        asked = self._clock()
        now_ms = await self._ask_ms()
        answered = self._clock()
        least, most = now_ms - ceil(answered * 1000), now_ms + 1 - floor(asked * 1000)
        self._ahead_ms = min(max(was_ms, least), most)
        return self._ahead_ms - was_ms
