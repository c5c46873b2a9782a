"""What pairs of users do about each other during a chaos run: requests, answers, removals and blocks, by either of the
two, now and then both at once.

A call whose answer does not come may have taken effect. Calls that are under way when the run ends go on until they are
answered. Then `end` lifts all blocks before a run settles, because users with a block between them do not see each
other's presence.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError

from loadtest.api import Api
from loadtest.chaos.proof.evidence import Related, append
from loadtest.chaos.proof.history import now_ms

EVERY_S: Final = 0.15
AT_ONCE: Final = 4  # each with pairs of its own, so that a router that stalls does not stop all of them
TRIES: Final = 20
CALLS: Final = {
    "ask": ("PUT", "/contacts/{}", 4),
    "accept": ("POST", "/contacts/{}/accept", 4),
    "remove": ("DELETE", "/contacts/{}", 2),
    "block": ("PUT", "/blocks/{}", 2),
    "unblock": ("DELETE", "/blocks/{}", 2),
}


class Relations:
    def __init__(self, api: Callable[[], Api], rng: random.Random, pairs: list[tuple[str, str]], folder: Path) -> None:
        self._api = api
        self._rng = rng
        self._pairs = pairs
        self._path = folder / "relations.jsonl"
        self._under_way: set[asyncio.Task[bool]] = set()

    async def run(self) -> None:
        await asyncio.gather(*(self._run(self._pairs[number::AT_ONCE]) for number in range(AT_ONCE)))

    async def _run(self, pairs: list[tuple[str, str]]) -> None:
        while pairs:
            await asyncio.sleep(self._rng.expovariate(1 / EVERY_S / AT_ONCE))
            one, other = self._rng.sample(self._rng.choice(pairs), 2)
            acting = [self._some(one, other)]
            if self._rng.random() < 0.3:
                acting.append(self._some(other, one))
            await asyncio.gather(*acting)

    async def _some(self, user: str, other: str) -> None:
        (action,) = self._rng.choices(list(CALLS), [weight for *_, weight in CALLS.values()])
        await self._call(user, other, action)

    async def end(self) -> None:
        """Lift all blocks; a call that fails is repeated, because no fault is left."""
        await asyncio.gather(*self._under_way)
        for one, two in self._pairs:
            for user, other in ((one, two), (two, one)):
                for _ in range(TRIES):
                    if await self._call(user, other, "unblock"):
                        break
                    await asyncio.sleep(0.5)

    async def _call(self, user: str, other: str, action: str) -> bool:
        """Make a call and record it, also if the caller is cancelled meanwhile; return whether it succeeded."""
        task = asyncio.create_task(self._recorded(user, other, action))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _recorded(self, user: str, other: str, action: str) -> bool:
        (method, path, _), began, answer = CALLS[action], now_ms(), 0
        body: dict[str, str] | None = {} if method == "PUT" else None
        try:
            await asyncio.to_thread(self._api().call, method, path.format(other), body, user)
            answer = 200
        except HTTPError as error:
            answer = error.code
        except (OSError, HTTPException):
            pass
        append(self._path, Related(began, now_ms(), user, other, action, answer))
        return answer == 200
