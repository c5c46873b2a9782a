"""Which map of a cluster is used, and when it is known to be the present one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.store.redis import map_follower
from tests import support
from tests.cluster import Cluster, slot
from tests.store.redis.test_cluster_client import connected


async def test_older_map_is_not_used(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is cut off tells one for ever. If nobody knows the newer one, the cluster was made anew."""
    monkeypatch.setattr(map_follower, "STALE_S", 1000.0)
    async with connected(cluster.url) as client:
        number = slot("{c1}:any")
        before = client.routing.owner(number)

        async def old(_: object, *command: str) -> Any:
            if command[1] == "INFO":
                return f"cluster_state:ok\r\ncluster_current_epoch:{client.map.epoch - 1}\r\n".encode()
            return [[0, 16383, [b"127.0.0.1", 1, b"id", []]]]

        monkeypatch.setattr(client.map, "_question", old)
        await client.map.ask(True)
        assert client.routing.owner(number) is before
        monkeypatch.setattr(map_follower, "STALE_S", 0.0)
        await client.map.ask(True)
        assert client.routing.owner(number) is not before


async def test_map_is_certain_once_most_primaries_have_named_its_epoch(cluster: Cluster) -> None:
    """A new epoch makes it uncertain, until its map was asked for again and the primaries agree."""
    async with connected(cluster.url) as client:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            began = loop.time()
            await support.eventually(lambda began=began: client.certain_at > began, 60)  # type: ignore[misc]
        before = client.map.epoch
        await cluster.fail_over(cluster.replicas[0][0])
        await support.eventually(lambda: client.map.epoch > before, 60)
        changed = loop.time()
        await support.eventually(lambda: client.certain_at > changed, 60)
        assert client.map._epoch_at + map_follower.SPREAD_S <= client.map._asked_at
        await cluster.home()
        for line in client.routing.primaries:
            line.confirmed = client.map.epoch - 1, loop.time()
        await client.map.stop()
        client.routing.primaries[0].confirmed = client.map.epoch, loop.time()
        assert client.certain_at == -float("inf"), "one of three is not most"
