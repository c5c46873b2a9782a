"""A coverage-guided fuzz target for gateway/websocket/frames.py.

It is not part of the test run and needs `atheris`, which no lock has:

    pip install atheris
    mkdir -p .linnet/fuzz
    python -m tests.gateway.websocket.fuzz_frames -max_total_time=300 -max_len=4096 .linnet/fuzz

The first byte of an input chooses deflate, the limit and how the rest is cut. Whatever the rest is: nothing but
`FrameError` is raised, no message passes the limit, text is text, what stays behind is bounded, and the same bytes cut
into pieces give the same events. What `websockets` makes of the same bytes is compared in test_frames.py.
"""

import importlib
import sys
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["gateway.websocket.frames"]):
    from gateway.websocket.frames import MAX_CONTROL_BYTES, FrameError, FrameParser

MAX_HEADER_BYTES = 14
CLOSE_CODES = {1002, 1007, 1008, 1009}


class Checker:
    """A sink that believes nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.events: list[tuple[object, ...]] = []
        self.closed = False

    def message_received(self, data: bytes, text: bool) -> None:
        assert len(data) <= self.limit
        if text:
            data.decode()
        self._hear("message", data, text)

    def ping_received(self, payload: bytes) -> None:
        assert len(payload) <= MAX_CONTROL_BYTES
        self._hear("ping", payload)

    def pong_received(self, payload: bytes) -> None:
        assert len(payload) <= MAX_CONTROL_BYTES
        self._hear("pong", payload)

    def close_received(self, code: int, reason: str) -> None:
        assert 1000 <= code <= 4999
        self._hear("close", code, reason)
        self.closed = True

    def _hear(self, *event: object) -> None:
        assert not self.closed
        self.events.append(event)


def outcome(pieces: list[bytes], deflate: bool, limit: int) -> list[tuple[object, ...]]:
    parser, sink = FrameParser(limit, deflate), Checker(limit)
    for piece in pieces:
        try:
            parser.feed(piece, sink)
        except FrameError as error:
            # Damaged deflate data may give wrong text or too much of it before zlib notices: that depends on the cuts.
            return [*sink.events, ("error", error.code in CLOSE_CODES if deflate else error.code)]
        if sink.closed:
            break
        assert len(parser._rest) < MAX_HEADER_BYTES + MAX_CONTROL_BYTES
        assert parser._message is None or len(parser._message._data) <= limit
    return sink.events


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    choice, stream = data[0], data[1:]
    deflate, limit, step = bool(choice & 1), (10, 200, 5000, 1 << 20)[choice >> 1 & 3], (choice >> 3) + 1
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert outcome([stream], deflate, limit) == outcome(pieces, deflate, limit)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
