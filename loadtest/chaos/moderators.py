"""The people who run groups during a chaos run: they mute and ban others for seconds, and set slow mode.

All mutes and bans have an end, so that a command that is refused is tried again and no user is shut out for good. The
backend does not learn the outcome of a call while routers are down. `end` lifts everything before a run settles.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Final

from loadtest.api import Api
from loadtest.chaos.proof.history import now_ms

EVERY_S: Final = 1.0
LONGEST_S: Final = 6.0
SLOW_S: Final = (1, 2)
TRIES: Final = 20


class Moderators:
    """`groups`: by group its members, whose first one owns it; `banned` is called before a user is banned, None if no
    user may be."""

    def __init__(
        self,
        api: Callable[[], Api],
        rng: random.Random,
        groups: dict[str, list[str]],
        banned: Callable[[str, str], None] | None = None,
    ) -> None:
        self._api = api
        self._rng = rng
        self._groups = groups
        self._banned = banned
        self._muted: set[tuple[str, str]] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / EVERY_S))
            group = self._rng.choice(list(self._groups))
            user, kind = self._rng.choice(self._groups[group][1:]), self._rng.random()
            where, until = f"/conversations/{group}", now_ms() + round(self._rng.uniform(1, LONGEST_S) * 1000)
            if kind < 0.5:
                self._muted.add((group, user))
                await self._try("PUT", f"{where}/members/{user}/mute", {"until": until, "reason": "chaos"})
            elif kind < 0.6 and self._muted:
                group, user = self._rng.choice(sorted(self._muted))
                await self._try("DELETE", f"/conversations/{group}/members/{user}/mute")
            elif kind < 0.8 and self._banned is not None:
                self._banned(group, user)
                await self._try("PUT", f"{where}/bans/{user}", {"until": until})
            else:
                await self._try("PATCH", where, {"slow_s": self._rng.choice((0, *SLOW_S))})

    async def end(self) -> None:
        """Lift everything; a call that fails is repeated, because no fault is left."""
        calls: list[tuple[str, str, dict[str, Any] | None]] = [
            ("DELETE", f"/conversations/{group}/members/{user}/mute", None) for group, user in sorted(self._muted)
        ]
        calls += [("PATCH", f"/conversations/{group}", {"slow_s": 0}) for group in self._groups]
        for method, path, body in calls:
            for _ in range(TRIES):
                if await self._try(method, path, body):
                    break
                await asyncio.sleep(0.5)

    async def _try(self, method: str, path: str, body: dict[str, Any] | None = None) -> bool:
        with suppress(OSError, HTTPException):
            await asyncio.to_thread(self._api().call, method, path, body)
            return True
        return False
