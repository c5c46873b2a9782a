"""Histories: rows are read as they were written, and bodies are compared by value."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.chaos.proof import history
from loadtest.chaos.proof.evidence import Conversation, Fault, Run, append, load
from loadtest.chaos.proof.history import (
    Acked,
    Closed,
    Entry,
    History,
    Known,
    Received,
    Rows,
    Seen,
    Sent,
    Welcomed,
    Writer,
    digest,
)
from loadtest.websocket import with_bytes, without_bytes

ROWS: list[Rows] = [
    Welcomed(1, "ws://one", "node", "session", None, [Known("g:x", 1, 2, 0)]),
    Sent(2, "g:x", 7, "send", 0, "00ff", 1),
    Acked(3, "g:x", 7, 3, False),
    Received(3, "g:x", Entry(3, 2, 1, 3, "message", "ann", "phone", 7, 0, "00ff")),
    Seen(4, {"bob": True}),
    Closed(5, 1006, "", True),
]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    """All kinds of rows, in order, more than once, across flushes."""
    path = tmp_path / "ann_phone.jsonl"
    writer = Writer(path)
    for row in ROWS:
        writer.add(row)
        writer.flush()
    read = History(path)
    assert list(read) == ROWS
    assert list(read) == ROWS


def test_history_is_only_appended_to(tmp_path: Path) -> None:
    """A second writer of the same history continues where the first ended."""
    path = tmp_path / "ann_phone.jsonl"
    for row in ROWS[:2]:
        writer = Writer(path)
        writer.add(row)
        writer.flush()
    assert list(History(path)) == ROWS[:2]


def test_many_rows_are_written_without_a_flush(tmp_path: Path) -> None:
    """The rows in memory are bounded."""
    path = tmp_path / "ann_phone.jsonl"
    writer = Writer(path)
    for _ in range(history.FLUSH_ROWS):
        writer.add(ROWS[2])
    assert len(list(History(path))) == history.FLUSH_ROWS


def test_same_value_has_the_same_digest() -> None:
    """The order of keys does not matter; any other value has another digest."""
    value = {"a": 1, "b": [None, True, 1.5, "ä", b"\0\xff"]}
    assert digest(value) == digest(dict(reversed(value.items())))
    assert len({digest(other) for other in (value, {**value, "a": 2}, "a", b"a", None, 1, 1.0, True)}) == 8


@pytest.mark.parametrize("body", ["text", {"bytes": b"\0\xff", "list": [{"deep": b"x"}], "n": None}, [b""], 1.5])
def test_codecs_give_the_same_digest(body: object) -> None:
    """A value has the same digest after JSON."""
    assert digest(with_bytes(without_bytes(body))) == digest(body)


def test_evidence_of_a_run_is_loaded(tmp_path: Path) -> None:
    """A folder as a run leaves it: device names, logs, faults in order of time."""
    (tmp_path / "histories").mkdir()
    writer = Writer(tmp_path / "histories" / "u001_lap_top.jsonl")
    writer.add(ROWS[0])
    writer.flush()
    talk = Conversation("g:x", 3, 0, {"ann": (0, 0)}, [Entry(3, 2, 1, 3, "message", "ann", "phone", 7, 0, "00ff")])
    append(tmp_path / "logs.jsonl", talk)
    append(tmp_path / "faults.jsonl", Fault("valkey-kill", "", 9, 10), Fault("store-cut", "gateway-0", 5, 20))
    append(tmp_path / "run.json", Run(seed=3, seconds=1, level="fsync", drain_window_s=5, rss_limit_bytes=1))
    (tmp_path / "gateway-0.log").write_text("hello\n")
    evidence = load(tmp_path)
    assert evidence.conversations == {"g:x": talk}
    assert {name: list(rows) for name, rows in evidence.histories.items()} == {"u001/lap_top": ROWS[:1]}
    assert [fault.kind for fault in evidence.faults] == ["store-cut", "valkey-kill"]
    assert (evidence.run.seed, evidence.processes, list(evidence.process_logs)) == (3, [], ["gateway-0"])
