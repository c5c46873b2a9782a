"""The history of an installation: an application on an SDK, with one store. Rows as in `history.py`, of the client's
half.

An installation has lives: each is a process or a load of a page, from its start to its end. `at` is the conductor's
time when the report came, because the clock of a client may step. A `ref` names a command for good, and is part of its
body.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadtest.chaos.proof.history import Entry, Row


class Opened(Row, frozen=True, array_like=True, tag="opened"):
    """A life begins, on this store, under this device name."""

    life: int
    user: str
    device: str


class Renamed(Row, frozen=True, array_like=True, tag="renamed"):
    """The client has taken another device name while it lives."""

    life: int
    device: str


class Asked(Row, frozen=True, array_like=True, tag="asked"):
    """The application gives a command to the SDK. `body` is a digest; empty for a reaction."""

    life: int
    ref: str
    conversation: str
    kind: str
    body: str


class Stored(Row, frozen=True, array_like=True, tag="stored"):
    """The SDK has promised that the command takes effect, or is shown as failed."""

    life: int
    ref: str


class Acked(Row, frozen=True, array_like=True, tag="acked"):
    life: int
    ref: str
    conversation: str
    seq: int


class Failed(Row, frozen=True, array_like=True, tag="failed"):
    life: int
    ref: str
    code: str


class Handed(Row, frozen=True, array_like=True, tag="handed"):
    """The application is given an event."""

    life: int
    conversation: str
    event: Entry


class Missing(Row, frozen=True, array_like=True, tag="missing"):
    """The application is given a gap."""

    life: int
    conversation: str
    first: int
    last: int
    reason: str


class Kept(Row, frozen=True, array_like=True, tag="kept"):
    """The stored cursors have moved, at least to here."""

    life: int
    cursors: dict[str, int]


class Put(Row, frozen=True, array_like=True, tag="put"):
    """A change of the user's state was answered."""

    life: int
    key: str
    version: int


class Status(Row, frozen=True, array_like=True, tag="status"):
    life: int
    status: str
    reason: str


class Ended(Row, frozen=True, array_like=True, tag="ended"):
    """The life is over. `killed`: the application could not close the client."""

    life: int
    killed: bool


class Wiped(Row, frozen=True, array_like=True, tag="wiped"):
    """The store is removed. `running`: while its client goes on. Such a removal has two rows, because it takes a while,
    and the client may report the device name of its new store meanwhile; `done`: the second of them."""

    running: bool
    done: bool = False


class Copied(Row, frozen=True, array_like=True, tag="copied"):
    """From now on another installation has a copy of the store; `of`: the installation of which this one is a copy."""

    of: str


class ShownConversation(msgspec.Struct, frozen=True, array_like=True):
    """What the user sees: the read mark, and the last messages (seq 0: not acked) with digests of bodies."""

    read: int
    messages: list[tuple[int, str]]


class Shown(Row, frozen=True, array_like=True, tag="shown"):
    """The client's conversations at the end; `open` and `failed`: the commands of its outbox; `state`: the user's
    keys, with digests of their values; `online`: the users whose presence it watches."""

    life: int
    conversations: dict[str, ShownConversation]
    open: list[str]
    state: dict[str, str] = msgspec.field(default_factory=dict)
    failed: list[str] = msgspec.field(default_factory=list)
    online: dict[str, bool | None] = msgspec.field(default_factory=dict)


class Bug(Row, frozen=True, array_like=True, tag="bug"):
    """The SDK raised what it should not."""

    life: int
    text: str


ClientRows = (
    Opened | Renamed | Asked | Stored | Acked | Failed | Handed | Missing | Kept | Put | Status | Ended | Wiped | Copied
    | Shown | Bug
)  # fmt: skip

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ClientRows).decode


class ClientWriter:
    """Writes the history of one installation; what is in memory is written by `close`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=1 << 16)

    def add(self, row: ClientRows) -> None:
        self._file.write(_encode(row) + b"\n")

    def close(self) -> None:
        self._file.close()


class ClientHistory:
    """Reads the history of an installation, a row at a time; can be iterated more than once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[ClientRows]:
        with self._path.open("rb") as file:
            for line in file:
                yield _decode(line)
