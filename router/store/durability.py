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
- On a cluster the same holds for each slot: after the WAIT, the server that executed the append still has the slot.
- Duplicates wait like first sends, because the first one may be unacked for not being kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Final, Protocol, TypeAlias

from router.contract import keys
from router.contract.errors import LinnetError, StartupError, Unavailable
from router.contract.metrics import KEPT, KEPT_SECONDS
from router.store.redis.client import Client
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.connection import Address
from router.store.redis.fitness import Level
from router.store.redis.pipeline import Denied, HotConnection
from router.store.redis.routing import Line
from router.store.redis.slots import slot_of

Kept: TypeAlias = Callable[[LinnetError | None], None]


class Keeper(Protocol):
    """Decides about the writes at the server that has a conversation or a user."""

    def require_fit(self) -> None:
        """Raise `Unavailable` while the server is unfit, so that a send is refused before it is appended."""
        ...

    def when_kept(self, replid: bytes, reply: Kept) -> None:
        """Call `reply(None)` when an append that returned `replid` is kept, else `reply(Unavailable)`. Never raise."""
        ...


WAIT_MS: Final = 2000  # below the time after which the connection is given up for silence
MAX_WAITING: Final = 20_000
RETRY_S: Final = 1.0
UNFIT_RETRY_S: Final = 5.0
CONNECT_S: Final = 2.0  # for which a start waits for the servers of a cluster that answered before

log = logging.getLogger("linnet.redis")


class Durability:
    """`memory` and `fsync`: an answered append is kept if the server is fit."""

    def __init__(self, client: Client) -> None:
        self._fitness = client.fitness

    async def connect(self, within_s: float) -> None:
        """Connect, so that `when_kept` can decide; `StartupError` if that takes longer than `within_s`."""

    async def close(self) -> None:
        """Close; all waiting appends get `Unavailable`."""

    def at_conversation(self, conv: str) -> Keeper:
        """The part that decides about writes of a conversation."""
        return self

    def at_user(self, user: str) -> Keeper:
        """The part that decides about writes of a user."""
        return self

    def when_file_kept(self, sha256: str, replid: bytes, reply: Kept) -> None:
        """As `when_kept`, of a write in the slot of a file."""
        self.when_kept(replid, reply)

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
            raise StartupError(refuses_wait(self._connection.address, denied))

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
            answer(reply, None if kept else Unavailable(retry_after=RETRY_S))
        KEPT.labels("kept").inc(len(ended.batch) - lost)
        KEPT.labels("failover" if enough else "timeout" if isinstance(count, int) else "error").inc(lost)
        self._in_round = bool(self._waiting)
        if self._in_round:
            self._loop.call_soon(self._start_round)


class _Round:
    """One tick and one WAIT, and the appends on which they decide."""

    __slots__ = ("batch", "began", "replid")

    def __init__(self, batch: list[tuple[bytes, Kept]]) -> None:
        self.batch = batch
        self.began = perf_counter()
        self.replid: object = None  # stays None if the tick is answered after its WAIT, which a library load causes

    def ticked(self, replid: object) -> None:
        self.replid = replid


class ClusterDurability(Durability):
    """A cluster: each server is judged by itself, and at `replicated` each has a connection for ticks and WAIT."""

    def __init__(self, client: ClusterClient, level: Level, replicas: int) -> None:
        super().__init__(client)
        self._client = client
        self._replicas = replicas if level == "replicated" else 0
        self._rounds: dict[Line, _LineRounds] = {}
        if self._replicas:
            client.routing.changed.append(self._follow)

    async def connect(self, within_s: float) -> None:
        """Connect to all servers that answer; `StartupError` if one refuses WAIT."""
        if self._replicas:
            self._follow()
            serving = [self._rounds[line] for line in self._client.routing.serving]
            with suppress(TimeoutError):  # a server that was lost again is not checked
                async with asyncio.timeout(min(within_s, CONNECT_S)):
                    await asyncio.gather(*(one.check() for one in serving))

    async def close(self) -> None:
        await asyncio.gather(*(one.connection.close() for one in self._rounds.values()))

    def at_conversation(self, conv: str) -> Keeper:
        return _Place(self, keys.conversation(conv))

    def at_user(self, user: str) -> Keeper:
        return _Place(self, keys.user(user))

    def when_file_kept(self, sha256: str, replid: bytes, reply: Kept) -> None:
        self.when_kept_at(keys.file(sha256), replid, reply)

    def require_fit_at(self, key: str) -> None:
        if self._client.fault(key):
            raise Unavailable("the store cannot keep messages at the configured durability now", UNFIT_RETRY_S)

    def when_kept_at(self, key: str, replid: bytes, reply: Kept) -> None:
        line = self._client.routing.owner(slot_of(key))
        if line is None or self._client.fault(key):
            reply(Unavailable(retry_after=RETRY_S))
        elif not self._replicas:
            reply(None)
        else:
            self._rounds_of(line).when_kept(keys.tick_beside(key), replid, reply)

    def connection_at(self, line: Line) -> HotConnection:
        """The connection for ticks and WAIT to the server of this line."""
        return self._rounds_of(line).connection

    def _rounds_of(self, line: Line) -> _LineRounds:
        found = self._rounds.get(line)
        if found is None:
            found = self._rounds[line] = _LineRounds(line, self._client, self._replicas)
            found.connection.start()
        return found

    def _follow(self) -> None:
        """Connect to servers that have got slots, and leave those that are gone."""
        for line in self._client.routing.serving:
            self._rounds_of(line)
        for line in [line for line in self._rounds if self._client.routing.lines.get(line.address) is not line]:
            self._client.later(self._rounds.pop(line).connection.close())


class _Place:
    """The keeper for one key of a cluster."""

    __slots__ = ("_key", "_of")

    def __init__(self, of: ClusterDurability, key: str) -> None:
        self._of = of
        self._key = key

    def require_fit(self) -> None:
        self._of.require_fit_at(self._key)

    def when_kept(self, replid: bytes, reply: Kept) -> None:
        self._of.when_kept_at(self._key, replid, reply)


class _LineRounds:
    """The rounds of one server of a cluster, with its replicas.

    A round has a tick in every slot that its appends are in, then one WAIT, then a question for a key of every such
    slot. All are answered by the same server in this order. If it has lost a slot meanwhile, the tick or the question
    says so, and the appends of that slot are not kept: the replicas that have answered WAIT may not be those of the
    slot.
    """

    def __init__(self, line: Line, client: ClusterClient, replicas: int) -> None:
        self.connection = HotConnection(line.address, client.library.source)
        self._opened = asyncio.Event()
        self.connection.on_opened = self._opened.set
        self._line = line
        self._client = client
        self._tick = client.library.named("write_tick")
        self._wait = ("WAIT", replicas, WAIT_MS)
        self._replicas = replicas
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[str, bytes, Kept]] = []
        self._in_round = False

    async def check(self) -> None:
        """Wait until the connection is up; `StartupError` if the server refuses WAIT."""
        await self._opened.wait()
        replied: asyncio.Future[object] = self._loop.create_future()
        self.connection.call(("WAIT", 0, 1), replied.set_result)
        if isinstance(denied := await replied, Denied):
            raise StartupError(refuses_wait(self.connection.address, denied))

    def when_kept(self, tick: str, replid: bytes, reply: Kept) -> None:
        if len(self._waiting) >= MAX_WAITING:
            KEPT.labels("refused").inc()
            self._loop.call_soon(reply, Unavailable(retry_after=RETRY_S))
            return
        self._waiting.append((tick, replid, reply))
        if not self._in_round:
            self._in_round = True
            self._loop.call_soon(self._start_round)

    def _start_round(self) -> None:
        batch, self._waiting = self._waiting, []
        began = perf_counter()
        ticks = list(dict.fromkeys(tick for tick, _, _ in batch))
        ids: dict[str, object] = {}
        here: dict[str, object] = {}
        counts: list[object] = []
        for tick in ticks:
            self.connection.call(("FCALL", self._tick, 1, tick), partial(ids.__setitem__, tick))
        self.connection.call(self._wait, counts.append)
        for tick in ticks[:-1]:
            self.connection.call(("EXISTS", tick), partial(here.__setitem__, tick))

        def ended(value: object) -> None:
            here[ticks[-1]] = value
            self._end_round(batch, began, counts[0], ids, here)

        self.connection.call(("EXISTS", ticks[-1]), ended)

    def _end_round(
        self,
        batch: list[tuple[str, bytes, Kept]],
        began: float,
        count: object,
        ids: dict[str, object],
        here: dict[str, object],
    ) -> None:
        enough = isinstance(count, int) and count >= self._replicas and not self._client.fault_of(self._line)
        if enough:
            KEPT_SECONDS.observe(perf_counter() - began)
        lost = 0
        for tick, replid, reply in batch:
            kept = enough and replid == ids.get(tick) and here.get(tick) == 1
            lost += not kept
            answer(reply, None if kept else Unavailable(retry_after=RETRY_S))
        KEPT.labels("kept").inc(len(batch) - lost)
        KEPT.labels("failover" if enough else "timeout" if isinstance(count, int) else "error").inc(lost)
        self._in_round = bool(self._waiting)
        if self._in_round:
            self._loop.call_soon(self._start_round)


def answer(reply: Kept, error: LinnetError | None) -> None:
    """Answer one append."""
    try:
        reply(error)
    except Exception:  # a bug in one caller must not keep the answer from the others
        log.exception("a durability callback raised")


def refuses_wait(address: Address, denied: Denied) -> str:
    return (
        f"Redis at {address} refuses WAIT, which durability replicated needs ({denied.why}): give its user the rights"
        " in deploy/README.md"
    )


def durability(level: Level, client: Client, replicas: int) -> Durability:
    """The implementation of a LINNET_DURABILITY level."""
    if isinstance(client, ClusterClient):
        return ClusterDurability(client, level, replicas)
    return Replicated(client, replicas) if level == "replicated" else Durability(client)
