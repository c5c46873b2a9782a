"""Handles of commands: what `send`, `edit`, `delete` and `react` return.

State: saving → queued → sent → acked | failed. The promise begins when `stored` resolves: from then on the command
takes effect once, whatever crashes, or is shown as failed. `acked` resolves with the ack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from linnet_client.errors import Cancelled, ClientError, Refused
from linnet_client.model import EntryState, MessageView


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a command: where it is in the log, and when (ms) it was accepted."""

    conversation: str
    seq: int
    at: int
    duplicate: bool


class Sender(Protocol):
    """The sender, as its handles need it."""

    async def cancel(self, handle: MessageHandle) -> bool: ...

    async def retry(self, handle: MessageHandle) -> None: ...


class MessageHandle:
    """One command of this device. `entry` is the message in the model; None for edit, delete and react."""

    def __init__(self, sender: Sender, conversation: str, command: dict[str, Any], entry: MessageView | None) -> None:
        self.conversation = conversation
        self.command = command
        self.entry = entry
        self.n = 0
        self.error: ClientError | None = None
        self.ack: Ack | None = None
        self._state: EntryState = "saving"
        self._sender = sender
        loop = asyncio.get_running_loop()
        self._stored: asyncio.Future[int] = loop.create_future()
        self._settled: asyncio.Future[None] = loop.create_future()

    @property
    def state(self) -> EntryState:
        return self._state

    @property
    def stored(self) -> Awaitable[int]:
        """Resolve with n when the command is in the store; raise if it could not be stored."""
        return asyncio.shield(self._stored)

    @property
    def acked(self) -> Awaitable[Ack]:
        """Resolve with the ack; raise `Refused`, `Cancelled` or `StoreError` if the command failed."""
        return self._acked()

    @property
    def seq(self) -> int | None:
        """The seq of the event, once the command is acked."""
        return self.ack.seq if self.ack is not None else None

    @property
    def at(self) -> int | None:
        """The server's time (ms), once the command is acked."""
        return self.ack.at if self.ack is not None else None

    async def _acked(self) -> Ack:
        await self.settled()
        if self.ack is not None:
            return self.ack
        assert self.error is not None
        raise self.error

    async def settled(self) -> None:
        """Wait until the command is acked or failed."""
        await asyncio.shield(self._settled)

    async def cancel(self) -> bool:
        """Remove the command if it was never written to a connection (or has failed); return whether it was removed."""
        return await self._sender.cancel(self)

    async def retry(self) -> None:
        """Queue a failed command again, as a new one."""
        await self._sender.retry(self)

    # -- for the sender

    def move(self, state: EntryState) -> None:
        self._state = state
        if self.entry is not None:
            self.entry.state = state

    def was_stored(self, n: int) -> None:
        self.renumbered(n)
        self.move("queued")
        if not self._stored.done():
            self._stored.set_result(n)

    def renumbered(self, n: int) -> None:
        self.n = n
        if self.entry is not None:
            self.entry.n = n

    def was_not_stored(self, error: BaseException) -> None:
        self._stored.set_exception(error)
        self._stored.exception()  # the application may look at `state` instead
        failure = error if isinstance(error, ClientError) else ClientError(str(error))
        self.was_refused(failure)

    def was_acked(self, ack: Ack) -> None:
        self.ack, self.error = ack, None
        if self.entry is not None and self.entry.seq is None:
            self.entry.seq, self.entry.at = ack.seq, ack.at
        self.move("acked")
        if not self._settled.done():
            self._settled.set_result(None)

    def was_refused(self, error: ClientError) -> None:
        self.error = error
        self.move("failed")
        if not self._settled.done():
            self._settled.set_result(None)

    def queued_again(self, n: int) -> None:
        self.error = None
        self.renumbered(n)
        self._settled = asyncio.get_running_loop().create_future()
        self.move("queued")


__all__ = ["Ack", "Cancelled", "MessageHandle", "Refused"]
