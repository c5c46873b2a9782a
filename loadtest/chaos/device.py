"""One device of one user, which behaves as the protocol page advises a client to, and records everything it does and
receives.

When its connection ends, it reconnects to a random gateway, after the wait that the server named or a jittered one. It
resends every unanswered command with the same n. It removes nothing from its history and draws no conclusion in it. The
caller (`workload.py`, `canary.py`) decides what to write and when to be offline; this module decides what the protocol
demands.

Bound: at most `OUTSTANDING` sends per conversation wait for an answer; further ones are not started.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import msgspec

from loadtest.chaos.proof import history
from loadtest.chaos.proof.history import Known, Rows, digest, entry, now_ms
from loadtest.chaos.user_state import Fetch, UserState
from loadtest.websocket import GONE, WebSocket
from router.contract import keys

OUTSTANDING: Final = 16
ANSWER_S: Final = 8.0
WELCOME_S: Final = 15.0
PING_AFTER_S: Final = 5.0
DEAD_AFTER_S: Final = 12.0
SHUT_OUT: Final = 4400
EXPIRED: Final = 4501
WATCH: Final = "watch"
LONGEST_WAIT_S: Final = 10.0
# A token is renewed after this share of its validity, and again if no answer came.
RENEW_AT: Final = (0.5, 0.8)
RENEW_AGAIN_S: Final = 3.0
RECENT: Final = 16


class Recorder(Protocol):
    """Receives the rows of a device."""

    def add(self, row: Rows) -> None: ...


class Pending(msgspec.Struct):
    """A command without an answer, or whose answer this device pretends not to have received."""

    conversation: str
    kind: str
    n: int
    fields: dict[str, Any]
    target: int
    body: str
    due: float = 0.0
    attempts: int = 0


class Device:
    """`urls` may change while it lives. `token` is called at each connect, and before the last token expires."""

    def __init__(
        self,
        user: str,
        name: str,
        codec: str,
        urls: Sequence[str],
        token: Callable[[str], str],
        recorder: Recorder,
        rng: random.Random,
        *,
        small: bool = False,
        forgetful: float = 0.0,
        fetch_state: Fetch | None = None,
    ) -> None:
        self.user, self.name, self.codec = user, name, codec
        self.urls = urls
        self.recorder = recorder
        self.last: dict[str, int] = {}
        self.announced: dict[str, int] = {}  # conversation -> the end of the last gap that was announced
        self.read_up_to: dict[str, int] = {}
        self.waiting: dict[int, Pending] = {}
        self.mine: deque[tuple[str, int]] = deque(maxlen=RECENT)
        self.recent: deque[tuple[str, int]] = deque(maxlen=RECENT)
        self.seen: dict[str, bool] = {}  # presence that this connection has received
        self.ready = False
        self.renews = True  # False: the token expires, and the device reconnects with another
        self.sent = self.acked = self.received = self.refused = 0
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self.user_state = UserState(user, recorder.add, fetch_state)
        self._puts: dict[str, tuple[str, Any]] = {}  # id → key and value of the writes of state without an answer
        self._token, self._rng = token, rng
        self._small, self._forgetful = small, forgetful
        self._instance = secrets.token_hex(8)
        self._n = time.time_ns() // 1000
        self._waiting: dict[str, dict[int, Pending]] = {}
        self._unacked: set[str] = set()
        self._socket: WebSocket | None = None
        self._wanted = asyncio.Event()
        self._closed = asyncio.Event()
        self._ended = False
        self._paused = False
        self._closed_by_us = False
        self._url = ""
        self._hello_cursors: dict[str, int] | None = None
        self._connecting_at = self._pinged_at = self._renew_at = 0.0
        self._pause_s = 0.0
        self._watch_at = math.inf  # when to watch again after an error
        self._watched: list[str] = []
        self._puts_made = 0
        self._loop = asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return f"{self.user}/{self.name}"

    # -- online and offline

    async def run(self) -> None:
        """Connect whenever the device should be online, until `stop`."""
        while await self._wanted.wait() and not self._ended:
            await self._once()
            await asyncio.sleep(self._pause_s)

    async def _once(self) -> None:
        self._url = self._rng.choice(self.urls)
        self._closed.clear()
        self._closed_by_us, self._pause_s = False, self._rng.uniform(0.1, 1.5)
        self._connecting_at = self._loop.time()
        self.recorder.add(history.Connecting(now_ms(), self._url))
        self._socket = WebSocket(self.codec, self._opened, self._event, self._gone)
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._socket.connect(self._url, small=self._small)
        except (OSError, TimeoutError) as error:
            self._gone(GONE, f"cannot connect: {error}")
            self._socket.abort()
        await self._closed.wait()

    def go_online(self) -> None:
        self._wanted.set()

    def go_offline(self, *, politely: bool) -> None:
        """Disconnect until `go_online`."""
        self._wanted.clear()
        self.recorder.add(history.Left(now_ms()))
        self._leave(politely=politely)

    def record_state(self) -> None:
        """Record the user's state as this device has it now."""
        self.recorder.add(history.Holds(now_ms(), self.user_state.version, self.user_state.keys))

    def stop(self) -> None:
        self.user_state.stop()
        self._ended = True
        self.go_offline(politely=True)
        self._wanted.set()

    def _leave(self, *, politely: bool) -> None:
        if self._socket is not None and not self._closed.is_set():
            self._closed_by_us = True
            self._socket.resume_reading()
            if politely and self.ready:
                self._socket.close()
            else:
                self._socket.abort()

    def stop_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        if self._socket is not None and self.ready:
            self._paused = True
            self.recorder.add(history.Paused(now_ms(), True))
            self._socket.stop_reading()

    def resume_reading(self) -> None:
        if self._paused and self._socket is not None:
            self._paused = False
            self.recorder.add(history.Paused(now_ms(), False))
            self._socket.heard_at = self._loop.time()
            self._socket.resume_reading()

    # -- sending

    def message(self, to: str, body: Any) -> int:
        """Send a message and return its n, or 0 if too many sends of that conversation wait."""
        conversation = keys.direct(self.user, to[1:]) if to.startswith("@") else to
        return self._command("send", conversation, {"to": to, "body": body}, 0, digest(body))

    def act(self, kind: str, conversation: str, target: int, **fields: Any) -> int:
        """Send an edit, delete or react."""
        body = digest(fields["body"]) if "body" in fields else ""
        return self._command(kind, conversation, {"conversation": conversation, "seq": target, **fields}, target, body)

    def _command(self, kind: str, conversation: str, fields: dict[str, Any], target: int, body: str) -> int:
        here = self._waiting.setdefault(conversation, {})
        if len(here) >= OUTSTANDING:
            return 0
        self._n += 1
        one = here[self._n] = self.waiting[self._n] = Pending(conversation, kind, self._n, fields, target, body)
        self.sent += 1
        self._transmit(one)
        return one.n

    def _transmit(self, one: Pending) -> None:
        here = self._waiting[one.conversation]
        if self.ready and self._socket is not None:
            one.attempts += 1
            self._socket.send_command(one.kind, n=one.n, done=next(iter(here)) - 1, **one.fields)
        one.due = self._loop.time() + ANSWER_S
        self.recorder.add(history.Sent(now_ms(), one.conversation, one.n, one.kind, one.target, one.body, one.attempts))

    def read(self, conversation: str) -> None:
        """Tell the server that the user has read everything received in the conversation."""
        seq = self.last.get(conversation, 0)
        if seq and self.ready and self._socket is not None:
            self.recorder.add(history.Read(now_ms(), conversation, seq))
            self._socket.send_command("read", conversation=conversation, seq=seq)

    def put(self, key: str, value: Any) -> None:
        """Write a key of the user's state. A write whose answer is lost is not repeated: it may have taken effect."""
        if self.ready and self._socket is not None:
            self._puts_made += 1
            ident = f"put {self._puts_made}"
            self._puts[ident] = key, value
            self._socket.send_command("state", id=ident, key=key, value=value)

    def watch(self, users: list[str]) -> None:
        """Watch the presence of these users, from now on and after every reconnect."""
        self._watched, self._watch_at = users, math.inf
        if self.ready and self._socket is not None:
            self.recorder.add(history.Watching(now_ms(), users))
            self._socket.send_command("presence", id=WATCH, users=users, watch=True)

    def tick(self) -> None:
        """Acknowledge, resend what is overdue, and check the connection; called about once a second."""
        socket, now = self._socket, self._loop.time()
        if socket is None or self._closed.is_set():
            return
        if not self.ready:
            if now > self._connecting_at + WELCOME_S:
                socket.abort()
            return
        for one in list(self.waiting.values()):
            if now > one.due:
                self._transmit(one)
        if self._unacked:
            socket.send_command(
                "ack", cursors={conversation: self.last[conversation] for conversation in self._unacked}
            )
            self._unacked.clear()
        if now > self._watch_at:
            self.watch(self._watched)
        if self.renews and now > self._renew_at:
            self._renew_at = now + RENEW_AGAIN_S
            socket.send_command("auth", token=self._token(self.user))
        if not self._paused:
            if now > socket.heard_at + DEAD_AFTER_S:
                socket.abort()
            elif now > max(socket.heard_at, self._pinged_at) + PING_AFTER_S:
                self._pinged_at = now
                socket.send_command("ping")

    # -- events

    def _opened(self) -> None:
        assert self._socket is not None
        self._hello_cursors = dict(self.last) if self._rng.random() < 0.7 else None
        hello: dict[str, Any] = {"token": self._token(self.user), "device": self.name, "instance": self._instance}
        if self._hello_cursors is not None:
            hello["cursors"] = self._hello_cursors
        self._socket.send_command("hello", **hello)

    def _gone(self, code: int, reason: str) -> None:
        if self._closed.is_set():
            return
        self.ready = self._paused = False
        self._puts.clear()
        self._closed.set()
        self.recorder.add(history.Closed(now_ms(), code, reason, self._closed_by_us))
        if reason.startswith("retry_after="):
            with suppress(ValueError):
                self._pause_s = float(reason.partition("=")[2]) * self._rng.uniform(1.0, 1.3)
        elif code >= SHUT_OUT and code != EXPIRED:
            self._pause_s = 2.0  # a violation, which the checker reports; the run continues

    def _event(self, event: dict[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(event)
        match event["type"]:
            case "ack":
                self._acked(event)
            case "error":
                self._error(event)
            case "ok":
                self._valid(event["expires_at"])
            case "welcome":
                self._welcomed(event)
            case "conversations":
                self.recorder.add(history.Listed(now_ms(), self._known(event)))
            case "gap":
                gap = history.Gap(now_ms(), event["conversation"], event["from"], event["to"], event["reason"])
                self.announced[event["conversation"]] = event["to"]
                self.recorder.add(gap)
            case "receipt":
                self.recorder.add(history.Receipt(now_ms(), event["conversation"], event["user"], event["read"]))
                if event["user"] == self.user:
                    self._read_to(event["conversation"], event["read"])
            case "presence":
                known = {user: state["online"] for user, state in event["users"].items()}
                seen = {user: online for user, online in known.items() if online is not None}
                self.seen.update(seen)
                self.recorder.add(history.Seen(now_ms(), seen))
            case "state" if "key" not in event:
                self.user_state.named(event["version"])
            case "state":
                if event.get("id") in self._puts:
                    key, value = self._puts.pop(event["id"])
                    body = "" if value is None else digest(value)
                    self.recorder.add(history.Put(now_ms(), key, event["version"], body))
                self.user_state.changed(event)
            case "drain":
                self.recorder.add(history.Draining(now_ms(), event["retry_after"]))
            case _ if "seq" in event and "prev" in event:
                self._received(event)

    def _welcomed(self, event: dict[str, Any]) -> None:
        known = self._known(event)
        self.recorder.add(
            history.Welcomed(now_ms(), self._url, event["gateway"], event["session"], self._hello_cursors, known)
        )
        self._valid(event["expires_at"])
        self.user_state.named(event["state"])
        self.ready = True
        self.seen = {}
        self._pinged_at = 0.0
        if self._watched:
            self.watch(self._watched)
        for one in list(self.waiting.values()):
            self._transmit(one)

    def _valid(self, until: int) -> None:
        now = now_ms()
        self.recorder.add(history.Valid(now, until))
        left_s = (until - now) / 1000 * self._rng.uniform(*RENEW_AT)
        self._renew_at = self._loop.time() + max(RENEW_AGAIN_S, left_s)

    def _known(self, event: dict[str, Any]) -> list[Known]:
        if gone := [state["conversation"] for state in event["conversations"] if state.get("gone")]:
            self.recorder.add(history.Gone(now_ms(), gone))
        # An entry with `held` has no numbers.
        states = [state for state in event["conversations"] if not state.get("gone") and "held" not in state]
        for state in states:
            self._read_to(state["conversation"], state["read"])
        return [Known(state["conversation"], state["cursor"], state["head"], state["read"]) for state in states]

    def _read_to(self, conversation: str, seq: int) -> None:
        self.read_up_to[conversation] = max(seq, self.read_up_to.get(conversation, 0))

    def _received(self, event: dict[str, Any]) -> None:
        conversation, seq, kind = event["conversation"], event["seq"], event["type"]
        self.received += 1
        self.recorder.add(history.Received(now_ms(), conversation, entry(event)))
        if seq > self.last.get(conversation, 0):
            self.last[conversation] = seq
            self._unacked.add(conversation)
            if kind == "message":
                self.recent.append((conversation, seq))
                if event["from"] == self.user:  # own messages count as read
                    self._read_to(conversation, seq)

    def _acked(self, event: dict[str, Any]) -> None:
        n = event["n"]
        self.recorder.add(history.Acked(now_ms(), event["conversation"], n, event["seq"], event["duplicate"]))
        one = self.waiting.get(n)
        if one is None:
            return
        if not event["duplicate"] and self._rng.random() < self._forgetful:
            one.due = self._loop.time() + self._rng.uniform(0.0, 3.0)  # as if the ack were lost
            return
        self._answered(one)
        self.acked += 1
        if one.kind == "send":
            self.mine.append((one.conversation, event["seq"]))

    def _error(self, event: dict[str, Any]) -> None:
        n, retry_after = event.get("n"), event.get("retry_after")
        self._puts.pop(event.get("id", ""), None)
        if n is None:
            self.recorder.add(history.Refused(now_ms(), 0, event["code"], retry_after is None))
            if event.get("id") == WATCH:
                self._watch_at = self._loop.time() + (retry_after or 1.0)
            return
        final = retry_after is None and event["code"] not in ("unavailable", "internal")
        self.recorder.add(history.Refused(now_ms(), n, event["code"], final))
        one = self.waiting.get(n)
        if one is None:
            return
        if final:
            self.refused += 1
            self._answered(one)
        else:
            # A mute may end earlier than it says, and after a step of Redis's clock it says hours.
            one.due = self._loop.time() + min(retry_after or 1.0, LONGEST_WAIT_S) * self._rng.uniform(1.0, 1.5)

    def _answered(self, one: Pending) -> None:
        del self.waiting[one.n]
        del self._waiting[one.conversation][one.n]
