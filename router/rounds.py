"""How a router works off what is due: claim a few in each partition, work on them at once, go on.

The partitions' due lists (dirty conversations, users to push to) are shared by all routers. A claim hides an item for
a lease; who dies with claims in hand loses nothing, for the lease runs out and another router claims them.

Invariants
- What is claimed is begun at once, so a lease covers the work and no waiting for it: never more than CHUNK × limit
  items are in hand.
- One item that fails stops no other: it is counted, the first trace of a round is logged, and its lease brings it
  back. Redis being away is no failure of the item.
- Each round begins at a random partition, so routers that run in step do not fight over the same ones.
- Told to stop, a round ends after the items in hand.

Rejected: partitions owned by routers (a membership protocol for what a lease does); a queue between claiming and
working (claims would age in it).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
from prometheus_client import Counter

from router.contract.errors import Unavailable
from router.contract.keys import PARTITIONS

CHUNK: Final = 32

# Partitions, limit of each, lease in ms → the items of each.
Claim = Callable[[Sequence[int], int, int], Awaitable[list[list[str]]]]

log = logging.getLogger("linnet.router")


class Round(msgspec.Struct, frozen=True):
    """What a round did; `full`: a partition had as many items as one claim takes, so more may be due."""

    done: int = 0
    failed: int = 0
    unavailable: int = 0
    full: bool = False


class Rounds:
    """Claims by `claim` what is due and gives each item to `work`."""

    def __init__(
        self,
        name: str,
        claim: Claim,
        work: Callable[[str], Awaitable[None]],
        failures: Counter,
        *,
        limit: int,
        lease_ms: int,
    ) -> None:
        self._name = name
        self._claim = claim
        self._work = work
        self._failures = failures
        self._limit = limit
        self._lease_ms = lease_ms

    async def run(self, stop: asyncio.Event, every_s: float) -> None:
        """Round after round until told to stop; at once where more is due, else with a pause."""
        while not stop.is_set():
            done = await self.round(stop)
            if not done.full or done.failed or done.unavailable:
                await pause(stop, every_s)

    async def round(self, stop: asyncio.Event | None = None) -> Round:
        """All partitions once."""
        start = random.randrange(PARTITIONS)
        parts = [(start + i) % PARTITIONS for i in range(PARTITIONS)]
        results: list[Exception | None] = []
        full = False
        for i in range(0, PARTITIONS, CHUNK):
            if stop is not None and stop.is_set():
                break
            try:
                claims = await self._claim(parts[i : i + CHUNK], self._limit, self._lease_ms)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others have their turn; `_told` logs it
                results.append(error)
                continue
            full = full or any(len(items) >= self._limit for items in claims)
            results += await asyncio.gather(*(self._tried(item) for items in claims for item in items))
        return self._told(results, full)

    def _told(self, results: list[Exception | None], full: bool) -> Round:
        faults = [error for error in results if error is not None and not isinstance(error, Unavailable)]
        if faults:
            self._failures.inc(len(faults))
            log.error("%s: %d failed in this round, the first with", self._name, len(faults), exc_info=faults[0])
        unavailable = sum(isinstance(error, Unavailable) for error in results)
        return Round(results.count(None), len(faults), unavailable, full)

    async def _tried(self, item: str) -> Exception | None:
        try:
            await self._work(item)
        except Exception as error:  # noqa: BLE001 - as above: one item never stops the others
            return error
        return None


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait about so long, or until told to stop."""
    try:
        async with asyncio.timeout(seconds * random.uniform(0.75, 1.25)):
            await stop.wait()
    except TimeoutError:
        pass


async def every(stop: asyncio.Event, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` now and then until told to stop. Redis being away skips a turn; any other error is logged."""
    while not stop.is_set():
        try:
            await work()
        except Unavailable:
            pass
        except Exception:  # upkeep that fails must not end the process; the next turn tries again
            log.exception("upkeep failed")
        await pause(stop, seconds)
