"""Every function while a slot moves key by key: it does all that it has to do, or nothing.

That is how Redis 7 and `valkey-cli --cluster reshard` move a slot. Meanwhile some keys are at one server and some at
the other. If a function's keys are at different servers, the servers must answer that the caller should try again,
and neither may have changed a key. A server can only answer so if the function's KEYS contain every key that it uses.
"""

import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
import redis

from router.store.redis.functions import FOLDER, build
from tests import support
from tests.cluster import Cluster, Node, slot
from tests.store.function_calls import CASES, Case, Caught, PartsClient, World

REDIRECTS: Final = (redis.exceptions.MovedError, redis.exceptions.AskError, redis.exceptions.TryAgainError)
_KEY: Final = re.compile(r"\{[cuf]\d+\}:[^\" ]*")


@pytest.fixture(scope="module")
def cluster(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), (0,), empty=1)
    support.run(made.start())
    yield made
    made.close()


def test_every_function_has_a_case() -> None:
    assert {file.stem for file in FOLDER.glob("*.lua") if not file.stem.startswith("prelude")} == set(CASES)


@pytest.mark.parametrize("function", sorted(CASES))
async def test_function_does_all_or_nothing_while_its_slot_moves(cluster: Cluster, function: str) -> None:
    async with _two_servers(cluster) as move:
        case = CASES[function]
        used = await move.used(case)
        existing = await move.existing(case, used)
        wrong = []
        for moved in _subsets(existing):
            for absent in (False, True):
                faults = await move.faults(case, used, frozenset(moved), absent)
                wrong += [f"{moved} moved{', the rest absent' if absent else ''}: {fault}" for fault in faults]
        assert not wrong


def _subsets(names: frozenset[str]) -> Iterator[tuple[str, ...]]:
    """All subsets; of many names, those that contain or leave out at most one."""
    sizes = {size for size in range(len(names) + 1) if len(names) <= 4 or min(size, len(names) - size) <= 1}
    return itertools.chain.from_iterable(itertools.combinations(sorted(names), size) for size in sorted(sizes))


class _Move:
    """A slot that moves from `source`, which has all slots, to `target`, which has none."""

    def __init__(self, source: Node, target: Node, client: PartsClient) -> None:
        self._source, self._target = source, target
        self._at_source: Any = redis.Redis(port=source.port, single_connection_client=True)
        self._at_target: Any = redis.Redis(port=target.port, single_connection_client=True)
        self._source_id, self._target_id = source.id, target.id
        self._client = client
        self._worlds = itertools.count(1)

    async def _prepared(self, case: Case) -> tuple[World, Caught]:
        self._at_source.flushall()
        self._at_target.flushall()
        world = World(self._client, next(self._worlds))
        await case.prepare(world)
        return world, await world.caught(lambda: case.call(world))

    async def used(self, case: Case) -> frozenset[str]:
        """The keys that the function declares or uses, without the names that differ from world to world."""
        world, caught = await self._prepared(case)
        used = set(caught.keys)
        with self._source.client() as watching, watching.monitor() as monitor:
            self._at_source.execute_command(*caught.command)
            self._at_source.echo("the end")
            for seen in monitor.listen():
                if "the end" in seen["command"]:
                    break
                if seen["client_type"] == "lua" and not seen["command"].startswith("SPUBLISH"):
                    used.update(_KEY.findall(seen["command"]))
        return frozenset(_plain(world, key) for key in used)

    async def existing(self, case: Case, used: frozenset[str]) -> frozenset[str]:
        world, caught = await self._prepared(case)
        return frozenset(_plain(world, key.decode()) for key in self._dumps(self._at_source, caught)) & used

    async def faults(self, case: Case, used: frozenset[str], moved: frozenset[str], absent: bool) -> list[str]:
        """What is wrong at the source and then at the target, if these keys are moved and the other ones are not, or do
        not exist."""
        world, caught = await self._prepared(case)
        names = {_plain(world, key.decode()): key for key in self._dumps(self._at_source, caught)}
        for name in used - moved if absent else ():
            if name in names:
                self._at_source.delete(names[name])
        self._migrating(caught, "IMPORTING", "MIGRATING")
        try:
            for name in moved:
                target = ("127.0.0.1", self._target.port)
                self._at_source.execute_command("MIGRATE", *target, "", 0, 5000, "KEYS", names[name])
            complete = not absent and used <= names.keys()
            at_source = self._fault(self._at_source, caught, not moved & used, complete)
            at_target = self._fault(self._at_target, caught, used <= moved or len(used) == 1, complete)
        finally:
            self._migrating(caught, "STABLE", "STABLE")
        return [f"the {place} {fault}" for place, fault in (("source", at_source), ("target", at_target)) if fault]

    def _fault(self, server: Any, caught: Caught, has_all: bool, complete: bool) -> str:
        """What is wrong with the function's run at this server.

        `has_all`: none of its keys is at the other one; `complete`: all of its keys exist.
        """
        before = self._everything(caught)
        if server is self._at_target:
            server.execute_command("ASKING")
        try:
            answer, redirected = repr(server.execute_command(*caught.command)), False
        except redis.ResponseError as error:
            answer, redirected = f"{type(error).__name__}: {error}", isinstance(error, REDIRECTS)
        changed = self._everything(caught) != before
        if redirected and changed:
            return f"answers {answer[:60]} after a change"
        if redirected and has_all and complete:
            return f"refuses although it has all keys ({answer[:60]})"
        if not redirected and not has_all:
            return f"runs it {'and changes keys' if changed else 'without a change'} ({answer[:60]})"
        return ""

    def _migrating(self, caught: Caught, target: str, source: str) -> None:
        number = slot(caught.keys[0])
        stable = source == "STABLE"
        self._at_target.execute_command("CLUSTER", "SETSLOT", number, target, *([] if stable else [self._source_id]))
        self._at_source.execute_command("CLUSTER", "SETSLOT", number, source, *([] if stable else [self._target_id]))

    def _everything(self, caught: Caught) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
        return self._dumps(self._at_source, caught), self._dumps(self._at_target, caught)

    def _dumps(self, server: Any, caught: Caught) -> dict[bytes, bytes]:
        """All keys of the slot at this server."""
        dumps = {}
        for key in server.execute_command("CLUSTER", "GETKEYSINSLOT", slot(caught.keys[0]), 1000):
            server.execute_command("ASKING")
            dumps[key] = server.dump(key)
        return dumps


def _plain(world: World, key: str) -> str:
    return key.partition("}:")[2].replace(world.group, "GROUP").replace(world.tag, "TAG") or key


@asynccontextmanager
async def _two_servers(cluster: Cluster) -> AsyncIterator[_Move]:
    source, target = cluster.primaries
    client = PartsClient.make(source.url, library=build())
    assert isinstance(client, PartsClient)
    await client.open()
    for node in cluster.primaries:
        with node.client() as at:
            at.function_load(client.library.source.decode(), replace=True)
    try:
        yield _Move(source, target, client)
    finally:
        await client.close()
