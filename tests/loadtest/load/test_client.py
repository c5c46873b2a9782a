"""The load client: what it reads if bytes are split anywhere, and each failure that it must notice."""

from __future__ import annotations

from array import array
from typing import Any, cast

import pytest

from gateway.websocket import frames as wsframes
from loadtest.frames import frame
from loadtest.load.client import Client, Failures, Route, command
from router.contract import codecs, stamp, wire
from router.contract.packing import pack

CONVERSATION = "d:ann:bob"


class Wire:
    """A transport that keeps written bytes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def new_client() -> Client:
    """Return a client after its upgrade."""
    client = Client("bob", Failures(), n=100)
    client.transport = cast(Any, Wire())
    client.data_received(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    return client


def event(seq: int, prev: int, conversation: str = CONVERSATION, kind: str = "message") -> bytes:
    """Return an event as a gateway frames it; its message was due at 1 s."""
    fields = {"media": pack("text"), "body": pack("x" * 112 + "0000000001000000")}
    tail = stamp.tail(kind, conversation, "ann", "phone", 7, fields)
    return wsframes.frame(stamp.fill(tail, stamp.Slots(seq, prev, seq, 1)), wsframes.BINARY)


def test_client_reads_events_at_every_split() -> None:
    """However the bytes are split, each message counts once and follows the one before."""
    stream = event(1, 0) + event(2, 1) + event(1, 0, "g:" + "x" * 40) + event(3, 2, kind="edit")
    for cut in range(1, len(stream)):
        client = new_client()
        client.data_received(stream[:cut])
        client.data_received(stream[cut:])
        assert (client.received, bool(client.failures)) == (3, False)
        assert client.last[CONVERSATION.encode()] == 3


@pytest.mark.parametrize(
    ("events", "failures"),
    [
        ([(1, 0), (3, 2)], Failures(holes=1)),
        ([(1, 0), (1, 0)], Failures(duplicates=1)),
        ([(1, 0), (2, 1), (1, 0), (3, 2)], Failures(duplicates=1)),
        ([(5, 4), (6, 5)], Failures()),
    ],
)
def test_client_counts_holes_and_duplicates(events: list[tuple[int, int]], failures: Failures) -> None:
    """A hole, a duplicate and a step back are counted; the first event may have any seq."""
    client = new_client()
    client.data_received(b"".join(event(seq, prev) for seq, prev in events))
    assert client.failures == failures


def test_gap_error_and_lost_connection_are_failures() -> None:
    client = new_client()
    for answer in (
        wire.GapEvent(conversation=CONVERSATION, from_=1, to=2, reason="expired"),
        wire.ErrorEvent(code="rate_limited", message="slow down"),
    ):
        client.data_received(wsframes.frame(codecs.MSGPACK.encode(answer), wsframes.BINARY))
    client.connection_lost(None)
    assert client.failures == Failures(gaps=1, errors=1, closes=1)
    assert "slow down" in client.error


def test_latency_counts_from_the_due_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is the age of the stamp, whenever the message was really sent."""
    monkeypatch.setattr("loadtest.load.client.now_us", lambda: 1_250_000)
    client = new_client()
    client.sink = array("q")
    client.data_received(event(1, 0))
    assert list(client.sink) == [250_000]


def test_gateway_decodes_prebuilt_sends() -> None:
    """Prebuilt sends decode as commands with the right n, done, stamp and body length."""
    client, route = new_client(), Route("@ann", 128)
    sent = [client.message(route, 1_000_000 + number) for number in range(3)]
    client.data_received(wsframes.frame(codecs.MSGPACK.encode(_ack(101)), wsframes.BINARY))
    sent.append(client.message(route, 2_000_000))
    commands = [codecs.MSGPACK.decode(payload) for payload in payloads(b"".join(sent))]
    assert all(isinstance(one, wire.Send) and len(one.body) == 128 for one in commands)
    assert [(one.n, one.done, one.body[-16:]) for one in commands if isinstance(one, wire.Send)] == [
        (101, 100, "0000000001000000"),
        (102, 100, "0000000001000001"),
        (103, 100, "0000000001000002"),
        (104, 101, "0000000002000000"),
    ]


def test_client_answers_pings_and_acks_received_events() -> None:
    client = new_client()
    client.data_received(wsframes.frame(b"beat", wsframes.PING) + event(4, 3))
    client.ack_all()
    client.ack_all()
    pong, ack = payloads(cast(Any, client.transport).written)
    assert pong == b"beat"
    assert codecs.MSGPACK.decode(ack) == wire.Ack(cursors={CONVERSATION: 4})


def test_frames_of_all_lengths_reach_a_parser() -> None:
    for length in (0, 125, 126, 65535, 65536):
        assert payloads(frame(bytes(length))) == [bytes(length)]
    assert len(payloads(command("ping") * 3)) == 3


def _ack(n: int) -> wire.AckEvent:
    return wire.AckEvent(n=n, conversation=CONVERSATION, seq=1, at=1, duplicate=False)


class Payloads:
    """The payloads that a server's parser finds."""

    def __init__(self) -> None:
        self.found: list[bytes] = []

    def message_received(self, data: bytes, text: bool) -> None:
        self.found.append(data)

    def ping_received(self, payload: bytes) -> None:
        self.found.append(payload)

    pong_received = ping_received

    def close_received(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code}")


def payloads(stream: bytes) -> list[bytes]:
    sink = Payloads()
    wsframes.FrameParser(1 << 20, deflate=False).feed(stream, sink)
    return sink.found
