"""Frames that many sessions share: encoded once per event, variant and node.

A variant is the form of a connection's frames: JSON or msgpack, compressed or not. JSON text is encoded from the log's
msgpack bytes and kept in a small cache that live fan-out and replay share, so that a thousand devices that reconnect to
the same conversation cost one encode. Compressed frames are made per flush and never cached; because deflate keeps no
context, one frame serves all connections of a variant. Bound: `CACHE_EVENTS` events of at most `CACHED_BYTES`. A larger
event is encoded again for each batch, because otherwise one user's largest bodies could fill the memory of every
gateway.

A damaged event in the log is left out of JSON frames and counted, so that the events behind it still reach the client.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Final

from gateway.websocket.deflate import deflated_frame
from gateway.websocket.frames import frame
from router.contract import codecs, packing, wire
from router.process.isolate import fault

TEXT: Final = 0x1
BINARY: Final = 0x2
CACHE_EVENTS: Final = 4096
CACHED_BYTES: Final = 2048  # JSON text can be six times as long
COMPRESS_FROM_BYTES: Final = 256

# A variant is an index: bit 0 JSON, bit 1 compressed.
JSON_BIT: Final = 1
DEFLATE_BIT: Final = 2
VARIANTS: Final = range(4)


def variant_of(codec: codecs.Codec, deflate: bool) -> int:
    """Return the variant of a connection's frames."""
    return (JSON_BIT if codec.text else 0) | (DEFLATE_BIT if deflate else 0)


def _json(event: bytes) -> bytes:
    return frame(packing.json_of_packed(event), TEXT)


_cached_json = lru_cache(CACHE_EVENTS)(_json)


def _compressed(payload: bytes, opcode: int) -> bytes:
    build = deflated_frame if len(payload) >= COMPRESS_FROM_BYTES else frame
    return build(payload, opcode)


def event_frame(event: bytes, variant: int) -> bytes:
    """Return the frame of a logged event."""
    if variant == 0:
        return frame(event, BINARY)
    if variant == JSON_BIT:
        return _cached_json(event) if len(event) <= CACHED_BYTES else _json(event)
    if variant == DEFLATE_BIT:
        return _compressed(event, BINARY)
    return _compressed(packing.json_of_packed(event), TEXT)


def event_frames(events: Sequence[bytes], variant: int) -> bytes:
    """Return the frames of several events as the bytes of one write."""
    try:
        return b"".join([event_frame(event, variant) for event in events])
    except Exception:  # noqa: BLE001 - `readable` finds the event that raised, and counts it
        return b"".join(readable(partial(event_frame, variant=variant), events))


def readable(encode: Callable[[bytes], bytes], events: Sequence[bytes]) -> list[bytes]:
    """Encode each event; leave out, and count, an event that cannot be read."""
    found: list[bytes] = []
    for event in events:
        try:
            found.append(encode(event))
        except Exception as error:  # noqa: BLE001 - one damaged event must not keep the others from the client
            fault("frames", error)
    return found


def control_frame(event: wire.Event, codec: codecs.Codec) -> bytes:
    """Return the frame of an event that is in no log."""
    return frame(codec.encode(event), TEXT if codec.text else BINARY)


def control_frames(event: wire.Event) -> list[bytes]:
    """Return the frames of an event that is in no log, by variant."""
    return [control_frame(event, codecs.JSON if variant & JSON_BIT else codecs.MSGPACK) for variant in VARIANTS]


def cache_statistics() -> tuple[int, int]:
    """Return hits and misses of the cache of JSON frames."""
    info = _cached_json.cache_info()
    return info.hits, info.misses
