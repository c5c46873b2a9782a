"""The choice between one server (also under sentinels) and a cluster, made once at the start of a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from router.store.redis.client import CONNECT_S, Client, Mode
from router.store.redis.cluster import Cluster, reachable_of
from router.store.redis.cluster_bus import ClusterBus
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.functions import Library
from router.store.redis.pubsub import Bus, Messages

AnyBus: TypeAlias = Bus | ClusterBus


def client(url: str, mode: Mode, *, library: Library | None = None, reachable: str = "", tls_name: str = "") -> Client:
    """A client that is not connected yet; `StartupError` if the URL is wrong.

    `reachable` and `tls_name` are LINNET_REDIS_MAP and LINNET_REDIS_TLS_NAME.
    """
    if mode == "cluster":
        return ClusterClient(Cluster(url, reachable=reachable_of(reachable), tls_name=tls_name), library)
    return Client.make(url, mode, library=library)


async def connected(url: str, mode: Mode, *, within_s: float = CONNECT_S, library: Library | None = None) -> Client:
    """A connected client."""
    made = client(url, mode, library=library)
    await made.open(within_s)
    return made


def bus(
    client: Client,
    node: str,
    on_messages: Callable[[Messages], None],
    on_lost: Callable[[], None],
    on_restored: Callable[[], None],
    on_channels_restored: Callable[[list[bytes]], None],
) -> AnyBus:
    """The pub/sub of a gateway with this name, which is not connected yet."""
    if isinstance(client, ClusterClient):
        return ClusterBus(client, node, on_messages, on_lost, on_channels_restored)
    return Bus(client, client.channels.echo(node), on_messages, on_lost, on_restored, on_channels_restored)
