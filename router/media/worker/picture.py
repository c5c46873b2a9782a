"""One picture: decoded, turned upright, and encoded anew in its format, with WebP previews.

Invariants
- The declared size is checked before anything is decoded, and the decoder must find the same size.
- Of metadata only a colour profile is kept, and only if it can be read and belongs to the picture's colours. All other
  metadata is dropped because the pixels are encoded into a new file, which gets nothing else.
- At most two copies of the pixels exist at a time: before and after a turn or conversion.

Decisions
- A JPEG, WebP or PNG stays what it is, a GIF keeps its frames. Of an animated PNG the first frame is kept.
- Previews show the first frame.
- Four colours (CMYK) become three, 16 bits of grey become 8: browsers show the others wrongly or not at all.
"""

from __future__ import annotations

from io import BytesIO
from typing import IO, Final

from PIL import Image, ImageCms, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from router.media.worker import gif, header
from router.media.worker.job import Picture, PictureType, Unreadable

MAX_PROFILE_BYTES: Final = 1_000_000
QUALITY: Final = 85
PREVIEW_QUALITY: Final = 80
FAST_PIXELS: Final = 4_000_000  # above, encoders spend less time on each pixel

# The classes themselves: `Image.open` would pass some JPEGs to the reader of another format.
_READERS: Final[dict[PictureType, type[JpegImageFile | PngImageFile | WebPImageFile | GifImageFile]]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
}
_FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
_SPACES: Final = {"L": "GRAY", "LA": "GRAY", "1": "GRAY", "RGB": "RGB ", "RGBA": "RGB ", "P": "RGB ", "CMYK": "CMYK"}
_GREYS_OF_16_BITS: Final = ("I", "I;16", "I;16B", "I;16L")
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.MAX_IMAGE_PIXELS = header.MAX_PIXELS["image/jpeg"]
ImageFile.LOAD_TRUNCATED_IMAGES = False


def prepare(kind: PictureType, data: bytes, main: IO[bytes], previews: dict[int, IO[bytes]]) -> Picture:
    """Write the picture to `main` and each preview that is smaller than the picture to its file in `previews`."""
    declared = header.declared(kind, data)
    image = _READERS[kind](BytesIO(data))
    if image.size != (declared.width, declared.height):
        raise Unreadable("the picture declares two sizes")
    if kind == "image/gif":
        gif.rewrite(header.gif(data), data, main)
        upright = _flat(image)
        profile = None
    elif declared.animated:
        profile = _profile(image)
        _write_animation(image, declared.durations, main, profile)
        image.seek(0)
        upright = _flat(image)
    else:
        image.load()  # before anything asks for EXIF: that would load a PNG, and its errors would count as EXIF's
        turn = _turn(image)
        upright, profile = _shown(image, _profile(image))
        del image  # its pixels, unless `upright` has the same ones
        if turn is not None:
            upright = upright.transpose(turn)
        _write(upright, kind, main, profile)
    return Picture(*upright.size, _write_previews(upright, previews, profile))  # type: ignore[arg-type]  # our edges


def _turn(image: ImageFile.ImageFile) -> Image.Transpose | None:
    """Return how the picture has to be turned; a damaged EXIF says nothing."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the parser raises many types, and the picture itself may be good
        return None


def _profile(image: Image.Image) -> bytes | None:
    """Return the picture's colour profile, if it is one and fits the picture's colours."""
    found = image.info.get("icc_profile")
    if not isinstance(found, bytes) or not 128 <= len(found) <= MAX_PROFILE_BYTES:
        return None
    try:
        space = ImageCms.ImageCmsProfile(BytesIO(found)).profile.xcolor_space
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None
    return found if space == _SPACES.get(image.mode) else None


def _shown(image: ImageFile.ImageFile, profile: bytes | None) -> tuple[Image.Image, bytes | None]:
    """Return the pixels in a mode that browsers show, without metadata, and the profile that belongs to them."""
    shown: Image.Image
    if image.mode == "CMYK":
        return _three_colours(image, profile), None
    if image.mode in _GREYS_OF_16_BITS:
        shown = image.convert("I").point(lambda level: level * (1 / 257) + 0.5).convert("L")
    elif image.mode in ("RGB", "L") and "transparency" in image.info:  # one colour is transparent
        shown = image.convert("RGBA")
    elif image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        shown = image
    else:
        shown = image.convert("RGBA" if image.has_transparency_data else "RGB")
    transparency = image.info.get("transparency") if shown.mode == "P" else None
    shown.info = {} if transparency is None else {"transparency": transparency}
    return shown, profile if _SPACES.get(shown.mode) == _SPACES.get(image.mode) else None


def _three_colours(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None:
        try:
            srgb = ImageCms.createProfile("sRGB")
            turned = ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, ValueError):
            turned = None
        if turned is not None:
            turned.info = {}
            return turned
    turned = image.convert("RGB")
    turned.info = {}
    return turned


def _write(image: Image.Image, kind: PictureType, out: IO[bytes], profile: bytes | None) -> None:
    fast = image.width * image.height > FAST_PIXELS
    how: dict[str, object] = {}
    if kind == "image/jpeg":
        how = {"quality": QUALITY}
    elif kind == "image/webp":
        how = {"quality": QUALITY, "method": 1 if fast else 4}
    elif kind == "image/png":
        how = {"compress_level": 3 if fast else 6}
    image.save(out, _FORMATS[kind], icc_profile=profile, **how)


def _write_animation(image: Image.Image, durations: tuple[int, ...], out: IO[bytes], profile: bytes | None) -> None:
    """Write an animated WebP; both decoder and encoder have one frame at a time."""
    how = {"duration": list(durations), "loop": image.info.get("loop", 0), "background": (0, 0, 0, 0)}
    image.save(out, "WEBP", save_all=True, quality=QUALITY, method=0, icc_profile=profile, **how)


def _flat(image: Image.Image) -> Image.Image:
    """Return a copy of the current frame for previews."""
    image.load()
    flat = image.convert("RGBA" if image.has_transparency_data else "RGB")
    flat.info = {}
    return flat


def _write_previews(
    image: Image.Image, outs: dict[int, IO[bytes]], profile: bytes | None
) -> dict[int, tuple[int, int]]:
    """Write the previews, the largest first, each made of the one before; return their sizes."""
    made: dict[int, tuple[int, int]] = {}
    if _SPACES[image.mode] != "RGB ":
        profile = None  # a WebP has three colours
    for edge in sorted(outs, reverse=True):
        if max(image.size) <= edge:
            continue
        scale = edge / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        if image.mode in ("P", "1"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        image.info = {}
        image.save(outs[edge], "WEBP", quality=PREVIEW_QUALITY, method=4, icc_profile=profile)
        made[edge] = size
    return made
