"""Shared frames: encoded once per event, variant and node."""

from __future__ import annotations

import json
import zlib

import msgpack

from gateway.delivery import shared_frames as frames
from gateway.delivery.shared_frames import (
    DEFLATE_BIT,
    JSON_BIT,
    VARIANTS,
    cache_statistics,
    control_frame,
    event_frame,
    event_frames,
    variant_of,
)
from router.contract import codecs, metrics, stamp, wire
from router.contract.packing import pack

GROUP = "g:0123456789012345678901"


def event(seq: int, body: object = "hi") -> bytes:
    tail = stamp.tail("message", GROUP, "ann", "phone", seq, {"media": pack("text"), "body": pack(body)})
    return stamp.fill(tail, stamp.Slots(seq, seq - 1, seq, 1000))


def opened(frame: bytes) -> tuple[int, bool, bytes]:
    """Opcode, whether compressed, and the payload of one frame."""
    length, at = frame[1], 2
    if length > 125:
        at = 4 if length == 126 else 10
        length = int.from_bytes(frame[2:at])
    payload = frame[at:]
    assert len(payload) == length
    if frame[0] & 0x40:
        payload = zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + b"\x00\x00\xff\xff")
    return frame[0] & 0x0F, bool(frame[0] & 0x40), payload


def test_connection_has_one_of_four_variants() -> None:
    made = [variant_of(codec, deflate) for deflate in (False, True) for codec in (codecs.MSGPACK, codecs.JSON)]
    assert made == list(VARIANTS) == [0, JSON_BIT, DEFLATE_BIT, JSON_BIT | DEFLATE_BIT]


def test_every_variant_contains_the_same_event() -> None:
    """Text frames for JSON, binary for msgpack; compressed only if it pays."""
    for body, compresses in (("hi", False), ("hi " * 200, True)):
        one = event(7, body)
        for variant in VARIANTS:
            opcode, compressed, payload = opened(event_frame(one, variant))
            assert (opcode, compressed) == (1 if variant & JSON_BIT else 2, compresses and bool(variant & DEFLATE_BIT))
            value = json.loads(payload) if variant & JSON_BIT else msgpack.unpackb(payload)
            assert (value["seq"], value["body"]) == (7, body)


def test_msgpack_clients_get_the_bytes_of_the_log() -> None:
    one = event(8)
    assert event_frame(one, 0).endswith(one)


def test_json_text_is_encoded_once_for_live_and_replay() -> None:
    """The same object as long as the cache holds it; the cache is bounded."""
    hits, misses = cache_statistics()
    one = event(9, "unlike any other")
    assert event_frame(one, JSON_BIT) is event_frame(bytes(bytearray(one)), JSON_BIT)
    assert cache_statistics() == (hits + 1, misses + 1)
    assert frames._cached_json.cache_info().maxsize == frames.CACHE_EVENTS


def test_large_events_are_not_cached() -> None:
    """A cache that is bounded by count alone could hold hundreds of megabytes."""
    large = event(987_655, "\0" * frames.CACHED_BYTES)
    before = cache_statistics()
    assert opened(event_frame(large, JSON_BIT))[2].count(b"\\u0000") == frames.CACHED_BYTES
    assert cache_statistics() == before


def test_several_events_are_one_write() -> None:
    many = [event(seq) for seq in range(1, 5)]
    for variant in VARIANTS:
        assert event_frames(many, variant) == b"".join(event_frame(one, variant) for one in many)


def test_event_that_is_in_no_log_is_framed_by_codec() -> None:
    for codec, opcode in ((codecs.JSON, 1), (codecs.MSGPACK, 2)):
        assert opened(control_frame(wire.Pong(at=1), codec))[0] == opcode


def test_damaged_event_is_left_out_and_counted() -> None:
    """The events around it are written; nothing is counted while all can be read."""
    errors = metrics.ROUND_ERRORS.labels("frames")
    for variant in (JSON_BIT, JSON_BIT | DEFLATE_BIT):
        before = errors._value.get()
        whole = event_frames([event(1), event(3)], variant)
        assert errors._value.get() == before
        assert event_frames([event(1), event(2)[:60], event(3)], variant) == whole
        assert errors._value.get() == before + 1
