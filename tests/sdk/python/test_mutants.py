"""Mutants of the Python client: each breaks a promise, and the test of that promise fails.

A mutant is the package with one piece of text replaced. The test runs in a process of its own, on the mutant; where
it stands it holds on the package as it is. (The client's lock is that of its store, not of a tab.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import linnet_client
import pytest

from tests.support import ROOT

# File, the text that is replaced, its replacement, and the test that notices it.
MUTANTS = {
    "outbox not written": (
        "outbox.py", '"INSERT INTO outbox VALUES (?, ?, ?, ?, ?, 0, NULL)",',
        '"INSERT INTO outbox SELECT ?, ?, ?, ?, ?, 0, NULL WHERE 0",',
        "test_sending.test_stored_message_is_sent_by_the_next_process",
    ),
    "n reused after a restart": (
        "outbox.py", 'n = max(int(get_meta(db, "last_n") or 0) + 1, least)', "n = least",
        "test_sending.test_n_is_never_used_twice_whatever_the_clock_says",
    ),
    "done from memory": (
        "outbox.py", 'return due, (_open(db, "n", conversation) or 1) - 1', "return due, (due[-1].n if due else 1) - 1",
        "test_sending.test_done_is_below_what_an_earlier_process_left_open",
    ),
    "cursor acked before the application had the event": (
        "receiving.py", "        self._put(_Item(event, conversation, event.seq))",
        "        self._put(_Item(event, conversation, event.seq))\n        self._moved[conversation] = event.seq",
        "test_receiving.test_only_what_the_application_has_is_acked",
    ),
    "lock ignored": (
        "store.py", 'db.execute("PRAGMA locking_mode = EXCLUSIVE")', "pass",
        "test_sending.test_store_has_one_process_and_one_owner",
    ),
    "dedupe off": (
        "receiving.py", "        if seq <= entry.taken:\n            return True\n", "",
        "test_receiving.test_event_that_comes_twice_is_handed_over_once",
    ),
    "hole not asked for": (
        "receiving.py", "if prev > entry.taken and not trusted:", "if False:",
        "test_receiving.test_hole_is_asked_for_and_filled_in_order",
    ),
    "user callback in the read loop": (
        "connection.py", "            async for frame in socket:\n",
        "            async for frame in socket:\n"
        "                await getattr(self._handlers, 'handling', asyncio.sleep)(0)\n",
        "test_receiving.test_handler_may_send_and_wait_for_the_ack",
    ),
}  # fmt: skip
# What the last mutant needs: the read loop waits for the handler that runs.
HANDLING = (
    "client.py",
    "            await handler(event)\n",
    "            running = asyncio.ensure_future(handler(event))\n"
    "            self.handling = lambda _: asyncio.wait([running])\n"
    "            await running\n",
)

NOTICED = 3
DEADLINE_S = 10  # a mutant may also wait for ever
# Runs one test as pytest would; NOTICED if it fails or does not end.
RUN = f"""
import asyncio, inspect, importlib, pathlib, sys
module, name, store = sys.argv[1:]
test = getattr(importlib.import_module("tests.sdk.python." + module), name)
given = [pathlib.Path(store)] if "tmp_path" in inspect.signature(test).parameters else []
async def run():
    await asyncio.wait_for(test(*given), {DEADLINE_S})
try:
    asyncio.run(run()) if inspect.iscoroutinefunction(test) else test(*given)
except BaseException as error:
    sys.exit({NOTICED})
"""


@pytest.mark.processes
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_noticed(mutant: str, tmp_path: Path) -> None:
    *change, test = MUTANTS[mutant]
    changes = [tuple(change)] + ([HANDLING] if mutant == "user callback in the read loop" else [])
    package = tmp_path / "linnet_client"
    shutil.copytree(Path(linnet_client.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in changes:
        text = (package / file).read_text()
        assert text.count(old) == 1, (file, old)
        (package / file).write_text(text.replace(old, new))
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    command = [sys.executable, "-c", RUN, *test.split("."), str(tmp_path / "store")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == NOTICED, done.stdout + done.stderr
