"""Every Prometheus metric of both processes, declared once; each process shows those that are not the other's (`Own`).

Units are in the names, labels are bounded (never a user, device or conversation). Hot paths use children bound here at
import and count once per batch, so that no message pays a label lookup.
"""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
from prometheus_client import REGISTRY, Gauge, Histogram, Metric, disable_created_metrics

# A `…_created` beside every counter doubles a scrape and nobody asks for them.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not type it


class Counter(prometheus_client.Counter):
    """Without the library's checks of every call: five counts were a sixth of what Python does for a message."""

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._value.inc(amount)


_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

BUILD_INFO = Gauge("linnet_build_info", "1, with what runs", ("process", "version", "python", "node"))

# -- gateway: connections and sessions
CONNECTIONS = Gauge("linnet_gateway_connections", "Open WebSocket connections")
CONNECTION_LIMIT = Gauge("linnet_gateway_connection_limit", "Connections this gateway accepts")
CONNECTS = Counter("linnet_gateway_connects", "Connection attempts by result", ("result",))
CLOSES = Counter("linnet_gateway_closes", "Closed connections by close code", ("code",))
SESSIONS = Gauge("linnet_gateway_sessions", "Authenticated sessions", ("state",))
SESSIONS_LIVE = SESSIONS.labels("live")
SESSIONS_BEHIND = SESSIONS.labels("behind")
FELL_BEHIND = Counter("linnet_gateway_sessions_fell_behind", "Times a slow session left the live set")
WRITE_BUFFER_BYTES = Gauge("linnet_gateway_behind_write_buffer_bytes", "Bytes buffered for sessions that are behind")
COMMANDS = Counter("linnet_gateway_commands", "Commands by type and result", ("command", "result"))
IN_FLIGHT = Gauge("linnet_gateway_commands_in_flight", "Commands that wait for Redis")
CONNECT_SECONDS = Histogram("linnet_gateway_connect_seconds", "From hello to welcome", buckets=_LATENCY)

# -- gateway: the way of an event
DELIVERIES = Counter("linnet_gateway_deliveries", "Events written to sessions", ("path",))
DELIVERIES_LIVE = DELIVERIES.labels("live")
DELIVERIES_REPLAY = DELIVERIES.labels("replay")
WRITTEN_BYTES = Counter("linnet_gateway_written_bytes", "Bytes of events written to sessions")
APPEND_SECONDS = Histogram(
    "linnet_gateway_append_seconds", "From command to durable append, of one in eight", buckets=_LATENCY
)
DELIVERY_SECONDS = Histogram(
    "linnet_gateway_delivery_seconds",
    "From an event's stamp to its live write here: of a group each write's last, of direct ones one in eight",
    buckets=_LATENCY,
)
REPAIRS = Counter("linnet_gateway_repairs", "Times the log had to fill in for the fast path", ("cause",))
REPAIRED_EVENTS = Counter("linnet_gateway_repaired_events", "Events that came by repair instead of live")
GAPS = Counter("linnet_gateway_gaps", "Announced gaps", ("reason",))
HUBS = Gauge("linnet_gateway_hubs", "Conversations with live members here")
CHANNELS = Gauge("linnet_gateway_subscribed_channels", "Channels this gateway is subscribed to")
FRAME_CACHE = Counter("linnet_gateway_frame_cache", "Look-ups of JSON frames of replayed events", ("result",))
AUDITS = Counter("linnet_gateway_audits", "Session audits by what they found", ("result",))
AWAYS_DROPPED = Counter("linnet_gateway_aways_dropped", "Ends of sessions that presence was not told of")
DRAINING = Gauge("linnet_gateway_draining", "1 while this gateway drains")
PRESENCE_CHANGES = Counter("linnet_gateway_presence_changes", "Presence changes told to watchers")
PRESENCE_WATCHES = Gauge("linnet_gateway_presence_watches", "Users that local sessions watch")

# -- both: the loop, Redis, HTTP
LOOP_LAG_SECONDS = Histogram("linnet_loop_lag_seconds", "How late the event loop runs a timer", buckets=_LATENCY)
REDIS_UP = Gauge("linnet_redis_up", "1 while the command connection to Redis is up")
REDIS_UNFIT = Gauge("linnet_redis_unfit", "1 while Redis does not keep what LINNET_DURABILITY promises")
REDIS_CALLS = Counter("linnet_redis_calls", "Redis calls by function", ("function",))
REDIS_ERRORS = Counter("linnet_redis_errors", "Redis errors by kind", ("kind",))
REDIS_RECONNECTS = Counter("linnet_redis_reconnects", "Reconnects by connection", ("connection",))
REDIS_SECONDS = Histogram("linnet_redis_seconds", "From a batch's write to its first reply", buckets=_LATENCY)
REDIS_IN_FLIGHT = Gauge("linnet_redis_in_flight", "Commands written and not yet answered")
KEPT = Counter("linnet_redis_kept", "Appends that waited for replicas, by result", ("result",))
KEPT_SECONDS = Histogram("linnet_redis_kept_seconds", "Duration of a wait for replicas", buckets=_LATENCY)
REDIS_MEMORY_RATIO = Gauge("linnet_redis_memory_ratio", "used_memory / maxmemory (0 without a limit)")

ROUND_ERRORS = Counter("linnet_round_errors", "Entries of sweeps, audits and timers that raised, by part", ("part",))
HTTP_REFUSED = Counter("linnet_http_refused", "HTTP requests that no application saw, by why", ("why",))

# -- both: clocks
CLOCK_OFFSET_SECONDS = Gauge("linnet_clock_offset_seconds", "Seconds by which this node's clock is ahead of Redis's")

# -- both: the identity provider, where there is one
JWKS_FETCHES = Counter("linnet_jwks_fetches", "Fetches of the identity provider's key set by result", ("result",))

# -- both: traces, where they are on
TRACE_SPANS = Counter("linnet_trace_spans", "Spans of traces by what became of them", ("result",))

# -- router
DIRTY = Gauge("linnet_router_dirty_conversations", "Conversations that routers still have to finish")
DIRTY_AGE_SECONDS = Gauge("linnet_router_dirty_oldest_age_seconds", "How overdue the oldest of them is")
FINISHED = Counter("linnet_router_finished_conversations", "Claims worked off, by result", ("result",))
QUEUE_WRITES = Counter("linnet_router_queue_writes", "Writes to users' slots that were still missing", ("kind",))
TRIMMED_EVENTS = Counter("linnet_router_trimmed_events", "Events trimmed from logs")
TRIMMING_HELD = Gauge(
    "linnet_router_trimming_held",
    "1 while this router trims nothing by age, because Redis's clock is more than a day ahead of its own; else 0",
)
ROUND_ITEMS = Gauge("linnet_router_round_items", "Claimed items that a router works on now, by round", ("round",))
PUSH_BACKLOG = Gauge("linnet_router_push_backlog", "Users with an armed push deadline")
WEBHOOKS = Counter("linnet_router_webhooks", "Webhook posts by result", ("result",))
WEBHOOK_SECONDS = Histogram("linnet_router_webhook_seconds", "Duration of a webhook post", buckets=_LATENCY)
HTTP_REQUESTS = Counter("linnet_router_http_requests", "HTTP API requests", ("route", "status"))
HTTP_SECONDS = Histogram("linnet_router_http_seconds", "Duration of HTTP API requests", ("route",), buckets=_LATENCY)
PASSWORD_SECONDS = Histogram("linnet_router_password_hash_seconds", "Duration of password hashing", buckets=_LATENCY)
GATEWAYS_ALIVE = Gauge("linnet_gateways_alive", "Gateways with a live lease, as this process sees them")


class Own:
    """What a process of this name exports: a router's zeros for gateways would be as many false answers."""

    def __init__(self, process: str) -> None:
        self._others = tuple(f"linnet_{name}_" for name in ("gateway", "router") if name != process)

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in REGISTRY.collect() if not metric.name.startswith(self._others))


# What alerts and dashboards ask for exists from the start: a counter that is born at 1 has not increased.
for _code in (1000, 1001, 1006, 1011, 1012, 4000, 4002, 4003):
    CLOSES.labels(str(_code))
for _result in ("ok", "full"):
    CONNECTS.labels(_result)
for _cause in ("subscribe", "hole", "audit", "resubscribe", "bus_lost"):
    REPAIRS.labels(_cause)
for _reason in ("expired", "failover"):
    GAPS.labels(_reason)
for _why in ("malformed", "upgrade", "full", "descriptors"):
    HTTP_REFUSED.labels(_why)
for _result in ("ok", "failed"):
    JWKS_FETCHES.labels(_result)
for _outcome in ("sent", "retried", "dropped"):
    WEBHOOKS.labels(_outcome)
