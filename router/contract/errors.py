"""Every way Linnet refuses, and the one table from there to what a client sees.

A part raises (or hands to a callback) the class that names what is wrong; only this file knows which wire code,
HTTP status and close code that is. The message of an error is written for the client's developer: it never
carries a trace, a secret, a Redis reply or another user's data. Exceptions of libraries are translated where they
arise (Redis: `store/`), so whatever else arrives at the edge is a bug and becomes `internal`.
"""

from __future__ import annotations

from typing import ClassVar, Final


class LinnetError(Exception):
    """Base of all refusals. `retry_after` (seconds) is set only where trying again helps."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    def __init__(self, message: str = "", retry_after: float | None = None) -> None:
        super().__init__(message or self.code)
        self.message = message or self.code.replace("_", " ")
        self.retry_after = retry_after


class BadFrame(LinnetError):
    """The bytes are not one value of the negotiated codec."""

    code = "bad_frame"
    status = 400


class BadCommand(LinnetError):
    """The value is not a command: unknown type, wrong field, not canonical, or not allowed in this state."""

    code = "bad_command"
    status = 422


class Unauthorized(LinnetError):
    code = "unauthorized"
    status = 401


class TokenExpired(Unauthorized):
    code = "token_expired"


class Forbidden(LinnetError):
    """The caller is known, and may not call this (HTTP only)."""

    code = "forbidden"
    status = 403


class NotFound(LinnetError):
    """It does not exist, or this user may not know that it does."""

    code = "not_found"
    status = 404


class ReadOnly(LinnetError):
    """The user may see it and may not change it."""

    code = "read_only"
    status = 403


class Blocked(LinnetError):
    code = "blocked"
    status = 403


class MethodNotAllowed(LinnetError):
    code = "method_not_allowed"
    status = 405


class UnsupportedMediaType(LinnetError):
    code = "unsupported_media_type"
    status = 415


class TooLarge(LinnetError):
    code = "too_large"
    status = 413


class RateLimited(LinnetError):
    code = "rate_limited"
    status = 429


class Unavailable(LinnetError):
    """Redis cannot do it now. Whether it was done is unknown: the same command may be sent again."""

    code = "unavailable"
    status = 503


class Conflict(LinnetError):
    """An `n` was used for something else, is too old to tell, or a name is taken.

    `reason`, of an `n` alone: `content` (used for something else), `answered` (n ≤ `done`), `old` (below the 32 that
    are remembered). `next`: the n from which on every n of this device in this conversation is usable.
    """

    code = "conflict"
    status = 409

    def __init__(self, message: str = "", reason: str | None = None, next_n: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.next = next_n


class Internal(LinnetError):
    """A bug of ours; the log has the trace."""


class FunctionError(LinnetError):
    """A typed error reply of a Redis function. Only `store/` sees it and maps it (`from_function`)."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code} {detail}")
        self.reply_code = code
        self.detail = detail


class StartupError(Exception):
    """What stops a process at its start; the message is the one line an operator sees, and says what to do."""


def from_function(error: Exception) -> LinnetError:
    """The client's error for a function's typed error reply; other `LinnetError`s pass unchanged.

    A function replies `CODE detail`; `RATE` carries the microseconds to wait.
    """
    if not isinstance(error, FunctionError):
        return error if isinstance(error, LinnetError) else Internal()
    match error.reply_code:
        case "RATE":
            return RateLimited("too fast in this conversation", max(0.001, round(int(error.detail) / 1e6, 3)))
        case "NOTFOUND":
            return NotFound(error.detail)
        case "READONLY_":
            return ReadOnly(error.detail or "you may read here, not write")
        case "CONFLICT":
            return Conflict(error.detail)
        case "CONTENT":
            return Conflict("this n was used for something else", "content")
        case "ANSWERED":
            return Conflict("this n is not above `done`", "answered", _usable(error.detail))
        case "OLD":
            return Conflict("this n is older than the last 32 that were accepted here", "old", _usable(error.detail))
        case "BLOCKED":
            return Blocked()
        case "LATER":
            return Unavailable(error.detail, 1.0)
        case "BADCOMMAND":
            return BadCommand(error.detail)
        case _:
            return Internal()


def _usable(n: str) -> int | None:
    """The n that a function names as the next; None if the device has used up all numbers."""
    return int(n) if int(n) < 2**53 else None


# Close codes (RFC 6455 section 7.4 and our own). 40xx: come back, after `retry_after=…` where the reason has one.
# 44xx and 45xx: do not come back with the same token.
CLOSE_NORMAL: Final = 1000
CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL_ERROR: Final = 1002
CLOSE_UNSUPPORTED_DATA: Final = 1003
CLOSE_INVALID_DATA: Final = 1007
CLOSE_POLICY: Final = 1008
CLOSE_TOO_BIG: Final = 1009
CLOSE_INTERNAL: Final = 1011
CLOSE_RESTART: Final = 1012
CLOSE_UNAVAILABLE: Final = 4000
CLOSE_SLOW_HANDSHAKE: Final = 4001
CLOSE_HEARTBEAT_LOST: Final = 4002
CLOSE_MAX_AGE: Final = 4003
CLOSE_RATE_LIMITED: Final = 4008
CLOSE_REPLACED: Final = 4409
CLOSE_UNAUTHORIZED: Final = 4500
CLOSE_TOKEN_EXPIRED: Final = 4501
CLOSE_BANNED: Final = 4502
CLOSE_BAD_PROTOCOL: Final = 4503
CLOSE_ENDED: Final = 4504  # a backend or the user ended this session: connect again when the user asks

# What a refused `hello` or `auth` does to its connection, beside the `error` event.
CLOSE_OF: Final[dict[str, int]] = {
    "unauthorized": CLOSE_UNAUTHORIZED,
    "token_expired": CLOSE_TOKEN_EXPIRED,
    "rate_limited": CLOSE_RATE_LIMITED,
    "unavailable": CLOSE_UNAVAILABLE,
    "blocked": CLOSE_BANNED,
    "conflict": CLOSE_REPLACED,
    "bad_command": CLOSE_BAD_PROTOCOL,
    "bad_frame": CLOSE_BAD_PROTOCOL,
    "internal": CLOSE_INTERNAL,
}


def retry_reason(seconds: float) -> str:
    """The close reason that tells a client when to come back."""
    return f"retry_after={seconds:.3g}"
