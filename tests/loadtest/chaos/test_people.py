"""The schedule of faults of clients, and what an application's report becomes in the history of its installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.chaos.apps import Installation, value
from loadtest.chaos.people import CLIENTS, PROCESS_TROUBLE, PROCESSES, TAB_TROUBLE, schedule
from loadtest.chaos.proof.client_history import Acked, Asked, ClientHistory, Ended, Handed, Opened, Stored
from loadtest.chaos.proof.history import digest


@pytest.mark.parametrize("clients", CLIENTS)
def test_schedule_is_decided_by_its_seed_and_ends_in_time(clients: str) -> None:
    faults = schedule(clients, 7, 300, 2)
    assert faults == schedule(clients, 7, 300, 2)
    assert faults != schedule(clients, 8, 300, 2)
    kinds = TAB_TROUBLE if clients == "browser" else PROCESS_TROUBLE
    assert {fault.kind for fault in faults} == set(kinds)
    assert schedule(clients, 7, 70, 2)[0].for_s == 60.0
    assert max(fault.for_s for fault in schedule(clients, 7, 40, 2)) < 40
    assert all(fault.at_s + fault.for_s <= 300 and fault.app < PROCESSES[clients][0] for fault in faults)


def test_reports_become_rows_of_the_life_that_made_them(tmp_path: Path) -> None:
    """A body is compared as it is, with its bytes; after a kill reactions, which have no name, are not waited for."""
    installation = Installation("u1.phone", "u1", tmp_path / "store", tmp_path, [])
    body = {"ref": "u1.phone 1", "data": {"$b64": "AAE="}}
    event = {"conversation": "d:u1:u2", "seq": 5, "prev": 4, "count": 1, "at": 9, "type": "message", "from": "u2",
             "device": "d", "n": 3, "body": body}  # fmt: skip
    life = installation.began()
    installation.reported({"type": "opened", "device": "phone.x"})
    installation.asked(installation.ref(), "d:u1:u2", "react", None)
    for ref in ("u1.phone 1", "u1.phone 2"):
        installation.reported({"type": "stored", "ref": ref})
    installation.reported({"type": "handed", "event": event})
    assert installation.open == {"u1.phone 1", "u1.phone 2"}
    installation.ended(killed=True)
    assert installation.open == {"u1.phone 2"}
    installation.began()
    installation.reported({"type": "acked", "ref": "u1.phone 2", "conversation": "d:u1:u2", "seq": 6})
    installation.close()
    found = [
        row for row in ClientHistory(tmp_path / "u1.phone.jsonl") if isinstance(row, (Opened, Handed, Ended, Acked))
    ]
    assert [row.life for row in found] == [life, life, life, life + 1]
    (given,) = [row for row in found if isinstance(row, Handed)]
    assert given.event.body == digest({"ref": "u1.phone 1", "data": b"\x00\x01"})
    asked = [row for row in ClientHistory(tmp_path / "u1.phone.jsonl") if isinstance(row, (Asked, Stored))]
    assert [type(row) for row in asked] == [Asked, Stored, Stored]
    assert (installation.open, installation.last, installation.acked) == (set(), {"d:u1:u2": 5}, 1)


def test_bytes_of_a_line_are_bytes() -> None:
    assert value([{"$b64": "AAE="}, {"$b64": "AAE=", "x": 1}]) == [b"\x00\x01", {"$b64": "AAE=", "x": 1}]
