"""What an SDK costs its application: CPU per received message and memory per client, beside the bare protocol.

Clients in one process are members of one group, to which messages are sent one after the other. CPU is that of the
client's process from the first message to the moment at which every application has every message, without what the
process needs while it waits; memory is what each further client adds. Stores are in memory, or on disk as by default.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from deploy import sdk
from deploy.embedded import tied
from loadtest.api import Api
from loadtest.load.conductor import Target
from loadtest.meters import LocalProcess

HERE: Final = Path(__file__).parent
PYTHON_SDK: Final = HERE.parent.parent / "router/sdk/python"
WARM_UP: Final = 20  # messages
ROWS: Final = ("bare protocol", "python", "python, on disk", "js", "js, on disk")


class Cost(msgspec.Struct, frozen=True):
    """`cpu_us`: of one message at one client; `kb`: of one client."""

    name: str
    cpu_us: float
    kb: float


class Clients:
    """A process with clients."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._meter = LocalProcess("client", process.pid)
        self._line("ready")

    def _line(self, wanted: str) -> None:
        assert self._process.stdout is not None
        if (line := self._process.stdout.readline().strip()) != wanted:
            raise RuntimeError(f"the clients said {line!r}, not {wanted!r}")

    def given(self, count: int) -> None:
        """Wait until they were given so many further events, all together."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self._line("given")

    @property
    def cpu_s(self) -> float:
        return self._meter.read().cpu_s

    @property
    def rss_bytes(self) -> int:
        return self._meter.read().rss_bytes


@contextmanager
def clients(name: str, target: Target, api: Api, users: list[str], stores: Path) -> Iterator[Clients]:
    """Start clients of these users."""
    kind, _, disk = name.partition(", ")
    programs = {
        "python": [sys.executable, str(HERE / "sdk_client.py")],
        "js": [sdk.NODE, str(HERE / "sdk_client.mjs"), (sdk.PACKAGE / "src/index.js").as_uri()],
    }
    program = programs.get(kind, [sys.executable, str(HERE / "sdk_bare.py")])
    given = [part for user in users for part in (user, api.token(user))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(PYTHON_SDK), str(HERE.parent.parent)))}
    process = subprocess.Popen(
        tied(*program, str(stores) if disk else "-", target.api, target.urls[0], *given),
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Clients(process)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def measure(target: Target, members: int = 20, messages: int = 200) -> list[Cost]:
    """Measure every row of the table."""
    return [_measured(name, target, members, messages) for name in ROWS]


def _measured(name: str, target: Target, members: int, messages: int) -> Cost:
    api = Api(target.api, target.server_key, target.jwt_secret)
    users = [f"sdk-{ROWS.index(name)}-{number}" for number in range(members)]
    sender = "sdk-sender"
    for user in (sender, *users):
        api.call("POST", "/tokens", {"user": user})
    with tempfile.TemporaryDirectory(prefix="linnet-sdk-") as folder:
        with clients(name, target, api, users[:1], Path(folder) / "one") as one:
            alone = one.rss_bytes
        with clients(name, target, api, users, Path(folder) / "all") as all_:
            kb = (all_.rss_bytes - alone) / 1000 / max(members - 1, 1)
            group = api.group([sender, *users])
            _send(api, sender, group, WARM_UP)
            all_.given(WARM_UP * members)
            before = all_.cpu_s
            _send(api, sender, group, messages)
            all_.given(messages * members)
            cpu_s = all_.cpu_s - before
    return Cost(name, cpu_s * 1e6 / (messages * members), kb)


def _send(api: Api, sender: str, group: str, messages: int) -> None:
    for number in range(messages):
        api.call("POST", "/messages", {"from": sender, "to": group, "body": f"message {number} of some length"})


def table(costs: list[Cost]) -> str:
    lines = [f"{'client':16} {'µs per message':>15} {'KB per client':>14}"]
    lines += [f"{cost.name:16} {cost.cpu_us:15.0f} {cost.kb:14.0f}" for cost in costs]
    return "\n".join(lines)
