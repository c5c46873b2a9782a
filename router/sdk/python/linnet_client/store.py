"""The store: one SQLite database, used by one thread, so that what `run` has answered survives a crash.

1. Each operation is a function of the connection. Operations run in the order in which they were asked for; those that
   wait are run in one transaction, each in a savepoint of its own, so one disk write serves many.
2. A file is in WAL mode with synchronous=FULL: an answer means that the transaction is on the disk.
3. The database is locked for this process alone. A second process gets `StoreInUse`.
4. Before and after each transaction the thread looks whether the path still names the open file. If not, `lost` is set
   for good; operations go on in the unnamed file, so open messages can be settled under the old device name.
5. A store belongs to one user of one deployment and has one device name: the application's label and 8 random
   characters. A new store has a new device name. Without a path the store is in memory, and `durable` is False.
"""

from __future__ import annotations

import asyncio
import os
import queue
import secrets
import sqlite3
import string
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from linnet_client.errors import StoreError, StoreInUse, StoreMismatch

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

MAX_BATCH: Final = 64
SUFFIX: Final = 8
MAX_LABEL: Final = 55

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
    n INTEGER PRIMARY KEY, conversation TEXT NOT NULL, position INTEGER NOT NULL, command TEXT NOT NULL,
    created INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, failed TEXT
);
CREATE INDEX IF NOT EXISTS outbox_order ON outbox (conversation, position) WHERE failed IS NULL;
CREATE INDEX IF NOT EXISTS outbox_numbers ON outbox (conversation, n) WHERE failed IS NULL;
CREATE TABLE IF NOT EXISTS series (conversation TEXT PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cursors (conversation TEXT PRIMARY KEY, seq INTEGER NOT NULL, acked INTEGER NOT NULL);
"""


def new_device(label: str) -> str:
    """Return a device name that no other store has."""
    alphabet = string.ascii_lowercase + string.digits
    return f"{label[:MAX_LABEL]}.{''.join(secrets.choice(alphabet) for _ in range(SUFFIX))}"


def get_meta(db: sqlite3.Connection, key: str) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


class Store:
    """An open store. `run` may be called from the event loop alone."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.durable = path is not None
        self.device = ""
        self.lost = False
        self._identity: tuple[int, int] | None = None
        self._queue: queue.SimpleQueue[tuple[Operation[Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="linnet-store", daemon=True)

    @classmethod
    async def open(cls, path: Path | None, origin: str, user: str, label: str) -> Store:
        """Open or create the store of this user at this deployment."""
        store = cls(path)
        store._thread.start()
        try:
            store.device = await store.run(lambda db: _claim(db, origin, user, label))
        except sqlite3.OperationalError as error:
            await store.close()
            if "locked" in str(error):
                raise StoreInUse(f"{path} is open in another process") from None
            raise StoreError(f"{path}: {error}") from None
        except (StoreError, sqlite3.Error):
            await store.close()
            raise
        return store

    def run(self, operation: Operation[T]) -> asyncio.Future[T]:
        """Return what the operation returns, once its transaction is on the disk."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((operation, future))
        return future

    async def close(self) -> None:
        """Finish what was asked for, then close."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # -- the thread

    def _work(self) -> None:
        db: sqlite3.Connection | None = None
        while (first := self._queue.get()) is not None:
            batch, last = self._batch(first)
            try:
                if db is None:
                    db = self._connect()
                results = self._transaction(db, [operation for operation, _ in batch])
            except Exception as error:  # noqa: BLE001 - the callers get it, whatever it is
                results = [error] * len(batch)
            futures = [future for _, future in batch]
            with suppress(RuntimeError):  # the loop is closed: the process ends
                self._loop.call_soon_threadsafe(_resolve, futures, results)
            if last:
                break
        if db is not None:
            db.close()

    def _batch(
        self, first: tuple[Operation[Any], asyncio.Future[Any]]
    ) -> tuple[list[tuple[Operation[Any], asyncio.Future[Any]]], bool]:
        batch = [first]
        with suppress(queue.Empty):
            while len(batch) < MAX_BATCH:
                item = self._queue.get_nowait()
                if item is None:
                    return batch, True
                batch.append(item)
        return batch, False

    def _connect(self) -> sqlite3.Connection:
        if self.path is None:
            db = sqlite3.connect(":memory:", isolation_level=None)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            db = sqlite3.connect(self.path, isolation_level=None, timeout=1)
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            found = self.path.stat()
            self._identity = (found.st_dev, found.st_ino)
        db.executescript(SCHEMA)
        return db

    def _transaction(self, db: sqlite3.Connection, operations: list[Operation[Any]]) -> list[Any]:
        self._look()
        results: list[Any] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            for operation in operations:
                db.execute("SAVEPOINT operation")
                try:
                    results.append(operation(db))
                except (StoreError, sqlite3.IntegrityError, LookupError, ValueError) as error:
                    db.execute("ROLLBACK TO operation")
                    results.append(error)
                db.execute("RELEASE operation")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._look()
        return results

    def _look(self) -> None:
        if self._identity is None or self.path is None or self.lost:
            return
        try:
            found = self.path.stat()
            self.lost = (found.st_dev, found.st_ino) != self._identity
        except OSError:
            self.lost = True


def rename(db: sqlite3.Connection, label: str) -> str:
    """Give the store a new device name; return it."""
    device = new_device(label)
    set_meta(db, "device", device)
    return device


def _claim(db: sqlite3.Connection, origin: str, user: str, label: str) -> str:
    owner = get_meta(db, "owner")
    if owner is None:
        set_meta(db, "owner", f"{user} {origin}")
        set_meta(db, "device", new_device(label))
    elif owner != f"{user} {origin}":
        raise StoreMismatch(f"the store belongs to {owner}")
    return get_meta(db, "device") or ""


def _resolve(futures: list[asyncio.Future[Any]], results: list[Any]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.cancelled():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
