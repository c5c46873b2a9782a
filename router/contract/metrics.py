"""Every Prometheus metric of both processes, declared once. Each process exports all but those of the other (`Own`).

Units are in the names; labels are bounded (never a user, device or conversation). Hot paths use children that are bound
here at import, and count once per batch, so that no message pays a label lookup.

Help: a noun phrase, with the unit where the name has none, and what each label says.
"""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
from prometheus_client import REGISTRY, Gauge, Histogram, Metric, disable_created_metrics

# A `…_created` beside every counter would double a scrape, and no dashboard or alert uses it.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library does not type it


class Counter(prometheus_client.Counter):
    """Without the library's checks and lock: five counts were a sixth of what Python does for a message.

    No lock is needed: CPython lets another thread run only at calls and at jumps back, and the addition has neither.
    """

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._value._value += amount


_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

BUILD_INFO = Gauge(
    "linnet_build_info",
    "Always 1; the labels name the process, its version, its Python and its node",
    ("process", "version", "python", "node"),
)

# -- gateway: connections and sessions
CONNECTIONS = Gauge("linnet_gateway_connections", "Open WebSocket connections of this gateway")
CONNECTION_LIMIT = Gauge(
    "linnet_gateway_connection_limit", "Maximum of WebSocket connections of this gateway (LINNET_MAX_CONNECTIONS)"
)
CONNECTS = Counter(
    "linnet_gateway_connects", "Attempts to connect, by result: ok, or the reason of the refusal", ("result",)
)
CLOSES = Counter("linnet_gateway_closes", "Closed connections, by close code", ("code",))
SESSIONS = Gauge(
    "linnet_gateway_sessions",
    "Sessions after welcome, by state: live (written to directly) or behind (fed from the log)",
    ("state",),
)
SESSIONS_LIVE = SESSIONS.labels("live")
SESSIONS_BEHIND = SESSIONS.labels("behind")
FELL_BEHIND = Counter(
    "linnet_gateway_sessions_fell_behind", "Times that a session left the live sets because its connection was slow"
)
WRITE_BUFFER_BYTES = Gauge(
    "linnet_gateway_behind_write_buffer_bytes", "Bytes in the write buffers of sessions that are behind"
)
COMMANDS = Counter(
    "linnet_gateway_commands",
    "Commands of clients, by command and by result: ok, or the error code",
    ("command", "result"),
)
IN_FLIGHT = Gauge("linnet_gateway_commands_in_flight", "Commands that append an event and have no answer yet")
CONNECT_SECONDS = Histogram("linnet_gateway_connect_seconds", "Seconds from hello to welcome", buckets=_LATENCY)

# -- gateway: the way of an event
DELIVERIES = Counter(
    "linnet_gateway_deliveries", "Events written to sessions, by path: live, or replay from the log", ("path",)
)
DELIVERIES_LIVE = DELIVERIES.labels("live")
DELIVERIES_REPLAY = DELIVERIES.labels("replay")
WRITTEN_BYTES = Counter("linnet_gateway_written_bytes", "Bytes of events written to sessions")
APPEND_SECONDS = Histogram(
    "linnet_gateway_append_seconds",
    "Seconds from a command to its durable append, for one command in eight",
    buckets=_LATENCY,
)
DELIVERY_SECONDS = Histogram(
    "linnet_gateway_delivery_seconds",
    "Seconds from an event's stamp in Redis to its live write: of a hub's write the last, of direct events 1 in 8",
    buckets=_LATENCY,
)
REPAIRS = Counter("linnet_gateway_repairs", "Repairs started because live delivery missed events, by cause", ("cause",))
REPAIRED_EVENTS = Counter(
    "linnet_gateway_repaired_events", "Events that hubs read from the log because live delivery missed them"
)
GAPS = Counter(
    "linnet_gateway_gaps", "Gaps announced to sessions, by reason: expired (retention) or failover", ("reason",)
)
STATE_EVENTS = Counter(
    "linnet_gateway_state_events",
    "Events of users' state sent to sessions, by cause: live, behind (the version alone) or audit (missed live)",
    ("cause",),
)
HUBS = Gauge("linnet_gateway_hubs", "Groups and channels that have a member with a session on this gateway")
HELD = Gauge(
    "linnet_gateway_held_conversations",
    "Conversations that sessions here wait for, because their part of Redis does not answer, counted by session",
)
SILENT = Gauge(
    "linnet_gateway_silent_conversations",
    "Groups and channels with members connected here whose part of Redis has not answered for 5 s",
)
CHANNELS = Gauge("linnet_gateway_subscribed_channels", "Redis channels that this gateway is subscribed to")
FRAME_CACHE = Counter(
    "linnet_gateway_frame_cache",
    "Lookups of the JSON frame of an event in the cache, live or replayed, by result: hit or miss",
    ("result",),
)
AUDITS = Counter(
    "linnet_gateway_audits",
    "Audits of sessions, by result: ok, replaced, kicked, evicted, or an error code",
    ("result",),
)
AWAYS_DROPPED = Counter(
    "linnet_gateway_aways_dropped", "Ended sessions whose device row could not be marked away, because too many waited"
)
DRAINING = Gauge("linnet_gateway_draining", "1 while this gateway drains, else 0")
PRESENCE_CHANGES = Counter("linnet_gateway_presence_changes", "Changes of presence sent to watching sessions")
PRESENCE_WATCHES = Gauge(
    "linnet_gateway_presence_watches", "Users whose presence is watched by a session of this gateway"
)

# -- both: the loop, Redis, HTTP
LOOP_LAG_SECONDS = Histogram(
    "linnet_loop_lag_seconds", "Seconds by which the event loop runs a timer late", buckets=_LATENCY
)
REDIS_UP = Gauge("linnet_redis_up", "1 while the command connection to Redis is up, else 0")
REDIS_UNFIT = Gauge("linnet_redis_unfit", "1 while Redis does not keep what LINNET_DURABILITY promises, else 0")
REDIS_CALLS = Counter("linnet_redis_calls", "Calls of Redis functions, by function", ("function",))
REDIS_ERRORS = Counter("linnet_redis_errors", "Failed Redis calls and subscriptions, by kind", ("kind",))
REDIS_RECONNECTS = Counter(
    "linnet_redis_reconnects", "Reconnects to Redis, by connection: commands or bus", ("connection",)
)
REDIS_SECONDS = Histogram(
    "linnet_redis_seconds", "Seconds from the write of a batch of calls to its first reply", buckets=_LATENCY
)
REDIS_IN_FLIGHT = Gauge("linnet_redis_in_flight", "Calls that were sent to Redis and have no reply yet")
REDIS_PARTITIONS = Gauge(
    "linnet_redis_partitions",
    "On a cluster: partitions of conversations and users whose server is connected and serves calls (served), or not"
    " (down), by state",
    ("state",),
)
REDIS_REDIRECTS = Counter(
    "linnet_redis_redirects", "On a cluster: calls that were redirected and sent again, by kind of redirect", ("kind",)
)
REDIS_HELD = Gauge("linnet_redis_held", "On a cluster: calls that wait until their slot can be served")
REDIS_HELD_SECONDS = Gauge(
    "linnet_redis_held_seconds", "On a cluster: longest wait of a held call since the last scrape, in seconds"
)
REDIS_EPOCH = Gauge("linnet_redis_epoch", "On a cluster: epoch of the map that this process uses")
REDIS_SHARD_IN_FLIGHT = Gauge(
    "linnet_redis_shard_in_flight",
    "On a cluster: calls that were sent to a primary and have no reply yet, by its number in the order of slots",
    ("shard",),
)
REDIS_SHARD_CALLS = Counter(
    "linnet_redis_shard_calls",
    "On a cluster: calls that were sent to a primary, by its number in the order of slots",
    ("shard",),
)
REDIS_PROVIDER = Gauge(
    "linnet_redis_provider", "1 if LINNET_DURABILITY is provider, so that nobody has checked what acks survive, else 0"
)
KEPT = Counter(
    "linnet_redis_kept",
    "Appends, and pins of files, that waited for replicas, by result: kept, failover, timeout, error or refused",
    ("result",),
)
KEPT_SECONDS = Histogram("linnet_redis_kept_seconds", "Seconds of one wait for replicas", buckets=_LATENCY)
REDIS_MEMORY_RATIO = Gauge("linnet_redis_memory_ratio", "Share of maxmemory that Redis uses; 0 if it has no limit")

ROUND_ERRORS = Counter(
    "linnet_round_errors",
    "Entries of a round (sweep, audit, timer) that raised an exception, by part of the process",
    ("part",),
)
HTTP_REFUSED = Counter(
    "linnet_http_refused", "HTTP requests and connections refused before the application, by reason", ("why",)
)

# -- both: clocks
CLOCK_OFFSET_SECONDS = Gauge(
    "linnet_clock_offset_seconds",
    "Seconds by which the clock of this node is ahead of Redis's; negative if it is behind",
)

# -- both: the identity provider, where there is one
JWKS_FETCHES = Counter(
    "linnet_jwks_fetches", "Fetches of the identity provider's key set, by result: ok or failed", ("result",)
)

# -- both: the pre-send hook, where there is one
SEND_HOOK_QUESTIONS = Counter(
    "linnet_send_hook_questions",
    "Questions to the pre-send hook, by result: accept, reject, replace; or without a verdict: missing (no answer),"
    " invalid (another answer), paused (not asked, because answers were missing), busy (no place in time)",
    ("result",),
)
SEND_HOOK_SECONDS = Histogram(
    "linnet_send_hook_seconds", "Seconds of one post to the pre-send hook, with or without an answer", buckets=_LATENCY
)
SEND_HOOK_PAUSED = Gauge(
    "linnet_send_hook_paused",
    "1 while this process asks the pre-send hook only once a second, because it did not answer",
)
SEND_HOOK_WAITING = Gauge(
    "linnet_send_hook_waiting", "Events that wait for the pre-send hook's verdict, or behind one that does"
)

# -- both: traces, where they are on
TRACE_SPANS = Counter("linnet_trace_spans", "Spans of traces, by result: exported or dropped", ("result",))

# -- router
DIRTY = Gauge(
    "linnet_router_dirty_conversations",
    "Conversations whose finishing is due, in all of Redis: every router reports the same",
)
DIRTY_AGE_SECONDS = Gauge(
    "linnet_router_dirty_oldest_age_seconds", "Seconds by which the oldest due conversation is late, in all of Redis"
)
FINISHED = Counter(
    "linnet_router_finished_conversations",
    "Claimed conversations, by result: finished, partly, removed, lost or failed",
    ("result",),
)
SLOT_WRITES = Counter(
    "linnet_router_slot_writes",
    "Missing writes to users' slots that this router made, by kind: deliver, join, leave, arm (push) or audit",
    ("kind",),
)
MODERATION_ACTS = Counter(
    "linnet_router_moderation_acts",
    "Acts of people who run groups or the deployment, and of backends, by act",
    ("act",),
)
PAIR_CHANGES = Counter(
    "linnet_router_pair_changes",
    "Changes between two users, by action: ask, accept, remove, block or unblock",
    ("action",),
)
PEOPLE_CROWDED = Counter(
    "linnet_router_people_crowded",
    "Blocks that were not noted with the blocked user, because others had filled the rows of that user's people",
)
PAIRS_TAKEN_BACK = Counter(
    "linnet_router_pairs_taken_back",
    "Changes between two users that a failover took back, and that were therefore removed from the users' lists",
)
PAIR_CHECKS_FAILED = Counter(
    "linnet_router_pair_checks_failed",
    "Checks of a pair's copies that raised an error; they are tried again after their lease",
)
TRIMMED_EVENTS = Counter("linnet_router_trimmed_events", "Events that this router trimmed from logs")
TRIMMING_HELD = Gauge(
    "linnet_router_trimming_held",
    "1 while this router trims nothing by age, because Redis's clock is more than a day ahead of its own; else 0",
)
ROUND_ITEMS = Gauge(
    "linnet_router_round_items",
    "Claimed items that this router works on now, by round: finisher, webhooks, files or pairs",
    ("round",),
)
PUSH_BACKLOG = Gauge(
    "linnet_router_push_backlog", "Users with an armed push deadline, in all of Redis: every router reports the same"
)
WEBHOOKS = Counter(
    "linnet_router_webhooks",
    "Webhook posts, by result: sent, retried, dropped, or failed in the router",
    ("result",),
)
WEBHOOK_SECONDS = Histogram("linnet_router_webhook_seconds", "Seconds of one webhook post", buckets=_LATENCY)
HTTP_REQUESTS = Counter(
    "linnet_router_http_requests", "Requests of the HTTP API, by route and status", ("route", "status")
)
HTTP_SECONDS = Histogram(
    "linnet_router_http_seconds", "Seconds of one request of the HTTP API, by route", ("route",), buckets=_LATENCY
)
PASSWORD_SECONDS = Histogram(
    "linnet_router_password_hash_seconds",
    "Seconds of one password hash, without the time in the queue",
    buckets=_LATENCY,
)
MEDIA_WORK_SECONDS = Histogram(
    "linnet_router_media_work_seconds",
    "Seconds in which a worker read one upload, by work (picture or recording) and result: ok, unreadable, too_large,"
    " killed (it hit its bound of memory or CPU), or unavailable",
    ("work", "result"),
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
MEDIA_WORKER_KILLS = Counter(
    "linnet_router_media_worker_kills",
    "Uploads that ended a worker's job, by reason: memory, cpu, time (on the clock), crash, or lost (the worker itself"
    " ended)",
    ("reason",),
)
MEDIA_WAITING = Gauge(
    "linnet_router_media_waiting", "Uploads that wait for a place, by what they wait for: worker or scan", ("place",)
)
MEDIA_SCANS = Counter(
    "linnet_router_media_scans",
    "Scans of uploads, by result: clean, known (scanned before with these signatures), found, or failed (no verdict)",
    ("result",),
)
MEDIA_SCAN_SECONDS = Histogram(
    "linnet_router_media_scan_seconds",
    "Seconds until the scanner's verdict on one upload, or until there was none",
    buckets=(0.001, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
MEDIA_UPLOADS = Counter(
    "linnet_router_media_uploads", "Uploads of files, by kind and by result: ok, or the error code", ("kind", "result")
)
MEDIA_RUNNING = Gauge("linnet_router_media_running_uploads", "Uploads that this router receives or stores now")
MEDIA_BYTES = Counter(
    "linnet_router_media_bytes", "Bytes of files, by way: received, stored (once per file), or served", ("way",)
)
MEDIA_DEDUPED = Counter("linnet_router_media_deduplicated_uploads", "Uploads whose bytes the store had already")
MEDIA_SWEPT = Counter(
    "linnet_router_media_swept",
    "Removals, by what: file (nothing referred to it), object (of the store), reference (its message is gone), upload"
    " (a resumable one that was left), draft (left by a killed process)",
    ("what",),
)
MEDIA_SWEEPS_FAILED = Counter("linnet_router_media_failed_sweeps", "Due files or objects whose removal failed")
MEDIA_UNKNOWN_OBJECTS = Gauge(
    "linnet_router_media_unknown_objects",
    "Objects of the store that Redis does not name, when this router counted last",
)
MEDIA_OBJECTS_MISSING = Counter(
    "linnet_router_media_missing_objects", "Reads of an object that Redis names and the store lacks"
)
MEDIA_LOST_REFERENCES = Counter(
    "linnet_router_media_lost_references", "References of messages to files of which Redis has no record"
)
MEDIA_STORE_SECONDS = Histogram(
    "linnet_router_media_store_seconds",
    "Seconds of one call of the object store, by operation; of a get, until its first byte",
    ("operation",),
    buckets=_LATENCY,
)
MEDIA_STORE_ERRORS = Counter(
    "linnet_router_media_store_errors", "Failed calls of the object store, by operation", ("operation",)
)
SEARCH_INDEXED = Counter("linnet_router_search_indexed_events", "Events that were read into the index of search")
SEARCH_PARTITIONS = Gauge(
    "linnet_router_search_partitions",
    "Partitions of the index that this router keeps, by state: whole, or building (answers are incomplete)",
    ("state",),
)
SEARCH_BEHIND_SECONDS = Gauge(
    "linnet_router_search_behind_seconds", "Seconds by which the part of the index that is furthest behind is late"
)
SEARCH_INDEX_BYTES = Gauge("linnet_router_search_index_bytes", "Bytes of the files of the index that this router keeps")
SEARCH_SECONDS = Histogram(
    "linnet_router_search_seconds", "Seconds of one question to all routers that keep the index", buckets=_LATENCY
)
SEARCH_INCOMPLETE = Counter(
    "linnet_router_search_incomplete_answers",
    "Questions to the index of which a part was being built or could not be reached",
)
GATEWAYS_ALIVE = Gauge("linnet_gateways_alive", "Gateways whose lease runs, as this process read last")


class Own:
    """The metrics that one kind of process exports: zeros of a router in metrics of gateways would be false answers."""

    def __init__(self, process: str) -> None:
        self._others = tuple(f"linnet_{name}_" for name in ("gateway", "router") if name != process)

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in REGISTRY.collect() if not metric.name.startswith(self._others))


# Labels that alerts and dashboards need exist from the start: a counter that first appears at 1 has not increased.
for _code in (1000, 1001, 1006, 1011, 1012, 4000, 4002, 4003):
    CLOSES.labels(str(_code))
for _result in ("ok", "full"):
    CONNECTS.labels(_result)
for _cause in ("subscribe", "hole", "audit", "resubscribe", "bus_lost"):
    REPAIRS.labels(_cause)
for _cause in ("live", "behind", "audit"):
    STATE_EVENTS.labels(_cause)
for _kind in ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING"):
    REDIS_REDIRECTS.labels(_kind)
for _reason in ("expired", "failover"):
    GAPS.labels(_reason)
for _why in ("malformed", "upgrade", "full", "descriptors"):
    HTTP_REFUSED.labels(_why)
for _result in ("ok", "failed"):
    JWKS_FETCHES.labels(_result)
for _outcome in ("sent", "retried", "dropped"):
    WEBHOOKS.labels(_outcome)
for _result in ("accept", "reject", "replace", "missing", "invalid", "paused", "busy"):
    SEND_HOOK_QUESTIONS.labels(_result)
for _reason in ("memory", "cpu", "time", "crash", "lost"):
    MEDIA_WORKER_KILLS.labels(_reason)
for _result in ("clean", "known", "found", "failed"):
    MEDIA_SCANS.labels(_result)
for _place in ("worker", "scan"):
    MEDIA_WAITING.labels(_place)
for _state in ("whole", "building"):
    SEARCH_PARTITIONS.labels(_state)
