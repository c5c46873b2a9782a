"""permessage-deflate: which offer is accepted, and that one compressed frame serves all clients."""

import zlib

import pytest

from gateway.websocket.deflate import DEFLATE_WINDOW_BITS, deflated_frame, negotiate_deflate
from gateway.websocket.frames import (
    BINARY,
)

BASE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offers", "answer", "shared"),
    [
        ("", None, False),
        ("x-webkit-deflate-frame", None, False),
        ("permessage-deflate", BASE, True),
        ("permessage-deflate; client_max_window_bits", BASE, True),
        ("permessage-deflate;client_max_window_bits=10", BASE, True),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", BASE, True),
        ('permessage-deflate; server_max_window_bits="12"', f"{BASE}; server_max_window_bits=12", True),
        ("permessage-deflate; server_max_window_bits=11", f"{BASE}; server_max_window_bits=11", False),
        ("permessage-deflate; server_max_window_bits=7", None, False),
        ("permessage-deflate; server_max_window_bits=016", None, False),
        ("permessage-deflate; server_max_window_bits", None, False),
        ("permessage-deflate; server_no_context_takeover=1", None, False),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None, False),
        ("permessage-deflate; unknown", None, False),
        ("permessage-deflate; unknown, permessage-deflate", BASE, True),
        (";;,=,permessage-deflate;=", None, False),
    ],
)
def test_first_well_formed_offer_is_accepted(offers: str, answer: str | None, shared: bool) -> None:
    """RFC 7692, 7.1. An offer with a smaller window than the shared frames' is accepted, and gets plain frames."""
    deflate = negotiate_deflate(offers)
    assert (deflate.answer if deflate else None) == answer
    assert bool(deflate and deflate.shared_frames) is shared


def test_compressed_frame_needs_no_other_and_no_large_window() -> None:
    """The same frame serves every client that inflates with at least the shared window."""
    payload = bytes(zlib.crc32(bytes((at % 256, at // 256))) % 64 for at in range(20000))
    body = deflated_frame(payload, BINARY)[4:]
    small = zlib.decompressobj(-DEFLATE_WINDOW_BITS)
    assert small.decompress(body + b"\x00\x00\xff\xff") == payload
