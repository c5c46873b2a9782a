"""Requests and answers about files."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from router.contract.files import MAX_WAVEFORM, FileInfo, Kind, Sha256

Preview = Literal[320, 1600]
FILES_AT_ONCE = 100
LONGEST_MS = 86_400_000


class UploadQuery(Struct, frozen=True):
    """The description of a file: `kind`, if Linnet is not to find it out; `duration` (ms) and `waveform`."""

    kind: Kind | None = None
    duration: Annotated[int, Meta(ge=0, le=LONGEST_MS)] | None = None
    waveform: (
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9]{1,3}(,[0-9]{1,3}){0,99}$(?!\n)",
                description=f"At most {MAX_WAVEFORM} levels of 0 to 255, comma-separated.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.levels is None and self.waveform is not None:
            raise ValueError("`waveform` must have levels of 0 to 255")

    @property
    def levels(self) -> bytes | None:
        if self.waveform is None:
            return None
        levels = [int(level) for level in self.waveform.split(",")]
        return bytes(levels) if max(levels) <= 255 else None


class Uploaded(FileInfo, frozen=True, kw_only=True, omit_defaults=False):
    """An uploaded file, to be sent by its `sha256` within a day."""

    url: str


class FileQuery(Struct, frozen=True):
    """`in`: a conversation with a message that has the file, or `@user` for an avatar; without it your own upload."""

    in_: Annotated[str, Meta(min_length=1, max_length=160)] | None = field(name="in", default=None)
    preview: Preview | None = None


class LinkRequest(Struct, frozen=True):
    """Files to link to, all seen in the same conversation, or without `in` your own uploads."""

    files: Annotated[list[Sha256], Meta(max_length=FILES_AT_ONCE)]
    in_: Annotated[str, Meta(min_length=1, max_length=160)] | None = field(name="in", default=None)


class MadeLink(Struct, frozen=True):
    """A link to a file, and to its previews by their edge."""

    url: str
    previews: dict[str, str]


class LinksMade(Struct, frozen=True):
    """Links by file; all of them work at least until `expires_at`."""

    links: dict[str, MadeLink]
    expires_at: int


class LinkQuery(Struct, frozen=True):
    d: Annotated[str, Meta(max_length=2048)]
    ends: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    sig: Annotated[str, Meta(max_length=64)]
