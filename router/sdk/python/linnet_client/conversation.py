"""A conversation as the application uses it: its view, and what can be done in it."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import quote

import linnet_client.events as events
import linnet_client.values as values
from linnet_client.errors import InvalidValue
from linnet_client.events import Logged
from linnet_client.messages import MessageHandle
from linnet_client.model import ConversationView, MessageView, own_files
from linnet_client.wire import SharedFile


class Owner(Protocol):
    """The client, as its conversations need it."""

    user: str

    @property
    def device(self) -> str: ...

    def put(self, conversation: str, command: dict[str, Any], entry: MessageView | None) -> MessageHandle: ...

    def write(self, command: dict[str, Any]) -> None: ...

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]: ...

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class Conversation:
    """One conversation of the user. `view` is what a user interface shows."""

    def __init__(self, owner: Owner, conversation: str) -> None:
        self.id = conversation
        self.view = ConversationView(conversation, owner.user)
        self._owner = owner

    def send(
        self,
        body: Any,
        *,
        media: str = "text",
        reply_to: int | None = None,
        files: list[str | SharedFile] | None = None,
    ) -> MessageHandle:
        """Send a message; return its handle at once. The promise begins when `stored` of the handle resolves.

        `files`: hashes of own uploads, or {`sha256`, `in`} of files that are seen in another conversation. A video may
        have a `poster`, the hash of an own picture.
        """
        command: dict[str, Any] = {"type": "send", "to": self._target(), "body": self._value(body), "media": media}
        if reply_to is not None:
            command["reply_to"] = reply_to
        if files:
            command["files"] = files
        entry = MessageView(self._owner.user, self._owner.device, 0, body, media, reply_to, state="saving")
        entry.files = own_files(files)
        handle = self._owner.put(self.id, command, entry)
        if handle.state != "failed":
            self.view.queue(entry)
        return handle

    def edit(self, seq: int, body: Any) -> MessageHandle:
        """Replace the body of an own message."""
        return self._change("edit", seq, body=self._value(body))

    def delete(self, seq: int) -> MessageHandle:
        """Delete a message."""
        return self._change("delete", seq)

    def react(self, seq: int, emoji: str, *, remove: bool = False) -> MessageHandle:
        """Add a reaction to a message, or remove it."""
        return self._change("react", seq, emoji=emoji, remove=remove)

    def _change(self, kind: str, seq: int, **fields: Any) -> MessageHandle:
        return self._owner.put(self.id, {"type": kind, "conversation": self.id, "seq": seq, **fields}, None)

    def _value(self, body: Any) -> Any:
        return values.jsonable(body)

    def _target(self) -> str:
        """Return `@user` for a direct conversation, which the first message creates, else the id."""
        if not self.id.startswith("d:"):
            return self.id
        parties = self.id.split(":")[1:]
        if self._owner.user not in parties or len(parties) != 2:
            raise InvalidValue(f"{self.id} is a conversation of other users")
        return "@" + (parties[1] if parties[0] == self._owner.user else parties[0])

    def messages(self, *, limit: int = 50, before: int | None = None) -> list[MessageView]:
        """Return the newest messages, ascending, and after them those without a seq; or those before a seq."""
        found = [entry for seq, entry in self.view.entries.items() if before is None or seq < before]
        return found[-limit:] + (self.view.queued if before is None else [])

    def mark_read(self, seq: int | None = None) -> None:
        """Mark the conversation as read up to a seq, or to its end."""
        read = self.view.head if seq is None else seq
        self.view.receipt(self._owner.user, read)
        self._owner.write({"type": "read", "conversation": self.id, "seq": read})

    def typing(self) -> None:
        """Show the others that the user is typing."""
        self._owner.write({"type": "typing", "to": self.id})

    async def history(self, *, before: int | None = None, after: int | None = None, limit: int = 50) -> list[Logged]:
        """Return events, ascending: the last ones, those before a seq, or those after one."""
        asked = {"type": "history", "conversation": self.id, "limit": limit, "before": before, "after": after}
        page = await self._owner.ask({name: value for name, value in asked.items() if value is not None})
        return [events.LOGGED[raw["type"]](raw) for raw in page["events"] if raw["type"] in events.LOGGED]

    async def load_older(self, limit: int = 50) -> int:
        """Load older messages into the model; return how many events came."""
        found = await self.history(before=self.view.oldest, limit=limit)
        for event in found:
            self.view.load(event)
        return len(found)

    async def load_reads(self) -> dict[str, int]:
        """Ask how far each member has read (direct ones, groups of at most 32): at first, and when live again."""
        answer = await self._owner.call("GET", f"/v1/conversations/{quote(self.id, safe='')}/reads")
        for user, read in answer["reads"].items():
            self.view.receipt(user, read)
        return self.view.reads
