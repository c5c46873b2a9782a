"""`python -m deploy.slots check | plan | move | isolate | begin`: where partitions are, and moving them safely.

`check` says what each primary has and what is wrong. `plan` says which slots to move so that every primary has its
share of the load. `move SLOT … --to HOST:PORT` moves slots as a whole, a few at a time (`CLUSTER MIGRATESLOTS`).
`isolate NAME --to HOST:PORT` gives a primary to the slot of one busy conversation or user: what else the primary has
goes to the others first. `begin` makes a server that was restarted in cluster mode a cluster of one server.
The cluster is that of `--url`, else of LINNET_REDIS_URL (`redis+cluster://…`) or LINNET_REDIS_URL_FILE.

The load of a slot is its `bytes` (estimated from some of its keys), its number of `keys`, or the `cpu` time that the
servers have counted for it (`cluster-slot-stats-enabled yes`, Valkey).

Invariants of a move
- It begins only if all primaries agree about every slot, no server is failing, no slot of the two moves key by key, and
  the target is safe (`slot_plans.py`): a slot that has just come is only where the target's replicas have it, too.
- Slots move in batches of BATCH or BATCH_BYTES. Before the next batch all primaries know the new owner, and the
  target's replicas have everything that it had after the batch.
- It stops at the first sign of a failover, and says so. What has moved stays where it is.
- `isolate` moves nothing unless every primary that gets a slot may get it, and the busiest primary has less to do
  afterwards.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from deploy.slot_plans import Primary, SlotsError, check, isolation, plan, require_safe, with_partitions
from router.contract import keys
from router.contract.tags import SPREAD, TAGS
from router.store.redis.cluster import SCHEMES
from router.store.redis.slots import SLOTS, slot_of

BATCH: Final = 8
BATCH_BYTES: Final = 1 << 30
SAMPLE: Final = 64  # keys of a slot whose memory is asked for
AGREE_S: Final = 30.0
MOVE_S: Final = 600.0
REPLICAS_S: Final = 30.0
RETRY_S: Final = 0.5  # after a move that was refused or has failed
ANSWER_S: Final = 3.0  # for the first answer of a server that may hang
PATIENCE_S: Final = 60.0  # for every other answer
POLL_S: Final = 0.05
MEASURES: Final = ("bytes", "keys", "cpu")
OPEN: Final = re.compile(r"\[(\d+)-[<>]-")  # in a server's own line: a slot that moves key by key
ENDED: Final = (b"success", b"failed", b"cancelled", b"canceled")  # states of a migration


class Servers:
    """The servers of one cluster."""

    def __init__(self, url: str) -> None:
        given = urlsplit(url)
        credentials, at, hosts = given.netloc.rpartition("@")
        if given.scheme not in SCHEMES:
            raise SlotsError("expected a redis+cluster:// or rediss+cluster:// URL, by --url or LINNET_REDIS_URL")
        self._form = f"{SCHEMES[given.scheme]}://{credentials}{at}{{}}/0" + (f"?{given.query}" if given.query else "")
        self._seeds = hosts.split(",")
        self._clients: dict[str, redis.Redis] = {}

    def at(self, address: str) -> Any:
        if address not in self._clients:
            self._clients[address] = redis.Redis.from_url(self._form.format(address), socket_timeout=PATIENCE_S)
        return self._clients[address]

    def seed(self) -> Any:
        """A server that answers. One that hangs is passed over, if another one does not."""
        for within_s, seed in product((ANSWER_S, PATIENCE_S), self._seeds):
            with (
                suppress(redis.RedisError),
                redis.Redis.from_url(self._form.format(seed), socket_timeout=within_s) as asked,
            ):
                asked.ping()
                return self.at(seed)
        raise SlotsError("none of the cluster's servers in the URL answers")

    def only(self) -> Any:
        """The one server of the URL. Of several, any could be given the slots, also one that has none of the data."""
        if len(self._seeds) != 1:
            raise SlotsError("begin needs a URL with one server, the one that has the data")
        return self.seed()

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
        seed = self.seed()
        for line in seed.execute_command("CLUSTER", "NODES").decode().splitlines():
            _, where, flags, *_ = line.split()
            announced, *more = where.split(",")
            host, _, port = announced.partition("@")[0].rpartition(":")
            if more and more[0] and "=" not in more[0]:
                host = more[0]
            host = host or seed.connection_pool.connection_kwargs["host"]  # a server that has never met another
            found[f"{host}:{port}"] = flags.split(",")
        return found

    def masters(self) -> list[str]:
        return [address for address, flags in self.nodes().items() if "master" in flags and "fail" not in flags]

    def partitions(self) -> str:
        """Return the deployment's field `partitions`, which names its set of hash tags; `SPREAD` if it is not found."""
        for name, address in product(keys.DEPLOYMENT_COPIES, self.masters()):
            with suppress(redis.RedisError):  # another server has this copy, or this one does not answer
                found = (self.at(address).hget(name, "partitions") or b"").decode()
                if found in TAGS:
                    return str(found)
        return SPREAD

    def primaries(self, by: str = "keys") -> list[Primary]:
        """All primaries, also those without slots, with their load measured `by` one of MEASURES; `SlotsError` if they
        do not agree or a server is failing."""
        failing = [address for address, flags in self.nodes().items() if "fail" in flags or "fail?" in flags]
        if failing:
            raise SlotsError(f"{failing[0]} is failing: mend the cluster first")
        addresses = self.masters()
        views = {address: self.owners(self.at(address)) for address in addresses}
        first = views[addresses[0]]
        if any(view != first for view in views.values()) or len(first) != SLOTS:
            raise SlotsError("the servers do not agree about all slots, or some have no primary: try again later")
        return [self._primary(address, first, by) for address in addresses]

    def require_closed(self, addresses: Iterable[str]) -> None:
        """`SlotsError` if a slot moves key by key from or to one of these servers: it moves none as a whole then."""
        for address in addresses:
            if slot := OPEN.search(self.at(address).execute_command("CLUSTER", "NODES").decode()):
                raise SlotsError(f"slot {slot[1]} of {address} moves key by key: finish that, or take it back, first")

    def _primary(self, address: str, owners: dict[int, str], by: str) -> Primary:
        client = self.at(address)
        ident = client.execute_command("CLUSTER", "MYID").decode()
        slots = frozenset(slot for slot, owner in owners.items() if owner == ident)
        info = client.info("replication")
        replicas = [info[f"slave{i}"] for i in range(info["connected_slaves"])]
        offset = info["master_repl_offset"]
        lagging = sum(one["state"] != "online" or offset - int(one["offset"]) > 1 << 20 for one in replicas)
        memory = client.info("memory")
        return Primary(
            address, ident, slots, self.loads(address, slots & with_partitions(), by), len(replicas), lagging,
            memory["used_memory"], memory.get("maxmemory", 0),
        )  # fmt: skip

    def loads(self, address: str, slots: Iterable[int], by: str) -> dict[int, int]:
        """The load of those of a server's slots that have any."""
        client = self.at(address)
        measure = {"bytes": _bytes, "keys": _count, "cpu": _cpu}[by]
        return {slot: load for slot in sorted(slots) if (load := measure(client, slot))}

    def close(self) -> None:
        for client in self._clients.values():
            client.close()


def _count(client: Any, slot: int) -> int:
    """The number of keys of a slot."""
    return int(client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))


def _bytes(client: Any, slot: int) -> int:
    """The memory of a slot, estimated from SAMPLE of its keys."""
    count = _count(client, slot)
    names = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, SAMPLE) if count else ()
    with client.pipeline(transaction=False) as asked:
        for name in names:
            asked.execute_command("MEMORY", "USAGE", name)
        sizes = [int(size) for size in asked.execute() if size is not None]  # else it was removed meanwhile
    return round(sum(sizes) / len(sizes) * count) if sizes else 0


def _cpu(client: Any, slot: int) -> int:
    """The CPU time of a slot in µs, since the server has counted it or was started."""
    try:
        found = client.execute_command("CLUSTER", "SLOT-STATS", "SLOTSRANGE", slot, slot)
    except redis.ResponseError:
        found = []
    numbers = found[0][1] if found else {}
    if b"cpu-usec" not in numbers:
        raise SlotsError("the servers do not count the CPU time of slots: set `cluster-slot-stats-enabled yes`")
    return int(numbers[b"cpu-usec"])


def move(servers: Servers, slots: Sequence[int], target: str, say: Callable[[str], None]) -> None:
    """Move slots to a primary, a batch at a time; `SlotsError` if that is not safe, or not any more."""
    left = list(slots)
    while left:
        found = {one.address: one for one in servers.primaries()}
        if target not in found:
            raise SlotsError(f"{target} is no primary of this cluster: {', '.join(sorted(found))}")
        sizes = _sizes(servers, found.values(), left[:BATCH], target)
        batch = left[:1]
        while len(batch) < min(BATCH, len(left)) and sum(sizes[slot] for slot in left[: len(batch) + 1]) <= BATCH_BYTES:
            batch = left[: len(batch) + 1]
        left = left[len(batch) :]
        require_safe(found[target], sum(sizes[slot] for slot in batch))
        servers.require_closed(one.address for one in found.values() if one.address == target or one.slots & set(batch))
        epochs = {address: one.ident for address, one in found.items()}
        for source in found.values():
            its = [slot for slot in batch if slot in source.slots and source.address != target]
            if its:
                _move_as_a_whole(servers, its, source, found[target])
                say(f"moved {', '.join(map(str, its))} from {source.address} to {target}")
        after = {one.address: one.ident for one in servers.primaries()}
        if after != epochs:
            raise SlotsError("a server was replaced meanwhile: the rest is not moved; run check, then plan again")


def _sizes(servers: Servers, primaries: Iterable[Primary], slots: Sequence[int], target: str) -> dict[int, int]:
    """The bytes of these slots, 0 for those that the target has already."""
    sizes = dict.fromkeys(slots, 0)
    for one in primaries:
        if one.address != target:
            sizes |= servers.loads(one.address, one.slots.intersection(slots), "bytes")
    return sizes


def isolate(servers: Servers, slot: int, target: str, by: str, say: Callable[[str], None], *, only_say: bool) -> None:
    """Give the target to one slot; `SlotsError`, before anything is moved, if that is not safe or would not help."""
    primaries = servers.primaries(by)
    moves = isolation(primaries, slot, target)
    found = {one.address: one for one in primaries}
    for address in dict.fromkeys(one.target for one in moves):
        coming = [one for one in moves if one.target == address]
        sizes = [_sizes(servers, [found[one.source]], [one.slot], address)[one.slot] for one in coming]
        require_safe(found[address], sum(sizes))
    if only_say or not moves:
        for one in moves:
            say(str(one))
        if not moves:
            say(f"{target} has this slot and no other with keys")
        return
    for address in dict.fromkeys(one.target for one in moves):
        move(servers, [one.slot for one in moves if one.target == address], address, say)


def slot_named(name: str) -> int:
    """The slot that an operator names: its number, a conversation (`g:…`, `c:…`, `d:…`) or a user."""
    if name.isdecimal() and int(name) < SLOTS:
        return int(name)
    return slot_of(keys.conversation(name) if keys.is_conversation(name) else keys.user(name))


def begin(client: Any, say: Callable[[str], None]) -> None:
    """Give a server in cluster mode, which is alone, all slots that have no owner; a second time changes nothing."""
    if b"cluster_known_nodes:1\r\n" not in client.execute_command("CLUSTER", "INFO"):
        raise SlotsError("this server belongs to a cluster of several servers already: add slots with its own tools")
    owned = {
        slot
        for first, last, *_ in client.execute_command("CLUSTER", "SLOTS")
        for slot in range(int(first), int(last) + 1)
    }
    missing = [slot for slot in range(SLOTS) if slot not in owned]
    for first in range(0, len(missing), 1000):
        client.execute_command("CLUSTER", "ADDSLOTS", *missing[first : first + 1000])
    until = time.monotonic() + AGREE_S
    while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
        if time.monotonic() > until:
            raise SlotsError(f"the server does not serve after {AGREE_S:g} s: see its log")
        time.sleep(POLL_S)
    say(f"{len(missing)} slots added: the server is a cluster of one")


def _move_as_a_whole(servers: Servers, slots: Sequence[int], source: Primary, target: Primary) -> None:
    client = servers.at(source.address)
    ranges = [part for slot in slots for part in ("SLOTSRANGE", slot, slot, "NODE", target.ident)]
    began = time.monotonic()
    begun, why = False, ""
    while not servers.knows(target.address, slots, target):
        migrations = client.execute_command("CLUSTER", "GETSLOTMIGRATIONS")
        if all(one[b"state"] in ENDED for one in migrations):
            if begun and migrations and migrations[0][b"state"] == b"failed":  # the newest is the first
                why = migrations[0][b"message"].decode()
            if why and time.monotonic() - began > AGREE_S:
                raise SlotsError(f"{source.address} does not move slots to {target.address}: {why}")
            if why:
                time.sleep(RETRY_S)
            try:
                client.execute_command("CLUSTER", "MIGRATESLOTS", *ranges)
                begun = True
            except redis.ResponseError as error:  # right after a change the servers may not agree about the owner yet
                begun, why = False, str(error)
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


def _own_url() -> str:
    """The URL that the processes of this environment use."""
    if file := os.environ.get("LINNET_REDIS_URL_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SlotsError(f"LINNET_REDIS_URL_FILE: cannot read the file ({type(error).__name__})") from None
    return os.environ.get("LINNET_REDIS_URL", "")


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deploy.slots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", help="redis+cluster://…, else that of LINNET_REDIS_URL or LINNET_REDIS_URL_FILE")
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="what each primary has, and what is wrong")
    planning = commands.add_parser("plan", help="the moves that give every primary its share")
    moving = commands.add_parser("move", help="move slots as a whole")
    moving.add_argument("slot", type=int, nargs="+", choices=range(SLOTS), metavar="SLOT")
    isolating = commands.add_parser("isolate", help="give a primary to the slot of one conversation or user")
    isolating.add_argument("name", metavar="SLOT|CONVERSATION|USER")
    isolating.add_argument("--only-say", action="store_true", help="say what would be moved, and move nothing")
    for one in (moving, isolating):
        one.add_argument("--to", required=True, metavar="HOST:PORT")
    for one, usual in ((checking, "keys"), (planning, "bytes"), (isolating, "bytes")):
        one.add_argument("--by", choices=MEASURES, default=usual, help=f"what counts as load (default: {usual})")
    commands.add_parser("begin", help="make a server that was restarted in cluster mode a cluster of one")
    args = parser.parse_args(given)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    servers = Servers(args.url or _own_url())
    try:
        if args.command == "begin":
            begin(servers.only(), say)
            return
        keys.use_tags(servers.partitions())
        if args.command == "move":
            move(servers, args.slot, args.to, say)
            return
        if args.command == "isolate":
            isolate(servers, slot_named(args.name), args.to, args.by, say, only_say=args.only_say)
            return
        primaries = servers.primaries(args.by)
        servers.require_closed(one.address for one in primaries)
        lines = check(primaries, args.by) if args.command == "check" else list(map(str, plan(primaries)))
        for line in lines or ["every primary has its share"]:
            say(line)
    finally:
        servers.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (SlotsError, redis.RedisError) as error:
        sys.exit(f"deploy.slots: {error}")
