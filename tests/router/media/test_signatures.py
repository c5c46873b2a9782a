"""Types by first bytes, and what a client may declare."""

from __future__ import annotations

import pytest

from router.media.signatures import by_signature, decide
from router.media.types import OCTETS, Kind, UnsupportedType

HEADS = {
    b"\xff\xd8\xff\xe0\0\x10JFIF": "image/jpeg",
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR": "image/png",
    b"RIFF\x10\0\0\0WEBPVP8 ": "image/webp",
    b"GIF89a\1\0\1\0": "image/gif",
    b"GIF87a\1\0\1\0": "image/gif",
    b"RIFF\x10\0\0\0WAVEfmt ": "audio/wav",
    b"RIFF\x10\0\0\0AVI LIST": OCTETS,
    b"fLaC\0\0\0\x22": "audio/flac",
    b"ID3\4\0": "audio/mpeg",
    b"\xff\xfb\x90\x64": "audio/mpeg",
    b"\xff\xf3\x40\xc0": "audio/mpeg",
    b"\xff\xfe<\0h\0": OCTETS,  # text of 16 bits
    b"\xff\xff\xff\xff": OCTETS,
    b"\xff\xf1\x50\x80": "audio/aac",
    b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm": "video/webm",
    b"\x1aE\xdf\xa3\x9fB\x82\x88matroska": OCTETS,
    b"\0\0\0\x20ftypisom": "video/mp4",
    b"\0\0\0\x20ftypM4A ": "audio/mp4",
    b"\0\0\0\x20ftypqt  ": "video/quicktime",
    b"\0\0\0\x20ftypheic": OCTETS,
    b"OggS\0\2" + bytes(20) + b"\1\x13OpusHead": "audio/ogg",
    b"OggS\0\2" + bytes(20) + b"\1\x1e\x01vorbis": "audio/ogg",
    b"OggS\0\2" + bytes(20) + b"\1\x2a\x80theora": "video/ogg",
    b"OggS\0\2" + bytes(20) + b"\1\x2afishead\0": OCTETS,
    b"OggS": OCTETS,
    b"%PDF-1.7": "application/pdf",
    b"PK\3\4": "application/zip",
    b"<svg xmlns=": OCTETS,
    b"<!DOCTYPE html>": OCTETS,
    b"": OCTETS,
}


@pytest.mark.parametrize(("head", "name"), HEADS.items())
def test_type_is_found_by_the_first_bytes(head: bytes, name: str) -> None:
    assert by_signature(head) == name
    assert by_signature(head + bytes(480)) == name


@pytest.mark.parametrize(
    ("found", "declared_type", "declared_kind", "result"),
    [
        ("image/jpeg", "", None, ("image/jpeg", "image")),
        ("image/jpeg", "image/png", None, ("image/jpeg", "image")),
        ("image/jpeg", "", "file", ("image/jpeg", "file")),
        ("video/webm", "", None, ("video/webm", "video")),
        ("video/webm", "audio/webm", None, ("audio/webm", "voice")),
        ("video/webm", "video/webm", "voice", ("audio/webm", "voice")),
        ("video/mp4", "audio/mp4", "video", ("video/mp4", "video")),
        ("audio/mpeg", "", None, ("audio/mpeg", "voice")),
        ("application/pdf", "", None, ("application/pdf", "file")),
        (OCTETS, "image/svg+xml", None, (OCTETS, "file")),
        (OCTETS, "video/mp4", "file", (OCTETS, "file")),
    ],
)
def test_kind_follows_from_the_bytes(
    found: str, declared_type: str, declared_kind: Kind | None, result: tuple[str, Kind]
) -> None:
    assert decide(found, declared_type, declared_kind) == result


@pytest.mark.parametrize(
    ("found", "declared_type", "declared_kind"),
    [
        (OCTETS, "", "image"),
        (OCTETS, "image/png", None),
        ("audio/mpeg", "image/gif", None),
        ("image/png", "", "voice"),
        ("image/png", "", "video"),
        ("audio/mpeg", "", "video"),
        ("video/quicktime", "", "voice"),
        ("application/pdf", "", "voice"),
    ],
)
def test_declared_kind_of_other_bytes_is_refused(found: str, declared_type: str, declared_kind: Kind | None) -> None:
    with pytest.raises(UnsupportedType):
        decide(found, declared_type, declared_kind)
