"""An application on the Python SDK, as a program with some installations, each a client on a store of its own.

Commands are lines of JSON on standard input (`do` names one), reports lines of JSON on standard output;
`client_driver.mjs` has the same. What the SDK shows the application is reported at once and unbuffered, so
that a killed process has reported all that its application had.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import suppress
from typing import Any

from linnet_client import (
    Client,
    ClientError,
    Event,
    Gap,
    Logged,
    Member,
    Message,
    MessageHandle,
    Presence,
    Refused,
    Status,
    Stopped,
)
from linnet_client.values import jsonable

POLL_S = 0.2
SLOW_S = 0.05
SHOWN = 30


def report(kind: str, **fields: Any) -> None:
    os.write(1, json.dumps({"type": kind, **fields}).encode() + b"\n")


class Tokens:
    """Asks the conductor for tokens."""

    def __init__(self) -> None:
        self._asked: dict[int, asyncio.Future[str]] = {}

    async def of(self, user: str) -> str:
        ident = len(self._asked)
        self._asked[ident] = asyncio.get_running_loop().create_future()
        report("token", id=ident, user=user)
        return await self._asked[ident]

    def got(self, ident: int, token: str) -> None:
        if not self._asked[ident].done():  # the SDK may have given up waiting for it
            self._asked[ident].set_result(token)


class Installation:
    """One client, and the application on it."""

    def __init__(self, tokens: Tokens, command: dict[str, Any]) -> None:
        self._name = command["installation"]
        self._slow = command["slow"]
        self._rng = random.Random(command["seed"])
        user = command["user"]

        async def token(_reason: str) -> str:
            return await tokens.of(user)

        self.client = Client(command["api"], user, token, store=command["store"], device=command["device"])
        self._tasks: list[asyncio.Task[None]] = []
        self._device = ""
        self._watched: list[str] = command["watch"]
        self._online: dict[str, bool | None] = {}

    def say(self, kind: str, **fields: Any) -> None:
        report(kind, installation=self._name, **fields)

    async def open(self) -> None:
        await self.client.open()
        self._device = self.client.device
        self.say("opened", device=self._device)
        self.client.watch(self._watched)
        for handle in self.client.outbox:
            self._follow(_ref(handle.command.get("body")), handle)
        self._tasks += [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()
        self._kept({})
        self.say("closed")

    # -- what it is shown

    async def _listen(self) -> None:
        while True:
            try:
                await self.client.listen(self._handle)
            except Stopped:
                await asyncio.sleep(POLL_S)  # `_watch` connects again
            except Exception as error:
                self.say("bug", text=f"listen: {type(error).__name__}: {error}")
                raise

    async def _handle(self, event: Event) -> None:
        self._named()
        if isinstance(event, Logged):
            self.say("handed", event=_raw(event))
        elif isinstance(event, Presence):
            self._online |= {user: one.online for user, one in event.users.items()}
        elif isinstance(event, Gap):
            self.say("gap", conversation=event.conversation, first=event.first, last=event.last, reason=event.reason)
        if self._rng.random() < self._slow:
            await asyncio.sleep(self._rng.random() * SLOW_S)
        if isinstance(event, Message) and event.sender != self.client.user and _asks(event.body):
            ref = f"re {event.seq} {self._name} {self._rng.getrandbits(32)}"
            self.say("asked", ref=ref, conversation=event.conversation, body=ref)
            with suppress(ClientError):
                await self._followed_by(ref, self.client.conversation(event.conversation).send(ref)).acked

    async def _watch(self) -> None:
        """Report the status, the device name and the stored cursors whenever they have changed."""
        status: Status | None = None
        kept = dict[str, int]()
        while True:
            if self.client.status is not status:
                status = self.client.status
                self.say("status", status=str(status), reason=self.client.stopped or "")
            if status is Status.STOPPED:
                # Not in `_listen`: a handler may wait for an ack, which a client that has stopped does not get.
                await asyncio.sleep(self._rng.uniform(0.2, 1.5))
                await self.client.connect(new_device=self.client.stopped in ("replaced", "copied"))
            self._named()
            kept = self._kept(kept)
            await asyncio.sleep(POLL_S)

    def _named(self) -> None:
        if self.client.device != self._device:
            self._device = self.client.device
            self.say("device", device=self._device)

    def _kept(self, before: dict[str, int]) -> dict[str, int]:
        now = self.client.cursors
        if now != before:
            changed = {name: seq for name, seq in now.items() if before.get(name) != seq}
            self.say("kept", cursors=changed)
        return now

    # -- what it does

    def act(self, command: dict[str, Any]) -> None:
        conversation = self.client.conversation(command["conversation"])
        match command["do"]:
            case "send":
                handle = conversation.send(command["body"])
            case "edit":
                handle = conversation.edit(command["seq"], command["body"])
            case _:
                handle = conversation.react(command["seq"], command["emoji"])
        self._followed_by(command["ref"], handle, die=command.get("die", False))

    def _followed_by(self, ref: str, handle: MessageHandle, *, die: bool = False) -> MessageHandle:
        self._follow(ref, handle, die=die)
        return handle

    def _follow(self, ref: str, handle: MessageHandle, *, die: bool = False) -> None:
        task = asyncio.create_task(self._settle(ref, handle, die))
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    async def _settle(self, ref: str, handle: MessageHandle, die: bool) -> None:
        try:
            await handle.stored
            self.say("stored", ref=ref)
            if die:
                os.kill(os.getpid(), signal.SIGKILL)
            ack = await handle.acked
            self.say("acked", ref=ref, conversation=ack.conversation, seq=ack.seq)
        except ClientError as error:
            self.say("failed", ref=ref, code=error.code if isinstance(error, Refused) else type(error).__name__)

    def read(self, conversation: str) -> None:
        self.client.conversation(conversation).mark_read()

    async def set(self, key: str, value: Any) -> None:
        with suppress(ClientError):  # nothing was promised
            self.say("put", key=key, version=await self.client.state.set(key, value))

    async def show(self) -> None:
        try:
            state = await self.client.state.entries("app/")
        except ClientError:
            return  # it is asked again
        shown = {
            name: {
                "read": one.view.read,
                "messages": [[entry.seq, jsonable(entry.body)] for entry in one.messages(limit=SHOWN)],
            }
            for name, one in self.client.conversations.items()
        }
        self.say(
            "shown",
            conversations=shown,
            open=[_ref(one.command.get("body")) for one in self.client.outbox if one.state != "failed"],
            failed=[_ref(one.command.get("body")) for one in self.client.outbox if one.state == "failed"],
            state=jsonable(state),
            online=self._online,
        )


def _raw(event: Logged) -> dict[str, Any]:
    """Return an event as the wire has it."""
    names = ("conversation", "seq", "prev", "count", "at", "device", "n")
    raw: dict[str, Any] = {name: getattr(event, name) for name in names}
    raw |= {"type": type(event).__name__.lower(), "from": event.sender, "target": getattr(event, "target", 0)}
    if hasattr(event, "body"):
        raw["body"] = jsonable(event.body)
    if isinstance(event, Member):
        raw |= {"action": event.action, "user": event.user}
    return raw


def _ref(body: Any) -> str:
    """Return the name that a body has within itself; empty for a reaction."""
    text = body.get("ref") if isinstance(body, dict) else body
    return text.partition("|")[0] if isinstance(text, str) else ""


def _asks(body: Any) -> bool:
    return isinstance(body, dict) and body.get("ask") is True


class Driver:
    def __init__(self) -> None:
        self._tokens = Tokens()
        self._installations: dict[str, Installation] = {}

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=1 << 24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        running: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            command = json.loads(line)
            if command["do"] == "token":
                self._tokens.got(command["id"], command["token"])
                continue
            task = asyncio.create_task(self._do(command))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _do(self, command: dict[str, Any]) -> None:
        try:
            if command["do"] == "open":
                installation = Installation(self._tokens, command)
                await installation.open()
                self._installations[command["installation"]] = installation
            elif (found := self._installations.get(command["installation"])) is not None:
                match command["do"]:
                    case "close":
                        await found.close()
                    case "show":
                        await found.show()
                    case "set":
                        await found.set(command["key"], command["value"])
                    case "read":
                        found.read(command["conversation"])
                    case _:
                        found.act(command)
        except Exception as error:  # noqa: BLE001 - it is evidence, whatever it is
            report(
                "bug", installation=command["installation"], text=f"{command['do']}: {type(error).__name__}: {error}"
            )


if __name__ == "__main__":
    asyncio.run(Driver().run())
