"""Metrics of a process's Redis connections, updated once per scrape.

The connections are on the hot path and count in plain integers; at each scrape the counters are increased by the
difference to the last scrape.
"""

from __future__ import annotations

from prometheus_client import Counter

from router.contract import metrics
from router.store.redis.choose import AnyBus
from router.store.redis.client import Client
from router.store.redis.cluster_client import ClusterClient, ClusterStatistics


class RedisObserver:
    """Updates the metrics; call `observe` at each scrape. A router has no bus."""

    def __init__(self, client: Client, bus: AnyBus | None = None) -> None:
        self._client = client
        self._bus = bus
        self._last: dict[tuple[str, str], int] = {}

    def observe(self) -> None:
        client = self._client.statistics()
        metrics.REDIS_UP.set(client.hot.up)
        metrics.REDIS_UNFIT.set(bool(self._client.fitness.fault))
        metrics.REDIS_IN_FLIGHT.set(client.hot.in_flight)
        for function, calls in client.functions.items():
            self._increase(metrics.REDIS_CALLS, function, calls)
        for kind, errors in client.hot.errors.items():
            self._increase(metrics.REDIS_ERRORS, kind, errors)
        self._increase(metrics.REDIS_ERRORS, "refused", client.hot.refused)
        self._increase(metrics.REDIS_ERRORS, "timeout", client.hot.timeouts)
        self._increase(metrics.REDIS_ERRORS, "no_library", client.hot.loads)
        if isinstance(self._client, ClusterClient):
            self._observe_cluster(self._client.cluster_statistics())
        callbacks = client.hot.callback_errors
        self._increase(metrics.REDIS_RECONNECTS, "commands", client.hot.reconnects)
        if self._bus is not None:
            bus = self._bus.statistics()
            metrics.CHANNELS.set(bus.channels)
            self._increase(metrics.REDIS_RECONNECTS, "bus", bus.reconnects)
            self._increase(metrics.REDIS_ERRORS, "deaf", bus.deaf)
            self._increase(metrics.REDIS_ERRORS, "mute", bus.mute)
            self._increase(metrics.REDIS_ERRORS, "taken_away", bus.taken_away)
            callbacks += bus.callback_errors
        self._increase(metrics.REDIS_ERRORS, "callback", callbacks)

    def _observe_cluster(self, cluster: ClusterStatistics) -> None:
        metrics.REDIS_PARTITIONS.labels("served").set(cluster.partitions_served)
        metrics.REDIS_PARTITIONS.labels("down").set(cluster.partitions_down)
        metrics.REDIS_HELD.set(cluster.held)
        metrics.REDIS_HELD_SECONDS.set(cluster.longest_hold_s)
        metrics.REDIS_EPOCH.set(cluster.epoch)
        metrics.REDIS_SHARD_IN_FLIGHT.clear()
        for number, calls in enumerate(cluster.in_flight):
            metrics.REDIS_SHARD_IN_FLIGHT.labels(str(number)).set(calls)
        for number, calls in enumerate(cluster.calls):
            metrics.REDIS_SHARD_CALLS.labels(str(number)).inc(calls)
        for kind, redirects in cluster.redirects.items():
            self._increase(metrics.REDIS_REDIRECTS, kind, redirects)

    def _increase(self, counter: Counter, label: str, total: int) -> None:
        key = (counter._name, label)
        counter.labels(label).inc(total - self._last.get(key, 0))
        self._last[key] = total
