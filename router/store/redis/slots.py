"""Slots: a cluster divides all keys and channels into SLOTS by a hash of their tag, and each slot has one primary."""

from __future__ import annotations

from binascii import crc_hqx
from functools import lru_cache
from typing import Final

SLOTS: Final = 16384


def slot_of(name: str | bytes | float) -> int:
    """The slot of a key or channel: of its hash tag, if it has one, else of the whole name."""
    text = name.decode(errors="surrogateescape") if isinstance(name, bytes) else str(name)
    start = text.find("{")
    if start >= 0:
        end = text.find("}", start + 1)
        if end > start + 1:
            text = text[start + 1 : end]
    return _slot(text)


@lru_cache(maxsize=1 << 12)
def _slot(tag: str) -> int:
    return crc_hqx(tag.encode(errors="surrogateescape"), 0) % SLOTS
