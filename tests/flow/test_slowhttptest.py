"""`slowhttptest`, the usual tool for slow-HTTP attacks, against a running gateway and a running router.

All four kinds run at once, for a little longer than the deadline of a head. `router/process/bounded.py` has the
deadlines, and `test_hostile.py` a test of each form of slowness. The result is judged by the tool, which checks on a
connection of its own whether the service answers, and by the processes' tables of open files.

The test runs if the tool is installed (`apt-get install slowhttptest`).
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from pathlib import Path
from typing import Final

import pytest

from router.api.steps import BODY_S
from router.process.bounded import HEAD_S
from tests.flow.conftest import Start, System
from tests.flow.test_bad_input import witness
from tests.support import Process, eventually

TOOL: Final = shutil.which("slowhttptest")
CONNECTIONS: Final = 100
SECONDS: Final = 30  # of the tool; it ends before if the server has ended all connections
ENDED: Final = "No open connections left"

pytestmark = pytest.mark.skipif(TOOL is None, reason="slowhttptest is not installed (apt-get install slowhttptest)")


class Attack:
    """One kind of slowness against one path, and what the tool saw."""

    def __init__(self, name: str, url: str, options: str) -> None:
        self.name = name
        self._given = (*options.split(), "-u", url)
        self.ended = ""
        self.available: list[str] = []

    async def run(self) -> None:
        common = f"-c {CONNECTIONS} -r {CONNECTIONS} -l {SECONDS} -p 10 -v 1".split()
        assert TOOL is not None
        tool = await asyncio.create_subprocess_exec(
            TOOL, *self._given, *common, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        try:
            said = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", (await tool.communicate())[0].decode(errors="replace"))
        finally:
            if tool.returncode is None:
                tool.kill()
        self.available = re.findall(r"service available: +(\w+)", said)
        (self.ended,) = re.findall(r"Exit status: +(.+?)\s*$", said, re.MULTILINE)


def attacks(system: System) -> list[Attack]:
    assert system.router is not None
    gateway, router = f"http://127.0.0.1:{system.gateways[0].port}", system.router.url
    headers, body = "-H -i 1 -x 24", "-B -i 1 -x 24 -s 8192 -f application/json"
    reading, ranges = "-X -n 1 -w 16 -y 64 -z 16 -k 3", "-R -a 1 -b 3000"
    return [
        Attack("headers, gateway", f"{gateway}/ws", headers),
        Attack("headers, router", f"{router}/v1/login", headers),
        Attack("headers, admin", f"http://127.0.0.1:{system.gateways[0].admin_port}/metrics", headers),
        Attack("body, gateway", f"{gateway}/schema.json", body),
        Attack("body, router", f"{router}/v1/login", body),
        Attack("reading, gateway", f"{gateway}/schema.json", reading),
        Attack("reading, router", f"{router}/v1/openapi.json", reading),
        Attack("ranges, gateway", f"{gateway}/schema.json", ranges),
        Attack("ranges, router", f"{router}/v1/openapi.json", ranges),
    ]


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


async def test_slow_clients_hold_no_socket_or_memory(start: Start) -> None:
    """Slow headers, bodies, reading and ranges, 900 connections at once: the service answers all the while, each kind
    is closed by the deadline of a head, and afterwards no process holds a socket of them or their memory."""
    system = await start(gateways=1)
    assert system.router is not None
    processes = [system.gateways[0], system.router]
    async with witness(system, lambda *given: list(given)):
        before = [(process, open_files(process), process.rss_bytes) for process in processes]
        began, tried, peak = time.monotonic(), attacks(system), 0
        running = asyncio.gather(*(attack.run() for attack in tried))
        while not running.done():
            peak = max(peak, sum(map(open_files, processes)))
            await asyncio.wait([running], timeout=0.2)
        await running
        assert peak > 2 * CONNECTIONS  # they were held for a while, else nothing was tried
        assert time.monotonic() - began > min(HEAD_S, BODY_S)
        await eventually(lambda: all(open_files(process) <= files + 4 for process, files, _ in before))
        for process, _, rss in before:
            assert process.rss_bytes - rss < 16 << 20, process.module
    for attack in tried:
        assert "NO" not in attack.available, attack.name
        # What lies with the kernel is still offered to who reads slowly; the process is rid of it.
        assert attack.ended == ENDED or attack.name.startswith("reading"), (attack.name, attack.ended)
