"""`python -m router.media.worker FD MEMORY CPU`: the template process, which forks a child for each job.

FD is its end of a socket pair to the router; MEMORY (bytes) and CPU (seconds) bound a child. It receives a job with its
open files, forks, waits, and sends `Ended`; then comes the next job. It ends when the router closes its end or dies.

Invariants
- This process never reads a byte of a stranger's file. Only children do, each in the sandbox, each for one job: a
  picture that takes over its child reaches neither the next job's bytes nor this process.
- It has an empty environment and no file of the router but FD, which a child does not have: it could take the next job,
  or answer it.
- An answer has at most ANSWER_BYTES; a child that writes more is killed.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from io import BytesIO
from typing import IO, Final

from PIL import Image, ImageCms

from router.media.worker import picture, recording, sandbox
from router.media.worker.job import (
    PREVIEW_EDGES,
    Answer,
    Ended,
    Failure,
    Job,
    PictureJob,
    PictureType,
    RecordingJob,
    TooLarge,
    WorkFailed,
    decode_job,
    encode,
)

JOB_BYTES: Final = 4096
ANSWER_BYTES: Final = 4096
PICTURE_BYTES: Final = 64_000_000
FILES: Final = 2 + len(PREVIEW_EDGES)
_FORMATS: Final[dict[PictureType, str]] = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
}

READY: Final = b"ready"
UNSEALED: Final = b"ready, without a filter of system calls"


def main() -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the router has died
        serve()


def serve() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    bounds = int(sys.argv[2]), int(sys.argv[3])
    sandbox.yield_cpu()
    warm_up()
    gc.collect()
    gc.freeze()  # a child's collections must not copy the pages of these objects
    filtered = sandbox.filters()
    control.send(READY if filtered else UNSEALED)
    while True:
        job, files, _, _ = socket.recv_fds(control, JOB_BYTES, FILES)
        if not job:
            return
        ended = run(decode_job(job), files, bounds, control.fileno(), filtered=filtered)
        for file in files:
            os.close(file)
        control.send(encode(ended))


def warm_up() -> None:
    """Do a job of each type: Pillow imports modules when it first needs them, and a child cannot open files."""
    exif = Image.Exif()
    exif[0x0112] = 6
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    for kind, form in _FORMATS.items():
        out = BytesIO()
        Image.new("RGB", (3, 2)).save(out, form, exif=exif, icc_profile=srgb.tobytes())
        picture.prepare(kind, out.getvalue(), BytesIO(), {1: BytesIO()})
    ImageCms.profileToProfile(Image.new("RGB", (1, 1)), srgb, srgb)


def run(job: Job, files: list[int], bounds: tuple[int, int], control: int, *, filtered: bool) -> Ended:
    """Do one job in a child, which does not have the descriptor `control`."""
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(control)
        in_child(job, files, writing, parent, bounds, filtered=filtered)
    os.close(writing)
    answer = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while len(answer) <= ANSWER_BYTES and (part := pipe.read(ANSWER_BYTES + 1)):
            answer += part
    if len(answer) > ANSWER_BYTES:
        os.kill(child, signal.SIGKILL)
        answer = b""
    _, status, usage = os.wait4(child, 0)
    return Ended(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, usage.ru_utime + usage.ru_stime, answer)


def in_child(job: Job, files: list[int], writing: int, parent: int, bounds: tuple[int, int], *, filtered: bool) -> None:
    """Seal this process, do the job, write the answer and end, whatever happens."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if isinstance(job, RecordingJob):
            recording.load()
        sandbox.seal(parent, *bounds, filtered=filtered)
        os.write(writing, encode(answered(job, files)))
        code = 0
    finally:
        os._exit(code)


def answered(job: Job, files: list[int]) -> Answer:
    try:
        return work(job, [os.fdopen(file, "rb" if i == 0 else "wb", closefd=False) for i, file in enumerate(files)])
    except WorkFailed as failed:
        return failed.failure
    except MemoryError:
        return Failure("memory", "the file needs too much memory")
    except OSError as error:
        if "memory" in str(error):  # as Pillow reports it
            return Failure("memory", "the file needs too much memory")
        return Failure("unreadable", "the file cannot be decoded")
    except Exception:  # noqa: BLE001 - decoders raise many types for damaged files
        return Failure("unreadable", "the file cannot be decoded")


def work(job: Job, files: list[IO[bytes]]) -> Answer:
    if not isinstance(job, PictureJob):
        return recording.probe(files[0])
    made = picture.prepare(job.type, _read(files[0]), files[1], dict(zip(PREVIEW_EDGES, files[2:], strict=True)))
    for file in files[1:]:
        file.flush()
    return made


def _read(file: IO[bytes]) -> bytes:
    data = file.read(PICTURE_BYTES + 1)
    if len(data) > PICTURE_BYTES:
        raise TooLarge(f"a picture must have at most {PICTURE_BYTES} bytes")
    return data


if __name__ == "__main__":
    main()
