"""The answer with a file: the type that the browser is told, whether it may show the file, which bytes it gets. Pure.

A file that somebody sent is hostile. Only pictures that were re-encoded here, audio and video are shown in place; all
else is a download, of a type from TYPES, and nothing of it runs: no sniffing, a sandbox without scripts, no plugin.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

from msgspec import Struct

from router.contract.files import FileInfo, Kind
from router.media.types import OCTETS

SHOWN: Final = frozenset(
    {
        "image/jpeg", "image/png", "image/webp", "image/gif",
        "audio/aac", "audio/flac", "audio/mp4", "audio/mpeg", "audio/ogg", "audio/wav", "audio/webm",
        "video/mp4", "video/ogg", "video/quicktime", "video/webm",
    }
)  # fmt: skip
TYPES: Final = SHOWN | {
    "application/gzip", "application/json", "application/msword", "application/pdf", "application/vnd.ms-excel",
    "application/vnd.ms-powerpoint", "application/vnd.oasis.opendocument.presentation",
    "application/vnd.oasis.opendocument.spreadsheet", "application/vnd.oasis.opendocument.text",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/x-7z-compressed", "application/x-tar", "application/zip", "text/csv", "text/plain",
}  # fmt: skip
PREVIEW_TYPE: Final = "image/webp"
SAFE: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
    "Accept-Ranges": "bytes",
}

_ONE_RANGE: Final = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*\Z", re.IGNORECASE | re.ASCII)


class Slice(Struct, frozen=True):
    """The bytes [start, end) of an answer; `whole` if they are all."""

    start: int
    end: int
    whole: bool = False


class Served(Struct, frozen=True):
    """The type of a file as it is sent, and how a browser treats it."""

    type: str
    disposition: str


def served(info: FileInfo | None, preview: int | None, picture: str) -> Served:
    """The headers of a file. `info` None is an avatar, a re-encoded picture of the type `picture`."""
    if preview or info is None:
        return Served(PREVIEW_TYPE if preview else picture or OCTETS, "inline")
    name = f"; filename*=UTF-8''{quote(info.name, safe='')}" if info.name else ""
    return Served(info.type if info.type in TYPES else OCTETS, disposition(info.type, info.kind) + name)


def disposition(type_: str, kind: Kind) -> str:
    """Whether a browser shows a file of this type and kind in place."""
    return "inline" if type_ in SHOWN and kind != "file" else "attachment"


def etag(sha256: str, preview: int | None) -> str:
    return f'"{sha256}-{preview}"' if preview else f'"{sha256}"'


def unchanged(if_none_match: str | None, tag: str) -> bool:
    """Whether the client has these bytes already."""
    if if_none_match is None:
        return False
    return any(one.strip().removeprefix("W/") in ("*", tag) for one in if_none_match.split(","))


def chosen(given: str | None, if_range: str | None, tag: str, size: int) -> Slice | None:
    """The bytes that `Range` asks for; None if there are no such bytes (416).

    What is no range of bytes, or more than one, is ignored, as RFC 9110 allows; so is a range of another version.
    """
    whole = Slice(0, size, whole=True)
    if given is None or (if_range is not None and if_range.strip() != tag):
        return whole
    if (found := _ONE_RANGE.match(given.strip())) is None or found.groups() == ("", ""):
        return whole
    first, last = found.groups()
    if not first:
        count = min(int(last[:20]), size)
        return Slice(size - count, size) if count else None
    start = int(first[:20])
    end = min(int(last[:20]) + 1, size) if last else size
    if last and int(last[:20]) < start:
        return whole
    return Slice(start, end) if start < size else None
