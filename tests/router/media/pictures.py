"""Pictures, recordings and hostile files that the tests make themselves."""

from __future__ import annotations

import struct
import zlib
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageCms

from router.media.types import Kind, Received

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!DOCTYPE html><html><script>alert(1)</script></html>"
SECRET = b"a-secret-that-no-copy-may-contain"


def received(folder: Path, data: bytes, declared_type: str = "", kind: Kind | None = None, **more: object) -> Received:
    """Return an upload of these bytes in a folder of its own."""
    digest = sha256(data).hexdigest()
    own = folder / f"{digest[:16]}-{len(list(folder.iterdir()))}"
    own.mkdir()
    (own / "bytes").write_bytes(data)
    return Received(own / "bytes", len(data), digest, declared_type, kind, "name", user="anna", **more)  # type: ignore[arg-type]


def painted(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return a picture that is bright at the upper left and has some detail."""
    image = Image.linear_gradient("L").resize((width, height)).transpose(Image.Transpose.ROTATE_180)
    other = Image.radial_gradient("L").resize((width, height))
    return Image.merge("RGB", (image, other, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))).convert(mode)


def encoded(image: Image.Image, form: str, **how: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


def tagged(image: Image.Image, form: str, orientation: int = 1) -> bytes:
    """Return the picture with a colour profile and with every kind of metadata that its format has."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 14.0)  # the latitude
    how: dict[str, object] = {"exif": exif, "icc_profile": PROFILE}
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><!--" + SECRET + b"--></x:xmpmeta>"
    if form == "JPEG":
        how |= {"xmp": xmp, "comment": SECRET, "dpi": (71, 71)}
    elif form == "WEBP":
        how |= {"xmp": xmp}
    elif form == "PNG":
        how |= {"dpi": (71, 71)}
    elif form == "GIF":
        how = {"comment": SECRET}
    data = encoded(image, form, **how)
    if form == "PNG":
        data = data[:33] + chunk(b"tEXt", b"Comment\0" + SECRET) + data[33:-12] + chunk(b"zTXt", text()) + data[-12:]
    return data


def text() -> bytes:
    return b"Author\0\0" + zlib.compress(SECRET)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG that declares this size and has these bytes as its compressed pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(length: int) -> bytes:
    """Return `length` zero bytes, compressed a megabyte at a time."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(1 << 20, length - at))) for at in range(0, length, 1 << 20)]
    return b"".join([*parts, packer.flush()])


def gif(frames: int, width: int = 2, height: int = 2, *, frame: tuple[int, int, int, int] | None = None) -> bytes:
    """Return a GIF of one-coloured frames; `frame` is the place of each (left, top, width, height)."""
    place = frame or (0, 0, width, height)
    still = encoded(Image.new("P", place[2:], 0), "GIF")
    descriptor = still.index(b"\x2c", 13)
    own = still[:-1][descriptor + 10 :]
    one = b"\x21\xf9\x04\x00\x05\x00\x00\x00\x2c" + struct.pack("<HHHHB", *place, 0) + own
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + one * frames + b"\x3b"


def with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """Return the JPEG with another size in its frame header."""
    at = next(at for at in range(2, len(data)) if data[at : at + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    """Return silence."""
    data = bytes(round(seconds * rate))
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, rate, 1, 8) + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data
