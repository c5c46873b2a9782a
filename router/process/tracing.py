"""One trace per sampled event, from the client's command to the write to each recipient's session.

    send      root, on the sender's gateway: the command was read → its ack was written
    append    the command was read → Redis has stored the event
    deliver   on the sender's gateway, if Redis is a cluster: until Redis has delivered a direct event to a user's
              channel; on each recipient's gateway: the event's stamp → the write to its live sessions

No context is propagated, and an event contains no data about its trace: all follows from the event's identity
(conversation, seq). One hash of it is the id of the trace, another the id of the root span, and whether it is sampled
is a function of the hash and LINNET_TRACE_RATIO. So all processes come to the same decision and ids, and an event that
a router repeats belongs to the same trace. All processes must have the same ratio. Spans are recorded when they are
over, on the event loop; `spans.py` exports them.

Invariants
- Without LINNET_OTLP_ENDPOINT there is no tracer, no thread and no import, and one `is None` per event sent, per flush
  of a hub and per write of a direct event to a session.
- A span contains no name of a user or conversation. A reader of traces who guesses an identity can confirm it.

Limits: a `deliver` begins by Redis's clock and ends by this node's. Events of a catch-up are no live deliveries and
have none. An event of the HTTP API has no `send`, nor has one whose gateway died before its ack. If a failover loses a
seq and it is used again, both events have the same trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Final, TypeAlias

from router.contract import stamp
from router.contract.errors import LinnetError
from router.contract.settings import Settings

if TYPE_CHECKING:
    from router.process.spans import Spans

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
_LOW: Final = (1 << 64) - 1

Kept: TypeAlias = Callable[[LinnetError | None], None]

log = logging.getLogger("linnet.tracing")


def trace_id(conversation: str, seq: int) -> int:
    return _hash(conversation, seq, TRACE_ID_BYTES)


def root_id(conversation: str, seq: int) -> int:
    """The id of the span `send`."""
    return _hash(conversation, seq, SPAN_ID_BYTES)


def _hash(conversation: str, seq: int, size: int) -> int:
    return int.from_bytes(blake2b(f"{conversation} {seq}".encode(), digest_size=size).digest())


def tracer(settings: Settings, service: str, node: str) -> Tracer | None:
    """The tracer of this process; None if traces are off."""
    if not settings.otlp_endpoint:
        return None
    from router.process.spans import Spans  # only here, because it imports the SDK

    return Tracer(Spans(settings.otlp_endpoint, service, node), settings.trace_ratio, node)


class Tracer:
    """Records the spans of one process' events. Used on one event loop."""

    def __init__(self, spans: Spans, ratio: float, node: str) -> None:
        self._spans = spans
        self._below = round(ratio * (_LOW + 1))
        self._node = node

    def sampled(self, conversation: str, seq: int) -> bool:
        """Whether the event is sampled: by the low half of its trace id, as in OpenTelemetry's ratio sampler."""
        return trace_id(conversation, seq) & _LOW < self._below

    def appended(
        self, conversation: str, seq: int, kind: str, began: float, kept: Kept
    ) -> tuple[Callable[[object], None], Kept]:
        """The callbacks of an appended event: one for each delivery to a user, and one for when it is kept."""
        if not self.sampled(conversation, seq):
            return _ignore, kept
        sent = _Sent(self, conversation, seq, kind, began)
        return sent.delivered, partial(sent.kept, kept)

    def written(self, conversation: str, event: bytes, sessions: int) -> None:
        """Record that the event was written to `sessions` live sessions of this gateway."""
        seq, _, _, at = stamp.slots(event)
        if self.sampled(conversation, seq):
            end = time_ns()
            about: dict[str, str | int] = {"linnet.kind": stamp.author(event).type, "linnet.sessions": sessions}
            self.record("deliver", conversation, seq, (min(at * 1_000_000, end), end), about)

    def record(
        self,
        name: str,
        conversation: str,
        seq: int,
        times: tuple[int, int],
        about: dict[str, str | int],
        *,
        root: bool = False,
        error: str = "",
    ) -> None:
        ids = trace_id(conversation, seq), root_id(conversation, seq)
        self._spans.record(name, ids, times, {"linnet.node": self._node, **about}, root=root, error=error)
        took = (times[1] - times[0]) / 1e6
        log.debug("%s took %.3f ms", name, took, extra={"trace_id": f"{ids[0]:032x}"})

    def close(self) -> None:
        """Send the waiting spans; this blocks for some seconds at most."""
        self._spans.close()


class _Sent:
    """A sampled event between its append and its ack."""

    __slots__ = ("_appended", "_began", "_conversation", "_kind", "_seq", "_tracer")

    def __init__(self, tracer: Tracer, conversation: str, seq: int, kind: str, began: float) -> None:
        self._tracer = tracer
        self._conversation = conversation
        self._seq = seq
        self._kind = kind
        self._began = began
        self._appended = perf_counter()

    def delivered(self, answer: object) -> None:
        failed = answer.code if isinstance(answer, LinnetError) else ""
        self._record("deliver", self._appended, perf_counter(), error=failed)

    def kept(self, then: Kept, error: LinnetError | None) -> None:
        then(error)
        self._record("append", self._began, self._appended)
        self._record("send", self._began, perf_counter(), root=True, error=error.code if error is not None else "")

    def _record(self, name: str, start: float, end: float, *, root: bool = False, error: str = "") -> None:
        epoch = time_ns() - round(perf_counter() * 1e9)
        times = epoch + round(start * 1e9), epoch + round(end * 1e9)
        about: dict[str, str | int] = {"linnet.kind": self._kind}
        self._tracer.record(name, self._conversation, self._seq, times, about, root=root, error=error)


def _ignore(_: object) -> None:
    """Ignore a delivery of an event that is not sampled."""
