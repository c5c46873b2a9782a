"""The hot connection: all commands of one tick leave in one write, and all replies arrive by callback, in order.

A command is written at once after a quiet millisecond, else `GATHER_S` after the last write. At low rates most of the
cost of a message is waking up the processes on its way. Commands that leave together wake the server once, and so do
their replies this process and their events the other gateways. At 2000 messages a second this saves a fifth of all CPU,
for 0.1 ms of latency.

Invariants
- A callback receives its reply or exactly one `LinnetError`, and never before `call` has returned. It may call again.
- Commands reach the server in the order of `call`, and replies arrive in that order. After *function not found*, the
  calls that were in flight and the calls made until the library is loaded run again in their order, once.
- At most `MAX_CALLS` calls and `MAX_BYTES` bytes wait, sent or not; a further call is `Unavailable` at once.
- If a call is older than `TIMEOUT_S`, the connection is dropped: replies come in order, so all calls behind it wait,
  too. A call that was sent and not answered is `Unavailable`, and may have been executed.
- If a server refuses a write because it is a replica (a demoted primary), the connection is dropped, and the next dial
  asks for the primary.
- No coroutine is on the way of a call.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final, TypeAlias

import hiredis
import msgspec

from router.contract.errors import FunctionError, Internal, LinnetError, Unavailable
from router.contract.metrics import REDIS_SECONDS
from router.store.redis.connection import NOTHING, Link, RedisArg, Topology, pack

Reply: TypeAlias = Callable[[object], None]

MAX_CALLS: Final = 20_000
MAX_BYTES: Final = 64 << 20
TIMEOUT_S: Final = 5.0
SWEEPS: Final = 5  # timer runs within one TIMEOUT_S
RETRY_S: Final = 1.0  # `retry_after` of `Unavailable`
GATHER_S: Final = 0.001  # the resolution of the loop's timers
SAMPLE_S: Final = 0.01  # between two samples of the latency: one costs as much as a write

# First words of error replies that mean "not now" or "not allowed". `READONLY_` is a function's own, so not here.
UNAVAILABLE: Final = frozenset({
    "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM",
    "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN", "UNKILLABLE", "WRONGPASS",
})  # fmt: skip
# Texts after `ERR` if the ACL refuses a command that a function calls; the second is of Redis 7.0.
SCRIPT_DENIED: Final = ("ACL failure in script", "The user executing the script")
# The server was restarted as a cluster node, under a process that takes it for one server. A resend is answered once a
# process in cluster mode has taken over.
CROSS_SLOT: Final = ("do not hash to the same slot", "access a non local key")
REFUSED_S: Final = 10.0  # time for which a refusal counts as present trouble
# First words that Linnet's functions never use: their text is logged, because it means a bug or a broken server.
FOREIGN: Final = UNAVAILABLE | {"ERR", "EXECABORT", "NOPROTO", "NOSCRIPT", "WRONGTYPE"}

log = logging.getLogger("linnet.redis")


class FunctionMissing(Unavailable):
    """The server does not have this version of the library."""


class Denied(Unavailable):
    """The server's ACL refuses the command. `why` is the server's text, for operators only."""

    def __init__(self, why: str) -> None:
        super().__init__(retry_after=RETRY_S)
        self.why = why


class SecondTry:
    """The callback of a call that runs for the second and last time, after the library was loaded."""

    __slots__ = ("reply",)

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def __call__(self, value: object) -> None:
        self.reply(value)


class HotStatistics(msgspec.Struct, frozen=True):
    up: bool
    calls: int
    in_flight: int
    in_flight_bytes: int
    written_bytes: int
    read_bytes: int
    batches: int
    refused: int
    timeouts: int
    reconnects: int
    loads: int
    callback_errors: int
    errors: dict[str, int]


def _words(text: str) -> tuple[str, str]:
    """Code and detail. Redis puts `ERR` before a function's error that has only a code; it is removed here."""
    code, _, detail = text.partition(" ")
    return (detail, "") if code == "ERR" and detail.isupper() and " " not in detail else (code, detail)


def server_error(text: str) -> LinnetError:
    """The caller's error for an error reply of the server."""
    code, detail = _words(text)
    if code == "NOPERM" or detail.startswith(SCRIPT_DENIED):
        return Denied(detail.partition(" script: on @")[0])
    if code in UNAVAILABLE or text.startswith("ERR max number of clients") or any(one in text for one in CROSS_SLOT):
        return Unavailable(retry_after=RETRY_S)
    if text.startswith("ERR Function not found"):
        return FunctionMissing(retry_after=RETRY_S)
    return FunctionError(code, detail.partition(" script: ")[0])


class HotConnection(Link):
    """Commands to one server. `library` is the source that is loaded after *function not found*."""

    def __init__(self, topology: Topology, library: bytes) -> None:
        super().__init__(topology)
        self._library = library
        self._loop = asyncio.get_running_loop()
        self._pending: deque[tuple[bytes, Reply]] = deque()  # accepted and not answered, oldest first
        self._out: list[bytes] = []  # packed since the last write
        self._flushed_at = 0.0
        self._missed: list[tuple[bytes, Reply]] = []  # calls for which the server did not have the library
        self._held: list[tuple[bytes, Reply]] = []  # calls made while the library loads
        self._loading = False
        self._bytes = 0  # of all calls in the three queues
        self._marks: deque[int] = deque(maxlen=SWEEPS)  # `calls` at the last sweeps
        self._timer: asyncio.TimerHandle | None = None
        self._probe: tuple[int, float] | None = None  # the call whose reply ends the latency sample, and its start
        self._probe_at = 0.0  # from when on the next sample may begin
        self._logged_at = 0.0
        self._refusal: tuple[float, str] = (-math.inf, "")
        self._foreign = False  # the server may have another library with the same name
        self.on_opened: Callable[[], None] = _no_callback  # its calls are sent before all others
        self.calls = self.batches = self.written_bytes = 0
        self.refused = self.timeouts = self.loads = self.callback_errors = 0
        self.errors: Counter[str] = Counter()

    def call(self, command: Sequence[RedisArg], reply: Reply) -> None:
        """Send a command with the next write; `reply` receives the value or an exception, later."""
        try:
            packed = pack(tuple(command))
        except (TypeError, ValueError) as error:  # a bug of the caller: a wrong type, or a string that is no UTF-8
            log.error("a command cannot be packed", exc_info=error)
            self._loop.call_soon(self._answer, reply, Internal())
            return
        self.call_packed(packed, reply)

    def call_packed(self, packed: bytes, reply: Reply) -> None:
        """Send a command that is packed as RESP already."""
        waiting = len(self._pending) + len(self._missed) + len(self._held)
        if not self.up or self._bytes > MAX_BYTES or waiting >= MAX_CALLS:
            self.refused += 1
            self._loop.call_soon(self._answer, reply, Unavailable(retry_after=RETRY_S))
            return
        self._bytes += len(packed)
        if self._loading:
            self._held.append((packed, reply))
        else:
            self._send(packed, reply)

    def statistics(self) -> HotStatistics:
        return HotStatistics(
            up=self.up,
            calls=self.calls,
            in_flight=len(self._pending) + len(self._missed) + len(self._held),
            in_flight_bytes=self._bytes,
            written_bytes=self.written_bytes,
            read_bytes=self.read_bytes,
            batches=self.batches,
            refused=self.refused,
            timeouts=self.timeouts,
            reconnects=self.reconnects,
            loads=self.loads,
            callback_errors=self.callback_errors,
            errors=dict(self.errors),
        )

    @property
    def refusal(self) -> str:
        """The server's text for a command that it refused within the last REFUSED_S; else empty."""
        at, text = self._refusal
        return text if perf_counter() - at < REFUSED_S else ""

    # -- out

    def _send(self, packed: bytes, reply: Reply) -> None:
        if not self._out:
            wait = self._flushed_at + GATHER_S - self._loop.time()
            if wait > 0:
                self._loop.call_later(wait, self._flush)
            else:
                self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._pending.append((packed, reply))
        self.calls += 1

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not out or self._transport is None or self._transport.is_closing():
            return
        self._flushed_at = now = self._loop.time()
        if self._probe is None and now >= self._probe_at:
            self._probe = (self.calls - len(out) + 1, perf_counter())
            self._probe_at = now + SAMPLE_S
        batch = b"".join(out)
        self.batches += 1
        self.written_bytes += len(batch)
        self._transport.write(batch)

    # -- in

    def new_reader(self) -> hiredis.Reader:
        return hiredis.Reader(notEnoughData=NOTHING, replyError=self._error)

    def received(self) -> None:
        gets, pending = self._reader.gets, self._pending
        while (value := gets()) is not NOTHING:
            if value.__class__ is hiredis.PushNotification:
                continue
            if not pending:
                raise hiredis.ProtocolError("a reply without a command")
            packed, reply = pending.popleft()
            if value.__class__ is FunctionMissing:
                self._missing(packed, reply)
                continue
            self._bytes -= len(packed)
            try:
                reply(value)
            except Exception as error:  # noqa: BLE001 - a bug in one callback must not keep replies from the others
                self._callback_failed(error)
        if self._probe is not None and self.calls - len(pending) >= self._probe[0]:
            REDIS_SECONDS.observe(perf_counter() - self._probe[1])
            self._probe = None

    def _answer(self, reply: Reply, value: object) -> None:
        try:
            reply(value)
        except Exception as error:  # noqa: BLE001 - as above
            self._callback_failed(error)

    def _callback_failed(self, error: Exception) -> None:
        self.callback_errors += 1
        if self.callback_errors == 1:
            log.error("a reply callback raised; further ones are only counted", exc_info=error)

    def _error(self, text: str) -> LinnetError:
        """Convert an error reply; the reader calls it for every one, also within arrays."""
        code, _ = _words(text)
        self.errors[code[:24] if code.isupper() else "ERR"] += 1
        expected = text.startswith("ERR Function not found") or text.endswith("already exists")
        if code in UNAVAILABLE or text.startswith(tuple(f"ERR {denial}" for denial in SCRIPT_DENIED)):
            self._refusal = (perf_counter(), text[:200])
        if code in FOREIGN and not expected and perf_counter() > self._logged_at + 1:
            self._logged_at = perf_counter()
            log.warning("Redis at %s refuses a command: %.200s", self.address, text)
        if code == "READONLY":
            self.drop("it is a replica")
        return server_error(text)

    # -- a server without the library

    def _missing(self, packed: bytes, reply: Reply) -> None:
        if reply.__class__ is SecondTry:  # the library was loaded and this function is still missing
            self._bytes -= len(packed)
            self._answer(reply, Unavailable(retry_after=RETRY_S))
            if self._foreign:
                self.report("its function library of this name is not Linnet's: remove it with FUNCTION DELETE")
            return
        self._missed.append((packed, SecondTry(reply)))
        if not self._loading:
            self._loading = True
            self.loads += 1
            load = pack(("FUNCTION", "LOAD", self._library))
            self._bytes += len(load)
            self._send(load, self._loaded)  # its reply arrives after those of all calls in flight

    def _loaded(self, value: object) -> None:
        """Run the missed calls again, then the held ones. If the load failed, they are missed a second time."""
        again, self._missed, self._held, self._loading = self._missed + self._held, [], [], False
        self._foreign = isinstance(value, FunctionError) and value.detail.endswith("already exists")
        for packed, reply in again:
            self._send(packed, reply)

    # -- up and down

    async def close(self) -> None:
        """Write the calls that were made before, then close."""
        self._flush()
        await super().close()

    def opened(self) -> None:
        self._marks.clear()
        self._sweep()
        self.on_opened()

    def closed(self, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        waiting = [*self._missed, *self._pending, *self._held]
        self._pending, self._out, self._missed, self._held = deque(), [], [], []
        self._loading, self._bytes, self._probe = False, 0, None
        for _, reply in waiting:
            self._answer(reply, Unavailable(retry_after=RETRY_S))

    def _sweep(self) -> None:
        """Drop the connection if a call of SWEEPS sweeps ago is still unanswered.

        Sweeps are counted instead of seconds, so that a blocked event loop is not mistaken for a silent server.
        """
        marks = self._marks
        if len(marks) == SWEEPS and self.calls - len(self._pending) < marks[0]:
            self.timeouts += 1
            self.drop(f"no reply for {TIMEOUT_S:g} s")
            return
        marks.append(self.calls)
        self._timer = self._loop.call_later(TIMEOUT_S / SWEEPS, self._sweep)


def _no_callback() -> None:
    """Do nothing, until a caller has set `on_opened`."""
