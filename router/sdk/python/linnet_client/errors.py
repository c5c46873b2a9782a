"""Every error that the client raises. All are `ClientError`."""

from __future__ import annotations

import time


class ClientError(Exception):
    """Base of all errors of this package."""


class Refused(ClientError):
    """The server refused a command or a call. `retry_at` (ms since the epoch) is set if a retry helps from then on."""

    def __init__(self, code: str, message: str = "", retry_at: int | None = None, status: int = 0) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.retry_at = retry_at
        self.status = status

    @property
    def wait_s(self) -> float | None:
        """How long to wait before a retry; None if a retry does not help by itself."""
        return None if self.retry_at is None else max(0.0, self.retry_at / 1000 - time.time())


def retry_at(retry_after: float | None) -> int | None:
    """Return when `retry_after` (seconds from now, as the server says it) has passed, in ms since the epoch."""
    return None if retry_after is None else round((time.time() + retry_after) * 1000)


class Unreachable(ClientError):
    """The HTTP API does not answer. The call may have taken effect."""


class NotConnected(ClientError):
    """The connection is not live, or ended before the answer."""


class Stopped(ClientError):
    """The client does not reconnect by itself any more. `reason` says why (see `Client.stopped`)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Cancelled(ClientError):
    """The message was cancelled before it was written to a connection."""


class InvalidValue(ClientError):
    """A body or name that the wire cannot carry."""


class StoreError(ClientError):
    """The store cannot be opened, or a transaction failed."""


class StoreInUse(StoreError):
    """Another process has the store open."""


class StoreMismatch(StoreError):
    """The store belongs to another user or another deployment."""


class StoreLost(StoreError):
    """The file of the store was removed or replaced while it was open."""
