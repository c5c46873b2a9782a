"""router/process/tracing.py: the same ids and the same decision in every process, and no cost if traces are off."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from time import perf_counter
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from router.contract import metrics, stamp
from router.contract.errors import Unavailable
from router.contract.packing import pack
from router.contract.settings import Settings
from router.process import spans
from router.process.logs import JsonFormatter
from router.process.tracing import Tracer, root_id, trace_id, tracer

SECRET = "s" * 32
CONVERSATION = "g:0123456789012345678901"
ENDPOINT = "http://127.0.0.1:9"


def settings(ratio: float = 1.0) -> Settings:
    return Settings(jwt_secret=SECRET, otlp_endpoint=ENDPOINT, trace_ratio=ratio)


def event(seq: int) -> bytes:
    packed = {"media": pack("text"), "body": pack("hello")}
    return stamp.fill(
        stamp.tail("message", CONVERSATION, "ann", "phone", 1, packed), stamp.Slots(seq, seq - 1, seq, 1000)
    )


class Collector(SpanExporter):
    """Receives spans in place of the exporter, or refuses them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Any) -> SpanExportResult:
        self.spans += spans
        return self.result


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    made = Collector()
    monkeypatch.setattr(spans, "OTLPSpanExporter", lambda **_: made)
    return made


def made(ratio: float = 1.0) -> Tracer:
    one = tracer(settings(ratio), "linnet-gateway", "a-node")
    assert one is not None
    return one


def dropped() -> float:
    return float(metrics.TRACE_SPANS.labels("dropped")._value.get())


def test_ids_follow_from_the_event_alone() -> None:
    """Golden: a gateway of another version must derive the same ids, and no two events share one."""
    assert f"{trace_id(CONVERSATION, 7):032x}" == "525e59f7b8a125117b8419939674d6b4"
    assert f"{root_id(CONVERSATION, 7):016x}" == "f1c54d2d93889718"
    assert len({trace_id(CONVERSATION, seq) for seq in range(1000)}) == 1000
    assert trace_id("d:ann:bob1", 2) != trace_id("d:ann:bob", 12)


def test_every_process_comes_to_the_same_decision(collector: Collector) -> None:
    """With ratio 0.1 about a tenth is sampled, the same events everywhere; a higher ratio includes them."""
    one, other, more = made(0.1), made(0.1), made(0.5)
    chosen = {seq for seq in range(5000) if one.sampled(CONVERSATION, seq)}
    assert chosen == {seq for seq in range(5000) if other.sampled(CONVERSATION, seq)}
    assert 400 < len(chosen) < 600
    assert all(more.sampled(CONVERSATION, seq) for seq in chosen)
    assert not any(made(0.0).sampled(CONVERSATION, seq) for seq in range(100))
    assert all(made(1.0).sampled(CONVERSATION, seq) for seq in range(100))


def test_sender_and_receiver_record_one_trace(collector: Collector) -> None:
    """Two processes without contact: one root, all other spans below it, and no user's name."""
    sender, receiver = made(), made()
    told: list[object] = []
    delivered, kept = sender.appended(CONVERSATION, 7, "message", perf_counter() - 0.25, told.append)
    delivered(1)
    kept(None)
    receiver.written(CONVERSATION, event(7), 3)
    sender.close()
    receiver.close()
    assert told == [None]
    assert sorted(span.name for span in collector.spans) == ["append", "deliver", "deliver", "send"]
    root = next(span for span in collector.spans if span.name == "send")
    assert root.context is not None
    assert (root.context.trace_id, root.context.span_id) == (trace_id(CONVERSATION, 7), root_id(CONVERSATION, 7))
    assert root.parent is None
    assert root.start_time is not None
    assert root.end_time is not None
    assert 0.25e9 <= root.end_time - root.start_time < 60e9
    for span in collector.spans:
        assert span.context is not None
        assert span.context.trace_id == root.context.trace_id
        assert "ann" not in span.to_json()
        assert CONVERSATION not in span.to_json()
        if span is not root:
            assert span.parent is not None
            assert span.parent.span_id == root.context.span_id
    assert len({span.context.span_id for span in collector.spans if span.context is not None}) == 4


def test_span_of_an_event_that_was_not_kept_has_an_error(collector: Collector) -> None:
    one = made()
    refusals: list[object] = []
    _, kept = one.appended(CONVERSATION, 7, "message", perf_counter(), refusals.append)
    kept(Unavailable())
    one.close()
    assert len(refusals) == 1
    root = next(span for span in collector.spans if span.name == "send")
    assert root.status.description == "unavailable"


def test_unsampled_event_leaves_no_span_and_no_wrapper(collector: Collector) -> None:
    """The given callback itself is called."""
    one = made(0.0)

    def kept(_: object) -> None: ...

    assert one.appended(CONVERSATION, 7, "message", 0.0, kept)[1] is kept
    one.written(CONVERSATION, event(7), 3)
    one.close()
    assert collector.spans == []


def test_spans_wait_in_a_bounded_queue(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that the queue cannot hold or a collector refuses are dropped and counted."""
    monkeypatch.setattr(spans, "MAX_WAITING", 300)
    monkeypatch.setattr(spans, "BATCH", 300)
    monkeypatch.setattr(spans, "EVERY_MS", 60_000.0)  # all leave as one batch, however slow the test is
    collector.result = SpanExportResult.FAILURE
    monkeypatch.setattr(spans.Counting, "taken", property(lambda _: 0, lambda *_: None), raising=False)
    one, before = made(), dropped()
    for seq in range(1, 311):
        one.written(CONVERSATION, event(seq), 1)
    assert dropped() - before >= 10
    one.close()
    assert len(collector.spans) == 300
    assert dropped() - before == 310


def test_log_line_of_a_traced_event_has_its_trace_id(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    """One line per sampled span, at debug; a collector of logs joins it to the trace."""
    one = made()
    with caplog.at_level(logging.DEBUG, "linnet.tracing"):
        one.written(CONVERSATION, event(7), 3)
    one.close()
    (record,) = [record for record in caplog.records if record.name == "linnet.tracing"]
    assert json.loads(JsonFormatter().format(record))["trace_id"] == f"{trace_id(CONVERSATION, 7):032x}"


@pytest.mark.processes
@pytest.mark.parametrize("process", ["gateway", "router"])
def test_without_traces_the_sdk_is_not_imported(process: str) -> None:
    """Neither by Linnet nor by redis-py, which imports OpenTelemetry's SDK if it is installed."""
    code = (
        f"import sys, {process}.__main__; from router.process.tracing import tracer;"
        "from router.contract.settings import Settings;"
        f"assert tracer(Settings(jwt_secret='{SECRET}'), 'a', 'b') is None;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'google', 'requests', 'urllib3'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
