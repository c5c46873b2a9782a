"""The type of a file by its first bytes, and whether it is what the client says.

Invariants
- Neither the name nor the declared type makes a type: a file that begins as none of TYPES is OCTETS and of kind `file`,
  so nothing that a browser could run (HTML, SVG, scripts) has a type of its own.
- The declared type only chooses between audio and video where both are in the same container.
"""

from __future__ import annotations

from typing import Final

from router.media.types import OCTETS, Kind, UnsupportedType

HEAD_BYTES: Final = 512

PICTURES: Final = ("image/jpeg", "image/png", "image/webp", "image/gif")
AUDIO_OF: Final = {"video/webm": "audio/webm", "video/mp4": "audio/mp4", "video/ogg": "audio/ogg"}

# Type: where its bytes are, and which.
_FIXED: Final[tuple[tuple[str, tuple[tuple[int, bytes], ...]], ...]] = (
    ("image/jpeg", ((0, b"\xff\xd8\xff"),)),
    ("image/png", ((0, b"\x89PNG\r\n\x1a\n"),)),
    ("image/webp", ((0, b"RIFF"), (8, b"WEBP"))),
    ("image/gif", ((0, b"GIF87a"),)),
    ("image/gif", ((0, b"GIF89a"),)),
    ("audio/wav", ((0, b"RIFF"), (8, b"WAVE"))),
    ("audio/flac", ((0, b"fLaC"),)),
    ("audio/mpeg", ((0, b"ID3"),)),
    ("audio/aac", ((0, b"\xff\xf1"),)),
    ("audio/aac", ((0, b"\xff\xf9"),)),
    ("application/pdf", ((0, b"%PDF-"),)),
    ("application/zip", ((0, b"PK\x03\x04"),)),
)
_BRANDS: Final = {  # of ISO media files; others are files without a type
    **dict.fromkeys((b"M4A ", b"M4B "), "audio/mp4"),
    **dict.fromkeys((b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"dash", b"MSNV"),
                    "video/mp4"),
    b"qt  ": "video/quicktime",
    **dict.fromkeys((b"3gp4", b"3gp5", b"3gp6"), "video/3gpp"),
}  # fmt: skip


def by_signature(head: bytes) -> str:
    """Return the type of a file that begins with these bytes, up to HEAD_BYTES of them."""
    for name, parts in _FIXED:
        if all(head.startswith(part, at) for at, part in parts):
            return name
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "video/webm" if b"\x42\x82\x84webm" in head[:64] else OCTETS
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], OCTETS)
    if head.startswith(b"OggS"):
        return _ogg(head)
    return "audio/mpeg" if _mp3_frame(head) else OCTETS


def _ogg(head: bytes) -> str:
    """By the header of the first stream, which is alone in its page."""
    start = 27 + head[26] if len(head) > 26 else len(head)
    if head.startswith((b"OpusHead", b"\x01vorbis", b"\x7fFLAC", b"Speex   "), start):
        return "audio/ogg"
    return "video/ogg" if head.startswith(b"\x80theora", start) else OCTETS


def _mp3_frame(head: bytes) -> bool:
    """Whether the bytes begin with a frame header of MPEG audio, layer III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return False
    return 0 < head[2] >> 4 < 15 and head[2] >> 2 & 3 != 3


def kind_of(name: str) -> Kind:
    """Return the kind of a file of this type."""
    if name in PICTURES:
        return "image"
    family = name.partition("/")[0]
    return "voice" if family == "audio" else "video" if family == "video" else "file"


def decide(found: str, declared_type: str, declared_kind: Kind | None) -> tuple[str, Kind]:
    """Return type and kind of a file; `UnsupportedType` if the bytes are not of the kind that the client declares.

    Any bytes may be of kind `file`. A declared type that Linnet does not know is not checked, and one picture type may
    be declared as another, because browsers take types from names.
    """
    as_audio = declared_kind == "voice" or (declared_kind is None and declared_type.startswith("audio/"))
    name = AUDIO_OF.get(found, found) if as_audio else found
    if declared_kind == "file":
        return name, "file"
    kind = kind_of(name)
    if declared_kind is not None and kind != declared_kind:
        raise UnsupportedType(f"the file is not of kind {declared_kind}: its bytes are {name}")
    if declared_type in PICTURES and kind != "image":
        raise UnsupportedType(f"the file is not a picture: its bytes are {name}")
    return name, kind
