"""`python -m router check-store`: say what a Redis lacks for Linnet, before the first start of a deployment.

It reads the settings of a process, connects as a process does, and checks every server that it finds. Each finding is a
sentence: `missing` (a process would not start, or an ack would promise too much), `unwise` (it works until something
fails), `costs` (it works, and this is its price). It writes nothing but the scratch keys of the check of rights.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final, Literal

import msgspec

from router.contract import keys
from router.contract.errors import LinnetError, StartupError
from router.contract.settings import Settings
from router.store.deployment import partitions_of
from router.store.durability import durability
from router.store.redis import choose
from router.store.redis.client import Client
from router.store.redis.cluster_client import ADVISED, CLUSTER_CONFIG, ClusterClient
from router.store.redis.fitness import config_of, info_of
from router.store.redis.slots import slot_of

Kind = Literal["missing", "unwise", "costs"]

CONNECT_S: Final = 10.0
STEP_S: Final = 10.0
CLOCKS_MS: Final = 500
UNEVEN: Final = 1.25  # of the mean, from which on a shard has notably more partitions than others
NODE_TIMEOUT_S: Final = (2.0, 5.0)


class Finding(msgspec.Struct, frozen=True):
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class Findings:
    """All findings of one check, in the order of their kinds."""

    def __init__(self) -> None:
        self._all: list[Finding] = []

    def missing(self, text: str) -> None:
        self._all.append(Finding("missing", text))

    def unwise(self, text: str) -> None:
        self._all.append(Finding("unwise", text))

    def costs(self, text: str) -> None:
        self._all.append(Finding("costs", text))

    def sorted(self) -> list[Finding]:
        order: list[Kind] = ["missing", "unwise", "costs"]
        return sorted(self._all, key=lambda one: order.index(one.kind))


async def check_store(settings: Settings) -> list[Finding]:
    """Everything that is missing, unwise or has a price."""
    found = Findings()
    try:
        client = choose.client(
            settings.redis_url, settings.redis_mode, reachable=settings.redis_map, tls_name=settings.redis_tls_name
        )
        await client.open(CONNECT_S)
    except StartupError as error:
        found.missing(str(error))
        return found.sorted()
    try:
        await _required(found, client.check_server(settings.durability, settings.replicas))
        await _required(found, client.probe())
        await _required(found, _subscribe(client))
        await _required(found, _wait(client, settings))
        for server in client.servers:
            await _advise(found, server, settings)
        if isinstance(client, ClusterClient):
            await _advise_cluster(found, client)
        if settings.durability == "provider":
            found.unwise("LINNET_DURABILITY=provider: Linnet does not check what acked sends survive")
    finally:
        await client.close()
    return found.sorted()


async def _required(found: Findings, step: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(STEP_S):
            await step
    except StartupError as error:
        found.missing(str(error))
    except (LinnetError, TimeoutError):
        found.missing("Redis does not answer what a starting process asks")


async def _subscribe(client: Client) -> None:
    """Subscribe to a channel of every server, as a gateway does."""
    bus = choose.bus(client, "check-store", lambda _: None, lambda: None, lambda: None, lambda _: None)
    try:
        await bus.connect(STEP_S)
        await bus.probe(client.channels.probes())
    finally:
        await bus.close()


async def _wait(client: Client, settings: Settings) -> None:
    kept = durability(settings.durability, client, settings.replicas)
    try:
        await kept.connect(STEP_S)
    finally:
        await kept.close()


async def _advise(found: Findings, server: Client, settings: Settings) -> None:
    """What is unwise about one server, or has a price."""
    where, level = f"Redis at {server.address}", settings.durability
    try:
        info = info_of(await server.fetch("INFO"))
    except LinnetError:
        return
    replicas, wanted = int(info.get("connected_slaves", 0)), settings.replicas
    if info.get("maxmemory") == "0":
        found.unwise(f"{where} has no `maxmemory`: when it is full, the system kills it")
    if (policy := info.get("maxmemory_policy", "")).startswith("volatile-"):
        found.unwise(f"{where} evicts answers to `Idempotency-Key` if it is full ({policy}): set it to `noeviction`")
    if level == "replicated" and replicas < wanted:
        found.missing(f"{where} has {replicas} replicas, and LINNET_REPLICAS is {wanted}: no send is acked")
    if level == "replicated" and replicas > wanted:
        found.unwise(
            f"{where} has {replicas} replicas, and LINNET_REPLICAS is {wanted}: a failover may lose acked sends"
        )
    if level in ("memory", "fsync") and replicas:
        found.costs(f"{where} has replicas, and LINNET_DURABILITY is {level}: failovers may lose acked sends")
    if level == "memory" and info.get("aof_enabled") != "1":
        found.costs(f"{where} stores nothing on its disk: a restart loses everything")


async def _advise_cluster(found: Findings, client: ClusterClient) -> None:
    for server in client.servers:
        await _advise_node(found, server)
    lines = client.routing.primaries
    for line in lines:
        if not line.up:
            found.missing(f"Redis at {line.address}, which has slots, cannot be reached: {line.why}")
    for name, copies in (("leases", keys.GATEWAYS_COPIES), ("deployment", keys.DEPLOYMENT_COPIES)):
        if len({client.routing.owner(slot_of(copy)) for copy in copies}) < min(len(copies), len(lines)):
            found.unwise(f"copies of the {name} share a server: {', '.join(copies)} should be on different ones")
    ahead = [line.ahead_ms for line in lines if line.ahead_ms is not None]
    if ahead and max(ahead) - min(ahead) > CLOCKS_MS:
        apart_s = (max(ahead) - min(ahead)) / 1000
        found.unwise(f"the clocks of the servers differ by {apart_s:.1f} s: let NTP set them")
    with suppress(LinnetError):
        keys.use_tags(await partitions_of(client))
    tags = [*keys.tags("c"), *keys.tags("u")]
    counts = [sum(client.routing.owner(slot_of(tag)) is line for tag in tags) for line in lines]
    mean = sum(counts) / max(len(counts), 1)
    if counts and max(counts) > UNEVEN * mean:
        found.costs(f"one server has {max(counts)} of {len(tags)} partitions, and the mean is {mean:.0f}")
    if len(lines) > 1:
        found.costs(f"with {len(lines)} primaries a direct message takes three calls instead of one")


async def _advise_node(found: Findings, server: Client) -> None:
    where = f"Redis at {server.address}"
    try:
        config = config_of(await server.fetch(*CLUSTER_CONFIG))
    except LinnetError:
        wanted = ", ".join(f"`{name} {value}`" for name, value in ADVISED.items())
        found.unwise(f"{where} does not tell its settings: it should have {wanted}")
        return
    for name, value in ADVISED.items():
        if config.get(name, value) != value:
            found.unwise(f"{where}: set `{name} {value}` (deploy/README.md, On a cluster)")
    timeout_s = int(config.get("cluster-node-timeout", 15_000)) / 1000
    if not NODE_TIMEOUT_S[0] <= timeout_s <= NODE_TIMEOUT_S[1]:
        found.unwise(f"{where} has a `cluster-node-timeout` of {timeout_s:g} s: a failover takes one to two times this")


def report(settings: Settings) -> int:
    """Print the findings; return the exit status: 1 if something is missing."""
    found = asyncio.run(check_store(settings))
    missing = any(finding.kind == "missing" for finding in found)
    verdict = "Linnet does not start here, or does not keep its promises." if missing else "Linnet can start here."
    sys.stdout.write("".join(f"{line}\n" for line in (*found, verdict)))
    return int(missing)
