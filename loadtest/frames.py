"""WebSocket frames as a client writes them: whole, and masked with zeros.

A mask of zeros is a valid mask, and the server applies it like any other; it saves the client one pass over the bytes.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
BINARY: Final = 0x82
DEFLATED: Final = 0xC2  # binary, compressed by permessage-deflate
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A

_MASK: Final = b"\0\0\0\0"


def frame(payload: bytes, first: int = BINARY) -> bytes:
    """Return a whole frame; `first` is its first byte, one of the constants above."""
    length = len(payload)
    if length < 126:
        return bytes((first, 0x80 | length)) + _MASK + payload
    if length < 65536:
        return bytes((first, 0xFE)) + length.to_bytes(2, "big") + _MASK + payload
    return bytes((first, 0xFF)) + length.to_bytes(8, "big") + _MASK + payload
