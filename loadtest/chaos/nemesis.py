"""The faults of a run: a schedule that a seed decides, and the code that causes them.

`schedule` is pure: the same seed, length and kinds give the same faults. `Nemesis` causes them in a `Cluster` and
records when each really began and ended. Faults of different processes overlap at random; one process has at most one
fault of its own and one of each of its links at a time.

Adding a fault: a row in `FAULTS`, a case in `Nemesis`, a row in the table of failures of the documentation.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from loadtest.chaos.cluster import DRAINED_S, Cluster, ManagedProcess
from loadtest.chaos.neighbour import Neighbour
from loadtest.chaos.proof.evidence import Fault, append
from loadtest.chaos.proof.history import now_ms
from loadtest.chaos.redis_trouble import RedisTrouble
from loadtest.chaos.shards import Sharded
from loadtest.chaos.stores import Replicated, Single

FIRST_S: Final = 3.0
EVERY_S: Final = 3.0
KILLED_S: Final = 1.0  # how long a process is away whose turn it is
ALL: Final = ("gateway", "router")
CLOCK_S: Final = 60.0  # the largest step of a process's clock

# The levels of durability, and those at which a fault proves something: at `memory` a killed store may lose acked
# events, as documented.
LEVELS: Final = ("memory", "fsync", "replicated")
DISK: Final = ("fsync",)
ONE: Final = ("memory", "fsync")
SENTINELS: Final = ("replicated",)
NEVER: Final = ()
KEPT: Final = ("fsync", "replicated")


class FaultKind(msgspec.Struct, frozen=True):
    """`on`: which processes; `weight`: how often; `lasts`: least and most seconds; `occupies`: what no other fault may
    use meanwhile; `levels`: the durabilities at which it is caused; `sharded`: the same where Redis is a cluster."""

    on: tuple[str, ...]
    weight: float
    lasts: tuple[float, float]
    occupies: str
    levels: tuple[str, ...] = LEVELS
    sharded: tuple[str, ...] = LEVELS


FAULTS: Final[dict[str, FaultKind]] = {
    "gateway-kill": FaultKind(("gateway",), 3, (0.2, 4), "process"),
    "gateway-stall": FaultKind(("gateway",), 2, (0.5, 14), "process"),
    "gateway-term": FaultKind(("gateway",), 2, (0, 1), "process"),
    "router-kill": FaultKind(("router",), 2, (0.2, 6), "process"),
    "router-stall": FaultKind(("router",), 1, (0.5, 14), "process"),
    "router-term": FaultKind(("router",), 1, (0, 1), "process"),
    "gateway-clock": FaultKind(("gateway",), 2, (2, 15), "clock"),
    "router-clock": FaultKind(("router",), 1, (2, 15), "clock"),
    "rolling": FaultKind((), 0.7, (0, 0), "everything"),
    "valkey-kill": FaultKind((), 2, (0.1, 4), "valkey", DISK, NEVER),
    "valkey-restart": FaultKind((), 1, (0, 1), "valkey", ONE, NEVER),
    "valkey-stall": FaultKind((), 1, (0.5, 6), "valkey", ONE, NEVER),
    "valkey-disk-full": FaultKind((), 1, (0.5, 4), "valkey", DISK, NEVER),
    "primary-kill": FaultKind((), 3, (0.5, 8), "valkey", SENTINELS, NEVER),
    "primary-stall": FaultKind((), 3, (0.5, 8), "valkey", SENTINELS, NEVER),
    "replica-kill": FaultKind((), 1, (0.5, 6), "valkey", SENTINELS, KEPT),
    "replica-stall": FaultKind((), 1, (0.5, 6), "valkey", SENTINELS, KEPT),
    "failover": FaultKind((), 3, (1, 3), "valkey", SENTINELS, NEVER),
    "sentinel-kill": FaultKind((), 1, (0.5, 5), "sentinel", SENTINELS, NEVER),
    "shard-kill": FaultKind((), 3, (0.5, 8), "valkey", NEVER, SENTINELS),
    "shard-stall": FaultKind((), 2, (0.5, 8), "valkey", NEVER, SENTINELS),
    "shard-failover": FaultKind((), 2, (0, 0), "valkey", NEVER, LEVELS),
    "shard-takeover": FaultKind((), 1, (0, 0), "valkey", NEVER, SENTINELS),
    "shard-gone": FaultKind((), 1, (1, 10), "valkey", NEVER, KEPT),
    "bus-cut": FaultKind((), 2, (1, 8), "valkey", NEVER, SENTINELS),
    "slot-move": FaultKind((), 3, (0, 0), "valkey", NEVER, LEVELS),
    "slot-move-by-key": FaultKind((), 1, (0, 0), "valkey", NEVER, LEVELS),
    "pubsub-kill": FaultKind((), 3, (0, 0), "pubsub"),
    "store-cut": FaultKind(ALL, 3, (0.2, 6), "store", ONE, LEVELS),
    "store-hold": FaultKind(ALL, 3, (0.5, 14), "store", ONE, LEVELS),
    "store-delay": FaultKind(ALL, 1, (2, 8), "store", ONE, LEVELS),
    "store-stutter": FaultKind(ALL, 2, (3, 8), "store", ONE, LEVELS),
    "valkey-clock": FaultKind((), 1, (2, 12), "clock", ONE, NEVER),
    "valkey-settings": FaultKind((), 1, (9, 14), "valkey", sharded=NEVER),
    "valkey-rights": FaultKind((), 1, (1, 6), "valkey"),
    "functions-flushed": FaultKind((), 1, (0, 0), "valkey"),
    "keys-deleted": FaultKind((), 1, (0, 0), "valkey"),
    "neighbour-database": FaultKind((), 0.5, (5, 9), "neighbour", ONE, NEVER),
    "neighbour-same": FaultKind((), 0.5, (5, 9), "neighbour", ONE, NEVER),
    "keys-rotated": FaultKind((), 1, (2, 8), "keys"),
    "keys-unreachable": FaultKind((), 1, (2, 12), "keys"),
    "client-cut": FaultKind(("gateway",), 1, (0.2, 4), "clients"),
    "client-hold": FaultKind(("gateway",), 2, (1, 15), "clients"),
    "client-delay": FaultKind(("gateway",), 1, (2, 8), "clients"),
    "client-stutter": FaultKind(("gateway",), 1, (3, 8), "clients"),
    "client-vanish": FaultKind(("gateway",), 1, (0, 0), "clients"),
    "objects-kill": FaultKind((), 3, (0.2, 6), "objects"),
    "objects-stall": FaultKind((), 1, (0.5, 14), "objects"),
    "hook-kill": FaultKind((), 3, (0.2, 8), "hook"),
    "hook-slow": FaultKind((), 2, (2, 10), "hook"),
    "hook-silent": FaultKind((), 1, (2, 10), "hook"),
    "hook-nonsense": FaultKind((), 2, (2, 10), "hook"),
    "hook-harsh": FaultKind((), 1, (1, 4), "hook"),
}

# Faults of a Redis server that keeps running, and of whatever else a deployment shares (`--faults redis-trouble`).
REDIS_TROUBLE: Final = (
    "valkey-clock", "valkey-settings", "valkey-rights", "functions-flushed", "keys-deleted", "neighbour-database",
    "neighbour-same", "keys-rotated", "keys-unreachable",
)  # fmt: skip

# Faults of the object store, where people send pictures (`--pictures`).
OBJECT_FAULTS: Final = ("objects-kill", "objects-stall")

# Faults of the pre-send hook, where there is one (`--hook`).
HOOK_FAULTS: Final = ("hook-kill", "hook-slow", "hook-silent", "hook-nonsense", "hook-harsh")

# Faults beside those of clients (`--clients`): not those that make tokens or logs invalid, which is not theirs to mend.
CLIENT_FAULTS: Final = tuple(
    kind
    for kind in FAULTS
    if kind not in (*REDIS_TROUBLE, *OBJECT_FAULTS, *HOOK_FAULTS, "gateway-clock", "router-clock")
)


def possible(kinds: Collection[str], level: str, *, clocks: bool, sharded: bool = False) -> list[str]:
    """Return those of the kinds (none given: all) that prove something at this level.

    `clocks`: whether clocks can step; `sharded`: whether Redis is a cluster.
    """
    known = {kind: FAULTS[kind] for kind in kinds or FAULTS}
    return [
        kind
        for kind, fault in known.items()
        if level in (fault.sharded if sharded else fault.levels) and (clocks or fault.occupies != "clock")
    ]


class PlannedFault(msgspec.Struct, frozen=True):
    at_s: float
    kind: str
    target: str
    for_s: float


def schedule(
    seed: int,
    seconds: float,
    processes: Collection[str],
    kinds: Collection[str] = FAULTS,
    every_s: float = EVERY_S,
) -> list[PlannedFault]:
    """Return the faults in order; all of them end within `seconds`."""
    rng = random.Random(seed)
    chosen = {kind: FAULTS[kind] for kind in kinds}
    faults, at, free_from = [], FIRST_S, dict[tuple[str, str], float]()
    while (at := at + rng.expovariate(1 / every_s)) < seconds:
        kind = rng.choices(list(chosen), [one.weight for one in chosen.values()])[0]
        fault = chosen[kind]
        targets = [process for process in sorted(processes) if process.startswith(fault.on)] if fault.on else [""]
        target, for_s = rng.choice(targets), rng.uniform(*fault.lasts)
        if at + for_s < seconds and free_from.get((target, fault.occupies), 0) <= at:
            free_from[target, fault.occupies] = at + for_s
            faults.append(PlannedFault(round(at, 3), kind, target, round(for_s, 3)))
    return faults


def in_turn(seconds: float, processes: Collection[str], every_s: float) -> list[PlannedFault]:
    """Return kills of gateways, routers and the store, one after the other, again and again."""
    gateways, routers = (sorted(name for name in processes if name.startswith(kind)) for kind in ALL)
    kinds = [("gateway-kill", gateways), ("router-kill", routers), ("valkey-kill", [""])]
    faults: list[PlannedFault] = []
    while (at := FIRST_S + len(faults) * every_s) + KILLED_S < seconds:
        (kind, targets), turn = kinds[len(faults) % len(kinds)], len(faults) // len(kinds)
        faults.append(PlannedFault(at, kind, targets[turn % len(targets)], KILLED_S))
    return faults


class Nemesis:
    """Causes the faults of a schedule."""

    def __init__(self, cluster: Cluster, seed: int, folder: Path) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._folder = folder
        self._path = folder / "faults.jsonl"
        self._redis = RedisTrouble(cluster.store, cluster.level, folder, random.Random(self._rng.random()))
        self._neighbours = 0
        self.done: list[Fault] = []

    async def carry_out(self, faults: list[PlannedFault]) -> None:
        """Cause all faults, and return when the last has ended; raise if one could not be caused."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - asyncio.get_running_loop().time()))
                group.create_task(self._cause(fault))

    async def _cause(self, fault: PlannedFault) -> None:
        kind = FAULTS[fault.kind]
        if fault.kind in REDIS_TROUBLE:
            await self._trouble(fault)
        elif kind.occupies == "process":
            process = self._cluster.processes[fault.target]
            async with process.busy:
                await self._process(fault, process)
        elif kind.occupies == "valkey":
            async with self._cluster.store_busy:
                store = self._cluster.store
                await (self._shard(fault, store) if isinstance(store, Sharded) else self._valkey(fault))
        elif kind.occupies == "clock":
            await self._clock(fault)
        elif kind.occupies == "sentinel":
            await self._sentinel(fault)
        elif kind.occupies == "objects":
            await self._objects(fault)
        elif kind.occupies == "hook":
            await self._hook(fault)
        elif fault.kind == "rolling":
            await self._rolling()
        elif fault.kind == "pubsub-kill":
            began = now_ms()
            await asyncio.to_thread(self._cluster.store.kill_subscribers)
            self._note(fault.kind, "", began)
        else:
            await self._link(fault)

    async def _trouble(self, fault: PlannedFault) -> None:
        match fault.kind:
            case "valkey-clock":
                began = now_ms()
                self._note(fault.kind, await self._redis.step_clock(fault.for_s), began)
            case "neighbour-database" | "neighbour-same":
                await self._neighbour(fault)
            case "keys-rotated" | "keys-unreachable":
                await self._keys(fault)
            case _:
                async with self._cluster.store_busy:
                    await self._server(fault)

    async def _server(self, fault: PlannedFault) -> None:
        began, ended = now_ms(), 0
        match fault.kind:
            case "valkey-settings":
                target, began, ended = await self._redis.change_settings(fault.for_s)
            case "valkey-rights":
                target = await self._redis.remove_rights(fault.for_s)
            case "functions-flushed":
                target = await asyncio.to_thread(self._redis.flush_functions)
            case _:
                target = await asyncio.to_thread(self._redis.delete_keys)
        self._note(fault.kind, target, began, ended)

    async def _neighbour(self, fault: PlannedFault) -> None:
        store, began = self._cluster.store, now_ms()
        assert isinstance(store, Single)
        same = fault.kind == "neighbour-same"
        self._neighbours += 1
        folder = self._folder / f"neighbour-{self._neighbours}"
        neighbour = Neighbour(
            folder, store.port, 0 if same else 1, self._cluster.env, random.Random(self._rng.random())
        )
        self._note(fault.kind, await neighbour.run(fault.for_s, writes=not same), began)

    async def _keys(self, fault: PlannedFault) -> None:
        keys, began = self._cluster.key_set, now_ms()
        if fault.kind == "keys-unreachable":
            keys.broken = self._rng.choice(("refuse", "dribble"))
        target: str = keys.broken
        if fault.kind == "keys-rotated" or self._rng.random() < 0.5:
            keys.rotate()
            target += " rotated"
        await asyncio.sleep(fault.for_s)
        keys.broken = ""
        if fault.kind == "keys-rotated":
            keys.withdraw()
        self._note(fault.kind, target.strip(), began)

    def _note(self, kind: str, target: str, began: int, ended: int = 0) -> None:
        self.done.append(Fault(kind, target, began, ended or now_ms()))
        append(self._path, self.done[-1])

    async def _process(self, fault: PlannedFault, process: ManagedProcess) -> None:
        began = now_ms()
        match fault.kind.partition("-")[2]:
            case "kill":
                process.send(signal.SIGKILL)
                await process.ended(DRAINED_S)
                await asyncio.sleep(fault.for_s)
                await self._cluster.restart(process)
            case "stall":
                process.send(signal.SIGSTOP)
                await asyncio.sleep(fault.for_s)
                process.send(signal.SIGCONT)
            case "term":
                await self._replace(process)
        self._note(fault.kind, process.url if fault.kind == "gateway-term" else process.name, began)

    async def _clock(self, fault: PlannedFault) -> None:
        """Step the wall clock and later back; a process that restarts meanwhile starts with the wrong clock."""
        process, began, by_s = self._cluster.processes[fault.target], now_ms(), self._rng.uniform(-CLOCK_S, CLOCK_S)
        process.set_clock(by_s)
        await asyncio.sleep(fault.for_s)
        process.set_clock(0)
        self._note(fault.kind, f"{process.url} by {by_s:+.1f} s", began)

    async def _replace(self, process: ManagedProcess) -> None:
        """Stop a process as a deploy does, wait for its end, and start a new one."""
        process.send(signal.SIGTERM)
        if not await process.ended(DRAINED_S):
            process.send(signal.SIGKILL)
            process.asked = "SIGTERM, in vain"
            await process.ended(DRAINED_S)
        await self._cluster.restart(process)

    async def _rolling(self) -> None:
        """Replace every process in turn."""
        whole = now_ms()
        for process in self._cluster.processes.values():
            async with process.busy:
                began = now_ms()
                await self._replace(process)
                self._note(
                    f"{process.module}-term", process.url if process.module == "gateway" else process.name, began
                )
        self._note("rolling", "", whole)

    async def _valkey(self, fault: PlannedFault) -> None:
        store, (who, _, what), began = self._cluster.store, fault.kind.partition("-"), now_ms()
        server = await asyncio.to_thread(store.primary)
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
        await asyncio.sleep(fault.for_s)
        if what == "stall":
            store.signal(server, signal.SIGCONT)
        elif what:
            if what == "kill":
                await asyncio.to_thread(store.drop_page_cache, server)
            await store.restart(server)
        self._note(fault.kind, server.folder.name, began)

    async def _shard(self, fault: PlannedFault, store: Sharded) -> None:
        """Cause a fault of a cluster's server or slot, and wait until the cluster is whole again."""
        began = now_ms()
        primary = await asyncio.to_thread(store.primary)
        pair = store.shard_of(primary)
        servers = (
            [primary]
            if fault.kind.startswith("shard") or fault.kind == "bus-cut"
            else [one for one in pair if one is not primary]
        )
        match fault.kind:
            case "shard-kill" | "replica-kill" | "shard-gone":
                servers = pair if fault.kind == "shard-gone" else servers
                for server in servers:
                    server.kill()
                await asyncio.sleep(fault.for_s)
                for server in sorted(servers, key=lambda one: one is not primary):  # the replica may lack something
                    await store.restart(server)
                target = " ".join(server.folder.name for server in servers)
            case "shard-stall" | "replica-stall":
                (server,) = servers
                store.signal(server, signal.SIGSTOP)
                await asyncio.sleep(fault.for_s)
                store.signal(server, signal.SIGCONT)
                target = server.folder.name
            case "bus-cut":
                store.bus.cut(primary.address)
                await asyncio.sleep(fault.for_s)
                store.bus.heal()
                target = primary.folder.name
            case "shard-failover":
                target = await store.fail_over()
            case "shard-takeover":
                target = await store.fail_over("TAKEOVER")
            case "slot-move":
                target = await store.move(back=self._rng.random() < 0.5)
            case _:
                target = await store.move_by_key()
        ended = now_ms()
        await store.whole()
        self._note(fault.kind, target, began, ended)

    async def _sentinel(self, fault: PlannedFault) -> None:
        store, began = self._cluster.store, now_ms()
        assert isinstance(store, Replicated)
        sentinel = self._rng.choice(store.sentinels)
        sentinel.kill()
        await asyncio.sleep(fault.for_s)
        await store.restart_sentinel(sentinel)
        self._note(fault.kind, sentinel.folder.name, began)

    async def _objects(self, fault: PlannedFault) -> None:
        store, began = self._cluster.objects, now_ms()
        assert store is not None
        async with self._cluster.objects_busy:
            if fault.kind == "objects-kill":
                store.kill()
                await asyncio.sleep(fault.for_s)
                await asyncio.to_thread(store.start)
            else:
                store.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.for_s)
                store.signal(signal.SIGCONT)
        self._note(fault.kind, "", began)

    async def _hook(self, fault: PlannedFault) -> None:
        hook, began = self._cluster.hook, now_ms()
        assert hook is not None
        match fault.kind:
            case "hook-kill":
                hook.kill()
            case "hook-slow":
                hook.mode = "slow"
            case "hook-silent":
                hook.mode = "silent"
            case "hook-nonsense":
                hook.mode = "nonsense"
            case _:
                hook.mode = "harsh"
        await asyncio.sleep(fault.for_s)
        hook.mode = "good"
        await hook.start()
        self._note(fault.kind, "", began)

    async def _link(self, fault: PlannedFault) -> None:
        side, _, what = fault.kind.partition("-")
        process, began = self._cluster.processes[fault.target], now_ms()
        proxies, target = (process.stores if side == "store" else [process.clients]), process.name
        if len(proxies) > 1 and self._rng.random() < 0.5:  # the link to one server only
            proxies = [self._rng.choice(proxies)]
            target += f" to port {proxies[0].to_port}"
        for proxy in proxies:
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
        await asyncio.sleep(fault.for_s)
        if what != "vanish":
            for proxy in proxies:
                proxy.heal()
        self._note(fault.kind, target, began)
