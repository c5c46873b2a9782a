"""The history of a device: rows that are only appended, in one file per device.

This module contains the rows, their text form (a JSON array per line, for `grep` and `jq`) and the reading of it.
`checker.py` judges them. `evidence.py` contains the rest of the evidence: logs, faults, processes.

Times are Unix milliseconds of the client's own clock. `body` is the `digest` of a body, which is the same for the same
value in both codecs. A device writes a row when it acts or receives something, before it draws a conclusion from it. So
a misbehaving client is found like a misbehaving server.
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
    """The device asks a gateway for an upgrade."""

    gateway: str


class Known(msgspec.Struct, frozen=True, array_like=True):
    """A conversation as `welcome` or `conversations` describes it."""

    conversation: str
    cursor: int
    head: int
    read: int


class Welcomed(Row, frozen=True, array_like=True, tag="welcomed"):
    """`said`: the cursors in hello, or None if the device left them to the server."""

    gateway: str
    node: str
    session: str
    said: dict[str, int] | None
    conversations: list[Known]


class Valid(Row, frozen=True, array_like=True, tag="valid"):
    """The server says until when the token of the connection is valid."""

    until: int


class Listed(Row, frozen=True, array_like=True, tag="listed"):
    conversations: list[Known]


class Sent(Row, frozen=True, array_like=True, tag="sent"):
    """`attempt` counts from 1; 0: the device is not connected and sends the command later."""

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
    """An error event; `final`: the error does not suggest to try again."""

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


class Gone(Row, frozen=True, array_like=True, tag="gone"):
    """The user does not have these conversations any more."""

    conversations: list[str]


class Read(Row, frozen=True, array_like=True, tag="read"):
    """The device tells the server that the user has read up to here."""

    conversation: str
    seq: int


class Receipt(Row, frozen=True, array_like=True, tag="receipt"):
    conversation: str
    user: str
    read: int


class Watching(Row, frozen=True, array_like=True, tag="watching"):
    users: list[str]


class Seen(Row, frozen=True, array_like=True, tag="seen"):
    """Presence from the server: user -> online."""

    users: dict[str, bool]


class Stated(Row, frozen=True, array_like=True, tag="stated"):
    """An event of the user's state; `body` is empty if the key was removed."""

    key: str
    version: int
    prev: int
    body: str


class Put(Row, frozen=True, array_like=True, tag="put"):
    """The answer to a change of the user's state by this device."""

    key: str
    version: int
    body: str


class Holds(Row, frozen=True, array_like=True, tag="holds"):
    """The user's state as this device has it at the end: by key the version and the digest of the value."""

    version: int
    keys: dict[str, tuple[int, str]]


class Paused(Row, frozen=True, array_like=True, tag="paused"):
    """The device stops or resumes reading."""

    on: bool


class Left(Row, frozen=True, array_like=True, tag="left"):
    """The device goes offline on purpose."""


class Draining(Row, frozen=True, array_like=True, tag="draining"):
    retry_after: float


class Closed(Row, frozen=True, array_like=True, tag="closed"):
    """`code` 1006: the connection was lost. `ours`: this side ended it."""

    code: int
    reason: str
    ours: bool


Rows = (
    Connecting | Welcomed | Valid | Listed | Sent | Acked | Refused | Received | Gap | Gone | Read | Receipt | Watching
    | Seen | Stated | Put | Holds | Paused | Left | Draining | Closed
)  # fmt: skip

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Rows).decode
_deterministic = msgspec.msgpack.Encoder(order="deterministic").encode


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def entry(event: dict[str, Any]) -> Entry:
    """Return an event as evidence."""
    slots = event["seq"], event["prev"], event["count"], event["at"]
    who = event["from"], event["device"], event["n"]
    return Entry(*slots, event["type"], *who, event.get("target", 0), _content(event))


def _content(event: dict[str, Any]) -> str:
    """Return what represents the content of an event."""
    if event["type"] == "member":
        return f"{event['action']} {event['user']}"
    return digest(event["body"]) if "body" in event else ""


def digest(body: Any) -> str:
    """Return a digest of a body that is the same for the same value in both codecs."""
    return blake2b(_deterministic(body), digest_size=8).hexdigest()


class Writer:
    """Writes the history of one device to `path`; the newest rows are in memory until `flush`."""

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
    """Reads the history of a device from its file, a row at a time; can be iterated more than once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[Rows]:
        with self._path.open("rb") as file:
            for line in file:
                yield _decode(line)
