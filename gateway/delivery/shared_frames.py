"""Frames that many sessions share: made once per event, variant and node.

A variant is how a connection wants its frames: JSON or msgpack, compressed or not. JSON text is made from the log's
msgpack bytes and kept in a small cache that live fan-out and replays share, so that a thousand devices coming back to
the same conversation cost one encode. Compressed frames are made per flush and never kept: deflate has no context of
its own here, so one frame serves all. Bound: `CACHE_EVENTS` events of at most `CACHED_BYTES`; a larger one is encoded
again for each batch that it is in, else one user's largest bodies could fill the memory of every gateway.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from gateway.websocket.deflate import deflated_frame
from gateway.websocket.frames import frame
from router.contract import packing, wire

TEXT: Final = 0x1
BINARY: Final = 0x2
CACHE_EVENTS: Final = 4096
CACHED_BYTES: Final = 2048  # JSON text can be six times as long
COMPRESS_FROM_BYTES: Final = 256

# A variant is an index: bit 0 JSON, bit 1 compressed.
JSON_BIT: Final = 1
DEFLATE_BIT: Final = 2
VARIANTS: Final = range(4)


def variant_of(codec: wire.Codec, deflate: bool) -> int:
    return (JSON_BIT if codec.text else 0) | (DEFLATE_BIT if deflate else 0)


def _json(event: bytes) -> bytes:
    return frame(packing.json_of_packed(event), TEXT)


_cached_json = lru_cache(CACHE_EVENTS)(_json)


def _compressed(payload: bytes, opcode: int) -> bytes:
    build = deflated_frame if len(payload) >= COMPRESS_FROM_BYTES else frame
    return build(payload, opcode)


def event_frame(event: bytes, variant: int) -> bytes:
    """The frame of a logged event."""
    if variant == 0:
        return frame(event, BINARY)
    if variant == JSON_BIT:
        return _cached_json(event) if len(event) <= CACHED_BYTES else _json(event)
    if variant == DEFLATE_BIT:
        return _compressed(event, BINARY)
    return _compressed(packing.json_of_packed(event), TEXT)


def event_frames(events: Iterable[bytes], variant: int) -> bytes:
    """The frames of several events as the bytes of one write."""
    return b"".join([event_frame(event, variant) for event in events])


def control_frame(event: wire.Event, codec: wire.Codec) -> bytes:
    """The frame of an event that stands in no log."""
    return frame(codec.encode(event), TEXT if codec.text else BINARY)


def cache_statistics() -> tuple[int, int]:
    """(hits, misses) of the cache of JSON frames."""
    info = _cached_json.cache_info()
    return info.hits, info.misses
