"""Calls to a cluster: one connection for each primary, and calls that a redirect concerns are held and sent again.

Theory of operation
1. A slot has an owner: the connection to its primary by the present map. A call goes to the owner of its slot.
2. A redirect (MOVED, ASK, TRYAGAIN, CLUSTERDOWN, LOADING) says that the call was not executed. The slot is *held*: the
   redirected call and all later calls of the slot wait, in their order.
   A slot is also held if its owner has changed while calls of it may be in flight to the old one.
3. The hold ends when every call that was sent to the redirecting server before has its reply (a *barrier*: a PING
   behind them), and the new owner is connected. Then the calls that waited are sent, in the order in which they were
   made.
4. A slot whose owner is not connected is held, too, if it was connected within the last HOLD_S; else its calls are
   refused at once. A server that says that the whole cluster is down (CLUSTERDOWN) counts like one that is not
   connected, until it says that it is with the majority again.

Invariants
- A callback receives exactly one reply, never before `call` has returned, and no call is sent twice unless a server
  has said that it did not execute it. A call in flight on a lost connection is `Unavailable`: its outcome is unknown.
- Calls of one slot are executed in the order of `call`, also over a redirect. A slot that moves away and back within
  one round trip is the exception: there an earlier call may be executed after a later one, which functions accept.
- No call waits longer than HOLD_S and one TICK_S before it is sent for the last time.
- All calls without a reply together have at most MAX_BYTES, and at most half of that belongs to one server, so that a
  server that does not answer leaves room for the calls to others.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from router.contract.errors import LinnetError, Unavailable
from router.store.redis.cluster import Cluster, Owners
from router.store.redis.connection import Address, pack
from router.store.redis.pipeline import MAX_BYTES, RETRY_S, HotConnection, Reply
from router.store.redis.slots import SLOTS

HOLD_S: Final = 2.0
TICK_S: Final = 0.05  # between two looks at the held slots
AGAIN_S: Final = (0.02, 0.25)  # wait before a call is sent for the third and further times
LEAVE_S: Final = 0.5  # in which a server that was replaced must have answered what it was sent
MOVED_S: Final = 2.0  # for which a MOVED counts more than a map of the same epoch
MAX_CALLS: Final = 20_000
MAX_CALLS_PER_SERVER: Final = 2_000  # added for each server
KINDS: Final = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING")
DOWN: Final = "CLUSTERDOWN The cluster is down"  # other texts of CLUSTERDOWN are about one slot that has no server

_PING: Final = pack(("PING",))
_ASKING: Final = pack(("ASKING",))

log = logging.getLogger("linnet.redis")


class Redirect(Unavailable):
    """The server did not execute the call: its slot is elsewhere (`where`), or cannot be used now."""

    def __init__(self, kind: str, where: str = "") -> None:
        super().__init__(retry_after=RETRY_S)
        self.kind = kind
        self.where = where


class Line(HotConnection):
    """The connection to one server of the cluster."""

    def __init__(self, address: Address, library: bytes, changed: Callable[[Line], None]) -> None:
        super().__init__(address, library)
        self._changed = changed  # the line is up, or down
        self.refuses = False  # all calls, because it says that the cluster is down
        self.down_since = self._loop.time()  # or refuses since
        self.unnamed_since: float | None = None  # no map has named it since
        self.charged = 0  # bytes of the calls without a reply whose slot it had when they were made
        self.ahead_ms: float | None = None  # of its clock before the loop's
        self.ident = ""  # by the last map that named it; empty before the first
        self.expected_id = lambda: self.ident
        self.asked_at = 0.0  # about its epoch
        self.confirmed = (0, 0.0)  # the last epoch that it has named, and when it was asked

    @property
    def busy(self) -> bool:
        """Whether calls are without a reply."""
        return bool(self._pending or self._missed or self._held)

    @property
    def serves(self) -> bool:
        """Whether it is connected and does not refuse all calls."""
        return self.up and not self.refuses

    def note_state(self, *, serves: bool) -> None:
        """Note what the server has said of itself: whether it is with the majority and serves its slots."""
        if self.up and self.refuses is serves:
            self.refuses, self.down_since = not serves, self._loop.time()
            self._changed(self)

    def after_all(self, reply: Reply) -> None:
        """Call `reply` once every call that was sent before has its reply, or the connection is lost."""
        if not self.up:
            self._loop.call_soon(reply, None)
            return
        self._bytes += len(_PING)
        if self._loading:
            self._held.append((_PING, reply))
        else:
            self._send(_PING, reply)

    def opened(self) -> None:
        super().opened()
        self._changed(self)

    def closed(self, why: str) -> None:
        self.refuses, self.down_since = False, self._loop.time()
        super().closed(why)
        self._changed(self)

    def _error(self, text: str) -> LinnetError:
        kind, _, rest = text.partition(" ")
        if kind not in KINDS:
            return super()._error(text)
        self.errors[kind] += 1
        if text.startswith(DOWN):
            self.note_state(serves=False)
        return Redirect(kind, rest.partition(" ")[2] if kind in ("MOVED", "ASK") else "")


class _Call:
    """A call without a reply, and the callback by which its line answers."""

    __slots__ = ("charged", "line", "number", "packed", "reply", "routing", "since", "slot", "tries")

    def __init__(self, routing: Routing, number: int, slot: int, packed: bytes, reply: Reply, since: float) -> None:
        self.routing = routing
        self.number = number
        self.slot = slot
        self.packed = packed
        self.reply = reply
        self.since = since
        self.tries = 0
        self.line: Line | None = None  # that it was sent to last
        self.charged: Line | None = None

    def __call__(self, value: object) -> None:
        if value.__class__ is Redirect:
            self.routing.redirected(self, value)
        else:
            self.routing.ended(self)
            self.reply(value)


class _Hold:
    """The calls of one slot that wait."""

    __slots__ = ("asking", "barriers", "calls", "not_before")

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.barriers: set[Line] = set()
        self.asking: Line | None = None  # that an ASK has named
        self.not_before = 0.0


class Routing:
    """The lines to all primaries, the owner of each slot, and the holds.

    `doubted` is called if the map may be wrong; `changed` if slots have other owners or a line is up or down.
    """

    def __init__(self, cluster: Cluster, library: bytes, doubted: Callable[[], None]) -> None:
        self.lines: dict[Address, Line] = {}
        self.changed: list[Callable[[], None]] = []
        self._cluster = cluster
        self._library = library
        self._doubted = doubted
        self._loop = asyncio.get_running_loop()
        self._owners: list[Line | None] = [None] * SLOTS
        self._primaries: list[Line] | None = []  # the lines among the owners, each once; None if that has changed
        self._moved: dict[int, tuple[Line, float]] = {}  # slots that a MOVED has moved, since the last newer map
        self._last: dict[int, Line] = {}  # the line to which the last call of a slot was sent
        self._holds: dict[int, _Hold] = {}
        self._ticking = False
        self._number = 0
        self._calls = self._bytes = 0
        self.redirects: Counter[str] = Counter()
        self.refused = self.expired = 0
        self.longest_hold_s = 0.0

    # -- calls

    def call(self, slot: int, packed: bytes, reply: Reply) -> None:
        """Send a packed command to the owner of its slot; `reply` receives the value or an exception, later."""
        line = self._owners[slot]
        size = len(packed)
        now = self._loop.time()
        full = self._bytes + size > MAX_BYTES or self._calls >= MAX_CALLS + MAX_CALLS_PER_SERVER * len(self.lines)
        if full or line is None or line.charged + size > MAX_BYTES // 2 or (
            (line.refuses or not line.up) and now - line.down_since > HOLD_S
        ):  # fmt: skip
            self.refused += 1
            self._loop.call_soon(reply, Unavailable(retry_after=RETRY_S))
            return
        self._number += 1
        call = _Call(self, self._number, slot, packed, reply, now)
        self._calls += 1
        self._bytes += size
        line.charged += size
        call.charged = line
        last = self._last.get(slot)
        if slot in self._holds or not line.up:
            self._hold(slot).calls.append(call)
        elif last is not line and last is not None and last.busy:
            hold = self._hold(slot)
            hold.calls.append(call)
            self._await(slot, hold, last)
        else:
            self._last[slot] = call.line = line
            line.call_packed(packed, call)

    def owner(self, slot: int) -> Line | None:
        return self._owners[slot]

    @property
    def primaries(self) -> list[Line]:
        """The lines to servers that have slots, each once."""
        if self._primaries is None:
            self._primaries = [line for line in dict.fromkeys(self._owners) if line is not None]
        return self._primaries

    @property
    def serving(self) -> list[Line]:
        """The lines to servers that have slots and serve them, each once."""
        return [line for line in self.primaries if line.serves]

    def held(self) -> tuple[int, int]:
        """The number of slots that are held, and of the calls that wait in them."""
        return len(self._holds), sum(len(hold.calls) for hold in self._holds.values())

    @property
    def waiting(self) -> tuple[int, int]:
        """The number of all calls without a reply, and their bytes."""
        return self._calls, self._bytes

    def ended(self, call: _Call) -> None:
        """Note that a call has its reply."""
        size = len(call.packed)
        self._calls -= 1
        self._bytes -= size
        if call.charged is not None:
            call.charged.charged -= size

    # -- redirects

    def redirected(self, call: _Call, why: Redirect) -> None:
        """Hold the slot of a call that a server did not execute."""
        self.redirects[why.kind] += 1
        hold, line = self._hold(call.slot), call.line
        hold.calls.append(call)
        call.tries += 1
        if call.tries > 1:
            first, most = AGAIN_S
            wait = min(most, first * 2.0 ** (call.tries - 2))
            hold.not_before = max(hold.not_before, self._loop.time() + random.uniform(wait / 2, wait))
        where = self._cluster.named(why.where, line.address) if why.where and line is not None else None
        if why.kind == "MOVED":
            hold.asking = None
            if where is not None:
                self.moved(call.slot, where)
        elif why.kind == "ASK":
            hold.asking = None if where is None else self.line(where)
        else:
            hold.asking = None
            hold.not_before = max(hold.not_before, self._loop.time() + AGAIN_S[0])
            self._doubted()
        if line is not None:
            self._await(call.slot, hold, line)

    def moved(self, slot: int, where: Address) -> None:
        """Give a slot another owner, because a server has answered MOVED."""
        line = self.line(where)
        self._moved[slot] = line, self._loop.time()
        if self._owners[slot] is not line:
            self._owners[slot] = line
            self._primaries = None
            self._notify()
        self._doubted()

    def _hold(self, slot: int) -> _Hold:
        hold = self._holds.get(slot)
        if hold is None:
            hold = self._holds[slot] = _Hold()
            if not self._ticking:
                self._ticking = True
                self._loop.call_later(TICK_S, self._tick)
        return hold

    def _await(self, slot: int, hold: _Hold, line: Line) -> None:
        """Let a hold last until this line has answered all calls that were sent to it before."""
        if line not in hold.barriers:
            hold.barriers.add(line)
            line.after_all(partial(self._passed, slot, hold, line))

    def _passed(self, slot: int, hold: _Hold, line: Line, value: object) -> None:
        hold.barriers.discard(line)
        if not hold.barriers and self._holds.get(slot) is hold:
            self._release(slot, hold)

    def _release(self, slot: int, hold: _Hold) -> None:
        """Send the calls of a slot that may be sent now."""
        asking = hold.asking
        line = asking or self._owners[slot]
        if hold.barriers or line is None or not line.up or self._loop.time() < hold.not_before:
            return  # the next tick looks again
        del self._holds[slot]
        hold.calls.sort(key=_number)
        if hold.calls:
            self.longest_hold_s = max(self.longest_hold_s, self._loop.time() - hold.calls[0].since)
        self._last[slot] = line
        for call in hold.calls:
            call.line = line
            if asking is not None:
                line.call_packed(_ASKING, _ignore)
            line.call_packed(call.packed, call)

    def _tick(self) -> None:
        """Give up calls that have waited for HOLD_S, and release what can be released."""
        oldest = self._loop.time() - HOLD_S
        for slot, hold in list(self._holds.items()):
            late = [call for call in hold.calls if call.since < oldest]
            if late:
                hold.calls = [call for call in hold.calls if call.since >= oldest]
                self.expired += len(late)
                hold.asking = None  # a target that cannot be reached keeps the slot from its owner no longer
                self._fail(late)
            if not hold.calls and not hold.barriers:
                self._holds.pop(slot, None)
            else:
                self._release(slot, hold)
        self._ticking = bool(self._holds)
        if self._ticking:
            self._loop.call_later(TICK_S, self._tick)

    def _fail(self, calls: Iterable[_Call]) -> None:
        for call in calls:
            self.ended(call)
            try:
                call.reply(Unavailable(retry_after=RETRY_S))
            except Exception:  # a bug in one callback must not keep the replies from the others
                log.exception("a reply callback raised")

    # -- lines and the map

    def line(self, where: Address) -> Line:
        """The line to a server, which begins to dial if it is new."""
        line = self.lines.get(where)
        if line is None:
            line = self.lines[where] = Line(where, self._library, self._line_changed)
            line.unnamed_since = self._loop.time()
            line.start()
        return line

    def take(self, owners: Owners, *, newer: bool) -> None:
        """Use this map; if it is not newer than the last one, a MOVED of the last MOVED_S counts more."""
        now = self._loop.time()
        if newer:
            self._moved.clear()
        self._moved = {slot: (line, at) for slot, (line, at) in self._moved.items() if now - at < MOVED_S}
        found: list[Line | None] = [None] * SLOTS
        for first, last, where in owners.ranges:
            line = None if where is None else self.line(where)
            found[first : last + 1] = [line] * (last - first + 1)
        for where, ident in owners.ids.items():
            line = self.line(where)
            if line.up and line.ident not in ("", ident):
                line.drop("another server of the cluster has its address now")
            line.ident = ident
        for slot, (line, _) in self._moved.items():
            found[slot] = line
        named = set(found)
        for line in self.lines.values():
            if line.unnamed_since is None and line not in named and line.busy:
                self._leave(line)
            line.unnamed_since = None if line in named else line.unnamed_since or now
        # A slot that the map leaves out keeps its owner: its primary is gone, and calls find out by themselves.
        self._owners = [new or old for new, old in zip(found, self._owners, strict=True)]
        self._primaries = None
        self._notify()

    def _leave(self, line: Line) -> None:
        """Drop a server that has lost all its slots if it does not answer what it was sent.

        It is silent or cut off, and the calls behind the barrier must not wait for it.
        """
        answered: list[object] = []
        line.after_all(answered.append)

        def look() -> None:
            if not answered:
                line.drop("it does not answer, and other servers have its slots")

        self._loop.call_later(LEAVE_S, look)

    def unnamed(self, for_s: float) -> list[Line]:
        """Take out the lines that no map has named for this long."""
        before = self._loop.time() - for_s
        gone = [line for line in self.lines.values() if line.unnamed_since is not None and line.unnamed_since < before]
        if gone:
            lost = set(gone)
            self._owners = [None if line in lost else line for line in self._owners]
            self._primaries = None
            self._last = {slot: line for slot, line in self._last.items() if line not in lost}
            self.lines = {where: line for where, line in self.lines.items() if line not in lost}
            self._notify()
        return gone

    def _line_changed(self, line: Line) -> None:
        if not line.serves:
            self._doubted()
        self._notify()

    def _notify(self) -> None:
        for changed in self.changed:
            changed()


def _number(call: _Call) -> int:
    return call.number


def _ignore(value: object) -> None:
    """Ignore the reply to ASKING; the call behind it is answered."""
