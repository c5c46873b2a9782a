"""The tables of the outbox and of the cursors: each function runs in one transaction of the store.

1. `put` takes the next n and stores the row in one transaction. n is the larger of last + 1 and the clock in µs, so a
   number is never used twice, also after a restart.
2. `issue` marks rows as written before they are written. A row whose n was never written may be renumbered or
   cancelled, no other.
3. The k-th command of a conversation is issued only if all up to the (k−32)-th are answered (`position` is k).
4. `done` is computed here, from the rows that are open.
5. A row ends with its ack (`answer`), or stays as failed until the application retries or discards it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from linnet_client.store import get_meta, set_meta

WINDOW: Final = 32
HELLO_CURSORS: Final = 1000
HELLO_BYTES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Row:
    """One command of the outbox. `attempts`: how often it was issued; `failed`: the final refusal."""

    n: int
    conversation: str
    command: dict[str, Any]
    created: int
    attempts: int
    failed: dict[str, Any] | None


_COLUMNS: Final = "n, conversation, command, created, attempts, failed"


def _row(found: tuple[Any, ...]) -> Row:
    n, conversation, command, created, attempts, failed = found
    return Row(n, conversation, json.loads(command), created, attempts, json.loads(failed) if failed else None)


def _next_n(db: sqlite3.Connection, least: int) -> int:
    n = max(int(get_meta(db, "last_n") or 0) + 1, least)
    set_meta(db, "last_n", str(n))
    return n


def _next_position(db: sqlite3.Connection, conversation: str) -> int:
    position: int = db.execute(
        "INSERT INTO series VALUES (?, 1) ON CONFLICT (conversation) DO UPDATE SET position = position + 1"
        " RETURNING position",
        (conversation,),
    ).fetchone()[0]
    return position


def put(db: sqlite3.Connection, conversation: str, command: str, clock_us: int) -> int:
    """Store a command; return its n."""
    n = _next_n(db, clock_us)
    db.execute(
        "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, 0, NULL)",
        (n, conversation, _next_position(db, conversation), command, clock_us // 1000),
    )
    return n


def issue(
    db: sqlite3.Connection, conversation: str, again: Collection[int] | None, fresh: bool
) -> tuple[list[Row], int]:
    """Return the rows to write now, in order, and `done`.

    `again`: the written n to write once more (None: all); `fresh`: whether rows that were never written are due, too.
    """
    oldest = _open(db, "position", conversation)
    if oldest is None:
        return [], 0
    written = "1" if again is None else f"n IN ({','.join(map(str, map(int, again)))})"
    found = db.execute(
        f"SELECT {_COLUMNS} FROM outbox WHERE conversation = ? AND failed IS NULL AND position < ?"  # noqa: S608 - constants and integers
        f" AND CASE WHEN attempts THEN {written} ELSE ? END ORDER BY position",
        (conversation, oldest + WINDOW, fresh),
    )
    due = [_row(columns) for columns in found.fetchall()]
    db.executemany("UPDATE outbox SET attempts = attempts + 1 WHERE n = ?", [(row.n,) for row in due])
    return due, (_open(db, "n", conversation) or 1) - 1


def _open(db: sqlite3.Connection, column: str, conversation: str) -> int | None:
    """Return the smallest value of a column among the conversation's rows that are open."""
    row = db.execute(
        f"SELECT {column} FROM outbox WHERE conversation = ? AND failed IS NULL ORDER BY {column} LIMIT 1",  # noqa: S608 - constants
        (conversation,),
    ).fetchone()
    return row[0] if row else None


def answer(db: sqlite3.Connection, n: int) -> None:
    """End a row: its ack has come."""
    db.execute("DELETE FROM outbox WHERE n = ?", (n,))


def fail(db: sqlite3.Connection, n: int, error: dict[str, Any]) -> None:
    """Keep a row as failed."""
    db.execute("UPDATE outbox SET failed = ? WHERE n = ?", (json.dumps(error), n))


def renumber(db: sqlite3.Connection, n: int, least: int) -> int:
    """Give a row that never took effect an n of at least `least`, at its place in the order."""
    new = _next_n(db, least)
    db.execute("UPDATE outbox SET n = ?, attempts = 0 WHERE n = ?", (new, n))
    return new


def retry(db: sqlite3.Connection, n: int, clock_us: int) -> int:
    """Put a failed row at the end, with a new n."""
    found = db.execute("SELECT conversation FROM outbox WHERE n = ? AND failed IS NOT NULL", (n,)).fetchone()
    if found is None:
        raise LookupError(f"no failed command has n {n}")
    new = _next_n(db, clock_us)
    db.execute(
        "UPDATE outbox SET n = ?, attempts = 0, failed = NULL, position = ? WHERE n = ?",
        (new, _next_position(db, found[0]), n),
    )
    return new


def remove(db: sqlite3.Connection, n: int) -> bool:
    """Remove a row that was never written, or has failed; return whether there was one."""
    return db.execute("DELETE FROM outbox WHERE n = ? AND (attempts = 0 OR failed IS NOT NULL)", (n,)).rowcount > 0


def rows(db: sqlite3.Connection) -> list[Row]:
    """Return all rows, open and failed, in the order of their conversations."""
    found = db.execute(f"SELECT {_COLUMNS} FROM outbox ORDER BY conversation, position")  # noqa: S608 - constants
    return [_row(columns) for columns in found]


# -- cursors


def set_cursors(db: sqlite3.Connection, cursors: Iterable[tuple[str, int]]) -> None:
    """Store up to where the application has each of these conversations."""
    db.executemany(
        "INSERT INTO cursors VALUES (?, ?, 0) ON CONFLICT (conversation) DO UPDATE SET seq = max(seq, excluded.seq)",
        cursors,
    )


def set_acked(db: sqlite3.Connection, cursors: Iterable[tuple[str, int]]) -> None:
    """Note which cursors the server was told."""
    db.executemany("UPDATE cursors SET acked = ? WHERE conversation = ?", [(seq, name) for name, seq in cursors])


def forget(db: sqlite3.Connection, conversation: str) -> None:
    db.execute("DELETE FROM cursors WHERE conversation = ?", (conversation,))


def cursors(db: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    """Return the stored and the acked seq of each conversation."""
    return {name: (seq, acked) for name, seq, acked in db.execute("SELECT conversation, seq, acked FROM cursors")}


def hello_cursors(found: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Return what `hello` says: cursors that differ from the acked ones, the highest first, within the bounds."""
    differing = sorted(((seq, name) for name, (seq, acked) in found.items() if seq != acked), reverse=True)
    said: dict[str, int] = {}
    size = 0
    for seq, name in differing[:HELLO_CURSORS]:
        size += len(name.encode()) + len(str(seq)) + 4
        if size > HELLO_BYTES:
            break
        said[name] = seq
    return said
