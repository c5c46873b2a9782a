"""The whole set-up, running: gateways replaced under load, every panel of every dashboard answered, an alert fires.

It takes three minutes and needs programs that a checkout does not have, so it runs only in `make deploy-check`. With
PICTURES=folder the dashboards are drawn there from the data of Prometheus."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.dashboards import dashboards
from deploy.embedded import tied
from deploy.local import answers_ready
from tests import support
from tests.deploy.balancing import closing_clients
from tests.deploy.test_balancers import Pair
from tests.router.web.people import CHROMIUM, EXECUTABLE, town
from tests.support import JWT_SECRET, ROOT, SERVER_KEY

pytestmark = [
    pytest.mark.processes,
    pytest.mark.alone,
    pytest.mark.skipif("DEPLOY_CHECK" not in os.environ, reason="part of make deploy-check"),
]

PAIRS = 20
LOAD_S = 45
ALERT_S = 150  # a minute until it fires, and what Prometheus, Alertmanager and a busy machine add


class Running:
    """`make stack` on a network of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.network = f"127.{random.randrange(80, 250)}.{random.randrange(1, 250)}"
        self.front = f"{self.network}.10"
        self.url = f"ws://{self.front}:8000/ws"
        self.prometheus = f"http://{self.network}.40:9090"
        self._log = folder / "stack.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
        own = {"LINNET_JWT_SECRET": JWT_SECRET, "LINNET_SERVER_KEY": SERVER_KEY}
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                tied(sys.executable, "-m", "deploy.stack", self.network, folder / "stack"),
                cwd=ROOT,
                env={**inherited, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ready(self) -> None:
        def said() -> bool:
            if self.popen.poll() is not None:
                pytest.fail(self.log)
            return "the stack is ready" in self.log

        await support.eventually(said, 60, every_s=0.1)
        await support.eventually(lambda: answers_ready((self.front, 8000), "/schema.json"), 20, every_s=0.1)

    def pid(self, host: str) -> int:
        """Return the pid of the gateway or router on this address of the network."""
        wanted = f"LINNET_LISTEN={self.network}.{host}:8000".encode()
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        (found,) = [int(pid) for pid in children if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
        return found

    def ask(self, expression: str) -> list[float]:
        """Return the values of an instant query that are numbers."""
        query = urllib.parse.urlencode({"query": expression.replace("$__rate_interval", "30s")})
        with urllib.request.urlopen(f"{self.prometheus}/api/v1/query?{query}", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [float(one["value"][1]) for one in found if one["value"][1] != "NaN"]

    def load(self, seconds: int) -> subprocess.Popen[bytes]:
        """Put a population on the load balancer; the exit code is 0 if no message was lost, duplicated or out of
        order."""
        command = [sys.executable, "-m", "loadtest", "mixed", "--users", "200", "--rate", "150"]
        times = ["--rounds", str(seconds // 5), "--seconds", "5"]
        where = ["--target", self.url, "--api", f"http://{self.front}:8000"]
        keys = ["--jwt-secret", JWT_SECRET, "--server-key", SERVER_KEY]
        with (self._log.parent / "load.log").open("wb") as log:
            return subprocess.Popen(tied(*command, *times, *where, *keys), cwd=ROOT, stdout=log, stderr=log)

    def close(self) -> None:
        for signum in (signal.SIGINT, signal.SIGINT):
            self.popen.send_signal(signum)
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("stack"))
    support.run(running.ready(), 90)
    yield running
    running.close()


@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium here; on Debian: apt-get install chromium")
def test_two_people_talk_at_the_page_with_tls_while_a_gateway_is_killed(stack: Running) -> None:
    """The page, the API and the sockets have one address, that of HAProxy."""

    async def scenario() -> None:
        try:
            async with town(f"https://{stack.front}:8443") as people:
                ann, bob = [await people.person(name, ignore_https_errors=True) for name in ("ann-page", "bob-page")]
                sockets: list[str] = []
                for one in (ann, bob):
                    one.page.on("websocket", lambda socket: sockets.append(socket.url))
                    await one.register()
                await ann.write_to(bob.name)
                await ann.say("Through the load balancer")
                await bob.row(ann.name).click()
                await bob.sees("Through the load balancer")
                os.kill(stack.pid("11"), signal.SIGKILL)
                await bob.say("And without that gateway")
                await ann.sees("And without that gateway")
                await bob.message("And without that gateway").get_by_label("Read").wait_for()
                assert set(sockets) == {f"wss://{stack.front}:8443/ws"}
        finally:
            await CHROMIUM.close()

    support.run(scenario(), 180)


def test_rolling_restart_loses_nothing(stack: Running) -> None:
    """All gateways are replaced one by one, behind HAProxy and under traffic: each user has every message once, in
    order."""

    async def restart(host: str) -> None:
        pid = stack.pid(host)
        os.kill(pid, signal.SIGTERM)
        await support.eventually(lambda: not Path(f"/proc/{pid}").exists(), 40, every_s=0.1)
        await support.eventually(lambda: answers_ready((f"{stack.network}.{host}", 9000)), 20, every_s=0.1)

    async def scenario() -> None:
        stop = asyncio.Event()
        pairs = [Pair(stack.url, number) for number in range(PAIRS)]
        async with closing_clients():
            talking = [asyncio.create_task(pair.talk(stop)) for pair in pairs]
            for host in ("11", "12", "13"):
                await restart(host)
            stop.set()
            await asyncio.gather(*talking)
            for pair in pairs:
                await pair.check()
            partings = [code for pair in pairs for client in pair.clients for code, _ in client.partings]
            assert len(partings) >= 2 * PAIRS  # everybody was sent away at least once
            assert set(partings) == {1012}

    support.run(scenario(), 180)


def test_every_panel_is_answered(stack: Running) -> None:
    """Each expression of each dashboard has a number in a Prometheus that scrapes the stack under load."""

    def all_answered() -> bool:
        panels = [panel for one in dashboards() for row in one.rows.values() for panel in row]
        asked = [(panel.title, expression) for panel in panels for expression in panel.asks.values()]
        empty = [f"{title}: {one}" for title, one in asked if not stack.ask(one)]
        assert not empty, empty
        return True

    async def scenario() -> None:
        load = stack.load(LOAD_S)
        try:
            await support.eventually(lambda: stack.ask("linnet:gateway_connections:sum > 100"), 30, every_s=0.5)
            await support.eventually(all_answered, LOAD_S, every_s=1)
            await support.eventually(lambda: load.poll() is not None, LOAD_S + 30, every_s=0.2)
            assert load.returncode == 0
        finally:
            load.kill()
            load.wait()

    support.run(scenario(), 150)
    if folder := os.environ.get("PICTURES"):
        python = ROOT / ".venv/check/bin/python"
        subprocess.run([python, "-m", "deploy.pictures", stack.prometheus, folder, "3"], cwd=ROOT, check=True)


def test_alert_reaches_the_receiver(stack: Running) -> None:
    """A router hangs: the rule fires in Prometheus, and Alertmanager notifies the receiver, with the runbook."""

    async def scenario() -> None:
        pid = stack.pid("22")
        os.kill(pid, signal.SIGSTOP)
        try:
            await support.eventually(lambda: "ticket: LinnetRouterDown firing" in stack.log, ALERT_S, every_s=0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "deploy/RUNBOOKS.md#linnetrouterdown" in stack.log

    support.run(scenario(), ALERT_S + 10)
