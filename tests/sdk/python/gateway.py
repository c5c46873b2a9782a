"""A scripted gateway on a real socket: it answers as the protocol page says, and misbehaves where a test asks for it.

It keeps one log per conversation in memory. What a test changes: `hide` (events that are not sent live), `refusals`
(errors for the next commands), `doubled` (every event twice), `silent` (no acks).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Event = dict[str, Any]


class Gateway:
    """One gateway and its logs. `received`: all commands, in their order."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.logs: dict[str, list[Event]] = defaultdict(list)
        self.received: list[Event] = []
        self.sessions: list[ServerConnection] = []
        self.hidden: set[int] = set()
        self.closes: list[int | None] = []  # close codes of ended connections
        self.refusals: deque[Event] = deque()
        self.spacing_s = 0.0  # a command that comes sooner after another, accepted or not, is `rate_limited`
        self._last_command = 0.0
        self.doubled = False
        self.silent = False
        self.cursors: dict[str, int] = {}
        self.accepted: dict[tuple[str, int], Event] = {}
        self.url = ""
        self._arrived = asyncio.Event()
        self._server: Server | None = None

    async def until(self, count: int, kind: str, deadline_s: float = 40) -> list[Event]:
        """The commands of a kind, once there are so many."""
        async with asyncio.timeout(deadline_s):
            while len(found := self.of(kind)) < count:
                self._arrived.clear()
                await self._arrived.wait()
        return found

    def of(self, kind: str) -> list[Event]:
        return [command for command in self.received if command["type"] == kind]

    async def say(self, event: Event) -> None:
        for session in self.sessions[-1:]:
            await session.send(json.dumps(event))

    async def message(self, body: Any, conversation: str = "g:1", sender: str = "bob", **fields: Any) -> Event:
        """Append a message of another user, and send it unless it is hidden."""
        event = self.append(conversation, sender, "phone", 0, {"media": "text", "body": body, **fields})
        if event["seq"] not in self.hidden:
            await self.deliver(event)
        return event

    def append(self, conversation: str, sender: str, device: str, n: int, fields: Event) -> Event:
        log = self.logs[conversation]
        seq = len(log) + 1
        event = {
            "type": "message", "conversation": conversation, "seq": seq, "prev": seq - 1, "count": seq, "at": seq,
            "from": sender, "device": device, "n": n, **fields,
        }  # fmt: skip
        log.append(event)
        return event

    async def deliver(self, event: Event) -> None:
        for _ in range(2 if self.doubled else 1):
            await self.say(event)

    async def close(self, code: int, reason: str = "") -> None:
        """Close all connections."""
        for session in list(self.sessions):
            await session.close(code, reason)

    # -- the server's side

    async def _session(self, socket: ServerConnection) -> None:
        self.sessions.append(socket)
        try:
            async for frame in socket:
                command = json.loads(frame)
                self.received.append(command)
                self._arrived.set()
                await self._answer(socket, command)
        except ConnectionClosed:
            pass
        finally:
            self.sessions.remove(socket)
            self.closes.append(socket.close_code)

    async def _answer(self, socket: ServerConnection, command: Event) -> None:
        kind = command["type"]
        if kind == "hello":
            await self._hello(socket, command)
        elif kind in ("send", "edit", "delete", "react"):
            await self._command(socket, command)
        elif kind == "history":
            await socket.send(json.dumps(self._history(command)))
        elif kind == "ack":
            self.cursors.update(command.get("cursors", {}))
        elif kind == "auth":
            await socket.send(json.dumps({"type": "ok", "id": command["id"], "expires_at": 2**52}))

    async def _hello(self, socket: ServerConnection, command: Event) -> None:
        self.cursors.update(command.get("cursors", {}))
        states = [
            {"conversation": name, "kind": "group", "title": "t", "head": len(log), "cursor": self.cursors.get(name, 0),
             "read": 0, "unread": 0, "role": "member"}
            for name, log in self.logs.items()
        ]  # fmt: skip
        await socket.send(
            json.dumps(
                {"type": "welcome", "user": self.user, "device": command["device"], "session": "s", "gateway": "g",
                 "heartbeat_s": 30, "expires_at": 2**52, "limits": {}, "conversations": states, "more": False}
            )
        )  # fmt: skip
        for name, log in self.logs.items():
            for event in log[self.cursors.get(name, 0) :]:
                await self.deliver(event)

    async def _command(self, socket: ServerConnection, command: Event) -> None:
        if self.refusals:
            refusal = self.refusals.popleft()
            if refusal:
                await socket.send(json.dumps({"type": "error", "message": "no", "n": command["n"], **refusal}))
                return
        now = asyncio.get_running_loop().time()
        early, self._last_command = now - self._last_command < self.spacing_s, now
        if early:
            refusal = {"code": "rate_limited", "message": "slow", "retry_after": self.spacing_s}
            await socket.send(json.dumps({"type": "error", "n": command["n"], **refusal}))
            return
        key = (command.get("to") or command["conversation"], command["n"])
        duplicate = key in self.accepted
        if not duplicate:
            name = command.get("to") or command["conversation"]
            device = next(c["device"] for c in reversed(self.received) if c["type"] == "hello")
            fields = {"media": command.get("media", "text"), "body": command.get("body")}
            self.accepted[key] = self.append(name, self.user, device, command["n"], fields)
            await self.deliver(self.accepted[key])
        if not self.silent:
            event = self.accepted[key]
            ack = {"type": "ack", "n": command["n"], "conversation": key[0], "seq": event["seq"], "at": 1}
            await socket.send(json.dumps({**ack, "duplicate": duplicate}))

    def _history(self, command: Event) -> Event:
        log, limit = self.logs[command["conversation"]], command.get("limit", 50)
        if "after" in command:
            found = [event for event in log if event["seq"] > command["after"]]
            page, more = found[:limit], len(found) > limit
        else:
            found = [event for event in log if event["seq"] < command.get("before", 2**53)]
            page, more = found[-limit:], len(found) > limit
        answer = {"type": "history", "id": command["id"], "conversation": command["conversation"]}
        return {**answer, "events": page, "more": more}


@asynccontextmanager
async def scripted(user: str = "ann") -> AsyncIterator[Gateway]:
    """A gateway that listens on loopback."""
    gateway = Gateway(user)
    async with serve(gateway._session, "127.0.0.1", 0, subprotocols=["linnet.v1.json"]) as server:  # type: ignore[list-item]
        gateway.url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws"
        yield gateway
