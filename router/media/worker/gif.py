"""A GIF written anew, frame by frame: each frame's pixels are decoded and compressed again, and nothing else is copied
but palettes, positions, times and the number of repetitions.

Invariants
- One frame is in memory at a time, at its own size. Frames are not drawn onto each other, so the animation keeps its
  pixels and palettes exactly.
- Comments, texts, application blocks, unused bytes behind pixels or the trailer are not copied.
"""

from __future__ import annotations

from io import BytesIO
from struct import pack
from typing import IO, Final

from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile

from router.media.worker.header import Gif, GifFrame
from router.media.worker.job import Unreadable

_GREYS: Final = bytes(level for level in range(256) for _ in range(3))  # so the decoded levels are the indexes


def rewrite(gif: Gif, data: bytes, out: IO[bytes]) -> None:
    """Write the GIF to `out`."""
    out.write(b"GIF89a" + pack("<HHBBB", gif.width, gif.height, _flags(gif.palette), gif.background, 0))
    out.write(data[slice(*gif.palette)])
    if gif.loop is not None:
        out.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + pack("<H", gif.loop) + b"\0")
    for frame in gif.frames:
        if gif.palette[0] == gif.palette[1] and frame.palette[0] == frame.palette[1]:
            raise Unreadable("a frame of the GIF has no palette")
        if frame.control:
            out.write(b"\x21\xf9\x04" + frame.control + b"\0")
        place = pack("<HHHHB", frame.left, frame.top, frame.width, frame.height, _flags(frame.palette))
        out.write(b"\x2c" + place + data[slice(*frame.palette)] + b"\x08")
        _compress(_pixels(frame, data), out)
        out.write(b"\0")
    out.write(b"\x3b")


def _flags(palette: tuple[int, int]) -> int:
    """Return the flags of a palette: whether there is one, and its size as the power of two that the format has."""
    length = palette[1] - palette[0]
    return 0x80 | (length // 3).bit_length() - 2 if length else 0


def _pixels(frame: GifFrame, data: bytes) -> Image.Image:
    """Decode one frame into an image of indexes, as a GIF of its own."""
    head = b"GIF89a" + pack("<HHBBB", frame.width, frame.height, 0xF7, 0, 0) + _GREYS
    place = b"\x2c" + pack("<HHHHB", 0, 0, frame.width, frame.height, 0x40 if frame.interlaced else 0)
    image = GifImageFile(BytesIO(head + place + data[slice(*frame.pixels)] + b"\x3b"))
    image.load()
    if image.mode != "L":
        raise Unreadable("a frame of the GIF cannot be decoded")
    return image


def _compress(image: Image.Image, out: IO[bytes]) -> None:
    image.encoderinfo = {}
    image.encoderconfig = (8, False)  # bits of an index; not interlaced
    ImageFile._save(image, out, [ImageFile._Tile("gif", (0, 0, *image.size), 0, "L")])
