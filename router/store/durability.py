"""Durability: the decision whether an answered append is kept, at the level that the deployment requires.

The decision is made between the reply of an append and its ack.

`memory`, `fsync`: at once. At `fsync` the server commits before it replies (this is checked at start), so its reply is
the proof. `replicated`: a second connection calls `write_tick`, a write that returns the server's replication id, and
then WAIT for all replicas.

Invariants
- Kept means: the server that executed the append, identified by its replication id, is still the primary that all
  replicas follow, and they have received all writes up to one that came after the append. After a failover, with a
  replica missing, after a lost connection or a timeout the result is `Unavailable`, which leaves open whether the event
  is kept: the client sends it again.
- While the server is unfit (`fitness`) no append counts as kept.
- One tick and one WAIT are a round. It decides on all appends that were answered before it began; the next round begins
  when it has ended. At most MAX_WAITING appends wait, none longer than two WAITs.
- Duplicates wait like first sends, because the first one may be unacked for not being kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final, Literal, TypeAlias

from router.contract import keys
from router.contract.errors import LinnetError, StartupError, Unavailable
from router.contract.metrics import KEPT, KEPT_SECONDS
from router.store.redis.client import Client
from router.store.redis.pipeline import Denied

Kept: TypeAlias = Callable[[LinnetError | None], None]

WAIT_MS: Final = 2000  # below the time after which the connection is given up for silence
MAX_WAITING: Final = 20_000
RETRY_S: Final = 1.0
UNFIT_RETRY_S: Final = 5.0

log = logging.getLogger("linnet.redis")


class Durability:
    """`memory` and `fsync`: an answered append is kept if the server is fit."""

    def __init__(self, client: Client) -> None:
        self._fitness = client.fitness

    async def connect(self, within_s: float) -> None:
        """Connect, so that `when_kept` can decide; `StartupError` if that takes longer than `within_s`."""

    async def close(self) -> None:
        """Close; all waiting appends get `Unavailable`."""

    def require_fit(self) -> None:
        """Raise `Unavailable` while the server is unfit, so that a send is refused before it is appended."""
        if self._fitness.fault:
            raise Unavailable("the store cannot keep messages at the configured durability now", UNFIT_RETRY_S)

    def when_kept(self, replid: bytes, reply: Kept) -> None:
        """Call `reply(None)` when an append that returned `replid` is kept, else `reply(Unavailable)`. Never raise."""
        reply(Unavailable(retry_after=RETRY_S) if self._fitness.fault else None)


class Replicated(Durability):
    """`replicated`: an append is kept if a later write has reached all replicas of the same primary."""

    def __init__(self, client: Client, replicas: int) -> None:
        super().__init__(client)
        self._loop = asyncio.get_running_loop()
        self._connection = client.second_connection()
        self._tick = ("FCALL", client.library.named("write_tick"), 1, keys.TICK)
        self._wait = ("WAIT", replicas, WAIT_MS)
        self._replicas = replicas
        self._waiting: list[tuple[bytes, Kept]] = []
        self._in_round = False

    async def connect(self, within_s: float) -> None:
        await self._connection.connect(within_s)
        replied: asyncio.Future[object] = self._loop.create_future()
        self._connection.call(("WAIT", 0, 1), replied.set_result)
        if isinstance(denied := await replied, Denied):
            raise StartupError(
                f"Redis at {self._connection.address} refuses WAIT, which durability replicated needs"
                f" ({denied.why}): give its user the rights in deploy/README.md"
            )

    async def close(self) -> None:
        await self._connection.close()

    def when_kept(self, replid: bytes, reply: Kept) -> None:
        if len(self._waiting) >= MAX_WAITING:
            KEPT.labels("refused").inc()
            self._loop.call_soon(reply, Unavailable(retry_after=RETRY_S))
            return
        self._waiting.append((replid, reply))
        if not self._in_round:
            self._in_round = True
            self._loop.call_soon(self._start_round)

    def _start_round(self) -> None:
        """Send tick and WAIT in one write, so that the same server executes them one after the other."""
        started = _Round(self._waiting)
        self._waiting = []
        self._connection.call(self._tick, started.ticked)
        self._connection.call(self._wait, partial(self._end_round, started))

    def _end_round(self, ended: _Round, count: object) -> None:
        enough = isinstance(count, int) and count >= self._replicas and not self._fitness.fault
        if enough:
            KEPT_SECONDS.observe(perf_counter() - ended.began)
        lost = 0
        for replid, reply in ended.batch:
            kept = enough and replid == ended.replid
            lost += not kept
            self._answer(reply, None if kept else Unavailable(retry_after=RETRY_S))
        KEPT.labels("kept").inc(len(ended.batch) - lost)
        KEPT.labels("failover" if enough else "timeout" if isinstance(count, int) else "error").inc(lost)
        self._in_round = bool(self._waiting)
        if self._in_round:
            self._loop.call_soon(self._start_round)

    def _answer(self, reply: Kept, error: LinnetError | None) -> None:
        try:
            reply(error)
        except Exception:  # a bug in one caller must not keep the answer from the others
            log.exception("a durability callback raised")


class _Round:
    """One tick and one WAIT, and the appends on which they decide."""

    __slots__ = ("batch", "began", "replid")

    def __init__(self, batch: list[tuple[bytes, Kept]]) -> None:
        self.batch = batch
        self.began = perf_counter()
        self.replid: object = None  # stays None if the tick is answered after its WAIT, which a library load causes

    def ticked(self, replid: object) -> None:
        self.replid = replid


def durability(level: Literal["memory", "fsync", "replicated"], client: Client, replicas: int) -> Durability:
    """The implementation of a LINNET_DURABILITY level."""
    return Replicated(client, replicas) if level == "replicated" else Durability(client)
