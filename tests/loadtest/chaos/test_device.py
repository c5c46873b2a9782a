"""The device of a chaos run: what it records of a deployment of which a part is down."""

from __future__ import annotations

import random

from loadtest.chaos.device import Device
from loadtest.chaos.proof.history import Known, Listed, Rows, Seen

URL = "ws://127.0.0.1:1/ws"


class Book:
    def __init__(self) -> None:
        self.rows: list[Rows] = []

    def add(self, row: Rows) -> None:
        self.rows.append(row)


async def test_part_that_is_down_is_recorded_once_it_answers() -> None:
    """A held conversation has no numbers yet, and presence that is not known is neither online nor offline."""
    book = Book()
    device = Device("ann", "phone", "json", [URL], str, book, random.Random(1))
    held = {"conversation": "g:talk", "kind": "group", "held": True, "read": 3}
    there = {"conversation": "g:talk", "kind": "group", "cursor": 5, "head": 9, "read": 3}
    device._event({"type": "conversations", "conversations": [held]})
    device._event({"type": "conversations", "conversations": [there]})
    device._event({"type": "presence", "users": {"ben": {"online": None}, "cem": {"online": True}}})
    listed = [row.conversations for row in book.rows if isinstance(row, Listed)]
    assert listed == [[], [Known("g:talk", 5, 9, 3)]]
    assert [row.users for row in book.rows if isinstance(row, Seen)] == [{"cem": True}]
