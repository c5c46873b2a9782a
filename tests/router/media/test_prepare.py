"""Uploads as they are prepared: real pictures and hostile ones, in real worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from router.contract.errors import LinnetError, RateLimited, TooLarge, Unavailable
from router.media import turns
from router.media.prepare import Kills, Preparer
from router.media.types import OCTETS, Prepared, Unreadable, UnsupportedType
from router.media.worker.job import PictureType
from router.media.workers import Bounds, Killed, Workers
from tests import support
from tests.router.media import pictures
from tests.router.media.pictures import HTML, SECRET, SVG, encoded, painted, received, tagged

pytestmark = pytest.mark.processes


FORMATS: dict[PictureType, str] = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}


@asynccontextmanager
async def preparing(*, probes: bool = False) -> AsyncIterator[Preparer]:
    preparer = Preparer(Workers(2), None, probes=probes)
    try:
        yield preparer
    finally:
        await preparer.close()


def stored(prepared: Prepared) -> Image.Image:
    assert prepared.main is not None
    assert prepared.main.stat().st_size == prepared.size
    return Image.open(BytesIO(prepared.main.read_bytes()))


async def test_picture_of_each_format_is_encoded_anew_without_metadata(tmp_path: Path) -> None:
    """Only the colour profile is left: no EXIF, place, comment, text, XMP or byte behind the picture."""
    async with preparing() as prepare:
        for kind, form in FORMATS.items():
            data = tagged(painted(400, 200), form) + SECRET
            assert data.count(SECRET) >= 2 or form == "PNG"
            prepared = await prepare(received(tmp_path, data))
            assert (prepared.kind, prepared.type, prepared.width, prepared.height) == ("image", kind, 400, 200)
            image = stored(prepared)
            assert (image.format, image.size) == (form, (400, 200))
            assert image.info.get("icc_profile") == (None if form == "GIF" else pictures.PROFILE)
            assert not image.getexif()
            assert prepared.main is not None
            for path in (prepared.main, *(preview.path for preview in prepared.previews)):
                assert SECRET not in path.read_bytes()
            assert [(preview.edge, preview.width, preview.height) for preview in prepared.previews] == [(320, 320, 160)]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed (libimage-exiftool-perl)")
async def test_exiftool_finds_no_metadata_but_the_profile(tmp_path: Path) -> None:
    """Before, there are tags of cameras and editors in it; after, only those of the format itself."""

    def tags(paths: list[Path]) -> list[set[str]]:
        done = subprocess.run(("exiftool", "-j", "-G0", "-a", *paths), capture_output=True, check=True)
        return [set(found) for found in json.loads(done.stdout)]

    async with preparing() as prepare:
        uploads = [received(tmp_path, tagged(painted(400, 200), form)) for form in FORMATS.values()]
        made = [await prepare(upload) for upload in uploads]
    before = tags([upload.path for upload in uploads])
    assert [bool([tag for tag in found if tag.startswith(("EXIF:", "XMP:"))]) for found in before] == [
        True,
        True,
        True,
        False,
    ]
    assert "File:Comment" in before[3]
    assert "PNG:Comment" in before[1]
    paths = [path for one in made for path in (one.main, *(preview.path for preview in one.previews)) if path]
    assert len(paths) == 8
    for found in tags(paths):
        groups = {tag.partition(":")[0] for tag in found}
        assert groups <= {"SourceFile", "ExifTool", "File", "JFIF", "PNG", "GIF", "RIFF", "ICC_Profile", "Composite"}
        assert not [tag for tag in found if any(word in tag for word in ("Comment", "GPS", "Author", "Orientation"))]
        assert found.isdisjoint({"PNG:PixelsPerUnitX", "File:Comment"})


async def test_picture_is_turned_as_its_orientation_says(tmp_path: Path) -> None:
    """All eight orientations show the same picture, bright at the upper left, with its width and height."""
    turned: dict[int, Callable[[Image.Image], Image.Image]] = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }
    upright = painted(60, 40)
    upright.paste((255, 255, 255), (0, 0, 20, 10))
    upright.paste((0, 0, 0), (20, 10, 60, 40))
    async with preparing() as prepare:
        for orientation, turn in turned.items():
            prepared = await prepare(received(tmp_path, tagged(turn(upright), "PNG", orientation)))
            assert (prepared.width, prepared.height) == (60, 40), orientation
            assert stored(prepared).convert("RGB").tobytes() == upright.tobytes(), orientation
        wide = await prepare(
            received(tmp_path, tagged(painted(2000, 900).transpose(Image.Transpose.ROTATE_90), "JPEG", 6))
        )
        assert [(preview.width, preview.height) for preview in wide.previews] == [(320, 144), (1600, 720)]


async def test_animation_keeps_frames_times_and_pixels(tmp_path: Path) -> None:
    frames = [Image.new("P", (40, 30), level) for level in (10, 90, 200)]
    for frame in frames:
        frame.putpalette([value for level in range(256) for value in (level, 255 - level, 7)])
    how = {"save_all": True, "append_images": frames[1:], "duration": [40, 500, 120], "loop": 3}
    async with preparing() as prepare:
        for form in ("GIF", "WEBP"):
            data = encoded(frames[0].convert("RGB") if form == "WEBP" else frames[0], form, **how)
            prepared = await prepare(received(tmp_path, data))
            image = stored(prepared)
            durations, colours = [], []
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                colour = image.convert("RGB").getpixel((20, 15))
                assert isinstance(colour, tuple)
                durations.append(image.info["duration"])
                colours.append(colour)
            assert durations == [40, 500, 120]
            assert image.info["loop"] == 3
            tolerance = 0 if form == "GIF" else 12  # a WebP is lossy
            for colour, level in zip(colours, (10, 90, 200), strict=True):
                for found, wanted in zip(colour, (level, 255 - level, 7), strict=True):
                    assert abs(found - wanted) <= tolerance, form


async def test_modes_that_browsers_cannot_show_become_ones_that_they_can(tmp_path: Path) -> None:
    grey16 = Image.frombytes("I;16", (64, 64), struct.pack("<H", 0x8080) * 4096)
    sent = {
        "CMYK": encoded(painted(64, 64, "CMYK"), "JPEG"),
        "I;16": encoded(grey16, "PNG"),
        "1": encoded(painted(64, 64, "1"), "PNG"),
        "LA": encoded(painted(64, 64, "LA"), "PNG"),
        "P": encoded(painted(64, 64).quantize(16), "PNG", transparency=3),
        "L with one transparent level": encoded(painted(64, 64, "L"), "PNG", transparency=128),
    }
    shown = {"CMYK": "RGB", "I;16": "L", "1": "1", "LA": "LA", "P": "P", "L with one transparent level": "RGBA"}
    async with preparing() as prepare:
        for name, data in sent.items():
            image = stored(await prepare(received(tmp_path, data)))
            assert image.mode == shown[name], name
            assert image.has_transparency_data == (name in ("LA", "P", "L with one transparent level")), name
            if name == "I;16":
                assert image.getpixel((0, 0)) == 0x80


async def test_damaged_profile_and_exif_are_dropped_and_the_picture_is_kept(tmp_path: Path) -> None:
    async with preparing() as prepare:
        for form in ("JPEG", "PNG", "WEBP"):
            for how in (
                {"icc_profile": b"\xff" * 500},
                {"icc_profile": PROFILE_OF_GREY},
                {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xfe" * 64},
                {"exif": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff" * 9},
            ):
                image = stored(await prepare(received(tmp_path, encoded(painted(30, 20), form, **how))))
                assert image.size == (30, 20)
                assert "icc_profile" not in image.info
                assert not image.getexif()


PROFILE_OF_GREY = pictures.PROFILE[:16] + b"GRAY" + pictures.PROFILE[20:]


def hostile() -> dict[str, tuple[bytes, set[type]]]:
    """Files that lie or explode, with the errors that are right for each."""
    jpeg, still = encoded(painted(300, 200), "JPEG"), encoded(painted(300, 200), "PNG")
    webp, moving = encoded(painted(300, 200), "WEBP"), pictures.gif(3, 20, 20)
    progressive = encoded(Image.new("RGB", (8, 8)), "JPEG", progressive=True, subsampling=0)
    unreadable: set[type] = {Unreadable}
    large: set[type] = {TooLarge}
    kept: set[type] = {Prepared}  # decoders fill what is missing
    bomb_text = chunk_of(b"zTXt", b"Comment\0\0" + pictures.zeros(200 << 20))
    return {
        "PNG of 900 megapixels in 1 MB": (pictures.png(30_000, 30_000, pictures.zeros(10 << 20)), large),
        "PNG of the largest size": (pictures.png(2**31 - 1, 2**31 - 1, b""), large),
        "PNG without a size": (pictures.png(0, 10, b""), unreadable),
        "PNG with too few pixels": (pictures.png(4000, 4000, zlib.compress(bytes(100))), unreadable),
        "PNG whose pixels are no zlib": (pictures.png(40, 40, b"\x78\x9c" + b"\xff" * 40), unreadable),
        "PNG with a wrong checksum": (still[:40] + b"\0\0" + still[42:], unreadable),
        "PNG with two sizes": (still[:33] + still[8:33][:8] + struct.pack(">II", 9, 9) + still[24:], unreadable),
        "PNG with text that explodes": (still[:33] + bomb_text + still[33:], unreadable),
        "JPEG of 65535 × 65535": (pictures.with_jpeg_size(jpeg, 65_535, 65_535), large),
        "JPEG of 40 megapixels, progressive, four times the memory": (
            pictures.with_jpeg_size(progressive, 8000, 7999), large),
        "JPEG that declares more rows than it has": (pictures.with_jpeg_size(jpeg, 300, 6000), kept),
        "JPEG of nothing but padding": (b"\xff\xd8" + b"\xff" * 100_000, unreadable),
        "JPEG of segments without end": (b"\xff\xd8" + b"\xff\xe0\0\x02" * 100_000, unreadable),
        "JPEG with a segment beyond the end": (b"\xff\xd8\xff\xe1\xff\xff" + b"x" * 20, unreadable),
        "WebP whose canvas is larger than its picture": (webp_canvas(webp, 3000, 3000), unreadable),
        "WebP of 16384 × 16384": (webp_canvas(webp, 16_384, 16_384), large),
        "WebP of 10,000 frames": (webp_frames(10_000), large),
        "GIF of 10,000 frames": (pictures.gif(10_000), large),
        "GIF of 200 frames of 300 kilopixels": (pictures.gif(200, 600, 500), large),
        "GIF of 65535 × 65535 with one small frame": (pictures.gif(1, 65_535, 65_535, frame=(0, 0, 2, 2)), large),
        "GIF whose frame leaves the canvas": (pictures.gif(1, 20, 20, frame=(10, 10, 20, 20)), unreadable),
        "GIF whose frame has no size": (moving[:28] + moving[28:].replace(b"\x14\0\x14\0", b"\0\0\0\0"), unreadable),
        "GIF without frames": (b"GIF89a\x01\0\x01\0\0\0\0;", unreadable),
        "GIF of sub-blocks without end": (b"GIF89a\x01\0\x01\0\0\0\0\x21\xfe" + b"\x01x" * 1_000_000, unreadable),
        "GIF with pixels that are no LZW": (pictures.gif(1, 8, 8)[:-12] + b"\xff" * 8 + b"\0\0\0\x3b", unreadable),
        **{f"{name} cut at {part}%": (data[: len(data) * part // 100], unreadable)
           for name, data in (("JPEG", jpeg), ("PNG", still), ("WebP", webp), ("GIF", moving))
           for part in (10, 30, 60, 90)},
        **{f"{name} and then noise": (data[:8] + bytes(range(256)) * 40, unreadable)
           for name, data in (("JPEG", jpeg), ("PNG", still), ("GIF", moving))},
    }  # fmt: skip


def chunk_of(name: bytes, data: bytes) -> bytes:
    return pictures.chunk(name, data)


def webp_canvas(webp: bytes, width: int, height: int) -> bytes:
    """Return the picture in a container that declares another size."""
    canvas = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + webp[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_frames(count: int) -> bytes:
    """Return an animation of one frame, so many times."""
    data = encoded(Image.new("RGB", (2, 2)), "WEBP", save_all=True,
                   append_images=[Image.new("RGB", (2, 2), "red")])  # fmt: skip
    at = data.index(b"ANMF")
    length = 8 + struct.unpack_from("<I", data, at + 4)[0]
    body = data[8:at] + data[at : at + length] * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


async def test_hostile_pictures_get_the_right_error(tmp_path: Path) -> None:
    """None is kept, none is an internal error, and the worker works on afterwards."""
    async with preparing() as prepare:
        wrong = {}
        for name, (data, errors) in hostile().items():
            try:
                got: object = await prepare(received(tmp_path, data, kind="image"))
            except LinnetError as error:
                got = error
            if type(got) not in errors:
                wrong[name] = got
        assert not wrong
        assert stored(await prepare(received(tmp_path, encoded(painted(30, 20), "JPEG")))).size == (30, 20)


async def test_markup_is_no_picture_under_any_name_or_type(tmp_path: Path) -> None:
    """As a declared picture it is refused; otherwise it is a file without a type that a browser runs."""
    async with preparing() as prepare:
        for data in (SVG, HTML, b"\xef\xbb\xbf" + HTML, b" \r\n" + SVG, b"%!PS-Adobe", b"MZ\x90\0", b"#!/bin/sh"):
            for declared in ("image/png", "image/jpeg", "image/webp", "image/gif"):
                with pytest.raises(UnsupportedType):
                    await prepare(received(tmp_path, data, declared))
            for declared in ("", "text/html", "image/svg+xml", "application/xhtml+xml", "video/mp4", "audio/mpeg"):
                with pytest.raises(UnsupportedType):
                    await prepare(received(tmp_path, data, declared, "image"))
                prepared = await prepare(received(tmp_path, data, declared))
                assert (prepared.kind, prepared.type, prepared.main) == ("file", OCTETS, None)


async def test_polyglots_are_only_a_picture_afterwards(tmp_path: Path) -> None:
    """Markup in comments, behind the picture or between its parts is not in the stored bytes."""
    markup = HTML * 3
    sent = {
        "JPEG with a comment": encoded(painted(50, 50), "JPEG", comment=markup),
        "JPEG and an archive": encoded(painted(50, 50), "JPEG") + b"PK\x03\x04" + markup,
        "GIF with a comment": encoded(painted(50, 50).quantize(8), "GIF", comment=markup[:200]),
        "GIF with a script": encoded(painted(50, 50).quantize(8), "GIF") + markup,
        "PNG with a chunk of its own": pictures.png(2, 2, zlib.compress(bytes(14)))[:-12] + chunk_of(b"haCk", markup)
        + chunk_of(b"IEND", b""),
        "WebP with a chunk of its own": b"".join(
            (b"RIFF", struct.pack("<I", 4 + len(webp := encoded(painted(50, 50), "WEBP")[12:]) + 8 + len(markup) + 1),
             b"WEBP", webp, b"haCk", struct.pack("<I", len(markup)), markup, b"\0")),
    }  # fmt: skip
    async with preparing() as prepare:
        for name, data in sent.items():
            prepared = await prepare(received(tmp_path, data))
            assert prepared.main is not None
            assert b"script" in data
            assert b"script" not in prepared.main.read_bytes(), name


async def test_picture_sent_as_a_file_is_kept_byte_for_byte(tmp_path: Path) -> None:
    async with preparing() as prepare:
        upload = received(tmp_path, tagged(painted(50, 50), "JPEG"), "image/jpeg", "file")
        assert await prepare(upload) == Prepared("file", "image/jpeg", upload.size)


async def test_kind_is_checked_against_the_bytes(tmp_path: Path) -> None:
    jpeg, sound = encoded(painted(50, 50), "JPEG"), pictures.wav()
    async with preparing() as prepare:
        for data, kind in ((jpeg, "voice"), (jpeg, "video"), (sound, "image"), (sound, "video"), (b"text", "voice")):
            with pytest.raises(UnsupportedType):
                await prepare(received(tmp_path, data, "", kind))  # type: ignore[arg-type]  # the table's kinds
        voice = await prepare(received(tmp_path, sound, "", "voice", duration_ms=1000, waveform=b"\1\2"))
        assert voice == Prepared("voice", "audio/wav", len(sound), duration_ms=1000, waveform=b"\1\2")
        named = await prepare(received(tmp_path, jpeg, "image/png", duration_ms=1000, waveform=b"\1\2"))
        assert (named.kind, named.type, named.duration_ms, named.waveform) == ("image", "image/jpeg", None, None)


@cache
def heavy() -> bytes:
    """Return a picture of 16 megapixels that takes seconds to compress."""
    levels = random.Random(1).randbytes(1 << 20).translate(bytes(level & 3 for level in range(256)))
    return pictures.png(4000, 4000, zlib.compress(levels * 46, 1))


def kills(reason: str) -> float:
    return REGISTRY.get_sample_value("linnet_router_media_worker_kills_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("reason", "bounds"),
    [
        ("memory", Bounds(memory_bytes=96 << 20)),
        ("cpu", Bounds(cpu_s=1)),
    ],
)
async def test_picture_that_hits_a_bound_is_too_large_and_the_next_one_works(
    tmp_path: Path, reason: str, bounds: Bounds
) -> None:
    preparer = Preparer(Workers(1, bounds), None, probes=False)
    before = kills(reason)
    try:
        with pytest.raises(Killed):
            await preparer(received(tmp_path, heavy()))
        assert stored(await preparer(received(tmp_path, encoded(painted(30, 20), "JPEG")))).size == (30, 20)
    finally:
        await preparer.close()
    assert kills(reason) == before + 1


async def test_picture_on_a_busy_machine_may_be_tried_again(tmp_path: Path) -> None:
    """That a job takes long on the clock is not the file's fault, so it never counts against the user."""
    preparer = Preparer(Workers(1, Bounds(wall_s=0.01)), None, probes=False)
    before = kills("time")
    try:
        with pytest.raises(Unavailable):
            await preparer(received(tmp_path, heavy()))
    finally:
        await preparer.close()
    assert kills("time") == before + 1
    assert preparer._kills._times == {}


async def test_user_whose_files_hit_a_bound_three_times_is_refused(tmp_path: Path) -> None:
    """On this router, for pictures and recordings; others are not affected."""
    preparer = Preparer(Workers(1, Bounds(memory_bytes=96 << 20)), None, probes=False)
    small = received(tmp_path, encoded(painted(30, 20), "JPEG"))
    try:
        for _ in range(3):
            with pytest.raises(Killed):
                await preparer(received(tmp_path, heavy()))
        with pytest.raises(RateLimited):
            await preparer(small)
        assert (await preparer(received(tmp_path, b"text"))).kind == "file"
        assert stored(await preparer(msgspec.structs.replace(small, user="ben"))).size == (30, 20)
    finally:
        await preparer.close()


async def test_event_loop_goes_on_while_a_picture_is_read(tmp_path: Path) -> None:
    """The work is done in another process, of a lower priority."""
    preparer = Preparer(workers := Workers(1), None, probes=False)
    try:
        task = asyncio.create_task(preparer(received(tmp_path, encoded(painted(3000, 3000), "JPEG"))))
        turns_of_the_loop = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns_of_the_loop += 1
        await task
        assert turns_of_the_loop >= 10  # it takes half a second or more
        pid = workers._idle[0]._process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 10
        group = Path(f"/proc/{pid}/autogroup")  # sessions that the kernel schedules against each other
        assert not group.exists() or group.read_text().split()[-1] == "10"
    finally:
        await preparer.close()


async def test_worker_that_dies_costs_its_upload_only(tmp_path: Path) -> None:
    """The upload gets 503, and the next one a new worker."""
    preparer = Preparer(workers := Workers(1), None, probes=False)
    before = kills("lost")
    try:
        upload = received(tmp_path, encoded(painted(30, 20), "JPEG"))
        await preparer(upload)
        workers._idle[0]._process.kill()
        with pytest.raises(Unavailable):
            await preparer(upload)
        assert stored(await preparer(upload)).size == (30, 20)
    finally:
        await preparer.close()
    assert kills("lost") == before + 1


async def test_callers_above_the_bound_are_refused_at_once(tmp_path: Path) -> None:
    preparer = Preparer(Workers(1), None, probes=False)
    data = encoded(painted(30, 20), "JPEG")
    uploads = [received(tmp_path, data) for _ in range(turns.WAITING + 4)]
    try:
        got = await asyncio.gather(*map(preparer, uploads), return_exceptions=True)
    finally:
        await preparer.close()
    assert [type(one) for one in got if not isinstance(one, Prepared)] == [Unavailable] * 3
    assert REGISTRY.get_sample_value("linnet_router_media_waiting", {"place": "worker"}) == 0


async def test_cancelled_upload_ends_its_work(tmp_path: Path) -> None:
    preparer = Preparer(workers := Workers(1), None, probes=False)
    try:
        await preparer(received(tmp_path, encoded(painted(30, 20), "JPEG")))
        process = workers._idle[0]._process
        task = asyncio.create_task(preparer(received(tmp_path, heavy())))
        await support.eventually(lambda: not workers._idle)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.wait() == -signal.SIGKILL
        await preparer(received(tmp_path, encoded(painted(30, 20), "JPEG")))
    finally:
        await preparer.close()


async def test_user_whose_files_hit_the_bounds_three_times_has_to_wait(tmp_path: Path) -> None:
    now = [100.0]
    kills = Kills(lambda: now[0])
    for _ in range(3):
        kills.check("anna")
        kills.add("anna")
        now[0] += 10.0
    with pytest.raises(RateLimited) as refused:
        kills.check("anna")
    assert refused.value.retry_after == 3570.0
    kills.check("ben")
    now[0] = 100.0 + 3600.0
    kills.check("anna")
    kills.add("anna")
    with pytest.raises(RateLimited):
        kills.check("anna")
    for user in range(20_000):
        kills.add(str(user))
    assert len(kills._times) == 10_000
