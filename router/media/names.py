"""Names of objects in the store.

    files/<ab>/<sha256>.<gen>          the bytes of a file; <ab> are the first two letters of the hash
    files/<ab>/<sha256>.<gen>.320      its previews, WebP
    uploads/<id>/<part>                a part of a resumable upload
    linnet-deployment                  the deployment's id

The generation is new each time that a file comes into being, so a late delete of a file that was removed never meets
the object of the same bytes that were uploaded since.
"""

from __future__ import annotations

from secrets import token_urlsafe
from typing import Final

from router.contract import keys

FILES: Final = "files/"
UPLOADS: Final = "uploads/"


def new_generation() -> str:
    return token_urlsafe(6)


def stem(sha256: str) -> str:
    """The name of a file's objects, up to the generation."""
    return f"{FILES}{sha256[:2]}/{sha256}."


def object_of(sha256: str, gen: str, preview: int | None = None) -> str:
    return stem(sha256) + gen + (f".{preview}" if preview else "")


def partition_of(name: str) -> int:
    """The partition of the due list that has this object: of its file, or of its resumable upload."""
    return int(name.split("/")[1][:2], 16)


def upload_of(name: str) -> str | None:
    """The resumable upload that has an object as a part; None if it is no part."""
    folder, _, rest = name.partition("/")
    upload, _, part = rest.partition("/")
    return upload if f"{folder}/" == UPLOADS and keys.is_tus(upload) and part else None


def file_of(name: str) -> tuple[str, str] | None:
    """The hash and the generation in an object's name; None if it is none of ours."""
    sha256, _, rest = name.rpartition("/")[2].partition(".")
    return (sha256, rest.partition(".")[0]) if keys.is_sha256(sha256) and rest else None
