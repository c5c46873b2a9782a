"""The parts that the clock turns, on a loop whose time a test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.clock import Clock
from gateway.commands.marks import Marks
from gateway.delivery.deadlines import Deadlines
from gateway.delivery.feed import Feed, State
from gateway.delivery.heartbeats import Heartbeats
from router.contract.clocks import Clocks
from router.contract.errors import Unavailable
from router.process.loop import Meter
from tests.gateway.world import settings

NOW_MS = 1_700_000_000_000


class Dial:
    """A node and its event loop, whose time a test sets; it records the calls of the clock."""

    def __init__(self, **changes: Any) -> None:
        self.settings = settings(**{"heartbeat_s": 10.0, "max_age_s": 1000.0} | changes)
        self.now = 100.0
        self.timer: tuple[float, Any] | None = None
        self.step: Any = None
        self.turns = self.rounds = 0
        self.synced: list[Any] = []
        self.rotated: list[tuple[Any, int]] = []
        self.acked: list[dict[str, int]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.down = False
        self.tries = 0
        self.replies: list[Any] = []
        node: Any = self
        watches: Any = SimpleNamespace(touch_all=lambda: None)
        departures: Any = SimpleNamespace(turn=lambda: None)
        outages: Any = SimpleNamespace(turn=lambda now: None)
        self.heartbeats = Heartbeats(self.settings.heartbeat_s)
        self.clocks = Clocks(self.time)
        self.deadlines = Deadlines(self.settings.max_age_s, lambda: self.clocks.moments(self.now_ms()), self.time)
        self.marks = Marks(node, node)
        self.clock = Clock(
            self.heartbeats, node, outages, watches, self.deadlines, self.marks, departures, node, Meter(), node
        )

    def add(self, session: Any) -> None:
        self.heartbeats.add(session)
        self.deadlines.add(session)

    def remove(self, session: Any) -> None:
        self.heartbeats.remove(session)
        self.deadlines.remove(session)

    # the loop
    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Any) -> Dial:
        self.timer = (when, callback)
        return self

    def cancel(self) -> None:
        self.timer = None

    def call_later(self, delay: float, callback: Any) -> None:
        self.step = callback

    def next_step(self) -> None:
        step, self.step = self.step, None
        if step is not None:
            step()

    def turn_to(self, when: float) -> None:
        """Run all timers that are due until then, each at its time."""
        while self.timer is not None and self.timer[0] <= when:
            self.now, callback = self.timer
            callback()
        self.now = when

    # the parts that the clock calls
    def now_ms(self) -> int:
        return NOW_MS + int((self.now - 100) * 1000)

    def hubs(self) -> None:
        self.rounds += 1

    def turn(self) -> None:
        self.turns += 1

    def new_sessions(self, now: float) -> None:
        """Ignore first audits."""

    def sessions(self, sessions: list[Any]) -> None:
        self.synced += sessions

    def ack(self, user: str, device: str, session: str, acks: dict[str, int], reply: Any) -> None:
        self._answer(reply, lambda: self.acked.append(acks))

    def read(self, user: str, conversation: str, seq: int, count: int, reply: Any) -> None:
        self._answer(reply, lambda: self.reads.append((conversation, seq, count)))

    def _answer(self, reply: Any, write: Any) -> None:
        self.tries += 1
        if not self.down:
            write()
        self.replies.append(lambda: reply(Unavailable() if self.down else True))

    def answered(self) -> None:
        """Deliver the replies; never before the call has returned."""
        replies, self.replies = self.replies, []
        for reply in replies:
            reply()


class Fake:
    """The part of a session that the clock uses."""

    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.connection = self
        self.state = State.HELLO
        self.deadline = 0
        self.age_deadline = 0.0
        self.expires_at = NOW_MS + 3_600_000
        self.last_received = dial.now
        self.feed = Feed.LIVE
        self.acks: dict[str, int] | None = None
        self.reads: dict[str, tuple[int, int]] | None = None
        self.user, self.device, self.id = "bob", "phone", "s"
        self.closed: Any = ()
        self.pings: list[float] = []
        dial.add(self)

    def ready(self) -> Fake:
        self.state = State.READY
        session: Any = self
        self.dial.deadlines.ready(session)
        return self

    def close(self, code: int, reason: str = "") -> None:
        self.closed = (code, self.dial.now)
        self.dial.remove(self)

    def rotate(self, code: int) -> None:
        self.dial.rotated.append((self, code))

    def ping(self) -> None:
        self.pings.append(self.dial.now)
