"""Frames: the messages that a client's bytes become, also as another implementation reads them."""

import codecs
import itertools
import random
import tracemalloc
import zlib
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from gateway.websocket import frames
from gateway.websocket.deflate import deflated_frame
from gateway.websocket.frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    FrameError,
    FrameParser,
    close_frame,
    frame,
    unmask,
)
from tests.gateway.websocket.client import client_frame

RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
CONTINUATION = 0
LIMIT = 1 << 20

Event = tuple[object, ...]


@dataclass
class Recorder:
    """A sink that records its calls."""

    events: list[Event] = field(default_factory=list)

    def message_received(self, data: bytes, text: bool) -> None:
        self.events.append(("text" if text else "binary", data))

    def ping_received(self, payload: bytes) -> None:
        self.events.append(("ping", payload))

    def pong_received(self, payload: bytes) -> None:
        self.events.append(("pong", payload))

    def close_received(self, code: int, reason: str) -> None:
        self.events.append(("close", code, reason))


def parse(pieces: list[bytes], deflate: bool = False, limit: int = LIMIT) -> list[Event]:
    """Feed a parser as a connection would; an error is the last event."""
    sink, parser = Recorder(), FrameParser(limit, deflate)
    for piece in pieces:
        try:
            parser.feed(piece, sink)
        except FrameError as error:
            return [*sink.events, ("error", error.code, error.reason)]
        if sink.events and sink.events[-1][0] == "close":
            break
    return sink.events


def every_byte(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def deflated(payload: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 127, 4095, 4096, 4099, 65535, 65536, 70000])
def test_message_of_any_size_arrives_whole_or_in_pieces(size: int) -> None:
    """Every form of the length field works, wherever the network cuts the frame."""
    payload = bytes(at * 7 % 251 for at in range(size))
    stream = client_frame(payload, BINARY) * 2
    expected: list[Event] = [("binary", payload)] * 2
    assert parse([stream]) == expected
    assert parse([stream[:7], stream[7:8], stream[8:]]) == expected
    assert parse([stream[at : at + 1000] for at in range(0, len(stream), 1000)]) == expected
    if size < 5000:
        assert parse(every_byte(stream)) == expected


@pytest.mark.parametrize("length", [*range(9), 4095, 4096, 4097, 5001])
def test_unmasking_is_the_xor_of_the_standard(length: int) -> None:
    """RFC 6455, 5.3, for both ways that payloads are unmasked."""
    payload, mask = bytes(at % 256 for at in range(length)), b"\x00\xff\x5a\x81"
    assert unmask(payload, mask) == bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def test_fragments_are_joined_and_control_frames_pass_between_them() -> None:
    """RFC 6455, 5.4: a ping in the middle of a message is answered before the message is complete."""
    stream = (
        client_frame("größ".encode()[:3], TEXT, fin=False)
        + client_frame(b"now", PING)
        + client_frame("größ".encode()[3:], CONTINUATION, fin=False)
        + client_frame(b"", CONTINUATION, fin=False)
        + client_frame(b"e", CONTINUATION)
        + client_frame(b"later", PONG)
    )
    expected: list[Event] = [("ping", b"now"), ("text", "größe".encode()), ("pong", b"later")]
    assert parse([stream]) == expected
    assert parse(every_byte(stream)) == expected


def test_compressed_message_is_inflated_however_it_is_cut() -> None:
    """RFC 7692: RSV1 is set on the first frame only, and fragments cut the deflate stream anywhere."""
    text = ("ein Text, der sich wiederholt, " * 50).encode()
    body = deflated(text)
    stream = (
        client_frame(body, TEXT, reserved=RSV1)
        + client_frame(body[:5], TEXT, fin=False, reserved=RSV1)
        + client_frame(body[5:], CONTINUATION)
        + client_frame(text, TEXT)
    )
    for pieces in ([stream], every_byte(stream)):
        assert parse(pieces, deflate=True) == [("text", text)] * 3


def test_deflate_stream_that_ends_itself_is_read_to_its_end() -> None:
    """RFC 7692, 7.2.3.4: a final block is allowed; the rest of the message is ignored."""
    deflater = zlib.compressobj(wbits=-15)
    body = deflater.compress(b"hello") + deflater.flush()
    assert parse([client_frame(body + b"\0", BINARY, reserved=RSV1)], deflate=True) == [("binary", b"hello")]
    assert parse(every_byte(client_frame(body + b"junk", BINARY, reserved=RSV1)), deflate=True) == [
        ("binary", b"hello")
    ]


def test_bytes_after_the_end_of_a_deflate_stream_are_not_kept() -> None:
    """They are ignored, so they must not cost memory either."""
    deflater = zlib.compressobj(wbits=-15)
    body = deflater.compress(b"hello") + deflater.flush()
    stream = client_frame(body + bytes(LIMIT // 2), BINARY, fin=False, reserved=RSV1)
    sink, parser = Recorder(), FrameParser(LIMIT, True)
    tracemalloc.start()
    try:
        for at in range(0, len(stream), 1000):
            parser.feed(stream[at : at + 1000], sink)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000  # zlib itself takes some 40 KB


VIOLATIONS = {
    "not masked": (client_frame(b"x", TEXT, mask=None), 1002),
    "not masked, long": (client_frame(b"x" * 200, TEXT, mask=None), 1002),
    "RSV1 without deflate": (client_frame(b"x", TEXT, reserved=RSV1), 1002),
    "RSV2": (client_frame(b"x", TEXT, reserved=RSV2), 1002),
    "RSV3": (client_frame(b"x", BINARY, reserved=RSV3), 1002),
    "reserved data opcode": (client_frame(b"x", 3), 1002),
    "reserved control opcode": (client_frame(b"x", 11), 1002),
    "fragmented ping": (client_frame(b"x", PING, fin=False), 1002),
    "long ping": (client_frame(b"x" * 126, PING), 1002),
    "nothing to continue": (client_frame(b"x", CONTINUATION), 1002),
    "message within a message": (client_frame(b"x", TEXT, fin=False) + client_frame(b"x", TEXT), 1002),
    "length of 5 in two bytes": (b"\x81\xfe\x00\x05maskxxxxx", 1002),
    "length of 5 in eight bytes": (b"\x82\xff" + (5).to_bytes(8, "big") + b"maskxxxxx", 1002),
    "length beyond 63 bits": (b"\x82\xff" + b"\xff" * 8 + b"mask", 1002),
    "close payload of one byte": (client_frame(b"x", CLOSE), 1002),
    "close code 999": (client_frame((999).to_bytes(2, "big"), CLOSE), 1002),
    "close code 1005": (client_frame((1005).to_bytes(2, "big"), CLOSE), 1002),
    "close code 1006": (client_frame((1006).to_bytes(2, "big"), CLOSE), 1002),
    "close code 1015": (client_frame((1015).to_bytes(2, "big"), CLOSE), 1002),
    "close code 2999": (client_frame((2999).to_bytes(2, "big"), CLOSE), 1002),
    "close code 5000": (client_frame((5000).to_bytes(2, "big"), CLOSE), 1002),
    "close reason no UTF-8": (client_frame(b"\x03\xe8\xff", CLOSE), 1007),
    "text no UTF-8": (client_frame(b"\xc0\xaf", TEXT), 1007),
    "a surrogate": (client_frame(b"\xed\xa0\x80", TEXT), 1007),
    "beyond Unicode": (client_frame(b"\xf4\x90\x80\x80", TEXT), 1007),
    "half a character": (client_frame("ä".encode()[:1], TEXT), 1007),
    "half a character, fragmented": (
        client_frame("ä".encode()[:1], TEXT, fin=False) + client_frame(b"", CONTINUATION),
        1007,
    ),
    "over the limit": (client_frame(b"x" * (LIMIT + 1), BINARY), 1009),
    "over the limit in fragments": (
        client_frame(b"x" * LIMIT, BINARY, fin=False) + client_frame(b"x", CONTINUATION),
        1009,
    ),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violation_ends_the_connection_with_its_code(violation: str) -> None:
    """Every rule of RFC 6455 that a client can break has its close code, whole or byte by byte."""
    stream, code = VIOLATIONS[violation]
    before: Event = ("text", b"before")
    stream = client_frame(b"before", TEXT) + stream
    for pieces in ([stream], every_byte(stream) if len(stream) < 1000 else [stream[:100], stream[100:]]):
        *events, (kind, given_code, _) = parse(pieces)
        assert (events, kind, given_code) == ([before], "error", code)


@pytest.mark.parametrize("opening", [b"\x83", b"\x91", b"\xc1", b"\x09"])
def test_two_bytes_are_enough_to_refuse_a_frame(opening: bytes) -> None:
    """The parser neither waits for more bytes nor keeps any once the peer is wrong."""
    assert parse([opening + b"\xff"])[-1][:2] == ("error", 1002)


def test_length_over_the_limit_is_refused_before_the_payload_comes() -> None:
    """A header announcing a terabyte costs a header."""
    header = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"mask"
    assert parse([header])[-1][:2] == ("error", 1009)


def test_invalid_text_is_refused_at_its_first_wrong_byte() -> None:
    """The frame is far from complete, and so is the message: Autobahn 6.4."""
    whole = client_frame(b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80" + b"x" * 100, TEXT)
    assert parse([whole[:11]]) == []
    assert parse([whole[:13]])[-1][:2] == ("error", 1007)
    assert parse([*every_byte(whole[:13])])[-1][:2] == ("error", 1007)


def test_empty_fragments_are_bounded() -> None:
    """A message that never grows never meets the size limit, so its number of frames has a limit, too."""
    endless = client_frame(b"", TEXT, fin=False) + client_frame(b"", CONTINUATION, fin=False) * 1000
    assert parse([endless], limit=1024)[-1][:2] == ("error", 1008)


@pytest.mark.parametrize("step", [1 << 20, 100])
def test_bomb_is_refused_at_the_limit(step: int) -> None:
    """100 MiB of zeros in 100 KB: refused with 1009, and not inflated beyond the limit."""
    deflater = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(100)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    stream = client_frame(bomb[:-4], BINARY, reserved=RSV1)
    tracemalloc.start()
    try:
        events = parse([stream[at : at + step] for at in range(0, len(stream), step)], deflate=True, limit=200_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert events[-1][:2] == ("error", 1009)
    assert peak < 200_000 * 6 + 2 * len(stream)


def test_message_that_inflates_to_exactly_the_limit_is_accepted() -> None:
    """This also holds if deflate made it longer than it was; a byte more is refused."""
    incompressible = random.Random(1).randbytes(5000)
    assert len(deflated(incompressible)) > 5000
    for payload in (bytes(5000), incompressible):
        stream = client_frame(deflated(payload), BINARY, reserved=RSV1)
        assert parse([stream], deflate=True, limit=5000) == [("binary", payload)]
        assert parse([stream], deflate=True, limit=4999)[-1][:2] == ("error", 1009)


def test_damaged_deflate_data_is_a_protocol_error() -> None:
    """Data that zlib refuses is the peer's mistake."""
    assert parse([client_frame(b"\xff\xff\xff", TEXT, reserved=RSV1)], deflate=True)[-1][:2] == ("error", 1002)


def test_parser_between_messages_holds_nothing() -> None:
    """An idle connection has no buffer and no zlib state, whatever it has received before."""
    stream = client_frame(deflated(b"x" * 5000), BINARY, reserved=RSV1) + client_frame(b"y" * 70000, BINARY)
    parsers = [FrameParser(LIMIT, True) for _ in range(200)]
    sink = Recorder()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for parser in parsers:
            for at in range(0, len(stream), 30000):
                parser.feed(stream[at : at + 30000], sink)
            sink.events.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200 * 40


def client_sees(data: bytes, deflate: bool = False) -> list[tuple[int, bytes]]:
    """Opcodes and payloads as a `websockets` client reads them."""
    client = ClientProtocol(parse_uri("ws://test/"), state=State.OPEN)
    client.extensions = [PerMessageDeflate(True, True, 15, 15)] if deflate else []
    client.receive_data(data)
    assert client.parser_exc is None
    return [(seen.opcode, bytes(seen.data)) for seen in client.events_received() if isinstance(seen, Frame)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_client_reads_the_frames_of_the_server(size: int) -> None:
    """Plain and compressed, around every border of the length field."""
    payload = (b"some text that repeats " * 3000)[:size]
    assert client_sees(frame(payload, TEXT)) == [(TEXT, payload)]
    assert client_sees(deflated_frame(payload, BINARY) * 2, deflate=True) == [(BINARY, payload)] * 2


def test_close_frame_cuts_its_reason() -> None:
    """A control frame holds 125 bytes; a reason is cut between characters. Without a code there is no payload."""
    (opcode, payload), *rest = client_sees(close_frame(1008, "ä" * 100))
    assert (opcode, payload, rest) == (CLOSE, b"\x03\xf0" + ("ä" * 61).encode(), [])
    assert client_sees(close_frame(frames.NO_CODE)) == [(CLOSE, b"")]


# Another implementation sees the same

payloads = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=40),
    st.integers(100, 140).map(lambda size: b"ab" * (size // 2)),
    st.just("grüße €𝄞".encode() * 20),
    st.integers(65530, 65540).map(bytes),
)


@st.composite
def messages(draw: st.DrawFn, deflate: bool) -> list[bytes]:
    """The frames of one message, in one frame or several, perhaps compressed."""
    payload, opcode = draw(payloads), draw(st.sampled_from((TEXT, BINARY)))
    reserved = RSV1 if deflate and draw(st.booleans()) else 0
    body = deflated(payload) if reserved else payload
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    return [
        client_frame(
            piece,
            CONTINUATION if at else opcode,
            fin=at == len(cuts),
            reserved=0 if at else reserved,
            mask=draw(st.binary(min_size=4, max_size=4)),
        )
        for at, piece in enumerate(pieces)
    ]


control_frames = st.one_of(
    st.builds(client_frame, st.binary(max_size=130), st.sampled_from((PING, PONG))),
    st.builds(
        lambda code, reason: client_frame(code.to_bytes(2, "big") + reason, CLOSE),
        st.one_of(st.integers(990, 1020), st.integers(2990, 5010)),
        st.one_of(st.binary(max_size=5), st.just(b"bye")),
    ),
    st.just(client_frame(b"", CLOSE)),
)
odd_frames = st.builds(
    lambda payload, opcode, fin, reserved: client_frame(payload, opcode, fin=fin, reserved=reserved),
    payloads,
    st.integers(0, 15),
    st.booleans(),
    st.sampled_from((0, 0, 0, RSV1, RSV2, RSV3)),
)


@st.composite
def streams(draw: st.DrawFn, deflate: bool) -> bytes:
    """Draw a client's bytes: valid and unusual frames, control frames between fragments, and then some damage."""
    frames: list[bytes] = []
    for _ in range(draw(st.integers(1, 5))):
        for piece in draw(messages(deflate)):
            frames += [piece, *draw(st.lists(control_frames, max_size=1))] if draw(st.booleans()) else [piece]
        frames += draw(st.lists(odd_frames, max_size=1)) if draw(st.integers(0, 4)) == 0 else []
    stream = bytearray(b"".join(frames))
    for _ in range(draw(st.sampled_from((0, 0, 1, 3)))):
        stream[draw(st.integers(0, min(len(stream), 300) - 1))] = draw(st.integers(0, 255))
    return bytes(stream[: draw(st.one_of(st.just(len(stream)), st.integers(0, len(stream))))])


def reference(stream: bytes, deflate: bool) -> tuple[list[Event], bool]:
    """The same events from `websockets`' sans-I/O protocol, and whether it waits for the rest of a frame.

    It leaves joining fragments and checking text to the layer above, so that is done here.
    """
    server = ServerProtocol(state=State.OPEN, max_size=LIMIT)
    server.extensions = [PerMessageDeflate(True, True, 15, 15)] if deflate else []
    server.receive_data(stream)
    events: list[Event] = []
    message, text = b"", False
    decoder = codecs.getincrementaldecoder("utf-8")()
    for seen in server.events_received():
        data = bytes(cast(Frame, seen).data)
        match cast(Frame, seen):
            case Frame(opcode=Opcode.PING):
                events.append(("ping", data))
            case Frame(opcode=Opcode.PONG):
                events.append(("pong", data))
            case Frame(opcode=Opcode.CLOSE):
                assert server.close_rcvd is not None
                events.append(("close", server.close_rcvd.code, server.close_rcvd.reason))
            case Frame(opcode=opcode, fin=fin):
                if opcode is not Opcode.CONT:
                    message, text = b"", opcode is Opcode.TEXT
                    decoder.reset()
                message += data
                try:
                    if text:
                        decoder.decode(data, final=fin)
                except UnicodeDecodeError:
                    return [*events, ("error", 1007)], False
                if fin:
                    events.append(("text" if text else "binary", message))
    if server.parser_exc is not None:
        assert server.close_sent is not None
        if "incomplete fragmented message" in str(server.parser_exc):
            # RFC 6455, 5.4 and Autobahn 7.1.5: a close may come within a message.
            assert server.close_rcvd is not None
            return [*events, ("close", server.close_rcvd.code, server.close_rcvd.reason)], False
        return [*events, ("error", server.close_sent.code)], False
    if server.close_rcvd is not None:
        return events, False
    server.receive_eof()
    return events, "unexpected end" not in str(server.parser_exc)  # what it says between two frames


def same(ours: list[Event], theirs: list[Event], theirs_waits: bool) -> bool:
    """Equal, but for what we refuse earlier or more strictly."""
    if ours == theirs:
        return True
    *before, last = ours or [()]
    if last[:1] == ("error",):
        if last[2:] == ("invalid length",):  # RFC 6455, 5.2: the shortest way to write it; `websockets` takes any
            return before == theirs[: len(before)]
        if theirs_waits:  # for the rest of a frame that we know to be wrong
            return before == theirs
        if last[1] == 1002 and theirs[-1:] == [("error", 1009)]:  # too big and also invalid: either is reported
            return before == theirs[:-1]
        return [*before, last[:2]] == theirs
    return theirs == [*ours, ("error", 1009)]  # it knows the length, we wait for the mask behind it


def agree(stream: bytes, cuts: list[int], deflate: bool) -> None:
    theirs, theirs_waits = reference(stream, deflate)
    ends = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    chunkings = [[stream], [stream[start:end] for start, end in itertools.pairwise(ends)]]
    if len(stream) < 3000:
        chunkings.append(every_byte(stream))
    for pieces in chunkings:
        ours = parse(pieces, deflate)
        if deflate and ours and ours[-1][0] == "error" and ours[-1][1] in (1002, 1007):
            # Damaged deflate data may yield wrong text before zlib notices: which comes first depends on the cuts.
            ours[-1] = ("error", 1002, ours[-1][2])
            theirs = [("error", 1002) if event == ("error", 1007) else event for event in theirs]
        assert same(ours, theirs, theirs_waits), (ours, theirs)


@settings(deadline=None)
@given(streams(deflate=False), st.lists(st.integers(0, 10_000), max_size=4))
@example(client_frame("ä".encode()[:1], TEXT, fin=False) + client_frame(b"", CLOSE), [])
def test_websockets_parses_any_bytes_the_same(stream: bytes, cuts: list[int]) -> None:
    """The same messages, control frames and close codes, however the bytes are cut."""
    agree(stream, cuts, deflate=False)


@settings(deadline=None)
@given(streams(deflate=True), st.lists(st.integers(0, 10_000), max_size=4))
def test_websockets_parses_any_compressed_bytes_the_same(stream: bytes, cuts: list[int]) -> None:
    """The same with permessage-deflate agreed."""
    agree(stream, cuts, deflate=True)
