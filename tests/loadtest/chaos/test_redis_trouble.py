"""Trouble with a running Redis server, caused on a real one, and undone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from loadtest.chaos.clocks import FAKETIME
from loadtest.chaos.proof.evidence import Loss
from loadtest.chaos.proof.history import now_ms
from loadtest.chaos.redis_trouble import RIGHTS, UNFIT, RedisTrouble
from loadtest.chaos.stores import Single
from router.contract import keys
from tests.support import eventually

TALK = "d:ann:bob"


@pytest.fixture
def store(starts_processes: None, tmp_path: Path) -> Iterator[Single]:
    store = Single(tmp_path, "fsync", clocks=FAKETIME is not None)
    asyncio.run(store.start())
    try:
        yield store
    finally:
        store.close()


def trouble(store: Single, tmp_path: Path, seed: int = 1) -> RedisTrouble:
    return RedisTrouble(store, "fsync", tmp_path, random.Random(seed))


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
async def test_server_clock_steps_and_heals(store: Single) -> None:
    with store.client() as client:

        def offset_s() -> float:
            seconds, micros = client.time()
            return float(seconds + micros / 1e6 - now_ms() / 1000)

        store.set_clock(-3600)
        await eventually(lambda: abs(offset_s() + 3600) < 5)
        await store.heal()
        await eventually(lambda: abs(offset_s()) < 5)


async def test_changed_settings_are_restored(store: Single, tmp_path: Path) -> None:
    """Each setting that breaks the promise has its old value again, and the append-only file is whole."""
    with store.client() as client:
        names = {name for name, _ in UNFIT["fsync"]}
        before = {name: client.config_get(name)[name] for name in names}
        changed = {(await trouble(store, tmp_path, seed).change_settings(0))[0] for seed in range(12)}
        assert changed == {f"{name} {value}" for name, value in UNFIT["fsync"]}
        assert {name: client.config_get(name)[name] for name in names} == before
        assert client.info("persistence")["aof_enabled"] == 1


async def test_removed_rights_are_given_back(store: Single, tmp_path: Path) -> None:
    with store.client() as client:
        before = client.acl_getuser("default")
        removed = {await trouble(store, tmp_path, seed).remove_rights(0) for seed in range(40)}
        assert removed == {" ".join(rules) for rules in RIGHTS}
        after = client.acl_getuser("default")
        assert (after["keys"], after["channels"]) == (before["keys"], before["channels"])
        assert client.execute_command("ACL", "DRYRUN", "default", "SPUBLISH", "a", "b") == b"OK"


def test_deleted_log_is_written_down_with_its_last_seq(store: Single, tmp_path: Path) -> None:
    """What the checker excuses is what was there at the very moment of the deletion."""
    with store.client() as client:
        for seed in range(12):
            client.flushall()
            client.hset(keys.conversation(TALK), "m", (7).to_bytes(8, "big") + bytes(40))
            client.xadd(keys.log(TALK), {"e": b""}, id="7-0")
            client.hset(keys.user("ann"), "created", 1)
            client.hset(keys.convs("ann"), TALK, "row")
            client.hset(keys.convs("bob"), TALK, "row")
            target = trouble(store, tmp_path, seed).delete_keys()
            assert _gone(client, target), target
    losses = [msgspec.json.decode(line, type=Loss) for line in (tmp_path / "losses.jsonl").read_bytes().splitlines()]
    assert {(loss.conversation, loss.upto, loss.user) for loss in losses} == {
        (TALK, 7, ""), (TALK, 0, "ann"), (TALK, 0, "bob"),
    }  # fmt: skip


def _gone(client: redis.Redis, target: str) -> bool:
    match target.split(" "):
        case ["hash", "and", *_]:
            return not client.exists(keys.conversation(TALK), keys.log(TALK))
        case ["log", *_]:
            return not client.exists(keys.log(TALK)) and bool(client.exists(keys.conversation(TALK)))
        case ["hash", "of", user]:
            return not client.exists(keys.user(user))
        case ["row", *_, user]:
            return not client.hexists(keys.convs(user), TALK)
    return False
