"""Voice and video, as PyAV reads them in the sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from router.media.prepare import Preparer
from router.media.types import Prepared, Unreadable, UnsupportedType
from router.media.workers import Workers
from tests.router.media.pictures import received, wav

av = pytest.importorskip("av", reason="PyAV is not installed (the extra `recordings`)")
pytestmark = pytest.mark.processes


@asynccontextmanager
async def preparing() -> AsyncIterator[Preparer]:
    preparer = Preparer(Workers(1), None, probes=True)
    try:
        yield preparer
    finally:
        await preparer.close()


class Unseekable(BytesIO):
    """A file to which a recorder in a browser writes: it cannot go back and note the duration."""

    def seekable(self) -> bool:
        return False

    seek = None  # type: ignore[assignment]  # PyAV looks whether there is one


def recording(form: str, *, sound: bool, pictures: bool, live: bool = False, seconds: int = 2) -> bytes:
    """Return a recording of noise and black."""
    out: Any = Unseekable() if live else BytesIO()
    with av.open(out, "w", format=form) as container:
        streams: list[Any] = []
        if pictures:
            video = container.add_stream("mpeg4" if form == "mp4" else "libvpx", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            streams.append(video)
        if sound:
            streams.append(container.add_stream("aac" if form == "mp4" else "libopus", rate=48_000))
        for stream in streams:
            step = 10 if stream.type == "video" else 50
            for index in range(seconds * step):
                if stream.type == "video":
                    frame = av.VideoFrame(64, 48, "yuv420p")
                    frame.pts = index
                else:
                    frame = av.AudioFrame("s16", "stereo", 960)
                    frame.sample_rate, frame.pts = 48_000, index * 960
                    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return bytes(out.getvalue())


async def test_duration_is_that_of_the_file_whatever_the_client_says(tmp_path: Path) -> None:
    """Also of a recording from a browser, which has no duration in its head."""
    sent = {
        ("audio/wav", "voice"): wav(2.0),
        ("audio/ogg", "voice"): recording("ogg", sound=True, pictures=False),
        ("audio/webm", "voice"): recording("webm", sound=True, pictures=False, live=True),
        ("video/webm", "video"): recording("webm", sound=True, pictures=True),
        ("video/mp4", "video"): recording("mp4", sound=True, pictures=True),
    }
    async with preparing() as prepare:
        for (name, kind), data in sent.items():
            upload = received(tmp_path, data, "", kind, duration_ms=999_000, waveform=b"\1")  # type: ignore[arg-type]
            prepared = await prepare(upload)
            assert (prepared.kind, prepared.type, prepared.size, prepared.main) == (kind, name, len(data), None)
            assert prepared.duration_ms is not None
            assert abs(prepared.duration_ms - 2000) <= 150, name
            assert prepared.waveform == (b"\1" if kind == "voice" else None)


async def test_video_needs_pictures_and_voice_needs_sound(tmp_path: Path) -> None:
    """If the client names no kind, a file without pictures is a voice message."""
    sound = recording("webm", sound=True, pictures=False)
    silent = recording("webm", sound=False, pictures=True)
    async with preparing() as prepare:
        with pytest.raises(UnsupportedType):
            await prepare(received(tmp_path, sound, "video/webm", "video"))
        with pytest.raises(UnsupportedType):
            await prepare(received(tmp_path, silent, "audio/webm", "voice"))
        assert (await prepare(received(tmp_path, silent, "video/webm"))).kind == "video"
        guessed = await prepare(received(tmp_path, sound, "video/webm"))
        assert (guessed.kind, guessed.type) == ("voice", "audio/webm")


async def test_damaged_recordings_are_unreadable(tmp_path: Path) -> None:
    """None is an internal error, and the worker works on afterwards."""
    good = recording("mp4", sound=True, pictures=True)
    sent = {
        "MP4 without its index": good[: good.index(b"moov") - 4],
        "MP4 of noise": good[:24] + bytes(range(256)) * 40,
        "WebM of noise": b"\x1aE\xdf\xa3\x9fB\x82\x84webm" + bytes(range(256)) * 40,
        "Ogg of noise": b"OggS\0\2" + bytes(20) + b"\1\x13OpusHead" + bytes(range(256)) * 40,
        "playlist behind a tag": b"ID3\4\0\0\0\0\0\0#EXTM3U\nfile:///etc/passwd\n",
        "WAV that is shorter than its head": wav()[:30],
    }
    async with preparing() as prepare:
        for name, data in sent.items():
            try:
                got: object = await prepare(received(tmp_path, data))
            except Unreadable as error:
                got = error
            except UnsupportedType as error:
                got = error
            assert not isinstance(got, Prepared), name
        assert (await prepare(received(tmp_path, wav()))).duration_ms == 1000
