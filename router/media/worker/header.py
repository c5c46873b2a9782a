"""The size and frames that a picture declares, and the memory to decode it. Read before any decoding.

Invariants
- Nothing here decompresses, and the time is linear in the bytes.
- `declared` raises `Unreadable` for anything that is not the beginning of a picture of the given type, and `TooLarge`
  above the bounds.

The size that the decoder finds must be the same as the one here, else the picture is refused: `picture` compares them.
"""

from __future__ import annotations

import struct
from struct import unpack_from
from typing import Final

from msgspec import Struct

from router.media.worker.job import PictureType, TooLarge, Unreadable

MEGAPIXEL: Final = 1_000_000
MAX_PIXELS: Final[dict[PictureType, int]] = {
    "image/jpeg": 40 * MEGAPIXEL,
    "image/png": 20 * MEGAPIXEL,
    "image/webp": 20 * MEGAPIXEL,
    "image/gif": 20 * MEGAPIXEL,
}
MAX_FRAMES: Final = 200
MAX_ANIMATION_PIXELS: Final = 40 * MEGAPIXEL  # frames × canvas
MAX_DECODED_BYTES: Final = 400_000_000  # of a JPEG: its pixels and, if it is progressive, its coefficients
JPEG_SEGMENTS: Final = 2000  # before the frame header; a profile needs up to 255

_FRAME_HEADERS: Final = {0xC0: False, 0xC1: False, 0xC2: True}  # baseline, extended; True: progressive
_OTHER_FRAME_HEADERS: Final = {0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)}


class Declared(Struct, frozen=True):
    """The declared size; the duration of each frame in ms, if there are several frames."""

    width: int
    height: int
    durations: tuple[int, ...] = ()

    @property
    def animated(self) -> bool:
        return len(self.durations) > 1


class GifFrame(Struct, frozen=True):
    """One frame of a GIF, as positions in its bytes. `control` is its graphic control, of 4 bytes, or empty."""

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    palette: tuple[int, int]  # of its own palette; both the same: it uses the global one
    pixels: tuple[int, int]  # of the compressed pixels, with the code size before and the end mark behind
    control: bytes


class Gif(Struct, frozen=True):
    width: int
    height: int
    palette: tuple[int, int]
    background: int
    loop: int | None  # how often it is repeated, 0 for ever; None: it is not
    frames: tuple[GifFrame, ...]


def declared(kind: PictureType, data: bytes) -> Declared:
    """Return what the picture declares."""
    try:
        found = _READERS[kind](data)
    except (struct.error, IndexError):
        raise Unreadable("the picture ends within its header") from None
    if found.width < 1 or found.height < 1:
        raise Unreadable("the picture has no size")
    pixels = found.width * found.height
    if pixels > MAX_PIXELS[kind]:
        raise TooLarge(f"the picture has more than {MAX_PIXELS[kind] // MEGAPIXEL} megapixels")
    if len(found.durations) * pixels > MAX_ANIMATION_PIXELS:
        raise TooLarge(f"all frames together have more than {MAX_ANIMATION_PIXELS // MEGAPIXEL} megapixels")
    return found


def _jpeg(data: bytes) -> Declared:
    if data[:2] != b"\xff\xd8":
        raise Unreadable("not a JPEG")
    at = 2
    for _ in range(JPEG_SEGMENTS):
        if data[at] != 0xFF:
            raise Unreadable("the JPEG has bytes between its segments")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _FRAME_HEADERS:
            return _jpeg_frame(data, at, progressive=_FRAME_HEADERS[marker])
        if marker in _OTHER_FRAME_HEADERS or marker in (0x00, 0xD9, 0xDA):
            raise Unreadable("the JPEG is of a rare kind, or has no frame header")
        if marker != 0x01 and not 0xD0 <= marker <= 0xD8:
            at += unpack_from(">H", data, at)[0]
    raise Unreadable("the JPEG has too many segments")


def _jpeg_frame(data: bytes, at: int, *, progressive: bool) -> Declared:
    _, depth, height, width, count = unpack_from(">HBHHB", data, at)
    if depth != 8 or count not in (1, 3, 4):
        raise Unreadable("the JPEG has a depth or a number of components that is not supported")
    sampling = [(data[at + 9 + 3 * i] >> 4, data[at + 9 + 3 * i] & 15) for i in range(count)]
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        raise Unreadable("the JPEG has an impossible sampling")
    full = max(h for h, _ in sampling) * max(v for _, v in sampling)
    coefficients = sum(width * height * h * v * 2 // full for h, v in sampling) if progressive else 0
    if width * height <= MAX_PIXELS["image/jpeg"] and 4 * width * height + coefficients > MAX_DECODED_BYTES:
        raise TooLarge("the progressive JPEG needs too much memory")
    return Declared(width, height)


def _png(data: bytes) -> Declared:
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        raise Unreadable("not a PNG")
    return Declared(*unpack_from(">II", data, 16))


def _webp(data: bytes) -> Declared:
    form, size, name = unpack_from("<4sI4s", data)
    if form != b"RIFF" or name != b"WEBP":
        raise Unreadable("not a WebP")
    if size + 8 > len(data):
        raise Unreadable("the WebP is truncated")
    first = data[12:16]
    if first == b"VP8 ":
        if data[23:26] != b"\x9d\x01\x2a":
            raise Unreadable("the WebP has no key frame")
        width, height = unpack_from("<HH", data, 26)
        return Declared(width & 0x3FFF, height & 0x3FFF)
    if first == b"VP8L":
        bits = unpack_from("<I", data, 21)[0]
        return Declared((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if first != b"VP8X":
        raise Unreadable("the WebP begins with an unknown chunk")
    width, height = 1 + _three(data, 24), 1 + _three(data, 27)
    durations: list[int] = []
    at, end = 30, size + 8
    while at + 8 <= end:
        name, length = unpack_from("<4sI", data, at)
        if name == b"ANMF":
            durations.append(_three(data, at + 8 + 12))
            if len(durations) > MAX_FRAMES:
                raise TooLarge(f"the picture has more than {MAX_FRAMES} frames")
        at += 8 + length + (length & 1)
    return Declared(width, height, tuple(durations))


def _three(data: bytes, at: int) -> int:
    return data[at] | data[at + 1] << 8 | data[at + 2] << 16


def _gif(data: bytes) -> Declared:
    found = gif(data)
    durations = tuple(10 * (frame.control[1] | frame.control[2] << 8) if frame.control else 0 for frame in found.frames)
    return Declared(found.width, found.height, durations)


def gif(data: bytes) -> Gif:
    """Return all parts of a GIF; `Unreadable` if it does not end with its trailer or a frame leaves the canvas."""
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        raise Unreadable("not a GIF")
    width, height, flags, background = unpack_from("<HHBB", data, 6)
    at = 13
    palette, at = _palette(flags, at)
    frames: list[GifFrame] = []
    control, loop = b"", None
    while (block := data[at]) != 0x3B:
        if block == 0x21:
            label, start = data[at + 1], at + 2
            at = _after_blocks(data, start)
            if label == 0xF9 and data[start] == 4:
                control = data[start + 1 : start + 5]
            elif label == 0xFF and data[start : start + 14] == b"\x0bNETSCAPE2.0\x03\x01":
                loop = unpack_from("<H", data, start + 14)[0]
        elif block == 0x2C:
            left, top, frame_width, frame_height, flags = unpack_from("<HHHHB", data, at + 1)
            own, start = _palette(flags, at + 10)
            at = _after_blocks(data, start + 1)
            if not (0 < frame_width <= width - left and 0 < frame_height <= height - top):
                raise Unreadable("a frame of the GIF leaves its canvas")
            size = frame_width, frame_height
            frames.append(GifFrame(left, top, *size, bool(flags & 0x40), own, (start, at), control))
            control = b""
            if len(frames) > MAX_FRAMES:
                raise TooLarge(f"the picture has more than {MAX_FRAMES} frames")
        else:
            raise Unreadable("the GIF has an unknown block")
    if not frames:
        raise Unreadable("the GIF has no frame")
    return Gif(width, height, palette, background, loop, tuple(frames))


def _palette(flags: int, at: int) -> tuple[tuple[int, int], int]:
    end = at + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    return (at, end), end


def _after_blocks(data: bytes, at: int) -> int:
    """Return the position behind a chain of blocks, each of which begins with its length; the last has none."""
    while length := data[at]:
        at += length + 1
    return at + 1


_READERS: Final = {"image/jpeg": _jpeg, "image/png": _png, "image/webp": _webp, "image/gif": _gif}
