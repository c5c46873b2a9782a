"""What keeps the promises on a cluster, each part switched off: a named test must fail without it.

`python -m tests.mutants [NAME …]` copies the checkout for each of them, changes a few characters of the copy, and runs
the test there. It takes some minutes, so `make test` only checks that the table is true (`test_mutants.py`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
TESTS_FAILED: Final = 1  # an exit status of pytest


class Mutant(NamedTuple):
    """`new` takes the place of `old`, which occurs once in the file; then `test` must fail."""

    file: str
    old: str
    new: str
    test: str


_ROUTING: Final = "router/store/redis/routing.py"
_REDIRECTS: Final = "tests/store/redis/test_routing.py"

MUTANTS: Final = {
    "hold": Mutant(
        _ROUTING,
        "        hold, line = self._hold(call.slot), call.line\n",
        "        return self.ended(call) or call.reply(why)\n        hold, line = self._hold(call.slot), call.line\n",
        f"{_REDIRECTS}::test_redirected_calls_wait_for_those_sent_before_them",
    ),
    "barrier": Mutant(
        _ROUTING,
        "        if line not in hold.barriers:\n",
        "        if self._release(slot, hold):\n",
        f"{_REDIRECTS}::test_redirected_calls_wait_for_those_sent_before_them",
    ),
    "probe of the slot after WAIT": Mutant(
        "router/store/durability.py",
        " and here.get(tick) == 1",
        "",
        "tests/store/test_cluster_durability.py::test_append_whose_slot_leaves_during_the_wait_is_not_kept",
    ),
    "tenure": Mutant(
        "router/store/functions/prelude.lua",
        "  if not in_cluster() then return since end\n",
        "  if true then return since end\n",
        "tests/store/test_tenure.py::test_conversation_of_a_lost_server_moves_to_an_older_one",
    ),
    "no tenure on one server": Mutant(
        "router/store/functions/prelude.lua",
        "  if not in_cluster() then return since end\n",
        "",
        "tests/store/test_one_server_cost.py::test_message_on_one_server_costs_what_it_did_before_there_were_clusters",
    ),
    "jump to a younger tenure": Mutant(
        "router/store/functions/prelude.lua",
        "clustered and from > last_at * 1000 + 999 and last < jump_to(from)",
        "false",
        "tests/store/test_tenure.py::test_conversation_returns_from_a_lost_server",
    ),
    "repair of channels that have moved": Mutant(
        "router/store/redis/cluster_bus.py",
        "        restored, self._restored = self._restored, []\n",
        "        restored, self._restored = [], []\n",
        "tests/store/redis/test_cluster_bus.py::test_channels_of_a_slot_that_moves_are_followed_and_reported",
    ),
    "server that refuses all calls": Mutant(
        _ROUTING,
        "        if text.startswith(DOWN):\n",
        "        if False:\n",
        f"{_REDIRECTS}::test_server_that_says_the_cluster_is_down_does_not_count_as_one_that_serves",
    ),
    "epoch of the map": Mutant(
        "router/store/redis/map_follower.py",
        "        if epoch < self.epoch and now - self._confirmed_at < STALE_S:\n",
        "        if False:\n",
        "tests/store/redis/test_map_follower.py::test_older_map_is_not_used",
    ),
    "declared keys": Mutant(
        "router/store/functions/deliver.lua",
        "  return deliver_event(",
        "  redis.call('HSET', k[1] .. ':more', 'x', 1)\n  return deliver_event(",
        "tests/store/test_slot_moves.py::test_function_does_all_or_nothing_while_its_slot_moves[deliver]",
    ),
    "half of the budget": Mutant(
        _ROUTING,
        "line.charged + size > MAX_BYTES // 2",
        "line.charged + size > MAX_BYTES * 2",
        "tests/store/redis/test_cluster_client.py::test_server_that_is_silent_leaves_room_for_the_others",
    ),
    "doubt of the map that lasts": Mutant(
        "router/store/redis/map_follower.py",
        "                if await self.ask(doubted or not self._maps):\n",
        "                if await self.ask(doubted or not self._maps) or True:\n",
        "tests/store/redis/test_many_processes.py::test_doubt_lasts_until_a_server_answers",
    ),
    "spread of questions": Mutant(
        "router/store/redis/map_follower.py",
        "await asyncio.sleep(random.uniform(0, JITTER_S))",
        "pass",
        "tests/store/redis/test_many_processes.py::test_processes_ask_little_and_not_at_once",
    ),
}


def fails(mutant: Mutant) -> bool:
    """Return whether the test fails on a copy of the checkout with the change."""
    with tempfile.TemporaryDirectory(prefix="linnet-mutant-") as folder:
        listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
        for name in listed:
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder) / name)
        changed = Path(folder) / mutant.file
        changed.write_text(changed.read_text().replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode not in (0, TESTS_FAILED):
            raise RuntimeError(f"the test did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == TESTS_FAILED


def main(names: list[str]) -> int:
    survived = 0
    for name in names or MUTANTS:
        failed = fails(MUTANTS[name])
        survived += not failed
        print(f"{name:36} {'killed' if failed else 'SURVIVED'} by {MUTANTS[name].test}", flush=True)
    return min(survived, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
