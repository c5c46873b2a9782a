"""`check-store`: every lack of a server is a sentence, and a fit one can be started on."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.settings import Settings, load
from router.process.check_store import Finding, check_store
from router.store.redis import functions, rights
from tests import support
from tests.cluster import Cluster

LINE = rights.acl_line(functions.build().source.decode())


def settings(url: str, **more: str) -> Settings:
    given = {f"LINNET_{name.upper()}": value for name, value in more.items()}
    return load({"LINNET_REDIS_URL": url, "LINNET_JWT_SECRET": support.JWT_SECRET, **given})


def texts(found: list[Finding], kind: str) -> list[str]:
    return [finding.text for finding in found if finding.kind == kind]


async def test_fit_server_lacks_nothing(valkey: EmbeddedValkey) -> None:
    found = await check_store(settings(valkey.url))
    assert not texts(found, "missing")
    assert ["no `maxmemory`" in text for text in texts(found, "unwise")] == [True]


async def test_server_that_would_lose_acked_sends_is_named(own_valkey: EmbeddedValkey) -> None:
    with own_valkey.client() as redis:
        redis.config_set("appendfsync", "everysec")
    found = await check_store(settings(own_valkey.url))
    assert len(texts(found, "missing")) == 1
    assert "does not fsync what it acknowledges" in texts(found, "missing")[0]
    assert not texts(await check_store(settings(own_valkey.url, durability="memory")), "missing")


async def test_missing_replica_is_named(valkey: EmbeddedValkey) -> None:
    found = await check_store(settings(valkey.url, durability="replicated", replicas="2"))
    assert any("0 replicas, and LINNET_REPLICAS is 2" in text for text in texts(found, "missing"))


@pytest.mark.parametrize("denied", ["-fcall", "-function|load", "-ssubscribe", "-zadd"])
async def test_missing_right_is_named(own_valkey: EmbeddedValkey, denied: str) -> None:
    """Also of a service that has no functions at all."""
    with own_valkey.client() as redis:
        redis.execute_command(*LINE.replace("PASSWORD", "pw").split(), denied)
    found = await check_store(settings(own_valkey.url.replace("://", f"://{rights.USER}:pw@")))
    assert any("deploy/README.md" in text for text in texts(found, "missing")), found
    assert not any("pw" in finding.text for finding in found)


async def test_service_that_hides_its_configuration_needs_its_provider(own_valkey: EmbeddedValkey) -> None:
    """Of the managed services: no CONFIG, DEBUG or WAITAOF, no change of slots, and `volatile-lru`."""
    refused = ("-config", "-debug", "-waitaof", "-cluster|setslot")
    with own_valkey.client() as redis:
        redis.config_set("maxmemory-policy", "volatile-lru")
        redis.execute_command(*LINE.replace("PASSWORD", "pw").split(), *refused)
    url = own_valkey.url.replace("://", f"://{rights.USER}:pw@")
    assert any("CONFIG GET" in text for text in texts(await check_store(settings(url)), "missing"))
    found = await check_store(settings(url, durability="provider"))
    assert not texts(found, "missing")
    assert any("LINNET_DURABILITY=provider" in text for text in texts(found, "unwise"))
    assert any("(volatile-lru): set it to `noeviction`" in text for text in texts(found, "unwise"))


async def test_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.process.check_store.CONNECT_S", 0.2)
    found = await check_store(settings("redis://127.0.0.1:1"))
    assert [finding.kind for finding in found] == ["missing"]
    assert "cannot be reached" in found[0].text


async def test_cluster_is_checked_on_every_server(starts_processes: None, tmp_path: Path) -> None:
    """Its settings, its clocks, where its partitions are; and a shard that is down."""
    cluster = Cluster(tmp_path, (0, 0, 0))
    try:
        await cluster.start()
        url = f"redis+cluster://127.0.0.1:{cluster.primaries[0].port}"
        found = await check_store(settings(url, redis_mode="cluster", durability="memory"))
        assert not texts(found, "missing"), found
        for node in cluster.primaries:
            asked = f"Redis at 127.0.0.1:{node.port}: set `cluster-allow-pubsubshard-when-down no`"
            assert any(text.startswith(asked) for text in texts(found, "unwise"))
        assert any("three calls instead of one" in text for text in texts(found, "costs"))
        cluster.primaries[2].kill()
        found = await check_store(settings(url, redis_mode="cluster", durability="memory"))
        assert any(f":{cluster.primaries[2].port}, which has slots" in text for text in texts(found, "missing"))
    finally:
        cluster.close()


async def test_command_prints_the_findings_and_its_verdict(valkey: EmbeddedValkey) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
    for level, status in (("fsync", 0), ("replicated", 1)):
        env = {"LINNET_REDIS_URL": valkey.url, "LINNET_JWT_SECRET": support.JWT_SECRET, "LINNET_DURABILITY": level}
        ran = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "check-store"),
            cwd=support.ROOT,
            env={**inherited, **env},
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await ran.communicate()
        assert ran.returncode == status
        lines = printed.decode().splitlines()
        assert lines[-1].startswith("Linnet ")
        assert all(line.startswith(("missing: ", "unwise: ", "costs: ")) for line in lines[:-1])
