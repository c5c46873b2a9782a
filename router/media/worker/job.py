"""The jobs that a router gives to its worker process, and the answers.

A job travels with open files, so the worker opens none: of a picture the input, the output, and one output for each of
PREVIEW_EDGES; of a recording the input only. The child of a job is not trusted: a router decodes its answer into these
types, and looks at the sizes of the files itself.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, msgpack

PREVIEW_EDGES: Final = (320, 1600)

PictureType = Literal["image/jpeg", "image/png", "image/webp", "image/gif"]
Side = Annotated[int, Meta(ge=1, le=65_535)]


class PictureJob(Struct, frozen=True, tag_field="job", tag=True):
    """Encode a picture anew and make its previews."""

    type: PictureType


class RecordingJob(Struct, frozen=True, tag_field="job", tag=True):
    """Find out what an audio or video file contains."""


class Picture(Struct, frozen=True, tag=True):
    """The picture is written; `previews` has width and height of each preview that was made, by edge."""

    width: Side
    height: Side
    previews: dict[Literal[320, 1600], tuple[Side, Side]]


class Recording(Struct, frozen=True, tag=True):
    """The streams of a recording. `duration_ms` is None if the file does not say it and has no packet with a time."""

    audio: bool
    video: bool
    duration_ms: Annotated[int, Meta(ge=0)] | None


class Failure(Struct, frozen=True, tag=True):
    """The file cannot be read, is larger than what the worker accepts, or needs more memory than the worker has."""

    cause: Literal["unreadable", "too_large", "memory"]
    why: Annotated[str, Meta(max_length=200)]


class Ended(Struct, frozen=True):
    """How the child of a job ended: the signal that killed it, else 0; its answer, which may be malformed."""

    signal: int
    cpu_s: float
    answer: bytes


Job = PictureJob | RecordingJob
Answer = Picture | Recording | Failure

encode: Final = msgpack.Encoder().encode
decode_job: Final = msgpack.Decoder(Job).decode
decode_answer: Final = msgpack.Decoder(Answer).decode
decode_ended: Final = msgpack.Decoder(Ended).decode


class WorkFailed(Exception):
    """Ends a job with a `Failure`."""

    def __init__(self, cause: Literal["unreadable", "too_large", "memory"], why: str) -> None:
        super().__init__(why)
        self.failure = Failure(cause, why[:200])


class Unreadable(WorkFailed):
    def __init__(self, why: str) -> None:
        super().__init__("unreadable", why)


class TooLarge(WorkFailed):
    def __init__(self, why: str) -> None:
        super().__init__("too_large", why)
