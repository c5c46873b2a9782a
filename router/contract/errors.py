"""The error tree, and the one table from it to wire codes, close codes and HTTP status.

A module raises the class that names the fault, or passes it to a callback; only this file maps classes to codes. The
message of an error is written for the client's developer: it never contains a traceback, a secret, a Redis reply or
another user's data. Exceptions of libraries are translated where they arise (Redis: `store/`), so any other exception
that reaches the edge is a bug and becomes `internal`.
"""

from __future__ import annotations

from typing import ClassVar, Final


class LinnetError(Exception):
    """Base of all errors that a client can receive. `retry_after` (seconds) is set only if a retry can succeed."""

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
    """The caller is authenticated, but must not make this call (HTTP only)."""

    code = "forbidden"
    status = 403


class NotFound(LinnetError):
    """The object does not exist, or this user must not know that it exists."""

    code = "not_found"
    status = 404


class ReadOnly(LinnetError):
    """The user may read the object but not change it."""

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


class Unreadable(LinnetError):
    """The bytes of an upload are of a known type but cannot be read (HTTP only)."""

    code = "unreadable"
    status = 422


class Rejected(LinnetError):
    """The content was refused: by the pre-send hook, by a scanner, or because it was removed everywhere before."""

    code = "rejected"
    status = 422


class Locked(LinnetError):
    """Another request is writing to this resumable upload (HTTP only)."""

    code = "locked"
    status = 423


class TooLarge(LinnetError):
    code = "too_large"
    status = 413


class RateLimited(LinnetError):
    code = "rate_limited"
    status = 429


class Unavailable(LinnetError):
    """Redis cannot execute the command now, and may or may not have executed it: send the same command again."""

    code = "unavailable"
    status = 503


class Quota(LinnetError):
    """The user has as much as one user may have."""

    code = "quota"
    status = 403


class Conflict(LinnetError):
    """An `n` was used for other content or is too old to check, a name is taken, or a key of the user's state has
    another version than was expected.

    `reason` explains an `n`: `content` (used for other content), `answered` (n ≤ `done`), `old` (below the 32 that
    are stored). `next` is the lowest n from which this device can use every n in this conversation. `version` is that
    of a key of the user's state, 0 if it is absent.
    """

    code = "conflict"
    status = 409

    def __init__(
        self, message: str = "", reason: str | None = None, next_n: int | None = None, version: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.next = next_n
        self.version = version


class Internal(LinnetError):
    """A bug in Linnet; the process's log contains the traceback."""


class FunctionError(LinnetError):
    """A typed error reply of a Redis function. Only `store/` receives it and maps it (`from_function`)."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code} {detail}")
        self.reply_code = code
        self.detail = detail


class StartupError(Exception):
    """A reason not to start the process; the message is the one line an operator reads, and says what to do."""


def from_function(error: Exception) -> LinnetError:
    """The client's error for a function's typed error reply; other `LinnetError`s are returned unchanged.

    A function replies `CODE detail`; the detail of `RATE`, `SLOW` and `MUTED` is the time to wait, in µs.
    """
    if not isinstance(error, FunctionError):
        return error if isinstance(error, LinnetError) else Internal()
    match error.reply_code:
        case "RATE":
            return RateLimited("too many events in this conversation", _seconds(error.detail))
        case "NOTFOUND":
            return NotFound(error.detail)
        case "READONLY_":
            return ReadOnly(error.detail or "you may read this conversation, not write to it")
        case "CONFLICT":
            return Conflict(error.detail)
        case "CONTENT":
            return Conflict("this n was used for other content: use a new n", "content")
        case "ANSWERED":
            return Conflict("this n must be above `done`", "answered", _usable(error.detail))
        case "OLD":
            return Conflict("this n is older than the last 32 accepted here: use a new n", "old", _usable(error.detail))
        case "VERSION":
            return Conflict("the key has another version than `expect`", version=int(error.detail))
        case "QUOTA":
            return Quota("your state has too many keys, or too many bytes: remove some first")
        case "NOFILE":
            return NotFound("no such file, or you may not use it: upload it again")
        case "REJECTED":
            return Rejected(error.detail)
        case "LOCKED":
            return Locked("another request is writing to this upload: try again in some seconds", 2.0)
        case "FILEQUOTA":
            return Quota("your files have reached the quota: end uploads, or delete messages with files")
        case "ATONCE":
            return RateLimited("too many uploads at once", 2.0)
        case "TOKEN":
            return Unauthorized("the token was ended: log in again")
        case "BLOCKED":
            return Blocked()
        case "SUSPENDED":
            return Blocked("this account is suspended")
        case "FORBIDDEN":
            return Forbidden(error.detail)
        case "MUTED":
            return ReadOnly("you are muted here", _seconds(error.detail) if error.detail else None)
        case "SLOW":
            return RateLimited("slow mode: wait before you write here again", _seconds(error.detail))
        case "BANNED":
            return Forbidden("this user is banned here")
        case "LATER":
            return Unavailable(error.detail, 1.0)
        case "BADCOMMAND":
            return BadCommand(error.detail)
        case _:
            return Internal()


def _seconds(us: str) -> float:
    return max(0.001, round(int(us) / 1e6, 3))


def _usable(n: str) -> int | None:
    """The next n as a function reports it; None if the device has used all numbers."""
    return int(n) if int(n) < 2**53 else None


# Close codes of RFC 6455 section 7.4 and Linnet's own. 40xx: reconnect, after `retry_after=…` if the reason has one.
# 44xx and 45xx: do not reconnect with the same token.
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
CLOSE_ENDED: Final = 4504  # a backend or the user ended this session: reconnect when the user asks

# The code with which a connection is closed after a refused `hello` or `auth`, behind the `error` event.
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
    """The close reason that tells a client when to reconnect."""
    return f"retry_after={seconds:.3g}"
