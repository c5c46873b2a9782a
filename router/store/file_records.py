"""A file in Redis: its record, an upload as its user described it, a file in an event."""

from __future__ import annotations

from struct import Struct as Packing
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from router.contract.errors import NotFound
from router.contract.files import FileInfo, Kind, Poster
from router.contract.packing import pack

_RECORD: Final = Packing(">cI8sQIBB")
_ROW: Final = Packing(">QQ")
BITS: Final = {320: 1, 1600: 2}
PICTURES: Final = ("", "image/jpeg", "image/png", "image/webp", "image/gif")  # by their number in a record


class _Row(Struct, frozen=True, array_like=True, omit_defaults=True):
    """The user's description of an upload, without hash and size, which are beside it."""

    type: str
    kind: Kind
    name: str
    previews: list[int]
    width: int | None = None
    height: int | None = None
    duration: int | None = None
    waveform: list[int] | None = None


_row = msgspec.msgpack.Decoder(_Row).decode


class _Event(Struct, frozen=True):
    files: list[FileInfo] = []


_event = msgspec.msgpack.Decoder(_Event).decode


class Record(Struct, frozen=True):
    """A file as the store has it. `gen` is the generation of its objects; `stored` is false while bytes are coming."""

    stored: bool
    gen: str
    size: int
    previews: tuple[int, ...]
    picture: str = ""  # the type of a picture, "" for anything else


class Upload(Struct, frozen=True):
    """A file as its uploader described it, and when (ms)."""

    at: int
    info: FileInfo


def packed_info(info: FileInfo) -> bytes:
    """Pack the user's description of a file for the row of the upload."""
    row = _Row(info.type, info.kind, info.name, info.previews, info.width, info.height, info.duration, info.waveform)
    return pack(row)


def edges_of(bits: int) -> tuple[int, ...]:
    return tuple(edge for edge, bit in BITS.items() if bits & bit)


def record_of(packed: bytes | None) -> Record | None:
    if packed is None:
        return None
    state, _, gen, size, _, previews, picture = _RECORD.unpack(packed)
    return Record(state == b"s", gen.decode(), size, edges_of(previews), PICTURES[picture])


def upload_of(sha256: str, row: bytes) -> Upload:
    at, size = _ROW.unpack_from(row)
    said = _row(row[_ROW.size :])
    info = FileInfo(
        sha256=sha256,
        type=said.type,
        kind=said.kind,
        size=size,
        name=said.name,
        width=said.width,
        height=said.height,
        duration=said.duration,
        waveform=said.waveform,
        previews=said.previews,
    )
    return Upload(at, info)


def poster_of(picture: FileInfo) -> Poster | None:
    """Return the file as the poster of a video; None if it is not a picture."""
    if picture.kind != "image" or picture.width is None or picture.height is None:
        return None
    size = picture.width, picture.height
    return Poster(sha256=picture.sha256, type=picture.type, size=picture.size, width=size[0], height=size[1],
                  previews=picture.previews)  # fmt: skip


def shown_in(sha256: str, event: bytes) -> FileInfo | None:
    """The file, or the poster of one, in the bytes of an event; None for an avatar."""
    if not event:
        return None
    files = _event(event).files
    for info in files:
        if info.sha256 == sha256:
            return info
    for info in files:
        if info.poster is not None and info.poster.sha256 == sha256:
            return FileInfo(kind="image", **asdict(info.poster))
    raise NotFound
