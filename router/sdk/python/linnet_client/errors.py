"""Every error that the client raises. All are `ClientError`."""

from __future__ import annotations


class ClientError(Exception):
    """Base of all errors of this package."""


class Refused(ClientError):
    """The server refused a command or a call. `retry_after` (seconds) is set if a retry helps from then on."""

    def __init__(self, code: str, message: str = "", retry_after: float | None = None, status: int = 0) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.status = status


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
