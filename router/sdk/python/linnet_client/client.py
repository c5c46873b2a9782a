"""The client: composes store, connection, sender and receiver for one device of one user.

Nothing of the application runs in the read loop: it gets events from `events()` or `listen()`, in its own task.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import quote

import linnet_client.events as events
import linnet_client.outbox as outbox
import linnet_client.values as values
from linnet_client.connection import Connection
from linnet_client.conversation import Conversation
from linnet_client.errors import ClientError, InvalidValue, NotConnected, Stopped, StoreError
from linnet_client.events import Event, Online
from linnet_client.http import Api, TokenSource, UserApi
from linnet_client.machine import Status
from linnet_client.media import Media
from linnet_client.messages import MessageHandle
from linnet_client.model import MessageView, own_files
from linnet_client.outbox import Row
from linnet_client.people import People
from linnet_client.receiving import Receiving
from linnet_client.sending import Sending
from linnet_client.state import State
from linnet_client.store import Store, get_meta, rename, set_meta
from linnet_client.wire import AckEvent, Welcome

STORE_RETRY_S: Final = 5.0
PRESENCE_USERS: Final = 200  # of one command
NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("linnet_client")


class Client:
    """One device of one user. Use it as an async context manager.

    `api`: the URL of the HTTP API. `token`: a token, or an async function that returns one and is given the reason
    (`connect`, `expiring`, `token_expired`, `unauthorized`); `Login` is one. `store`: the file of the outbox and the
    cursors; without it they are in memory, and `durable` is False. `device`: a label; 8 random characters are added.
    `gateways`: WebSocket URLs to use instead of those that the API names. `media` has the files,
    `state` the user's keys and values, `people` contacts and blocks.
    """

    def __init__(
        self,
        api: str,
        user: str,
        token: str | TokenSource,
        *,
        store: str | Path | None = None,
        device: str = "python",
        gateways: list[str] | None = None,
    ) -> None:
        if not NAME.fullmatch(user) or not NAME.fullmatch(device):
            raise InvalidValue("names of users and devices have 1-64 of A-Z a-z 0-9 . _ -")
        self.user = user
        self.conversations: dict[str, Conversation] = {}
        self.heartbeat_s = 0.0
        self._api = Api(api)
        self._source = token if not isinstance(token, str) else _fixed(token)
        self._calls = UserApi(self._api, self._source)
        self.media = Media(self._calls)
        self.state = State(self)
        self.people = People(self, self.state)
        self._path = Path(store) if store is not None else None
        self._label = device
        self._fixed_gateways = gateways
        self._store: Store | None = None
        self._connection: Connection | None = None
        self._sending: Sending | None = None
        self._receiving: Receiving | None = None
        self._stopped: str | None = None
        self._changes: asyncio.Event | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._watched: dict[str, None] = {}

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the store and begin to connect."""
        self._changes = asyncio.Event()
        self._store = store = await Store.open(self._path, self._api.origin, self.user, self._label)
        rows, cursors, gateways = await store.run(
            lambda db: (outbox.rows(db), outbox.cursors(db), get_meta(db, "gateways") or "")
        )
        self._connection = Connection(self._api, self._source, self, self._fixed_gateways, gateways.split())
        self._sending = Sending(store, self._connection, self)
        self._receiving = Receiving(store, self._connection, lambda name: self._conversation(name).view)
        self._receiving.restore(cursors)
        self._sending.recover(rows, self._recovered)
        self._connection.start()

    async def close(self) -> None:
        """Store and ack what the application has, and close connection and store. Queued messages stay in the store."""
        if self._store is None or self._connection is None or self._receiving is None or self._sending is None:
            return
        if self._replacing is not None:
            self._replacing.cancel()
        self.state.close()
        await self._receiving.flush()
        self._receiving.ack()
        await self._connection.flush()
        await self._connection.close()
        self._receiving.close()
        self._receiving.stop("closed")
        self._sending.close()
        await self._store.close()
        self._store = None

    # -- what it knows

    @property
    def status(self) -> Status:
        return self._connection.state if self._connection is not None else Status.IDLE

    @property
    def stopped(self) -> str | None:
        """Why the client does not reconnect by itself: `replaced`, `copied`, `banned`, `ended`, `unauthorized`, …."""
        return self._stopped

    @property
    def durable(self) -> bool:
        """Whether what `stored` has promised survives the end of the process."""
        return self._path is not None

    @property
    def device(self) -> str:
        """The full name of this device."""
        return self._store.device if self._store is not None else ""

    @property
    def cursors(self) -> dict[str, int]:
        """The stored cursor of each conversation: no later life of this client is given an event up to there."""
        return self._receiving.cursors if self._receiving is not None else {}

    @property
    def outbox(self) -> list[MessageHandle]:
        """Commands that are not acked: queued, sent or failed, those of earlier processes, too."""
        return list(self._sending.handles.values()) if self._sending is not None else []

    async def until(self, state: Status) -> None:
        """Wait for a state of the connection; raise `Stopped` if the client stops instead."""
        assert self._changes is not None, "the client is not open"
        while self.status is not state:
            if self.status is Status.STOPPED:
                raise Stopped(self._stopped or "stopped")
            self._changes.clear()
            await self._changes.wait()

    async def connect(self, *, new_device: bool = False) -> None:
        """Connect again after the client has stopped.

        After `replaced` and `copied` another process uses the device name, so `new_device` is needed. Then commands
        that were written without an answer are failed, because they may have been accepted under the old name.
        """
        if self.status is not Status.STOPPED:
            raise ClientError("the client has not stopped")
        if self._stopped in ("replaced", "copied") and not new_device:
            raise ClientError(f"the device name is in use ({self._stopped}); ask for a new one")
        assert self._connection is not None
        assert self._receiving is not None
        assert self._sending is not None
        assert self._store is not None
        if new_device:
            await self._sending.give_up_written()
            self._store.device = await self._store.run(lambda db: rename(db, self._label))
        self._stopped = None
        self._receiving.start()
        self._connection.start()

    # -- conversations

    def conversation(self, target: str) -> Conversation:
        """Return a conversation by its id, or a direct one by `@user`."""
        if target.startswith("@"):
            if not NAME.fullmatch(target[1:]):
                raise InvalidValue("names of users have 1-64 of A-Z a-z 0-9 . _ -")
            target = "d:" + ":".join(sorted((self.user, target[1:])))
        return self._conversation(target)

    def _conversation(self, name: str) -> Conversation:
        found = self.conversations.get(name)
        if found is None:
            found = self.conversations[name] = Conversation(self, name)
        return found

    async def create_conversation(self, title: str, members: list[str], kind: str = "group") -> Conversation:
        """Create a group or channel with these members."""
        made = await self.call("POST", "/v1/conversations", {"kind": kind, "title": title, "members": members})
        return self._conversation(made["conversation"])

    # -- receiving

    def events(self) -> AsyncIterator[Event]:
        """Return an iterator of events. The application has one when it asks for the next; only then the cursor moves.

        A later iterator replaces an earlier one, and begins with the event that the earlier one gave last. If the
        client stops, `Stopped` is raised when all events are handed over.
        """
        assert self._receiving is not None, "the client is not open"
        return self._receiving.stream()

    async def listen(self, handler: Callable[[Event], Awaitable[None]]) -> None:
        """Give each event to the handler; the cursor moves when its awaitable resolves.

        If the handler raises, so does `listen`, and the event is given again by the next call.
        """
        async for event in self.events():
            await handler(event)

    # -- people

    async def presence(self, users: list[str]) -> dict[str, Online]:
        """Return who is online now."""
        answer = await self.call("GET", f"/v1/presence?users={','.join(map(quote, users))}")
        return events.online(answer["users"])

    def watch(self, users: list[str]) -> None:
        """Give a `Presence` event now, and whenever one of these users comes or goes, also after a reconnect."""
        self._watched.update(dict.fromkeys(users))
        self._watch(users)

    def _watch(self, users: list[str]) -> None:
        for first in range(0, len(users), PRESENCE_USERS):
            self.write({"type": "presence", "users": users[first : first + PRESENCE_USERS], "watch": True})

    # -- the HTTP API and commands, for what has no method of its own

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make a call of the HTTP API as this user."""
        return await self._calls.call(method, path, body)

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return its answer."""
        if self._connection is None:
            raise NotConnected("the client is not open")
        return await self._connection.ask(command)

    def write(self, command: dict[str, Any]) -> None:
        """Send a command that has no answer; it is dropped if the connection is not live."""
        if self._connection is not None:
            self._connection.write(command)

    def put(self, conversation: str, command: dict[str, Any], entry: MessageView | None) -> MessageHandle:
        """Store a command in the outbox (see `Conversation`)."""
        if self._sending is None or self._store is None:
            raise ClientError("the client is not open")
        return self._sending.put(conversation, command, entry)

    def _recovered(self, row: Row) -> MessageView | None:
        command = row.command
        if command["type"] != "send":
            return None
        body = values.decode(values.encode(command["body"]))
        entry = MessageView(self.user, self.device, row.n, body, command["media"], command.get("reply_to"))
        entry.files = own_files(command.get("files"))
        self._conversation(row.conversation).view.queue(entry)
        return entry

    # -- the connection's events; none of these waits

    def hello(self) -> dict[str, Any]:
        assert self._receiving is not None
        return {"device": self.device, "cursors": outbox.hello_cursors(self._receiving.stored)}

    def welcomed(self, welcome: Welcome) -> None:
        assert self._receiving is not None
        assert self._sending is not None
        assert self._connection is not None
        if welcome["user"] != self.user:
            log.error("the token is of %s, the client of %s", welcome["user"], self.user)
            self._stopped = "wrong_user"
            self._connection.stop("wrong_user")
            return
        self.heartbeat_s = welcome["heartbeat_s"]
        self._receiving.connected()
        self._receiving.states(welcome["conversations"])
        self._receiving.resume()
        self._sending.connected()
        self._watch(list(self._watched))
        self.state.told({"version": welcome.get("state", 0)})

    def received(self, event: dict[str, Any]) -> None:
        assert self._receiving is not None
        assert self._sending is not None
        kind = event["type"]
        if kind in events.LOGGED or kind == "gap":
            self._receiving.logged(event)
            if event.get("from") == self.user and event["device"] == self.device:
                self._sending.landed(event)
        elif kind == "ack":
            self._sending.ack(cast("AckEvent", event))
        elif kind == "error":
            if event.get("n") is not None or isinstance(event.get("id"), int):
                self._sending.error({**event, "n": event.get("n") or event["id"]})
            else:
                log.warning("the server refused a command: %s", event)
        elif kind == "conversations":
            self._receiving.states(event["conversations"])
        elif kind == "state":
            self.state.told(event)
        elif (found := _ephemeral(event)) is not None:
            self._receiving.ephemeral(found)

    def ticked(self) -> bool:
        assert self._receiving is not None
        assert self._sending is not None
        self._receiving.ack()
        if self._store is not None and self._store.lost:
            self.lost()
        return not self._sending.overdue()

    def changed(self, state: Status, reason: str | None) -> None:
        if state is Status.STOPPED:
            self._stopped = self._stopped or reason
            if self._receiving is not None:
                self._receiving.stop(self._stopped or "stopped")
        if self._changes is not None:
            self._changes.set()

    def found_gateways(self, urls: list[str]) -> None:
        if self._store is not None and not self._store.lost:
            future = self._store.run(lambda db: set_meta(db, "gateways", " ".join(urls)))
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    # -- a store that is copied or lost

    def settled(self, handle: MessageHandle) -> None:
        if handle.entry is not None:
            self._conversation(handle.conversation).view.settle(handle.entry)

    def cancelled(self, handle: MessageHandle) -> None:
        if handle.entry is not None:
            self._conversation(handle.conversation).view.unqueue(handle.entry)

    def copied(self) -> None:
        """Another process has a copy of the store, and its device name: stop, as two cannot share one series of n."""
        log.error("the store was copied: another process uses the device %s", self.device)
        self._stopped = "copied"
        if self._connection is not None:
            self._connection.stop("copied")

    def lost(self) -> None:
        """The file of the store is gone. Settle what is open under the old name, then begin a new store."""
        if self._replacing is None:
            log.error("the store %s was removed; a new one follows when all open messages are settled", self._path)
            self._replacing = asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        assert self._sending is not None
        assert self._receiving is not None
        assert self._connection is not None
        assert self._store is not None
        await self._sending.all_settled()
        old = self._store
        await self._connection.close()
        self._store = await self._new_store()
        self._receiving.move_to(self._store)
        await self._receiving.flush()
        self._sending.move_to(self._store)
        self._replacing = None
        self._connection.start()
        await old.close()

    async def _new_store(self) -> Store:
        while True:
            try:
                return await Store.open(self._path, self._api.origin, self.user, self._label)
            except (StoreError, OSError) as error:
                log.error("no new store: %s", error)
                await asyncio.sleep(STORE_RETRY_S)


def _fixed(token: str) -> TokenSource:
    async def source(_reason: str) -> str:
        return token

    return source


def _ephemeral(event: dict[str, Any]) -> Event | None:
    match event["type"]:
        case "receipt":
            return events.Receipt(conversation=event["conversation"], user=event["user"], read=event["read"])
        case "typing":
            return events.Typing(conversation=event["conversation"], sender=event["from"])
        case "presence":
            return events.Presence(users=events.online(event["users"]))
        case "profile":  # this client keeps no profiles: an application reads them over HTTP
            return None
    return None
