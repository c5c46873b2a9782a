"""The structs between receiving, preparing and storing a file, and the errors of an upload.

An upload has a folder of its own. Receiving writes the bytes to a file there and makes a `Received`; preparing checks
them, writes re-encoded pictures and previews into the same folder, and returns a `Prepared`; storing reads the files.
The receiver deletes the folder at the end, whatever happened.

Invariants
- The bytes of a file are never in memory as a whole, so structs have paths.
- Nothing that the client said about its bytes is in a `Prepared` unless it was checked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from router.contract.errors import Rejected, Unreadable, UnsupportedMediaType
from router.contract.files import Kind

__all__ = ["OCTETS", "Kind", "Prepare", "Prepared", "Preview", "Received", "Rejected", "Unreadable",
           "UnsupportedType"]  # fmt: skip

OCTETS: Final = "application/octet-stream"

UnsupportedType = UnsupportedMediaType  # 415: the bytes are not of the kind that the client named


class Received(Struct, frozen=True):
    """An upload whose bytes are all at `path`. `declared_*`, `name`, `duration_ms` and `waveform` are the client's."""

    path: Path
    size: int
    sha256: str
    declared_type: str
    declared_kind: Kind | None
    name: str
    duration_ms: int | None = None
    waveform: bytes | None = None
    user: str = ""  # the uploader, for bounds that count per user


class Preview(Struct, frozen=True):
    """A smaller picture, WebP; `edge` (320 or 1600) is the bound of its longer side."""

    edge: int
    path: Path
    width: int
    height: int
    size: int


class Prepared(Struct, frozen=True):
    """A file as it will be stored and served.

    `main` is the file with the re-encoded bytes, None if the received bytes are kept as they are; `size` is that of the
    bytes to store.
    """

    kind: Kind
    type: str
    size: int
    width: int | None = None
    height: int | None = None
    duration_ms: int | None = None
    waveform: bytes | None = None
    main: Path | None = None
    previews: tuple[Preview, ...] = ()


# Checks and prepares an upload; raises Unreadable, Rejected, UnsupportedType, TooLarge, RateLimited or Unavailable.
Prepare = Callable[[Received], Awaitable[Prepared]]
