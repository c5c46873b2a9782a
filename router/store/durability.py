"""When what Redis has answered is kept, at the level that the deployment asks for.

What lives here: the one question between an append's answer and its ack. What never does: the append, or the ack.

`memory`, `fsync`: at once. Under `fsync` the server commits before it replies, which is checked at start, so its reply
is the proof. `replicated`: a second connection runs `tick`, a write that answers the server's replication id, and then
WAIT for all replicas.

Invariants
- Kept means: the server that holds the append, told by its replication id, is still the primary that all replicas
  follow, and they have everything up to a write that came after the append. A failover in between, a replica too few,
  a lost connection, a timeout: `Unavailable`, which says nothing about the event: the same send asks again.
- While the server is unfit (`fitness`) nothing is called kept.
- One tick and one WAIT answer for all appends whose answers had come when they left; the next leave when these are
  answered. At most MAX_WAITING wait for that, none longer than two WAITs.
- Duplicates wait like first ones: the first one may be unacked because it was not kept.
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
    """`memory` and `fsync`: what Redis has answered is kept, if it is fit."""

    def __init__(self, client: Client) -> None:
        self._fitness = client.fitness

    async def connect(self, within_s: float) -> None:
        """Until it can tell; `StartupError` when that takes longer."""

    async def close(self) -> None:
        """Whoever waits is told `Unavailable`."""

    def require_fit(self) -> None:
        """`Unavailable` while the server does not keep what is promised: a send is refused before it is appended."""
        if self._fitness.fault:
            raise Unavailable("the store does not keep now what it is given", UNFIT_RETRY_S)

    def when_kept(self, replid: bytes, reply: Kept) -> None:
        """`reply(None)` when an append that answered `replid` is kept, else `reply(Unavailable)`. Never raises."""
        reply(Unavailable(retry_after=RETRY_S) if self._fitness.fault else None)


class Replicated(Durability):
    """`replicated`, see above."""

    def __init__(self, client: Client, replicas: int) -> None:
        super().__init__(client)
        self._loop = asyncio.get_running_loop()
        self._connection = client.second_connection()
        self._tick = ("FCALL", client.library.named("tick"), 1, keys.TICK)
        self._wait = ("WAIT", replicas, WAIT_MS)
        self._replicas = replicas
        self._waiting: list[tuple[bytes, Kept]] = []
        self._asking = False

    async def connect(self, within_s: float) -> None:
        await self._connection.connect(within_s)
        asked: asyncio.Future[object] = self._loop.create_future()
        self._connection.call(("WAIT", 0, 1), asked.set_result)
        if isinstance(denied := await asked, Denied):
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
        if not self._asking:
            self._asking = True
            self._loop.call_soon(self._ask)

    def _ask(self) -> None:
        """Both leave in one write, so they meet the same server, one right after the other."""
        asked = _Round(self._waiting)
        self._waiting = []
        self._connection.call(self._tick, asked.ticked)
        self._connection.call(self._wait, partial(self._waited, asked))

    def _waited(self, asked: _Round, count: object) -> None:
        enough = isinstance(count, int) and count >= self._replicas and not self._fitness.fault
        if enough:
            KEPT_SECONDS.observe(perf_counter() - asked.began)
        lost = 0
        for replid, reply in asked.batch:
            kept = enough and replid == asked.replid
            lost += not kept
            self._tell(reply, None if kept else Unavailable(retry_after=RETRY_S))
        KEPT.labels("kept").inc(len(asked.batch) - lost)
        KEPT.labels("failover" if enough else "timeout" if isinstance(count, int) else "error").inc(lost)
        self._asking = bool(self._waiting)
        if self._asking:
            self._loop.call_soon(self._ask)

    def _tell(self, reply: Kept, error: LinnetError | None) -> None:
        try:
            reply(error)
        except Exception:  # a bug in one caller must not leave the others without their answer
            log.exception("a durability callback raised")


class _Round:
    """One tick and WAIT, and the appends that they answer for."""

    __slots__ = ("batch", "began", "replid")

    def __init__(self, batch: list[tuple[bytes, Kept]]) -> None:
        self.batch = batch
        self.began = perf_counter()
        self.replid: object = None  # a tick that is answered after its WAIT (a library to load first) answers nobody

    def ticked(self, replid: object) -> None:
        self.replid = replid


def durability(level: Literal["memory", "fsync", "replicated"], client: Client, replicas: int) -> Durability:
    """What a deployment's LINNET_DURABILITY stands for."""
    return Replicated(client, replicas) if level == "replicated" else Durability(client)
