"""Spans in OpenTelemetry's SDK, recorded when they are over, and their export to a collector.

This is the only file that imports the SDK, and only `tracing.tracer` imports this file, if an endpoint is set: a
process without traces saves the SDK's memory and start time.

Invariants
- The event loop never waits for the collector: spans wait in a queue of MAX_WAITING, a thread of the SDK sends them,
  and spans are dropped and counted if the queue is full or the collector unreachable.
- `close` takes at most the time of two requests: after a failed one the other spans are dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace import set_span_in_context as in_context

from router.contract import metrics
from router.contract.settings import VERSION

MAX_WAITING: Final = 4096
BATCH: Final = 256
EVERY_MS: Final = 1000.0
REQUEST_S: Final = 3.0
PATH: Final = "/v1/traces"

KINDS: Final = {"send": SpanKind.PRODUCER, "append": SpanKind.CLIENT, "deliver": SpanKind.CONSUMER}

log = logging.getLogger("linnet.tracing")


class Ids(RandomIdGenerator):
    """Random span ids, except for a root span, whose ids are given."""

    def __init__(self) -> None:
        self.root: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return self.root[0] if self.root is not None else super().generate_trace_id()

    def generate_span_id(self) -> int:
        return self.root[1] if self.root is not None else super().generate_span_id()


class Counting(SpanExporter):
    """Counts exported and dropped spans, on the exporting thread; `taken` is the number that has left the queue."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self.closing = False
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        given_up = self.closing and self._failing
        failed = given_up or self._exporter.export(spans) is not SpanExportResult.SUCCESS
        if failed != self._failing:
            self._failing = failed
            log.warning("the trace collector accepts %s", "no spans: they are dropped" if failed else "spans again")
        metrics.TRACE_SPANS.labels("dropped" if failed else "exported").inc(len(spans))
        return SpanExportResult.FAILURE if failed else SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Spans:
    """Spans of one process. Used on one event loop."""

    def __init__(self, endpoint: str, service: str, node: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        about = {"service.name": service, "service.version": VERSION, "service.instance.id": node}
        self._ids = Ids()
        self._exporter = Counting(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + PATH, timeout=REQUEST_S))
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(about), shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=MAX_WAITING,
                schedule_delay_millis=EVERY_MS,
                max_export_batch_size=BATCH,
            )
        )
        self._tracer = self._provider.get_tracer("linnet", VERSION)
        self._recorded = 0

    def record(
        self,
        name: str,
        ids: tuple[int, int],
        times: tuple[int, int],
        attributes: Mapping[str, str | int],
        *,
        root: bool = False,
        error: str = "",
    ) -> None:
        """Record a finished span. `ids`: of the trace and of its root; `times`: start and end in Unix nanoseconds."""
        if self._recorded - self._exporter.taken >= MAX_WAITING:
            metrics.TRACE_SPANS.labels("dropped").inc()
            return
        self._recorded += 1
        self._ids.root = ids if root else None
        span = self._tracer.start_span(
            name,
            Context() if root else _below(ids),
            KINDS[name],
            attributes,
            start_time=times[0],
        )
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(times[1])

    def close(self) -> None:
        """Send the waiting spans; this blocks."""
        self._exporter.closing = True
        self._provider.shutdown()


def _below(ids: tuple[int, int]) -> Context:
    """The context of a root that another process may have recorded."""
    parent = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return in_context(NonRecordingSpan(parent), Context())
