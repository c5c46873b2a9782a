"""Follows the map of a cluster, which says what server is the primary of which slots, and gives it to `routing`.

The map is asked every POLL_S from a few servers, and at once if a redirect or a lost connection puts it in doubt. The
answer with the newest epoch counts, from a server that is with the majority.

Invariants
- A map with an older epoch than the present one is not used, unless no server has named the present one for STALE_S (a
  cluster that was made anew).
- CLUSTER SLOTS is asked only if the epoch is new, once more SPREAD_S later, if the map is in doubt, or after FULL_S;
  one at a time, at most one in DOUBT_S, and after a random delay, because many processes learn of a failover at the
  same moment. A doubt lasts until a server has told the map: all may be down, and return with other addresses and
  the epoch of before.
- A replica is elected by the votes of most primaries, and a vote raises the voter's epoch. So if most primaries name
  the epoch of the map, no server of the map had been replaced when they were asked (`certain_at`). A voter knows the
  new epoch a little before the new owner, so only a map that was asked for SPREAD_S after its epoch was new counts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from router.contract.errors import FunctionError, LinnetError
from router.store.redis.client import settle
from router.store.redis.cluster import Cluster, state_of
from router.store.redis.connection import RedisArg
from router.store.redis.pipeline import Denied, HotConnection
from router.store.redis.routing import Line, Routing

POLL_S: Final = 1.0
ASK_S: Final = 1.0  # for one answer about the map
ASKED: Final = 3  # servers that are asked for their state, besides those that refuse all calls
FULL_S: Final = 30.0
SPREAD_S: Final = 1.0  # in which an elected server has told the others what it owns
STALE_S: Final = 10.0
DOUBT_S: Final = 0.25
JITTER_S: Final = 0.3  # a sixth of all processes asks within 50 ms, on average

log = logging.getLogger("linnet.redis")


class MapFollower:
    """`asking` is a connection to any server that may know the map; `asked` is called after each round of questions."""

    def __init__(
        self,
        cluster: Cluster,
        routing: Routing,
        asking: HotConnection,
        doubted: asyncio.Event,
        asked: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._routing = routing
        self._asking = asking
        self._asked = asked
        self._following: asyncio.Task[None] | None = None
        self._asked_at = self._confirmed_at = -FULL_S
        self._epoch_at = self._asked_at  # since when the present epoch is known
        self._maps = 0  # that were asked for
        self.doubted = doubted  # set it to ask for the map soon
        self.refusal = ""  # why a server did not tell the map, if asking again does not help
        self.epoch = 0

    def start(self) -> None:
        self._following = asyncio.create_task(self.follow())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait((self._following,))

    @property
    def certain_at(self) -> float:
        """The last time (of the loop) at which no server of the map had been replaced; -inf if that is not known."""
        primaries = self._routing.primaries
        times = sorted(
            (at for epoch, at in (line.confirmed for line in primaries) if epoch == self.epoch), reverse=True
        )
        most = len(primaries) // 2
        settled = self._asked_at >= self._epoch_at + SPREAD_S
        return times[most] if settled and len(times) > most else -math.inf

    async def follow(self) -> None:
        """Ask for ever."""
        doubted = False
        while True:
            doubted = doubted or self.doubted.is_set()
            self.doubted.clear()
            if doubted:
                await asyncio.sleep(random.uniform(0, JITTER_S))
            try:
                if await self.ask(doubted or not self._maps):
                    doubted = False
                self._asked()
            except Exception:  # a bug here must not leave the process with an old map for ever
                log.exception("the cluster's map could not be followed")
            await asyncio.sleep(DOUBT_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.75, 1.25) * POLL_S - DOUBT_S):
                    await self.doubted.wait()

    async def ask(self, doubted: bool) -> bool:
        """Ask some servers for their state, and the one that knows most for the map if that may be new. Return whether
        the map was used."""
        now = asyncio.get_running_loop().time()
        lines = [line for line in self._routing.lines.values() if line.up]
        random.shuffle(lines)
        some = [line for line in lines if line.refuses]
        some += sorted((line for line in lines if not line.refuses), key=_asked_at)[: ASKED - 1]
        asked: list[HotConnection] = [self._asking] * self._asking.up + list(some)
        found = await asyncio.gather(*map(self._state, asked))
        states = [(*state, connection) for state, connection in zip(found, asked, strict=True) if state is not None]
        for line in some:
            line.asked_at = now
        for ok, named, connection in states:
            if isinstance(connection, Line):
                connection.note_state(serves=ok)
                if ok:
                    connection.confirmed = named, now
        if not states:
            return False
        with_majority, epoch, best = max(states, key=lambda one: one[:2])
        if with_majority and any(one[2] is self._asking and not one[0] for one in states):
            self._asking.drop("it is cut off from the majority of the cluster")
        if not with_majority and self._maps:
            return False
        if epoch == self.epoch:
            self._confirmed_at = now
        if epoch < self.epoch and now - self._confirmed_at < STALE_S:
            return False
        spread = self._asked_at < self._epoch_at + SPREAD_S < now
        if doubted or epoch != self.epoch or spread or now - self._asked_at > FULL_S:
            reply = await self._question(best, "CLUSTER", "SLOTS")
            if reply is None:
                return False
            owners = self._cluster.owners(reply, best.address)
            self._asked_at = self._confirmed_at = now
            newer, self.epoch, self._maps = epoch != self.epoch, epoch, self._maps + 1
            if newer:
                self._epoch_at = now
            self._cluster.epoch, self._cluster.known = epoch, owners.addresses
            self._routing.take(owners, newer=newer)
            return True
        return False

    async def _state(self, connection: HotConnection) -> tuple[bool, int] | None:
        reply = await self._question(connection, "CLUSTER", "INFO")
        return None if reply is None else state_of(reply)

    async def _question(self, connection: HotConnection, *command: RedisArg) -> Any:
        """The reply of one server; None if there is none."""
        future = asyncio.get_running_loop().create_future()
        connection.call(command, partial(settle, future))
        try:
            async with asyncio.timeout(ASK_S):
                return await future
        except Denied as denied:
            self.refusal = f"refuses what Linnet needs ({denied.why}): give its user the rights in deploy/README.md"
        except FunctionError as error:
            self.refusal = f"is no cluster node ({error.detail}): set LINNET_REDIS_MODE=standalone or sentinel"
        except (LinnetError, TimeoutError):
            pass
        return None


def _asked_at(line: Line) -> float:
    return line.asked_at
