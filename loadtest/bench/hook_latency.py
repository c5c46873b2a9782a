"""What a pre-send hook that fails costs the traffic beside it: `python -m loadtest hook-latency`.

Two kinds of traffic do not need an answer of the failing hook: reactions, about which the hook is not asked, while it
fails for all messages; and messages of other users, while it does not answer about one user. Each is measured while
the hook answers and while it fails, in turns, so that a phase with a failure is between two without one, and a busy
machine changes all three. The result is the 99th percentile of the time from a command to its ack, and its ratio to the
mean of the phases before and after: the median of all rounds, and the range of the middle half of them.

Messages go on at an even rate throughout. What the hook does not answer is accepted, so nothing may be refused.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.bench import in_turns, report
from loadtest.bench.hook_process import DEAD, change
from loadtest.load import local
from loadtest.load.client import Client, Route
from loadtest.load.conductor import Target, run
from loadtest.load.process import Scenario
from loadtest.load.results import Result
from loadtest.load.scenarios.direct import Pair, Pairs
from loadtest.load.worker import Worker
from loadtest.ports import free_ports
from router.contract import keys

ANSWERS: Final = "the hook answers"
FAILS: Final = (DEAD, "slow", "silent", "nonsense")
ALONE: Final = "one user gets no answer"
TROUBLE: Final = "trouble"
RECIPIENT: Final = "recipient"  # of the messages of TROUBLE
TROUBLE_EVERY: Final = 100  # messages of others


class Options(msgspec.Struct, frozen=True, kw_only=True):
    pairs: Annotated[int, Meta(description="pairs of users")] = 50
    rate: Annotated[float, Meta(description="messages per second, and reactions per second")] = 200
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 3.0
    rounds: Annotated[int, Meta(description="rounds of all failures")] = 7
    recovery: Annotated[float, Meta(description="seconds until the hook is asked again after a failure")] = 2.0
    control: Annotated[int, Meta(description="port that sets how the hook fails")] = 0


class Reactor:
    """A user who reacts to the first message of a conversation, and takes the reaction back, again and again."""

    def __init__(self, chat: Client, other: str) -> None:
        self._chat = chat
        self._conversation = keys.direct(chat.user, other)
        self._seq = chat.last[self._conversation.encode()]
        self._route = Route(f"@{other}", 0)
        self._removes = False

    def react(self, due: int) -> None:
        chat, pending = self._chat, self._route.pending
        chat.n += 1
        chat.routes[chat.n] = self._route
        done = next(iter(pending), chat.n) - 1
        pending[chat.n] = due
        chat.send_command(
            "react",
            n=chat.n,
            done=done,
            conversation=self._conversation,
            seq=self._seq,
            emoji="+",
            remove=self._removes,
        )
        self._removes = not self._removes

    @property
    def waits(self) -> bool:
        return bool(self._route.pending)


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [(f"ann-{number}", f"bob-{number}") for number in range(options.pairs)]
    return [*(user for pair in users for user in pair), TROUBLE, RECIPIENT], {"pairs": users}


async def run_phases(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    pairs = [Pair(worker.client(ann), worker.client(bob), 64) for ann, bob in prepared["pairs"]]
    trouble = worker.client(TROUBLE)
    clients = [*(pair.ann for pair in pairs), *(pair.bob for pair in pairs), trouble, worker.client(RECIPIENT)]
    await worker.connect(clients, lambda chat: worker.urls[chat.user.startswith("bob")])
    room, alone = Pairs(worker, pairs), Route(f"@{RECIPIENT}", 64)
    await room.phase(report.WARM_UP, 0, options.pairs, 0.2)
    reactors = [Reactor(pair.bob, pair.ann.user) for pair in pairs]

    def both(number: int, due: int) -> None:
        if number % 2:
            reactors[number // 2 % len(reactors)].react(due)
        else:
            pairs[number // 2 % len(pairs)].send(due)

    def with_trouble(number: int, due: int) -> None:
        if number % TROUBLE_EVERY:
            pairs[number % len(pairs)].send(due)
        else:
            trouble.send(alone, due)

    async def phase(name: str, rate: float, send: Any, watched: list[Client]) -> None:
        for pair in pairs:
            pair.begin()
            pair.ann.acks = pair.bob.acks = None
        worker.watch_acks(watched)
        async with worker.measured(name, "command") as counting:
            counting.units = await worker.paced(rate, options.seconds, send, name)
            await worker.until(lambda: not any(one.waits for one in reactors))
            await worker.until(lambda: not any(pair.route.pending for pair in pairs))
        await worker.until(lambda: not alone.pending)

    async def recovered() -> None:
        await change(options.control, "good")
        await room.phase(report.WARM_UP, options.rate, 0, options.recovery)

    async def series(
        kind: str, rate: float, send: Any, watched: list[Client], failures: dict[str, tuple[str, str]]
    ) -> None:
        """Measure each failure between two phases in which the hook answers."""
        await recovered()
        await phase(f"{kind}, {ANSWERS}", rate, send, watched)
        for _ in range(options.rounds):
            for name, (mode, unanswered) in failures.items():
                await change(options.control, mode, unanswered)
                await phase(f"{kind}, {name}", rate, send, watched)
                await recovered()
                await phase(f"{kind}, {ANSWERS}", rate, send, watched)

    anns, bobs = [pair.ann for pair in pairs], [pair.bob for pair in pairs]
    await series("reactions", 2 * options.rate, both, bobs, {mode: (mode, "-") for mode in FAILS})
    await series("messages", options.rate, with_trouble, anns, {ALONE: ("good", TROUBLE)})


SCENARIO: Final = Scenario(
    "hook-latency", Options, prepare, run_phases, "the traffic beside a pre-send hook that fails, in turns"
)


def measure(options: Options) -> Result:
    """Measure on a deployment with a hook, which is started for it."""
    with _deployment() as (target, control):
        return run(SCENARIO, msgspec.structs.replace(options, control=control), target)


@contextmanager
def _deployment() -> Iterator[tuple[Target, int]]:
    port, control = free_ports(2)
    env: dict[str, Any] = {
        "LINNET_SEND_HOOK_URL": f"http://127.0.0.1:{port}/ask",
        "LINNET_SEND_HOOK_SECRET": secrets.token_urlsafe(48),
        "LINNET_SEND_HOOK_TIMEOUT_MS": "1000",
        "LINNET_SEND_HOOK_ON_FAILURE": "accept",
    }
    with tempfile.TemporaryDirectory(prefix="linnet-hook-") as folder:
        hook = local.start(["-m", "loadtest.bench.hook_process", str(port), str(control)], dict(os.environ), folder)
        try:
            with local.deployment(**env) as target:
                yield target, control
        finally:
            hook.kill()
            hook.wait()


def table(result: Result) -> str:
    return in_turns.table(result, "time from a command to its ack", ANSWERS, lambda one: one.ack_us)
