"""The clients of the peers, the table of ratios, and each real peer if `make bench-peers` has installed it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from loadtest.load import local
from loadtest.load.client import Failures
from loadtest.load.conductor import Target
from loadtest.load.results import Measurement, Result, Sample, encoded
from loadtest.load.results import measure as measured
from loadtest.meters import Reading
from loadtest.peers import load
from loadtest.peers.__main__ import measure, parts_of
from loadtest.peers.clients import (
    CLIENTS,
    FIRST,
    Centrifugo,
    Channels,
    FloorMember,
    LiveCentrifugo,
    Member,
    SocketIO,
)
from loadtest.peers.deployment import Peer, deployment, installed
from loadtest.peers.table import rows, table

STAMP = 1_000_000
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
SMALL = load.Options(pairs=4, rates=(100,), outstanding=4, members=10, widths=(1, 4), visitors=4, seconds=0.1, rounds=1)


class Wire:
    """A transport that keeps written bytes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)


def member(kind: type[Member]) -> tuple[Member, list[bytes]]:
    """Return a client after its upgrade, and what it has written since."""
    client, wire = kind("ann", Failures(), "pair-1"), Wire()
    client.transport = cast(Any, wire)
    client._greeting = client.greeting()
    client.data_received(ANSWER)
    return client, wire.written


def text(payload: str) -> bytes:
    """Return a text frame of a server."""
    data = payload.encode()
    return bytes((0x81, len(data))) + data if len(data) < 126 else bytes((0x81, 126, 0, len(data))) + data


def written_text(written: bytes) -> str:
    """Return the text that a client wrote, without its frame."""
    assert written[0] == 0x81
    assert written[1] & 0x80
    return written[(8 if written[1] == 0xFE else 6) :].decode()


def test_socket_io_client_follows_the_protocol() -> None:
    """It connects to the namespace, joins its room, is then welcome, and answers pings."""
    client, written = member(SocketIO)
    for text_received, answer in (
        ('0{"sid":"x"}', "40"),
        ('40{"sid":"y"}', '420["join","pair-1"]'),
        ("430[]", None),
        ("2", "3"),
    ):
        client.data_received(text(text_received))
        assert (written_text(written.pop()) if answer else None) == answer
        assert not written


@pytest.mark.parametrize("name", CLIENTS)
def test_message_is_readable_for_the_peers_server(name: str) -> None:
    """The message is JSON with the room and a body of the right length that ends with its due time."""
    client, written = member(CLIENTS[name])
    written.clear()
    client.send(client.route("pair-1", 200), STAMP)
    payload = written_text(written[0])
    if name == "Channels":
        message = json.loads(payload)
        assert (message["type"], message["n"]) == ("message", FIRST)
    elif name.startswith("Centrifugo"):
        command = json.loads(payload)
        publish = command["publish"]
        assert (command["id"], publish["channel"]) == (FIRST, f"{'live' if 'live' in name else 'kept'}:pair-1")
        message = {"to": "pair-1", **publish["data"]}
    else:
        assert payload.startswith(f"42{FIRST}[")
        kind, message = json.loads(payload.removeprefix(f"42{FIRST}"))
        assert kind == "message"
    assert (message["to"], len(message["body"]), int(message["body"][-16:])) == ("pair-1", 200, STAMP)


@pytest.mark.parametrize(
    ("kind", "copy", "ack"),
    [
        (SocketIO, '42["message",{{"to":"pair-1","body":"{body}"}}]', "43{n}[]"),
        (Channels, '{{"type": "message", "n": {n}, "to": "pair-1", "body": "{body}"}}', ""),
        (
            Centrifugo,
            '{{"push":{{"channel":"kept:pair-1","pub":{{"data":{{"body":"{body}"}},"info":{{"user":""}},"offset":7}}}}}}',
            '{{"id":{n},"publish":{{}}}}',
        ),
    ],
)
def test_messages_and_acks_are_counted_and_timed_at_every_split(
    kind: type[Member], copy: str, ack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the bytes are split, each message counts once with the age of its stamp, and the ack goes to the
    sender."""
    monkeypatch.setattr("loadtest.load.client.now_us", lambda: STAMP + 250)
    body = "x" * 112 + f"{STAMP:016d}"
    stream = text(copy.format(n=FIRST, body=body)) + text(ack.format(n=FIRST))
    for cut in range(1, len(stream)):
        client, _ = member(kind)
        client.sink, client.acks = array("q"), array("q")
        route = client.route("pair-1", 128)
        client.send(route, STAMP)
        client.data_received(stream[:cut])
        client.data_received(stream[cut:])
        assert (client.received, list(client.sink), list(client.acks)) == (1, [250], [250])
        assert not route.pending


@pytest.mark.parametrize(("kind", "namespace"), [(Centrifugo, "kept"), (LiveCentrifugo, "live")])
def test_centrifugo_client_follows_the_protocol(kind: type[Centrifugo], namespace: str) -> None:
    """It connects, subscribes, is then welcome, and answers pings; one frame may have several replies."""
    client, written = member(kind)
    assert json.loads(written_text(written.pop())) == {"id": 1, "connect": {}}
    client.data_received(text('{"id":1,"connect":{"client":"x","ping":25,"pong":true}}\n{}'))
    subscribe, pong = (written_text(one) for one in written)
    assert (json.loads(subscribe), pong) == (
        {"id": 2, "subscribe": {"channel": f"{namespace}:pair-1"}},
        "{}",
    )
    client.data_received(text('{"id":2,"subscribe":{"recoverable":true}}'))
    assert client.failures == Failures()
    client.data_received(text('{"id":3,"error":{"code":103,"message":"permission denied"}}'))
    assert client.failures == Failures(errors=1)
    assert "permission denied" in client.error


def test_refusal_of_socket_io_is_a_failure_with_its_text() -> None:
    client, _ = member(SocketIO)
    client.data_received(text('44{"message":"no"}'))
    assert client.failures == Failures(errors=1)
    assert "no" in client.error


def test_floor_member_asks_for_a_frame_to_its_room() -> None:
    client, wire = FloorMember("ann", Failures(), "pair-1", 190), Wire()
    client.transport = cast(Any, wire)
    client.send(cast(Any, None), STAMP)
    assert wire.written[0].endswith(b"000190")


# -- the table

PARTS = parts_of(list(CLIENTS))


def one(name: str, cpu_s: dict[str, float], units: int = 1000, wall_s: float = 0.5) -> Measurement:
    """Return a phase in which these parts used this much CPU, and all others something, too."""
    every = [part for parts in PARTS.values() for part in parts]
    before = {part: Reading(1.0, 1) for part in every}
    after = {part: Reading(1.0 + cpu_s.get(part, 9.0), 1) for part in every}
    sample = Sample(units, wall_s, 0.1, encoded([2000] * 99 + [8000]), encoded(()))
    return measured(name, "message", [sample], before, after)


def a_round(linnet: float, socket_io: float, wall_s: float = 0.5) -> Iterator[Measurement]:
    """Return every phase of every side, with the given costs of Linnet and Socket.IO and 1 s for the others."""
    for phase in load.phases(load.Options()):
        for side, parts in PARTS.items():
            whole = {load.LINNET: linnet, "Socket.IO": socket_io}.get(side, 1.0)
            name, spent = f"{side}: {phase}", dict.fromkeys(parts, whole / len(parts))
            yield one(name, spent, wall_s=wall_s if side == "Socket.IO" else 0.5)


def result(*measurements: Measurement, **notes: float) -> Result:
    options = msgspec.to_builtins(load.Options())
    return Result("peers", options, "today", "here", list(measurements), Failures(), {"rounds": 3, **notes})


def test_ratio_is_the_median_over_rounds_of_all_parts_of_a_side() -> None:
    """A noisy round changes no ratio, whether it is slow for all sides or for one."""
    rounds = [*a_round(0.2, 0.4), *a_round(2.0, 4.0), *a_round(0.2, 7.0)]
    found = {(row.phase, row.side): row for row in rows(result(*rounds), PARTS)}
    row = found["direct, 2000/s", "Socket.IO"]
    assert (round(row.ratio, 6), round(row.cost_us), round(row.redis_us)) == (2.0, 4000, 2000)
    assert found["direct, 2000/s", load.LINNET].ratio == 1.0
    assert len(found) == len(PARTS) * len(load.phases(load.Options()))


def test_side_below_the_rate_is_marked_as_saturated() -> None:
    """This applies only to a rate: with a number outstanding there is none to reach."""
    found = rows(result(*a_round(0.2, 0.4, wall_s=1.0)), PARTS)
    assert [(row.phase, row.side) for row in found if row.saturated] == [("direct, 2000/s", "Socket.IO")]


def test_table_shows_ratio_latency_and_losses() -> None:
    lines = table(result(*a_round(0.2, 0.5), **{"Channels: lost": 7}), PARTS).splitlines()
    assert lines[1].split()[:6] == ["direct,", "500/s", "Linnet", "1.00", "200.0", "66.7"]
    assert lines[2].split() == ["Socket.IO", "2.50", "500.0", "250.0", "2,000", "2.0", "2.0"]
    assert "Channels: lost: 7" in lines


# -- real peers


@pytest.fixture(scope="module")
def target(starts_processes: None) -> Iterator[Target]:
    with local.deployment() as target:
        yield target


@pytest.mark.skipif(not installed(), reason="the peers are not installed: make bench-peers")
def test_every_side_delivers_every_message_and_has_costs(target: Target) -> None:
    """Linnet, the peers and the floor, small: nothing is lost or duplicated, and each phase has a cost."""
    with deployment(installed()) as peers:
        found = measure(SMALL, target, peers)
    assert (found.failures, found.notes) == (Failures(), {"rounds": 1})
    parts = parts_of(installed())
    assert len(table(found, parts).splitlines()) > len(parts) * 4
    for row in rows(found, parts):
        assert row.cost_us > 0, row
        assert (row.p50_us or 0) > 0 or row.side == load.FLOOR or "connect" in row.phase, row


@pytest.mark.processes
@pytest.mark.skipif(not installed(), reason="the peers are not installed: make bench-peers")
def test_peers_leave_no_process() -> None:
    with deployment(["Socket.IO"]) as (peer,):
        assert isinstance(peer, Peer)
        meters = peer.meters()
        assert all(meter.read().rss_bytes for meter in meters)
    for meter in meters:
        with pytest.raises(OSError, match=r"No such process|Invalid|No such file"):
            meter.read()
