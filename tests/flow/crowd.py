"""A crowd that writes all the time, each device with up to WINDOW messages outstanding, and what the logs say of it.

Its clients are those of the load tests, cheap enough for thousands of sends a second beside all servers on two cores.
They check the `prev` chain of what they receive. `judge` reads the logs of all conversations at the servers.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

from loadtest.load.client import Client, Failures, Refused, Route, now_us
from loadtest.load.local import OPEN_LIMITS
from router.contract import stamp
from tests import support
from tests.flow.client import token

T = TypeVar("T")

WINDOW: Final = 16
TICK_S: Final = 0.01
BODY_BYTES: Final = 64
LIMITS: Final = {**OPEN_LIMITS, "LINNET_RETENTION_EVENTS": "1000000"}


class Refusal(NamedTuple):
    code: str
    silent_s: float  # for which nobody had been acked in the conversation


class Sender:
    """One device that writes to one conversation. If a message is refused, it sends that again before any new one."""

    def __init__(self, user: str, failures: Failures, last_acks: dict[str, float]) -> None:
        self.conversation = ""
        self._last_acks = last_acks  # when somebody was acked last, by conversation
        self.client = Client(user, failures, n=time.time_ns() // 1000)
        self.client.acks = self.acks_us = array("q")
        self.client.on_ack, self.client.on_other = self._acked, self._answered
        self.route = Route("", BODY_BYTES)
        self.acked: set[int] = set()
        self.acked_at = array("d")
        self.refused: list[Refusal] = []
        self._waiting: set[int] = set()  # refused, and not acked yet
        self._later = asyncio.get_running_loop().call_later

    def write_to(self, conversation: str) -> None:
        self.conversation, self.route = conversation, Route(conversation, BODY_BYTES)

    @property
    def last(self) -> int:
        """The last seq that it has received."""
        return self.client.last.get(self.conversation.encode(), 0)

    @property
    def free(self) -> bool:
        return len(self.route.pending) < WINDOW and not self._waiting

    def send(self) -> None:
        self.client.send(self.route, now_us())

    def _acked(self, client: Client, n: int) -> None:
        self.acked.add(n)
        self._waiting.discard(n)
        self.acked_at.append(time.monotonic())
        self._last_acks[self.conversation] = self.acked_at[-1]

    def _answered(self, event: dict[str, Any]) -> None:
        if event["type"] != "error":
            return
        silent_s = time.monotonic() - self._last_acks.get(self.conversation, 0.0)
        self.refused.append(Refusal(event["code"], silent_s))
        n = event.get("n")
        if n in self.route.pending:
            self._waiting.add(n)
            self._later(event.get("retry_after") or 1, self.again, n)

    def again(self, n: int) -> None:
        """Send a message again, if it is not acked."""
        if n in self.route.pending and not self.client.closing:
            self.client.transport.write(self.route.message(n, self.route.pending[n]))


class Crowd:
    """Senders, which write at a rate, or as fast as they are answered."""

    def __init__(self) -> None:
        self.failures = Failures()
        self.senders: list[Sender] = []
        self._last_acks: dict[str, float] = {}
        self._writing: asyncio.Task[None] | None = None
        self._staying: list[asyncio.Task[None]] = []

    async def add(self, url: str, user: str) -> Sender:
        """Connect a device; it writes once it has a conversation."""
        sender = Sender(user, self.failures, self._last_acks)
        await sender.client.connect(url, token(user))
        self.senders.append(sender)
        self._staying.append(asyncio.create_task(_stay(sender, url)))
        return sender

    def write(self, rate: float) -> None:
        """Write so many messages a second from now on, as far as windows allow."""
        self.pause()
        self._writing = asyncio.create_task(self._write(rate))

    def pause(self) -> None:
        if self._writing is not None:
            self._writing.cancel()

    async def _write(self, rate: float) -> None:
        began, sent, at = time.monotonic(), 0, 0
        while True:
            due = rate * (time.monotonic() - began) - sent
            for _ in range(len(self.senders) * WINDOW):
                if due < 1:
                    break
                at += 1
                sender = self.senders[at % len(self.senders)]
                if sender.free:
                    sender.send()
                    sent, due = sent + 1, due - 1
            sent = max(
                sent, int(rate * (time.monotonic() - began)) - len(self.senders) * WINDOW
            )  # nothing is made up for
            for sender in self.senders[at % 20 :: 20]:
                sender.client.ack_all()
            await asyncio.sleep(TICK_S)

    async def settled(self) -> None:
        """Write no more, and wait until every message is acked and everybody has received every message."""
        self.pause()

        def acked() -> bool:
            left = {sender.client.user: sorted(sender.route.pending) for sender in self.senders if sender.route.pending}
            assert not left, (left, [sender.refused[-1] for sender in self.senders if sender.refused], self.failures)
            return True

        await support.eventually(acked, 120)
        ends: dict[str, int] = {}
        for sender in self.senders:
            ends[sender.conversation] = max(ends.get(sender.conversation, 0), sender.last)

        def received() -> bool:
            missing = {
                one.client.user: (one.last, end) for one in self.senders if one.last < (end := ends[one.conversation])
            }
            assert not missing, (missing, self.failures)
            return True

        await support.eventually(received, 120)

    async def leave(self) -> None:
        self.pause()
        for task in self._staying:
            task.cancel()
        for sender in self.senders:
            sender.client.abort()
        self.senders.clear()

    @property
    def refused(self) -> list[Refusal]:
        return [one for sender in self.senders for one in sender.refused]

    @property
    def acked(self) -> int:
        return sum(len(sender.acked) for sender in self.senders)

    def forget(self) -> None:
        """Begin a new phase of measuring."""
        for sender in self.senders:
            del sender.acks_us[:], sender.refused[:], sender.acked_at[:]


async def _stay(sender: Sender, url: str) -> None:
    """Connect again whenever the connection ends, and send again what is not acked."""
    client = sender.client
    while client.closed is not None:
        await client.closed
        try:
            await client.connect(url, token(client.user))
        except (Refused, OSError):
            await asyncio.sleep(0.5)
            continue
        for n in sorted(sender.route.pending):
            sender.again(n)


def longest_ack_s(senders: Iterable[Sender]) -> float:
    return max((max(sender.acks_us, default=0) for sender in senders), default=0) / 1e6


def p99_s(senders: Iterable[Sender]) -> float:
    every = sorted(us for sender in senders for us in sender.acks_us)
    return every[len(every) * 99 // 100] / 1e6 if every else 0.0


def longest_silence_s(senders: Iterable[Sender], since: float) -> float:
    """The longest time without an ack for any of them, since a time of the monotonic clock."""
    times = sorted([since, *(at for sender in senders for at in sender.acked_at if at > since)])
    return max((b - a for a, b in pairwise(times)), default=0.0)


class Verdict(NamedTuple):
    """What is wrong in the logs of all conversations, each as a number of events."""

    broken: int = 0  # whose `prev` is not the event before
    doubled: int = 0
    disordered: int = 0  # before an earlier one of the same device
    lost: int = 0  # acked, and not there


def judge(crowd: Crowd, log_of: Callable[[str], list[bytes]]) -> Verdict:
    """Compare what was acked with the logs; `log_of` returns the events of one conversation."""
    broken = doubled = disordered = lost = 0
    for conversation in {sender.conversation for sender in crowd.senders}:
        events = [stamp.decode(event) for event in log_of(conversation)]
        broken += sum(event["prev"] != before["seq"] for before, event in pairwise(events))
        for sender in crowd.senders:
            if sender.conversation == conversation:
                ns = [event["n"] for event in events if event["from"] == sender.client.user and event["n"]]
                doubled += len(ns) - len(set(ns))
                disordered += sum(n < before for before, n in pairwise(ns))
                lost += len(sender.acked - set(ns))
    return Verdict(broken, doubled, disordered, lost)


async def aside(act: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that calls servers without awaiting them on a loop of its own, so that the crowd goes on."""
    return await asyncio.to_thread(asyncio.run, act)
