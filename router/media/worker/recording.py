"""The streams and the duration of an audio or video file, read by PyAV where that is installed.

Only the container is read: no frame is decoded, except the first ones by which the library finds out a stream's format.
"""

from __future__ import annotations

from io import BytesIO
from typing import IO, Final

from router.media.worker.job import Recording, Unreadable

# Demuxers of the accepted types. Others read addresses, lists of files or scripts.
FORMATS: Final = ("ogg", "matroska", "mov", "mp3", "wav", "flac", "aac")


_TINY: Final = b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\x08\0\0\0" + bytes(8)


def load() -> None:
    """Load all of PyAV, also what it imports late. A child of a recording does this before it is sealed; the template
    process does not, because the libraries would take memory from pictures."""
    probe(BytesIO(_TINY))


def probe(file: IO[bytes]) -> Recording:
    """Return streams and duration of a file; `Unreadable` if it is none of FORMATS or has no packet."""
    import av.error

    try:
        with av.open(file, "r", options={"format_whitelist": ",".join(FORMATS)}) as container:
            audio, video = bool(container.streams.audio), bool(container.streams.video)
            if container.duration is not None:
                return Recording(audio, video, max(0, container.duration // 1000))
            end_s = -1.0
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            return Recording(audio, video, round(end_s * 1000) if end_s >= 0 else None)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise Unreadable(f"the recording cannot be read ({type(error).__name__})") from None
