"""One trace from send to delivery, recorded by gateways that exchange nothing for it."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from router.process.tracing import root_id, trace_id
from tests.flow.client import ChatClient
from tests.flow.conftest import Start
from tests.support import eventually


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP receiver: every span that came, with the node that sent it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receive)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests = 0
        self.spans: list[tuple[str, Span]] = []

    def of(self, conversation: str, seq: int) -> list[tuple[str, Span]]:
        """The spans of one event."""
        ident = trace_id(conversation, seq).to_bytes(16)
        return [(node, span) for node, span in self.spans if span.trace_id == ident]


class Receive(BaseHTTPRequestHandler):
    """The handler of `POST /v1/traces`."""

    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces", self.path
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests += 1
        for of_resource in request.resource_spans:
            about = {pair.key: pair.value.string_value for pair in of_resource.resource.attributes}
            assert about["service.name"] == "linnet-gateway"
            for of_scope in of_resource.scope_spans:
                self.server.spans += [(about["service.instance.id"], span) for span in of_scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def arrived(collector: Collector, count: int, conversation: str, seq: int) -> list[tuple[str, Span]]:
    """Wait for so many spans of the event; return all that have arrived."""
    return await eventually(lambda: (len(found := collector.of(conversation, seq)) >= count and found) or [])


def attributes(span: Span) -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}


def check(spans: list[tuple[str, Span]], conversation: str, seq: int, users: list[str]) -> dict[str, set[str]]:
    """Check one root with all other spans below it, and no user's name in any; return the nodes that recorded each."""
    (root,) = [span for _, span in spans if span.name == "send"]
    assert root.span_id == root_id(conversation, seq).to_bytes(8)
    assert not root.parent_span_id
    nodes: dict[str, set[str]] = {}
    for node, span in spans:
        nodes.setdefault(span.name, set()).add(node)
        assert span is root or span.parent_span_id == root.span_id
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert attributes(span)["linnet.node"] == node
        assert attributes(span)["linnet.kind"] == "message"
        assert not any(name in str(span) for name in [conversation, *users])
    assert len({span.span_id for _, span in spans}) == len(spans)
    return nodes


async def test_one_trace_spans_both_gateways(start: Start, collector: Collector) -> None:
    """A direct and a group message, one trace each: root and append of the sender's gateway, a delivery of each."""
    system = await start(
        LINNET_OTLP_ENDPOINT=collector.url,
        LINNET_TRACE_RATIO="1",
        LINNET_LOG_FORMAT="json",
        LINNET_LOG_LEVEL="debug",
        NO_PROXY="127.0.0.1",
    )
    alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
    await alice.connect(system.urls[0])
    await bob.connect(system.urls[1])
    group = await system.group("alice", "bob")
    for client in (alice, bob):
        await client.event("conversations")
    direct = await alice.sent("@bob", "one")
    grouped = await alice.sent(group, "two")
    for ack in (direct, grouped):
        for client in (alice, bob):
            await client.has(ack["conversation"], 1)

    for ack in (direct, grouped):
        where = ack["conversation"], ack["seq"]
        spans = await arrived(collector, 4, *where)
        nodes = check(spans, *where, ["alice", "bob"])
        assert nodes["send"] == nodes["append"]
        assert len(nodes["send"]) == 1
        assert len(nodes["deliver"]) == 2
        assert nodes["send"] < nodes["deliver"]
        assert len(spans) == 4
        ident = f"{trace_id(*where):032x}"
        for gateway in system.gateways:
            lines = [json.loads(line) for line in gateway.log.splitlines() if line.startswith("{")]
            assert ident in [line.get("trace_id") for line in lines]


async def test_waiting_spans_are_sent_before_the_exit(start: Start, collector: Collector) -> None:
    """A drained gateway sends the spans that it still has, and exits cleanly."""
    system = await start(
        gateways=1,
        router=False,
        LINNET_OTLP_ENDPOINT=collector.url,
        LINNET_TRACE_RATIO="1",
        LINNET_DRAIN_WINDOW_S="0",
        NO_PROXY="127.0.0.1",
    )
    alice, bob = ChatClient("alice"), ChatClient("bob")
    await asyncio.gather(alice.connect(system.urls[0]), bob.connect(system.urls[0]))
    acks = [await alice.sent("@bob", number) for number in range(20)]
    await bob.has(acks[0]["conversation"], 20)
    system.gateways[0].send(signal.SIGTERM)
    assert await system.gateways[0].ended() == 0
    for ack in acks:
        assert {span.name for _, span in collector.of(ack["conversation"], ack["seq"])} == {"send", "append", "deliver"}


async def test_unreachable_collector_costs_only_spans(start: Start) -> None:
    """Messages are delivered, lost spans are counted, the log has one line, and the process exits in time."""
    system = await start(
        gateways=1,
        router=False,
        LINNET_OTLP_ENDPOINT="http://127.0.0.1:9",
        LINNET_TRACE_RATIO="1",
        LINNET_DRAIN_WINDOW_S="0",
        NO_PROXY="127.0.0.1",
    )
    alice, bob = ChatClient("alice"), ChatClient("bob")
    await asyncio.gather(alice.connect(system.urls[0]), bob.connect(system.urls[0]))
    ack = await alice.sent("@bob", "hello")
    await bob.has(ack["conversation"], 1)

    async def dropped() -> bool:
        return await system.metric('linnet_trace_spans_total{result="dropped"}') > 0

    await eventually(dropped)
    await bob.sent("@alice", "still here")
    system.gateways[0].send(signal.SIGTERM)
    assert await system.gateways[0].ended() == 0
    assert system.gateways[0].log.count("accepts no spans") == 1


async def test_tracing_is_off_without_its_setting(start: Start, collector: Collector) -> None:
    """No span is sent and no code loaded, whatever OpenTelemetry's own variables are."""
    system = await start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, LINNET_TRACE_RATIO="1", NO_PROXY="127.0.0.1")
    alice, bob = ChatClient("alice"), ChatClient("bob")
    await alice.connect(system.urls[0])
    await bob.connect(system.urls[1])
    ack = await alice.sent("@bob", "hello")
    await bob.has(ack["conversation"], 1)
    assert await system.metric("linnet_trace_spans_total") == 0
    for gateway in system.gateways:
        gateway.send(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert collector.requests == 0
