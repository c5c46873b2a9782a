"""Files of messages: what a client says to send one, and what an event says of it.

A file is named by the sha256 of its stored bytes. The bytes are in an object store that only routers know; gateways and
routers know from Redis who may use a file, and put a `FileInfo` of it into the message's event, as the server knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from router.contract.packing import pack

Kind = Literal["image", "voice", "video", "file"]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="sha256 of the stored bytes, in hex.")]

MAX_FILES: Final = 20
MAX_NAME_BYTES: Final = 255
MAX_WAVEFORM: Final = 100
PREVIEWS: Final = (320, 1600)


class SharedFile(Struct, frozen=True, omit_defaults=True):
    """A file of a message to send. `in`: a conversation where the sender sees it; `poster`: of a video, a picture."""

    sha256: Sha256
    in_: Annotated[str, Meta(min_length=1, max_length=160)] | None = field(name="in", default=None)
    poster: Sha256 | None = None


GivenFile = Sha256 | SharedFile
GivenFiles = Annotated[list[GivenFile], Meta(max_length=MAX_FILES)]


class Poster(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A picture that is shown until a video plays. It is a file of the message, too."""

    sha256: str
    type: str
    size: int
    width: int
    height: int
    previews: list[int] = []


class FileInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of a message. `duration` is in ms, `waveform` has levels of 0 to 255, `previews` the edges of previews."""

    sha256: str
    type: str
    kind: Kind
    size: int
    name: str = ""
    width: int | None = None
    height: int | None = None
    duration: int | None = None
    waveform: list[int] | None = None
    previews: list[int] = []
    poster: Poster | None = None


def shared(files: Sequence[GivenFile]) -> tuple[SharedFile, ...]:
    """The files as structs, in the client's order."""
    return tuple(SharedFile(given) if isinstance(given, str) else given for given in files)


def content(files: Sequence[SharedFile]) -> tuple[bytes, ...]:
    """The part of a message's files that its fingerprint covers. An empty list counts as no list."""
    plain: list[Any] = [given.sha256 if given == SharedFile(given.sha256) else given for given in files]
    return (pack(plain),) if plain else ()
