"""A cluster behind TLS and addresses of its own: names of certificates, the address map, and the rights of one user."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from router.contract.errors import StartupError
from router.contract.keys import Channels
from router.store.durability import durability
from router.store.redis import choose, functions, rights
from router.store.redis.cluster_client import ClusterClient
from tests import support
from tests.cluster import Cluster, slot
from tests.store.conftest import proxied
from tests.store.redis.test_connection import certificate

LINE = rights.acl_line(functions.build().source.decode())


@pytest.fixture(scope="module")
def cluster(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), (0, 0, 0))
    support.run(made.start())
    yield made
    made.close()


def give_rights(cluster: Cluster, *changes: str) -> str:
    """Give the user of the operating page its rights on every server; return what a URL has before the hosts."""
    for node in cluster.nodes:
        with node.client() as redis:
            redis.execute_command("ACL", "DELUSER", rights.USER)
            redis.execute_command(*LINE.replace("PASSWORD", "pw").split(), *changes)
    return f"{rights.USER}:pw@"


async def test_names_of_certificates_and_announced_addresses(cluster: Cluster, tmp_path: Path) -> None:
    """The servers announce addresses without TLS; the map leads to proxies whose certificate has another name."""
    cert, key = certificate(tmp_path, "redis.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(proxied(node.url, context)) for node in cluster.nodes]
        ports = [proxy.url.rpartition(":")[2].removesuffix("/0") for proxy in proxies]
        reachable = ",".join(
            f"127.0.0.1:{node.port}=127.0.0.1:{port}" for node, port in zip(cluster.nodes, ports, strict=True)
        )
        url = f"rediss+cluster://127.0.0.1:{ports[0]}?ssl_ca_certs={cert}"
        client = choose.client(url, "cluster", reachable=reachable, tls_name="redis.example")
        stack.push_async_callback(client.close)
        await client.open()
        assert isinstance(client, ClusterClient)
        keys = [f"{{c{i}}}:x" for i in range(12)]
        for name in keys:
            await client.fetch("SET", name, name)
        assert {server.address.port for server in client.servers} == set(map(int, ports))
        assert len({slot(name) * 3 // 16384 for name in keys}) == 3
        assert [await client.fetch("GET", name) for name in keys] == [name.encode() for name in keys]
        nameless = choose.client(url, "cluster", reachable=reachable)
        with pytest.raises(StartupError, match="certificate"):
            await nameless.open(1.0)


async def test_user_of_the_operating_page_can_do_everything(cluster: Cluster) -> None:
    url = f"redis+cluster://{give_rights(cluster)}127.0.0.1:{cluster.nodes[0].port}"
    client = await choose.connected(url, "cluster")
    client.channels = Channels("x.0:")
    bus = choose.bus(client, "node", lambda _: None, lambda: None, lambda: None, lambda _: None)
    kept = durability("replicated", client, 1)
    try:
        await client.check_server("memory")
        await client.probe()
        await bus.connect(10)
        await bus.probe(client.channels.probes())
        await kept.connect(10)
        for tag in ("{c1}", "{c2}", "{c3}"):  # a slot that moves key by key: ASKING
            source = next(node for node in cluster.nodes if node.id == node.owner(slot(tag)))
            target = next(node for node in cluster.nodes if node is not source)
            await client.fetch("SET", f"{tag}:x", "kept")
            target.call("CLUSTER", "SETSLOT", slot(tag), "IMPORTING", source.id)
            source.call("CLUSTER", "SETSLOT", slot(tag), "MIGRATING", target.id)
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", f"{tag}:x")
            assert await client.fetch("GET", f"{tag}:x") == b"kept"
            for node in (target, source):
                node.call("CLUSTER", "SETSLOT", slot(tag), "NODE", target.id)
        assert isinstance(client, ClusterClient)
        assert client.routing.redirects["ASK"] >= 3
        assert not client.statistics().hot.errors.get("NOPERM")
    finally:
        await kept.close()
        await bus.close()
        await client.close()


@pytest.mark.parametrize("denied", ["-cluster|slots", "-cluster|info"])
async def test_missing_right_to_the_map_ends_the_start(cluster: Cluster, denied: str) -> None:
    client = choose.client(
        f"redis+cluster://{give_rights(cluster, denied)}127.0.0.1:{cluster.nodes[0].port}", "cluster"
    )
    with pytest.raises(StartupError, match=rf"{denied.replace('|', '.').removeprefix('-')}.*deploy/README.md"):
        await client.open(60)
