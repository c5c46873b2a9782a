"""Contacts and blocks. What they are is in the user's state (`contact/…`, `block/…`), so every device agrees."""

from __future__ import annotations

import time
from typing import Any, Protocol
from urllib.parse import quote

from linnet_client.state import State


class Caller(Protocol):
    """The client, as its people need it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class People:
    """The contacts of one user, and whom the user blocks. To follow changes: `client.state.watch("contact/", …)`."""

    def __init__(self, caller: Caller, state: State) -> None:
        self._caller = caller
        self._state = state

    async def _change(self, method: str, path: str, body: Any = None) -> None:
        await self._caller.call(method, path, body)
        await self._state.refresh()

    async def contacts(self) -> dict[str, dict[str, Any]]:
        """Return contacts and requests by user: `state` (`contact`, `incoming`, `outgoing`), `message`, `until`, …."""
        found = await self._state.entries("contact/")
        now = time.time() * 1000
        return {
            key.partition("/")[2]: value
            for key, value in found.items()
            if value.get("until") is None or value["until"] > now
        }

    async def request(self, user: str, message: str = "") -> None:
        """Ask a user to be a contact; accept if they have asked."""
        await self._change("PUT", f"/v1/contacts/{quote(user)}", {"message": message} if message else {})

    async def accept(self, user: str) -> None:
        """Accept a request."""
        await self._change("POST", f"/v1/contacts/{quote(user)}/accept")

    async def remove(self, user: str) -> None:
        """End a contact, cancel the own request, or decline the user's."""
        await self._change("DELETE", f"/v1/contacts/{quote(user)}")

    async def blocked(self) -> list[str]:
        """Return whom the user blocks."""
        return [key.partition("/")[2] for key in await self._state.entries("block/")]

    async def block(self, user: str) -> None:
        """Block a user: nothing that they send in the direct conversation is accepted any more."""
        await self._change("PUT", f"/v1/blocks/{quote(user)}")

    async def unblock(self, user: str) -> None:
        """End a block."""
        await self._change("DELETE", f"/v1/blocks/{quote(user)}")
