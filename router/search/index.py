"""The words of one partition's messages, in a file of SQLite (FTS5, https://sqlite.org/fts5.html).

The file has no texts: `terms` is a table without content, whose row is a message's. The number of a row is its order in
the answer, the time of the message in ms and 20 bits that tell messages of one millisecond apart; so the newest come
first without sorting. `message` leads from there to conversation and seq.

Invariants
- What an event changes and the seq up to which the conversation is indexed are one transaction: a process that dies
  repeats nothing and misses nothing.
- The file is derived. One that cannot be read, or that was made by other rules, is deleted and built again.
- Deleted words stay in the parts of a full-text index until these are merged. `erase` merges them; what is free in the
  file is overwritten (`secure_delete`).
- All calls block; the owner makes them in a thread of its own (`indexer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec
from msgspec import Struct

from router.contract.packing import MAX_INTEGER
from router.search import documents
from router.search.documents import Indexed
from router.search.query import Phrase

RULES: Final = 1  # raise it whenever words, tags or tables change: older files are built again
ORDER_BITS: Final = 20
BUSY_MS: Final = 10_000
DELETED: Final = "deleted"  # the fact of a file
MAX_ORDER: Final = 1 << 62
CONVERSATIONS: Final = 64  # that one question to the file names

CACHE_KIB: Final = 256  # of each of up to 256 files
PRAGMAS: Final = {"journal_mode": "wal", "synchronous": "normal", "secure_delete": "on", "cache_size": -CACHE_KIB}

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS conversation(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, upto INTEGER NOT NULL, floor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS message(
    id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL, seq INTEGER NOT NULL, edit INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS message_seq ON message(conversation, seq);
CREATE VIRTUAL TABLE IF NOT EXISTS terms USING fts5(words, tags, content='', contentless_delete=1, tokenize='ascii');
"""
_FORGET: Final = """
DELETE FROM terms WHERE rowid IN (SELECT id FROM message WHERE conversation = ? AND seq BETWEEN ? AND ?);
DELETE FROM message WHERE conversation = ? AND seq BETWEEN ? AND ?;
"""
_NUMBERS: Final = "SELECT id, name FROM conversation WHERE name IN (SELECT value FROM json_each(?))"
_FIND: Final = """
SELECT message.id, conversation, seq, edit FROM terms JOIN message ON message.id = terms.rowid
WHERE terms MATCH ? AND terms.rowid < ? AND terms.rowid > ?
    AND seq <= coalesce((SELECT value FROM json_each(?) WHERE key = CAST(conversation AS TEXT)), seq)
ORDER BY terms.rowid DESC LIMIT ?
"""


class Events(Struct, frozen=True):
    """What is new of a conversation: its events up to `upto`. Those up to `floor` are gone, and with them their words.

    `gone`: the conversation is no more. `more`: it has more events.
    """

    conversation: str
    events: Sequence[Indexed]
    upto: int
    floor: int = 0
    gone: bool = False
    more: bool = False


class Known(Struct, frozen=True):
    """How far a conversation is indexed: up to the event `upto`, without the events up to `floor`, which are gone."""

    upto: int = 0
    floor: int = 0


class Question(Struct, frozen=True):
    """What is asked of one partition: of these conversations, each up to a seq, messages with the phrases and all tags.

    `below`: only orders below this one; `above`: only orders above that one.
    """

    phrases: tuple[Phrase, ...]
    conversations: dict[str, int]
    tags: tuple[str, ...]
    below: int
    above: int
    limit: int


class Candidate(Struct, frozen=True):
    """A message that may be a hit. `order` is its place among all answers; `edit` is the seq of its last edit, or 0."""

    order: int
    conversation: str
    seq: int
    edit: int


def order_of(at_ms: int) -> int:
    """The least order of a message of this time."""
    return at_ms << ORDER_BITS


class Index:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = self._opened()

    def close(self) -> None:
        self._db.close()

    # -- what the file knows

    def fact(self, name: str) -> Any:
        """A value that was stored by `add`; None if there is none."""
        return self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).get

    def set_fact(self, name: str, value: str | int) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES(?, ?)", (name, value))

    def known(self, conversations: Iterable[str]) -> list[Known]:
        """How far each of these conversations is indexed."""
        rows = (
            self._db.execute("SELECT upto, floor FROM conversation WHERE name = ?", (name,)).get
            for name in conversations
        )
        return [Known() if row is None else Known(*row) for row in rows]

    def deleted_since(self) -> int | None:
        """The Unix time (s) since which the file has words of deleted messages; None if it has none."""
        since = self.fact(DELETED)
        return None if since is None else int(since)

    # -- changes

    def add(self, changes: Iterable[Events], facts: Sequence[tuple[str, str | int]] = ()) -> None:
        """Take what is new of some conversations, and facts that hold with it, all or nothing."""
        with self._db:
            for change in changes:
                self._change(change)
            for name, value in facts:
                self.set_fact(name, value)

    def _change(self, change: Events) -> None:
        conversation, known = self._conversation(change.conversation)
        if change.gone:
            self._remove(conversation, 0, MAX_INTEGER)
            self._db.execute("DELETE FROM conversation WHERE id = ?", (conversation,))
            return
        for event in change.events:
            if event.seq <= known.upto:
                continue
            if event.type == "message":
                self._write(conversation, event.seq, 0, self._free_order(event), event)
            elif event.type == "edit":
                order = self._order(conversation, event.target)
                if order is not None:
                    self._write(conversation, event.target, event.seq, order, event)
            elif event.type == "delete":
                self._remove(conversation, event.target, event.target)
        if change.floor > known.floor:
            self._remove(conversation, 0, change.floor)
        now = max(known.upto, change.upto), max(known.floor, change.floor)
        self._db.execute("UPDATE conversation SET upto = ?, floor = ? WHERE id = ?", (*now, conversation))

    def _conversation(self, name: str) -> tuple[int, Known]:
        """The number of a conversation, which it has from now on, and how far it is indexed."""
        found = self._db.execute("SELECT id, upto, floor FROM conversation WHERE name = ?", (name,)).get
        if found is None:
            self._db.execute("INSERT INTO conversation(name, upto, floor) VALUES(?, 0, 0)", (name,))
            return self._db.last_insert_rowid(), Known()
        return found[0], Known(*found[1:])

    def _order(self, conversation: int, seq: int) -> int | None:
        found = self._db.execute("SELECT id FROM message WHERE conversation = ? AND seq = ?", (conversation, seq)).get
        return None if found is None else int(found)

    def _free_order(self, event: Indexed) -> int:
        """An order for a message that none has: by time, and within a millisecond by seq."""
        order = order_of(event.at) | event.seq % (1 << ORDER_BITS)
        while self._db.execute("SELECT 1 FROM message WHERE id = ?", (order,)).get:
            order += 1
        return order

    def _write(self, conversation: int, seq: int, edit: int, order: int, event: Indexed) -> None:
        """Store a message's words, in the place of those that it had."""
        tags = f"c{conversation} {documents.tags(event)}"
        self._db.execute("INSERT OR REPLACE INTO message VALUES(?, ?, ?, ?)", (order, conversation, seq, edit))
        self._db.execute(
            "INSERT OR REPLACE INTO terms(rowid, words, tags) VALUES(?, ?, ?)", (order, documents.words_of(event), tags)
        )

    def _remove(self, conversation: int, first: int, last: int) -> None:
        """Forget the messages with these seqs; their words stay in the file until `erase`."""
        self._db.execute(_FORGET, (conversation, first, last) * 2)
        if self._db.changes():
            self._db.execute("INSERT OR IGNORE INTO facts VALUES(?, unixepoch())", (DELETED,))

    def erase(self) -> None:
        """Take the words of deleted messages out of the file."""
        with self._db:
            self._db.execute("INSERT INTO terms(terms) VALUES('optimize')")
            self._db.execute("DELETE FROM facts WHERE name = ?", (DELETED,))
        self._db.pragma("wal_checkpoint", "truncate")

    # -- questions

    def candidates(self, question: Question) -> list[Candidate]:
        """The newest messages that may be hits, the newest first, at most `limit`."""
        found: list[Candidate] = []
        names = list(question.conversations)
        for at in range(0, len(names), CONVERSATIONS):
            found += self._candidates(question, names[at : at + CONVERSATIONS])
        return sorted(found, key=_newest_first)[: question.limit]

    def _candidates(self, question: Question, names: Sequence[str]) -> list[Candidate]:
        known = dict(self._db.execute(_NUMBERS, (msgspec.json.encode(names).decode(),)))
        if not known:
            return []
        ends = {str(number): question.conversations[name] for number, name in known.items()}
        ended = msgspec.json.encode({number: end for number, end in ends.items() if end < MAX_INTEGER}).decode()
        asked = _match(question, known), question.below, question.above, ended, question.limit
        rows = self._db.execute(_FIND, asked)
        return [Candidate(order, known[conversation], seq, edit) for order, conversation, seq, edit in rows]

    # -- the file

    def _opened(self) -> apsw.Connection:
        try:
            return self._open()
        except (apsw.CorruptError, apsw.NotADBError, apsw.SchemaChangeError, apsw.SQLError):
            delete(self._path)
            return self._open()

    def _open(self) -> apsw.Connection:
        """Open the file, or make it; an error if it is of no use."""
        db = apsw.Connection(str(self._path))
        try:
            db.set_busy_timeout(BUSY_MS)
            for name, value in PRAGMAS.items():
                db.pragma(name, value)
            with db:
                rules = db.pragma("user_version")
                if rules not in (0, RULES):
                    raise apsw.SchemaChangeError("made by other rules")
                db.execute(_TABLES)
                db.pragma("user_version", RULES)
        except apsw.Error:
            db.close()
            raise
        return db


def delete(path: Path) -> None:
    """Delete the file of an index, which is not open, and what SQLite keeps beside it."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _newest_first(candidate: Candidate) -> int:
    return -candidate.order


def _match(question: Question, conversations: Iterable[int]) -> str:
    """The expression of FTS5; words and tags consist of letters, marks, digits and symbols, never of a quote."""
    phrases = (f'"{" ".join(phrase.words)}"{" *" if phrase.begins else ""}' for phrase in question.phrases)
    places = " OR ".join(f"c{conversation}" for conversation in conversations)
    tags = (*question.tags, f"({places})")
    return " AND ".join((*(f"words : {phrase}" for phrase in phrases), *(f"tags : {tag}" for tag in tags)))
