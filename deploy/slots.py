"""`python -m deploy.slots check | plan | move`: where a cluster's partitions are, and moving them safely.

`check` says what each primary has and what is wrong. `plan` says which slots to move so that every primary has its
share of the load. `move SLOT … --to HOST:PORT` moves slots as a whole, a few at a time (`CLUSTER MIGRATESLOTS`).
The cluster is that of LINNET_REDIS_URL (`redis+cluster://…`), else of `--url`.

Invariants of a move
- It begins only if all primaries agree about every slot, no server is failing, the target has a replica, and none of
  its replicas lags behind: a slot that has just come is only where the target's replicas have it, too.
- Slots move in batches of BATCH. Before the next batch all primaries know the new owner, and the target's replicas have
  everything that it had after the batch.
- It stops at the first sign of a failover, and says so. What has moved stays where it is.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import redis

from router.contract import keys
from router.store.redis.cluster import SCHEMES
from router.store.redis.slots import SLOTS, slot_of

BATCH: Final = 8
AGREE_S: Final = 30.0
MOVE_S: Final = 600.0
REPLICAS_S: Final = 30.0
POLL_S: Final = 0.05
EVEN: Final = 1.02  # of the mean: a plan does not go below
UNEVEN: Final = 1.25  # of the mean, from which on `check` says so
PARTITIONS: Final = frozenset(slot_of(tag) for family in "cuf" for tag in keys.tags(family))
ENDED: Final = (b"success", b"failed", b"cancelled", b"canceled")  # states of a migration


class SlotsError(Exception):
    """Nothing was moved, or no more is; the text is one line for the terminal."""


class Primary(msgspec.Struct, frozen=True):
    """A primary with what it has of the cluster."""

    address: str
    ident: str
    slots: frozenset[int]
    loads: dict[int, int]  # of its slots with keys
    replicas: int
    lagging: int  # replicas that are not connected, or have not received everything

    @property
    def load(self) -> int:
        return sum(self.loads.values())


class Move(msgspec.Struct, frozen=True):
    slot: int
    source: str
    target: str

    def __str__(self) -> str:
        return f"move {self.slot} --to {self.target}   # from {self.source}"


def plan(primaries: Sequence[Primary]) -> list[Move]:
    """Moves that give each primary its share of the load, largest slots first; empty if all have it."""
    loads = {one.address: dict(one.loads) for one in primaries}
    moves: list[Move] = []
    mean = sum(one.load for one in primaries) / max(len(primaries), 1)
    while True:
        sums = {address: sum(its.values()) for address, its in loads.items()}
        most, least = max(sums, key=lambda at: sums[at]), min(sums, key=lambda at: sums[at])
        gap = sums[most] - sums[least]
        fitting = [(load, slot) for slot, load in loads[most].items() if 0 < load < gap]
        if sums[most] <= EVEN * mean or not fitting:
            return moves
        _, slot = min(fitting, key=lambda one: (abs(one[0] - min(sums[most] - mean, mean - sums[least])), one[1]))
        moves.append(Move(slot, most, least))
        loads[least][slot] = loads[most].pop(slot)


class Servers:
    """The servers of one cluster."""

    def __init__(self, url: str) -> None:
        given = urlsplit(url)
        credentials, at, hosts = given.netloc.rpartition("@")
        if given.scheme not in SCHEMES:
            raise SlotsError("expected a redis+cluster:// or rediss+cluster:// URL, by LINNET_REDIS_URL or --url")
        self._form = f"{SCHEMES[given.scheme]}://{credentials}{at}{{}}/0" + (f"?{given.query}" if given.query else "")
        self._seeds = hosts.split(",")
        self._clients: dict[str, redis.Redis] = {}

    def at(self, address: str) -> Any:
        if address not in self._clients:
            self._clients[address] = redis.Redis.from_url(self._form.format(address), socket_timeout=60)
        return self._clients[address]

    def seed(self) -> Any:
        """A server that answers."""
        for seed in self._seeds:
            with suppress(redis.RedisError):
                client = self.at(seed)
                client.ping()
                return client
        raise SlotsError("none of the cluster's servers in the URL answers")

    def owners(self, client: Any) -> dict[int, str]:
        """The id of each slot's owner, as one server knows it."""
        return {
            slot: primary[2].decode()
            for first, last, primary, *_ in client.execute_command("CLUSTER", "SLOTS")
            for slot in range(first, last + 1)
        }

    def knows(self, asked: str, slots: Iterable[int], owner: Primary) -> bool:
        """Whether a server knows that `owner` has these slots."""
        known = self.owners(self.at(asked))
        return all(known.get(slot) == owner.ident for slot in slots)

    def nodes(self) -> dict[str, list[str]]:
        """The flags of all servers by their addresses, host names before numbers."""
        found = {}
        for line in self.seed().execute_command("CLUSTER", "NODES").decode().splitlines():
            _, where, flags, *_ = line.split()
            announced, *more = where.split(",")
            host, _, port = announced.partition("@")[0].rpartition(":")
            if more and more[0] and "=" not in more[0]:
                host = more[0]
            found[f"{host}:{port}"] = flags.split(",")
        return found

    def masters(self) -> list[str]:
        return [address for address, flags in self.nodes().items() if "master" in flags]

    def primaries(self) -> list[Primary]:
        """All primaries, also those without slots; `SlotsError` if they do not agree or a server is failing."""
        failing = [address for address, flags in self.nodes().items() if "fail" in flags or "fail?" in flags]
        if failing:
            raise SlotsError(f"{failing[0]} is failing: mend the cluster first")
        addresses = self.masters()
        views = {address: self.owners(self.at(address)) for address in addresses}
        first = views[addresses[0]]
        if any(view != first for view in views.values()) or len(first) != SLOTS:
            raise SlotsError("the servers do not agree about all slots, or some have no primary: try again later")
        return [self._primary(address, first) for address in addresses]

    def _primary(self, address: str, owners: dict[int, str]) -> Primary:
        client = self.at(address)
        ident = client.execute_command("CLUSTER", "MYID").decode()
        slots = frozenset(slot for slot, owner in owners.items() if owner == ident)
        info = client.info("replication")
        replicas = [info[f"slave{i}"] for i in range(info["connected_slaves"])]
        offset = info["master_repl_offset"]
        lagging = sum(one["state"] != "online" or offset - int(one["offset"]) > 1 << 20 for one in replicas)
        loads = {slot: keys_in for slot in slots & PARTITIONS if (keys_in := _count(client, slot))}
        return Primary(address, ident, slots, loads, len(replicas), lagging)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def _count(client: Any, slot: int) -> int:
    """The keys of a slot."""
    return int(client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))


def move(servers: Servers, slots: Sequence[int], target: str, say: Callable[[str], None]) -> None:
    """Move slots to a primary, BATCH at a time; `SlotsError` if that is not safe, or not any more."""
    for first in range(0, len(slots), BATCH):
        batch = slots[first : first + BATCH]
        found = {one.address: one for one in servers.primaries()}
        if target not in found:
            raise SlotsError(f"{target} is no primary of this cluster: {', '.join(sorted(found))}")
        _require_safe(found[target])
        epochs = {address: one.ident for address, one in found.items()}
        for source in found.values():
            its = [slot for slot in batch if slot in source.slots and source.address != target]
            if its:
                _move_as_a_whole(servers, its, source, found[target])
                say(f"moved {', '.join(map(str, its))} from {source.address} to {target}")
        after = {one.address: one.ident for one in servers.primaries()}
        if after != epochs:
            raise SlotsError("a server was replaced meanwhile: the rest is not moved; run check, then plan again")


def _require_safe(target: Primary) -> None:
    if not target.replicas:
        raise SlotsError(f"{target.address} has no replica: if it dies, the slots that it gets are lost")
    if target.lagging:
        raise SlotsError(f"{target.lagging} replicas of {target.address} lag behind: try again later")


def _move_as_a_whole(servers: Servers, slots: Sequence[int], source: Primary, target: Primary) -> None:
    client = servers.at(source.address)
    ranges = [part for slot in slots for part in ("SLOTSRANGE", slot, slot, "NODE", target.ident)]
    began = time.monotonic()
    while not servers.knows(target.address, slots, target):
        migrations = client.execute_command("CLUSTER", "GETSLOTMIGRATIONS")
        if all(one[b"state"] in ENDED for one in migrations):
            try:
                client.execute_command("CLUSTER", "MIGRATESLOTS", *ranges)
            except redis.ResponseError as error:  # right after a change the servers may not agree about the owner yet
                if time.monotonic() - began > AGREE_S:
                    raise SlotsError(f"{source.address} refuses to move slots: {error}") from None
        if time.monotonic() - began > MOVE_S:
            raise SlotsError(f"the slots did not move within {MOVE_S:g} s: see CLUSTER GETSLOTMIGRATIONS")
        time.sleep(POLL_S)
    began = time.monotonic()
    while not all(servers.knows(address, slots, target) for address in servers.masters()):
        if time.monotonic() - began > AGREE_S:
            raise SlotsError("the servers do not agree about the new owner: run check")
        time.sleep(POLL_S)
    _wait_for_replicas(servers, target)


def _wait_for_replicas(servers: Servers, target: Primary) -> None:
    """Wait until the target's replicas have all that it has now. WAIT is only about writes of its own connection."""
    client = servers.at(target.address)
    upto = client.info("replication")["master_repl_offset"]
    began = time.monotonic()
    while _replicas_behind(client, upto, target.replicas) > 0:
        if time.monotonic() - began > REPLICAS_S:
            raise SlotsError(
                f"the replicas of {target.address} did not receive the slots in time: do not stop that server"
            )
        time.sleep(POLL_S)


def _replicas_behind(client: Any, upto: int, expected: int) -> int:
    """How many of the expected replicas are not known to have everything up to this offset."""
    info = client.info("replication")
    replicas = [info[f"slave{i}"] for i in range(info["connected_slaves"])]
    having = [one for one in replicas if one["state"] == "online" and int(one["offset"]) >= upto]
    return expected - len(having)


def check(primaries: Sequence[Primary]) -> list[str]:
    """One line for each primary, and then what is wrong."""
    lines = [
        f"{one.address}: {len(one.slots)} slots, {len(one.slots & PARTITIONS)} partitions, {one.load} keys,"
        f" {one.replicas} replicas" + (f", {one.lagging} of them behind" if one.lagging else "")
        for one in primaries
    ]
    loads = [one.load for one in primaries]
    mean = sum(loads) / max(len(loads), 1)
    if mean and max(loads) > UNEVEN * mean:
        lines.append(f"uneven: the largest has {max(loads) / mean:.2f} times the mean; see plan")
    for name, copies in (("leases", keys.GATEWAYS_COPIES), ("deployment", keys.DEPLOYMENT_COPIES)):
        at = {one.address for one in primaries for copy in copies if slot_of(copy) in one.slots}
        if len(at) < min(len(copies), len(primaries)):
            lines.append(f"the copies of the {name} are on {len(at)} servers: move one of {', '.join(copies)}")
    return lines


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.slots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default=os.environ.get("LINNET_REDIS_URL", ""))
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="what each primary has, and what is wrong")
    commands.add_parser("plan", help="the moves that give every primary its share")
    moving = commands.add_parser("move", help="move slots as a whole")
    moving.add_argument("slot", type=int, nargs="+", choices=range(SLOTS), metavar="SLOT")
    moving.add_argument("--to", required=True, metavar="HOST:PORT")
    args = parser.parse_args(given)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    servers = Servers(args.url)
    try:
        if args.command == "move":
            move(servers, args.slot, args.to, say)
            return
        primaries = servers.primaries()
        lines = check(primaries) if args.command == "check" else list(map(str, plan(primaries)))
        for line in lines or ["every primary has its share"]:
            say(line)
    finally:
        servers.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SlotsError, redis.RedisError) as error:
        sys.exit(f"deploy.slots: {error}")
