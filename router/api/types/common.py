"""Parts of several calls: fields with their limits, parameters of paths, the body of an error."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from router.contract.files import Sha256
from router.contract.state import StateKey
from router.contract.wire import ConversationId, Name

VISIBLE = "Without control characters and characters that override its direction; not only invisible characters."
Password = Annotated[str, Meta(min_length=1, max_length=256)]
NewPassword = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="At least `LINNET_PASSWORD_MIN` (8) characters, none of them a control or invisible one; not the"
        " user's name. Compared in its composed form (RFC 8265, OpaqueString).",
    ),
]
PageLimit = Annotated[int, Meta(ge=1, le=200)]


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """The code and message of an error; `reason` and `next` explain the `conflict` of an `n`, as on a socket, and
    `version` that of a key of the user's state."""

    code: str
    message: str
    reason: str | None = None
    next: int | None = None
    version: int | None = None


class Error(Struct, frozen=True):
    """The body of every error answer. If a retry can succeed, the answer has a `Retry-After` header."""

    error: ErrorBody


class PathParameters(Struct, frozen=True, kw_only=True):
    """The parameters of paths."""

    user: Name = ""
    device: Name = ""
    report: Annotated[str, Meta(max_length=80)] = ""
    conversation: ConversationId = ""
    sha256: Sha256 = "0" * 64
    key: StateKey = ""
    upload: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")] = "0" * 32
