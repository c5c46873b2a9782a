"""What goes wrong in a run: a schedule that a seed decides, and the hands that carry it out.

`schedule` is pure: the same seed, length and kinds give the same acts. `Nemesis` carries them out against a `Cluster`
and writes down when each really began and ended. Faults of different parts overlap as they fall; of one part, one
fault of its process and one of each of its links at a time.

Adding a fault: a row in `FAULTS`, a method of `Nemesis` named like it, a row in the README's table of failures.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from loadtest.chaos.cluster import DRAINED_S, Cluster, Part
from loadtest.chaos.neighbour import Neighbour
from loadtest.chaos.proof.evidence import Fault, append
from loadtest.chaos.proof.history import now_ms
from loadtest.chaos.redis_trouble import RedisTrouble
from loadtest.chaos.stores import Replicated, Single

FIRST_S: Final = 3.0
EVERY_S: Final = 3.0
ALL: Final = ("gateway", "router")
CLOCK_S: Final = 60.0  # how far a clock steps at most

# The levels of durability, and those at which a fault proves something: at `memory` a store that is killed may lose
# what was acked, as is written of it.
LEVELS: Final = ("memory", "fsync", "replicated")
DISK: Final = ("fsync",)
ONE: Final = ("memory", "fsync")
SENTINELS: Final = ("replicated",)


class Kind(msgspec.Struct, frozen=True):
    """`on`: which parts; `weight`: how often; `lasts`: least and most seconds; `uses`: what it holds meanwhile;
    `levels`: at which durability."""

    on: tuple[str, ...]
    weight: float
    lasts: tuple[float, float]
    uses: str
    levels: tuple[str, ...] = LEVELS


FAULTS: Final[dict[str, Kind]] = {
    "gateway-kill": Kind(("gateway",), 3, (0.2, 4), "process"),
    "gateway-stall": Kind(("gateway",), 2, (0.5, 14), "process"),
    "gateway-term": Kind(("gateway",), 2, (0, 1), "process"),
    "router-kill": Kind(("router",), 2, (0.2, 6), "process"),
    "router-stall": Kind(("router",), 1, (0.5, 14), "process"),
    "router-term": Kind(("router",), 1, (0, 1), "process"),
    "gateway-clock": Kind(("gateway",), 2, (2, 15), "clock"),
    "router-clock": Kind(("router",), 1, (2, 15), "clock"),
    "rolling": Kind((), 0.7, (0, 0), "everything"),
    "valkey-kill": Kind((), 2, (0.1, 4), "valkey", DISK),
    "valkey-restart": Kind((), 1, (0, 1), "valkey", ONE),
    "valkey-stall": Kind((), 1, (0.5, 6), "valkey", ONE),
    "valkey-disk-full": Kind((), 1, (0.5, 4), "valkey", DISK),
    "primary-kill": Kind((), 3, (0.5, 8), "valkey", SENTINELS),
    "primary-stall": Kind((), 3, (0.5, 8), "valkey", SENTINELS),
    "replica-kill": Kind((), 1, (0.5, 6), "valkey", SENTINELS),
    "replica-stall": Kind((), 1, (0.5, 6), "valkey", SENTINELS),
    "failover": Kind((), 3, (1, 3), "valkey", SENTINELS),
    "sentinel-kill": Kind((), 1, (0.5, 5), "sentinel", SENTINELS),
    "pubsub-kill": Kind((), 3, (0, 0), "pubsub"),
    "store-cut": Kind(ALL, 3, (0.2, 6), "store", ONE),
    "store-hold": Kind(ALL, 3, (0.5, 14), "store", ONE),
    "store-delay": Kind(ALL, 1, (2, 8), "store", ONE),
    "store-stutter": Kind(ALL, 2, (3, 8), "store", ONE),
    "valkey-clock": Kind((), 1, (0, 0), "clock", ONE),
    "valkey-settings": Kind((), 1, (9, 14), "valkey"),
    "valkey-rights": Kind((), 1, (1, 6), "valkey"),
    "functions-flushed": Kind((), 1, (0, 0), "valkey"),
    "keys-deleted": Kind((), 1, (0, 0), "valkey"),
    "neighbour-database": Kind((), 0.5, (5, 9), "neighbour", ONE),
    "neighbour-same": Kind((), 0.5, (0, 0), "neighbour", ONE),
    "keys-rotated": Kind((), 1, (2, 8), "keys"),
    "keys-unreachable": Kind((), 1, (2, 12), "keys"),
    "client-cut": Kind(("gateway",), 1, (0.2, 4), "clients"),
    "client-hold": Kind(("gateway",), 2, (1, 15), "clients"),
    "client-delay": Kind(("gateway",), 1, (2, 8), "clients"),
    "client-stutter": Kind(("gateway",), 1, (3, 8), "clients"),
    "client-vanish": Kind(("gateway",), 1, (0, 0), "clients"),
}

# Faults of a Redis server that keeps running, and of whatever else a deployment shares (`--faults redis-trouble`).
REDIS_TROUBLE: Final = (
    "valkey-clock", "valkey-settings", "valkey-rights", "functions-flushed", "keys-deleted", "neighbour-database",
    "neighbour-same", "keys-rotated", "keys-unreachable",
)  # fmt: skip


def possible(kinds: Collection[str], level: str, *, clocks: bool) -> list[str]:
    """Of these kinds (none: all) those that say something at this level; `clocks`: whether they can be made to step."""
    known = {kind: FAULTS[kind] for kind in kinds or FAULTS}
    return [kind for kind, fault in known.items() if level in fault.levels and (clocks or fault.uses != "clock")]


class Act(msgspec.Struct, frozen=True):
    at_s: float
    kind: str
    target: str
    for_s: float


def schedule(
    seed: int,
    seconds: float,
    parts: Collection[str],
    kinds: Collection[str] = FAULTS,
    every_s: float = EVERY_S,
) -> list[Act]:
    """What is done when; all of it is over after `seconds`."""
    rng = random.Random(seed)
    chosen = {kind: FAULTS[kind] for kind in kinds}
    acts, at, free_from = [], FIRST_S, dict[tuple[str, str], float]()
    while (at := at + rng.expovariate(1 / every_s)) < seconds:
        kind = rng.choices(list(chosen), [one.weight for one in chosen.values()])[0]
        fault = chosen[kind]
        targets = [part for part in sorted(parts) if part.startswith(fault.on)] if fault.on else [""]
        target, for_s = rng.choice(targets), rng.uniform(*fault.lasts)
        if at + for_s < seconds and free_from.get((target, fault.uses), 0) <= at:
            free_from[target, fault.uses] = at + for_s
            acts.append(Act(round(at, 3), kind, target, round(for_s, 3)))
    return acts


class Nemesis:
    """Carries out a schedule."""

    def __init__(self, cluster: Cluster, seed: int, folder: Path) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._folder = folder
        self._path = folder / "faults.jsonl"
        self._redis = RedisTrouble(cluster.store, cluster.level, folder, random.Random(self._rng.random()))
        self._neighbours = 0
        self.done: list[Fault] = []

    async def carry_out(self, acts: list[Act]) -> None:
        """Returns when the last one is over, and with an error if one could not be carried out."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for act in acts:
                await asyncio.sleep(max(0.0, began + act.at_s - asyncio.get_running_loop().time()))
                group.create_task(self._act(act))

    async def _act(self, act: Act) -> None:
        kind = FAULTS[act.kind]
        if act.kind in REDIS_TROUBLE:
            await self._trouble(act)
        elif kind.uses == "process":
            part = self._cluster.parts[act.target]
            async with part.busy:
                await self._process(act, part)
        elif kind.uses == "valkey":
            async with self._cluster.store_busy:
                await self._valkey(act)
        elif kind.uses == "clock":
            await self._clock(act)
        elif kind.uses == "sentinel":
            await self._sentinel(act)
        elif act.kind == "rolling":
            await self._rolling()
        elif act.kind == "pubsub-kill":
            began = now_ms()
            await asyncio.to_thread(self._cluster.store.lose_subscribers)
            self._note(act.kind, "", began)
        else:
            await self._link(act)

    async def _trouble(self, act: Act) -> None:
        match act.kind:
            case "valkey-clock":
                began = now_ms()
                self._note(act.kind, self._redis.step_clock(), began)
            case "neighbour-database" | "neighbour-same":
                await self._neighbour(act)
            case "keys-rotated" | "keys-unreachable":
                await self._keys(act)
            case _:
                async with self._cluster.store_busy:
                    await self._server(act)

    async def _server(self, act: Act) -> None:
        began, ended = now_ms(), 0
        match act.kind:
            case "valkey-settings":
                target, ended = await self._redis.change_settings(act.for_s)
            case "valkey-rights":
                target = await self._redis.remove_rights(act.for_s)
            case "functions-flushed":
                target = await asyncio.to_thread(self._redis.flush_functions)
            case _:
                target = await asyncio.to_thread(self._redis.delete_keys)
        self._note(act.kind, target, began, ended)

    async def _neighbour(self, act: Act) -> None:
        store, began = self._cluster.store, now_ms()
        assert isinstance(store, Single)
        same = act.kind == "neighbour-same"
        self._neighbours += 1
        folder = self._folder / f"neighbour-{self._neighbours}"
        neighbour = Neighbour(
            folder, store.port, 0 if same else 1, self._cluster.env, random.Random(self._rng.random())
        )
        self._note(act.kind, await neighbour.run(act.for_s, writes=not same), began)

    async def _keys(self, act: Act) -> None:
        keys, began = self._cluster.key_set, now_ms()
        if act.kind == "keys-unreachable":
            keys.broken = self._rng.choice(("refuse", "dribble"))
        target: str = keys.broken
        if act.kind == "keys-rotated" or self._rng.random() < 0.5:
            keys.rotate()
            target += " rotated"
        await asyncio.sleep(act.for_s)
        keys.broken = ""
        if act.kind == "keys-rotated":
            keys.withdraw()
        self._note(act.kind, target.strip(), began)

    def _note(self, kind: str, target: str, began: int, ended: int = 0) -> None:
        self.done.append(Fault(kind, target, began, ended or now_ms()))
        append(self._path, self.done[-1])

    async def _process(self, act: Act, part: Part) -> None:
        began = now_ms()
        match act.kind.partition("-")[2]:
            case "kill":
                part.send(signal.SIGKILL)
                await part.ended(DRAINED_S)
                await asyncio.sleep(act.for_s)
                await self._cluster.restart(part)
            case "stall":
                part.send(signal.SIGSTOP)
                await asyncio.sleep(act.for_s)
                part.send(signal.SIGCONT)
            case "term":
                await self._replace(part)
        self._note(act.kind, part.url if act.kind == "gateway-term" else part.name, began)

    async def _clock(self, act: Act) -> None:
        """The wall clock steps, and later back; a process that is killed meanwhile begins again with the wrong one."""
        part, began, by_s = self._cluster.parts[act.target], now_ms(), self._rng.uniform(-CLOCK_S, CLOCK_S)
        part.set_clock(by_s)
        await asyncio.sleep(act.for_s)
        part.set_clock(0)
        self._note(act.kind, f"{part.url} by {by_s:+.1f} s", began)

    async def _replace(self, part: Part) -> None:
        """As a deploy does it: told to stop, awaited, started anew."""
        part.send(signal.SIGTERM)
        if not await part.ended(DRAINED_S):
            part.send(signal.SIGKILL)
            part.told = "SIGTERM, in vain"
            await part.ended(DRAINED_S)
        await self._cluster.restart(part)

    async def _rolling(self) -> None:
        """Every process in turn."""
        whole = now_ms()
        for part in self._cluster.parts.values():
            async with part.busy:
                began = now_ms()
                await self._replace(part)
                self._note(f"{part.module}-term", part.url if part.module == "gateway" else part.name, began)
        self._note("rolling", "", whole)

    async def _valkey(self, act: Act) -> None:
        store, (who, _, what), began = self._cluster.store, act.kind.partition("-"), now_ms()
        server = await asyncio.to_thread(store.in_charge)
        if who == "replica":
            server = self._rng.choice([one for one in store.servers if one is not server])
        match what:
            case "kill":
                server.kill()
            case "restart":
                await asyncio.to_thread(server.stop)
            case "disk-full":
                store.fill_disk(server)
                await asyncio.to_thread(server.wait)
            case "stall":
                store.signal(server, signal.SIGSTOP)
            case _ if isinstance(store, Replicated):
                await asyncio.to_thread(store.fail_over)
        await asyncio.sleep(act.for_s)
        if what == "stall":
            store.signal(server, signal.SIGCONT)
        elif what:
            if what == "kill":
                await asyncio.to_thread(store.forget_pages, server)
            await store.restart(server)
        self._note(act.kind, server.folder.name, began)

    async def _sentinel(self, act: Act) -> None:
        store, began = self._cluster.store, now_ms()
        assert isinstance(store, Replicated)
        sentinel = self._rng.choice(store.sentinels)
        sentinel.kill()
        await asyncio.sleep(act.for_s)
        await store.restart_sentinel(sentinel)
        self._note(act.kind, sentinel.folder.name, began)

    async def _link(self, act: Act) -> None:
        side, _, what = act.kind.partition("-")
        part, began = self._cluster.parts[act.target], now_ms()
        proxy = part.store if side == "store" else part.clients
        match what:
            case "cut":
                proxy.cut()
            case "hold":
                proxy.hold()
            case "delay":
                proxy.delay(self._rng.uniform(0.02, 0.2))
            case "stutter":
                proxy.stutter(random.Random(self._rng.random()))
            case "vanish":
                proxy.vanish()
        await asyncio.sleep(act.for_s)
        if what != "vanish":
            proxy.heal()
        self._note(act.kind, part.name, began)
