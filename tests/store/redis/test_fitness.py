"""Fitness: a server is checked while it is used, and no append on an unfit one counts as kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.errors import Unavailable
from router.store.answers import reply_of
from router.store.durability import durability
from router.store.redis import fitness
from router.store.redis.client import Client
from router.store.redis.connection import address
from router.store.redis.fitness import Level, unfit
from tests import support
from tests.store.conftest import LIBRARY, proxied

pytestmark = pytest.mark.usefixtures("either_loop")

FIT = {
    "redis_version": "7.2.4",
    "cluster_enabled": "0",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
}
FSYNC = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


@pytest.mark.parametrize("level", ["memory", "fsync", "replicated"])
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"redis_version": "7.0.15"}, ""),
        ({"redis_version": "6.2.14"}, "too old"),
        ({"cluster_enabled": "1"}, "cluster"),
        ({"role": "slave"}, "replica"),
        ({"maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
)
def test_fault_makes_a_server_unfit_for_every_durability(level: Level, changes: dict[str, str], fault: str) -> None:
    said = unfit(FIT | changes, level, FSYNC)
    assert fault in said
    assert bool(said) == bool(fault)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("level", "info", "config", "fault"),
    [
        ("memory", {"aof_enabled": "0"}, {"appendfsync": "no"}, ""),
        ("fsync", {"aof_enabled": "0"}, {}, "appendonly yes"),
        ("fsync", {}, {"appendfsync": "everysec"}, "appendfsync always"),
        ("fsync", {}, {"no-appendfsync-on-rewrite": "yes"}, "no-appendfsync-on-rewrite no"),
        ("replicated", {"aof_enabled": "0"}, {}, "appendonly yes"),
        ("replicated", {}, {"appendfsync": "everysec"}, ""),
    ],
)
def test_fault_makes_a_server_unfit_for_one_durability(
    level: Level, info: dict[str, str], config: dict[str, str], fault: str
) -> None:
    said = unfit(FIT | info, level, FSYNC | config)
    assert fault in said
    assert bool(said) == bool(fault)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, ""),
        ({"aof_enabled": "0", "maxmemory_policy": "volatile-lru"}, ""),
        ({"maxmemory_policy": "allkeys-lru"}, "noeviction"),
        ({"role": "slave"}, "replica"),
    ],
)
def test_provider_is_trusted_for_what_cannot_be_asked(changes: dict[str, str], fault: str) -> None:
    """Managed services refuse CONFIG, and evict only keys that expire."""
    said = unfit(FIT | changes, "provider")
    assert fault in said
    assert bool(said) == bool(fault)


@pytest.mark.parametrize(("enabled", "clustered"), [("0", True), ("1", False)])
def test_mode_must_fit_the_server(enabled: str, clustered: bool) -> None:
    assert "LINNET_REDIS_MODE" in unfit(FIT | {"cluster_enabled": enabled}, clustered=clustered)
    assert not unfit(FIT | {"cluster_enabled": enabled}, clustered=not clustered)


@asynccontextmanager
async def watched(url: str, level: Level = "fsync") -> AsyncIterator[Client]:
    client = await Client.connect(url, library=LIBRARY)
    try:
        await client.check_server(level)
        client.fitness.watch(level)
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("level", "name", "bad", "good"),
    [
        ("fsync", "appendfsync", "everysec", "always"),
        ("fsync", "no-appendfsync-on-rewrite", "yes", "no"),
        ("memory", "maxmemory-policy", "allkeys-lru", "noeviction"),
    ],
)
async def test_setting_changed_at_run_time_stops_acks_until_it_is_changed_back(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, level: Level, name: str, bad: str, good: str
) -> None:
    monkeypatch.setattr(fitness, "CHECK_S", 0.02)
    async with watched(valkey.url, level) as client:
        kept = durability("memory", client, 1)
        await reply_of(kept.when_kept, b"id")
        kept.require_fit()
        with valkey.client() as other:
            try:
                other.config_set(name, bad)
                await support.eventually(lambda: client.fitness.fault)
                assert name in client.trouble
                with pytest.raises(Unavailable) as refused:
                    await reply_of(kept.when_kept, b"id")
                assert refused.value.retry_after
                with pytest.raises(Unavailable):
                    kept.require_fit()
            finally:
                other.config_set(name, good)
        await support.eventually(lambda: not client.fitness.fault)
        await reply_of(kept.when_kept, b"id")
        assert client.trouble == ""


async def test_another_server_at_the_address_is_checked_before_its_first_append(
    own_valkey: EmbeddedValkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty and has no append-only file: no append that it answers counts as kept."""
    other = EmbeddedValkey(tmp_path / "other", support.free_ports(1)[0])
    other.start()
    try:
        with other.client() as redis:
            redis.config_set("appendonly", "no")
        async with proxied(own_valkey.url) as proxy, watched(proxy.url) as client:
            kept = durability("fsync", client, 1)
            outcomes: list[bool] = []

            def appended(value: object) -> None:
                if isinstance(value, list):  # answered by the other server, once `fault` is set
                    kept.when_kept(b"id", lambda error: outcomes.append(error is None))

            opened = client._hot.opened

            def opens() -> None:
                opened()
                client.call("echo", (), ("x",), appended)

            monkeypatch.setattr(client._hot, "opened", opens)
            proxy.server = address(other.url)
            own_valkey.kill()
            await support.eventually(lambda: outcomes)
            assert outcomes == [False]
            assert "appendonly yes" in client.trouble
    finally:
        other.kill()


def _blames(client: Client, words: str) -> bool:
    return words in client.fitness.fault


async def test_right_removed_at_run_time_makes_a_server_unfit(
    own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durability that cannot be checked any more is not promised any more."""
    monkeypatch.setattr(fitness, "CHECK_S", 0.02)
    with own_valkey.client() as redis:
        redis.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all")
        async with watched(own_valkey.url.replace("://", "://app:pw@")) as client:
            for right in ("config", "info"):
                redis.execute_command("ACL", "SETUSER", "app", f"-{right}")
                await support.eventually(partial(_blames, client, right.upper()))
                redis.execute_command("ACL", "SETUSER", "app", f"+{right}")
                await support.eventually(lambda: not client.fitness.fault)


async def test_lost_connection_does_not_change_the_verdict(own_valkey: EmbeddedValkey) -> None:
    async with watched(own_valkey.url) as client:
        own_valkey.kill()
        await support.eventually(lambda: not client.available)
        assert client.fitness.fault == ""
        assert "cannot be reached" in client.trouble
        own_valkey.start()
        await support.eventually(lambda: client.available and not client.trouble)
