"""What happened, as each client saw it: rows that are only ever appended, one file per device.

Here are the rows, their one text form (a JSON array a line, so that `grep` and `jq` serve) and the reading back. Never
here: judgement; what the rows prove or refute is `checker.py`'s. `evidence.py` has what stands beside the histories:
the logs of the conversations, the faults, the processes.

Times are Unix milliseconds of the client's own clock. `body` is `digest` of a body: the same value has the same digest
in either codec. A row is written when the client acts or is told, before it draws any conclusion from it, so a client
that misbehaves is found like a server that does.

Rejected: one history for all (a device's story would have to be picked out of half a million rows); msgpack (half the
size, and nobody could read it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

FLUSH_ROWS: Final = 256


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Base of all rows."""

    at: int


class Connecting(Row, frozen=True, array_like=True, tag="connecting"):
    """An upgrade is asked of a gateway."""

    gateway: str


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A conversation as `welcome` or `conversations` gave it."""

    conversation: str
    cursor: int
    head: int
    read: int


class Welcomed(Row, frozen=True, array_like=True, tag="welcomed"):
    """`said`: the cursors in hello, None where it left them to the server."""

    gateway: str
    node: str
    session: str
    said: dict[str, int] | None
    conversations: list[Known]


class Valid(Row, frozen=True, array_like=True, tag="valid"):
    """The connection's token holds until then; the server has said so."""

    until: int


class Listed(Row, frozen=True, array_like=True, tag="listed"):
    conversations: list[Known]


class Sent(Row, frozen=True, array_like=True, tag="sent"):
    """`attempt` counts from 1 (0: not connected, it leaves when it is)."""

    conversation: str
    n: int
    kind: str
    target: int
    body: str
    attempt: int


class Acked(Row, frozen=True, array_like=True, tag="acked"):
    conversation: str
    n: int
    seq: int
    duplicate: bool


class Refused(Row, frozen=True, array_like=True, tag="refused"):
    """An error event; `final`: nothing says that trying again helps."""

    n: int
    code: str
    final: bool


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """An event, as a log or a client has it."""

    seq: int
    prev: int
    count: int
    stamp: int
    kind: str
    user: str
    device: str
    n: int
    target: int
    body: str


class Received(Row, frozen=True, array_like=True, tag="received"):
    """A logged event; its `stamp` is the server's `at`."""

    conversation: str
    event: Entry


class Gap(Row, frozen=True, array_like=True, tag="gap"):
    conversation: str
    first: int
    last: int
    reason: str


class Read(Row, frozen=True, array_like=True, tag="read"):
    """The user's device says that it has read up to here."""

    conversation: str
    seq: int


class Receipt(Row, frozen=True, array_like=True, tag="receipt"):
    conversation: str
    user: str
    read: int


class Watching(Row, frozen=True, array_like=True, tag="watching"):
    users: list[str]


class Seen(Row, frozen=True, array_like=True, tag="seen"):
    """Presence, as told: user -> online."""

    users: dict[str, bool]


class Paused(Row, frozen=True, array_like=True, tag="paused"):
    """The device stops reading, or reads on."""

    on: bool


class Left(Row, frozen=True, array_like=True, tag="left"):
    """The device goes away of its own will, connected or not."""


class Draining(Row, frozen=True, array_like=True, tag="draining"):
    retry_after: float


class Closed(Row, frozen=True, array_like=True, tag="closed"):
    """`code` 1006: the connection was gone. `ours`: this side ended it."""

    code: int
    reason: str
    ours: bool


Rows = (
    Connecting | Welcomed | Valid | Listed | Sent | Acked | Refused | Received | Gap | Read | Receipt | Watching | Seen
    | Paused | Left | Draining | Closed
)  # fmt: skip

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Rows).decode
_deterministic = msgspec.msgpack.Encoder(order="deterministic").encode


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def entry(event: dict[str, Any]) -> Entry:
    """A logged event as it stands in evidence."""
    slots = event["seq"], event["prev"], event["count"], event["at"]
    who = event["from"], event["device"], event["n"]
    return Entry(*slots, event["type"], *who, event.get("target", 0), _content(event))


def _content(event: dict[str, Any]) -> str:
    """What stands for a logged event's content."""
    if event["type"] == "member":
        return f"{event['action']} {event['user']}"
    return digest(event["body"]) if "body" in event else ""


def digest(body: Any) -> str:
    """Stands for a body; the same for the same value, whatever codec carried it."""
    return blake2b(_deterministic(body), digest_size=8).hexdigest()


class Writer:
    """One device's history, kept in `path`; the rows of the last moments are still here until `flush`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[bytes] = []

    def add(self, row: Rows) -> None:
        self._lines.append(_encode(row))
        if len(self._lines) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            with self._path.open("ab") as file:
                file.write(b"\n".join(self._lines) + b"\n")
            self._lines.clear()


class History:
    """A device's history, read from its file as often as it is iterated, a row at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Rows]:
        with self._path.open("rb") as file:
            for line in file:
                yield _decode(line)
