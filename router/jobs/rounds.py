"""Rounds of a router: claim as many due items as there are free slots, start them at once, and go on.

The due lists of the partitions (dirty conversations, users to push to) are shared by all routers. A claim hides an item
for the time of a lease. If a router dies, its leases run out and another router claims the items.

Invariants
- A round has CHUNK × limit slots. A claim never takes more items than there are free slots, and every claimed item
  starts at once, so the lease is spent on the work and not on waiting.
- A slow item occupies one slot and delays no other item: claiming goes on while the slots for one partition's claim are
  free.
- If one item fails, the others go on: the failure is counted, the first traceback of a round is logged, and the item is
  due again when its lease has run out. An outage of Redis is no failure of the item.
- Nearly always nothing is due, so `run` looks first, in one call, which partitions have due items. Every CLAIM_ALL_S it
  claims from all of them: a claim also brings dues of another clock to now.
- Each round begins at a random partition, so routers in step do not compete for the same ones.
- If the server of a partition does not answer, the other partitions are claimed all the same.
- When the process stops, a round claims no more items and ends after the running ones; if it is cancelled, so are they.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final

import msgspec
from prometheus_client import Counter

from router.contract import metrics
from router.contract.errors import LinnetError, Unavailable
from router.contract.keys import PARTITIONS

CHUNK: Final = 32
CLAIM_ALL_S: Final = 5.0

# Partitions, limit of each, lease in ms → the items of each, or why there is no answer from its server.
Claim = Callable[[Sequence[int], int, int], Awaitable[Sequence[list[str] | LinnetError]]]

log = logging.getLogger("linnet.router")


class Round(msgspec.Struct, frozen=True):
    """The items that ended since the last report. `full`: a claim reached its limit, so more items may be due."""

    done: int = 0
    failed: int = 0
    unavailable: int = 0
    full: bool = False


class Rounds:
    """Claims due items with `claim` and runs `work` for each of them."""

    def __init__(
        self,
        name: str,
        claim: Claim,
        work: Callable[[str], Awaitable[None]],
        failures: Counter,
        *,
        limit: int,
        lease_ms: int,
        due: Callable[[], Awaitable[Sequence[int]]] | None = None,
    ) -> None:
        """`due` returns the partitions that have due items; None to claim from all partitions in each round."""
        self._name = name
        self._claim = claim
        self._work = work
        self._failures = failures
        self._limit = limit
        self._lease_ms = lease_ms
        self._due = due
        self._claimed_all_at = -math.inf
        self._free = CHUNK * limit
        self._freed = asyncio.Event()
        self._results: list[Exception | None] = []
        self._in_hand = metrics.ROUND_ITEMS.labels(name)

    async def run(self, stop: asyncio.Event, every_s: float) -> None:
        """Run rounds until the process stops; without a pause while more items are due."""
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                done = self._report(await self._claim_due(group, stop))
                if not done.full or done.failed or done.unavailable:
                    await pause(stop, every_s)
        self._report(full=False)

    async def round(self) -> Round:
        """Run one round over all partitions, until the last item has ended."""
        async with asyncio.TaskGroup() as group:
            full = await self._claim_from(range(PARTITIONS), group, asyncio.Event())
        return self._report(full)

    async def _claim_due(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> bool:
        """Claim from the partitions with due items, or from all; return whether a partition may have more items."""
        now = monotonic()
        parts: Sequence[int] = range(PARTITIONS)
        if self._due is None or now >= self._claimed_all_at + CLAIM_ALL_S:
            self._claimed_all_at = now
        else:
            try:
                parts = await self._due()
            except Exception as error:  # noqa: BLE001 - after any error, which is reported, the next round looks again
                self._results.append(error)
                return False
        return await self._claim_from(parts, group, stop)

    async def _claim_from(self, among: Sequence[int], group: asyncio.TaskGroup, stop: asyncio.Event) -> bool:
        """Claim from these partitions once, as slots become free; return whether one may have more items."""
        start = random.randrange(PARTITIONS)
        parts = sorted(among, key=lambda part: (part - start) % PARTITIONS)
        full = False
        while parts:
            await self._free_slots()
            if stop.is_set():
                break
            size = min(CHUNK, self._free // self._limit)
            chunk, parts = parts[:size], parts[size:]
            try:
                claims = await self._claim(chunk, self._limit, self._lease_ms)
            except Exception as error:  # noqa: BLE001 - after any error, which is reported, the other partitions follow
                self._results.append(error)
                continue
            answered = [items for items in claims if not isinstance(items, LinnetError)]
            self._results += [error for error in claims if isinstance(error, LinnetError)]
            full = full or any(len(items) >= self._limit for items in answered)
            for item in (item for items in answered for item in items):
                self._free -= 1
                self._in_hand.inc()
                group.create_task(self._tried(item)).add_done_callback(self._ended)
        return full

    async def _free_slots(self) -> None:
        """Wait until the slots for one partition's claim are free."""
        while self._free < self._limit:
            self._freed.clear()
            await self._freed.wait()

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._free += 1
        self._in_hand.dec()
        self._freed.set()

    def _report(self, full: bool) -> Round:
        """Count and log the results since the last report."""
        results, self._results = self._results, []
        faults = [error for error in results if error is not None and not isinstance(error, Unavailable)]
        if faults:
            self._failures.inc(len(faults))
            log.error("%s: items failed in this round: %d, the first with", self._name, len(faults), exc_info=faults[0])
        unavailable = sum(isinstance(error, Unavailable) for error in results)
        return Round(results.count(None), len(faults), unavailable, full)

    async def _tried(self, item: str) -> None:
        try:
            await self._work(item)
        except Exception as error:  # noqa: BLE001 - any error of one item must not stop the others
            self._results.append(error)
        else:
            self._results.append(None)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait for about `seconds`, or until the process stops."""
    try:
        async with asyncio.timeout(seconds * random.uniform(0.75, 1.25)):
            await stop.wait()
    except TimeoutError:
        pass


async def every(stop: asyncio.Event, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` about every `seconds` until the process stops; an outage of Redis skips a turn, errors are logged."""
    while not stop.is_set():
        try:
            await work()
        except Unavailable:
            pass
        except Exception:  # after any error the process goes on, and the next turn tries again
            log.exception("upkeep failed")
        await pause(stop, seconds)
