"""Applications on an SDK as processes that can be killed, frozen and given a wrong clock: Python or Node.

An application has several installations: clients on stores of their own. It is commanded by lines of JSON, and what it
reports goes to the installation's history (`client_driver.py` has the list). It asks here for tokens, so it knows no
secret.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from deploy import sdk
from deploy.embedded import tied
from loadtest.chaos.clocks import FAKETIME, Clock, forget
from loadtest.chaos.proof import client_history as rows
from loadtest.chaos.proof.client_history import ClientRows, ClientWriter
from loadtest.chaos.proof.history import digest, entry, now_ms

HERE: Final = Path(__file__).parent
PYTHON_SDK: Final = HERE.parent.parent / "router/sdk/python"
SLOW: Final = 0.1  # the share of events over which an application takes some time
LINE_LIMIT: Final = 1 << 24

Report = dict[str, Any]
TokenOf = Callable[[str], str]


def value(found: Any) -> Any:
    """Return a body as it is, of one as the wire has it."""
    if isinstance(found, list):
        return [value(item) for item in found]
    if not isinstance(found, dict):
        return found
    if found.keys() == {"$b64"}:
        return base64.b64decode(found["$b64"])
    return {name: value(item) for name, item in found.items()}


class Installation:
    """One store, the clients that have used it, and what the last of them has reported."""

    def __init__(self, name: str, user: str, store: Path, folder: Path, watched: list[str]) -> None:
        self.name = name
        self.user = user
        self.watched = watched  # users whose presence it watches
        self.store = store
        self.life = 0
        self.live = False
        self.opened = False  # the client has its store
        self.copied = False
        self.open: set[str] = set()  # refs that are stored and have no end
        self.acked = self.handed = 0
        self.last: dict[str, int] = {}
        self.own: list[tuple[str, int]] = []
        self.recent: list[tuple[str, int]] = []
        self.shown = False
        self.reads: dict[str, int] = {}
        self.state: dict[str, str] = {}
        self.online: dict[str, bool | None] = {}
        self._writer = ClientWriter(folder / f"{name}.jsonl")
        self._refs = 0
        self._kinds: dict[str, str] = {}

    def add(self, row: ClientRows) -> None:
        self._writer.add(row)

    def ref(self) -> str:
        self._refs += 1
        return f"{self.name} {self._refs}"

    def began(self) -> int:
        self.life += 1
        self.opened = False
        return self.life

    def ended(self, *, killed: bool) -> None:
        self.live = False
        # Reactions have no name in their body: a later life cannot say which one was acked.
        self.open = {ref for ref in self.open if self._kinds[ref] != "react"}
        self.add(rows.Ended(now_ms(), self.life, killed))

    def add_ended(self, life: int) -> None:
        """A tab has ended, while others may live on."""
        self.add(rows.Ended(now_ms(), life, True))

    def asked(self, ref: str, conversation: str, kind: str, body: Any) -> None:
        self._kinds[ref] = kind
        told = "" if kind == "react" else digest(body)
        self.add(rows.Asked(now_ms(), self.life, ref, conversation, "message" if kind == "send" else kind, told))

    def wiped(self, *, running: bool, done: bool = False) -> None:
        self.add(rows.Wiped(now_ms(), running, done))
        if not running:
            self.open.clear()

    def reported(self, report: Report, life: int = 0) -> None:
        """Note what the application has been shown. `life`: whose, if it is not the last one."""
        at, life = now_ms(), life or self.life
        match report["type"]:
            case "opened":
                self.opened = True
                self.add(rows.Opened(at, life, self.user, report["device"]))
            case "device":
                self.add(rows.Renamed(at, life, report["device"]))
            case "asked":
                self.asked(report["ref"], report["conversation"], "send", report["body"])
            case "stored":
                self.open.add(report["ref"])
                self._kinds.setdefault(report["ref"], "send")
                self.add(rows.Stored(at, life, report["ref"]))
            case "acked":
                self._acked(report, at, life)
            case "failed":
                self.open.discard(report["ref"])
                self.add(rows.Failed(at, life, report["ref"], report["code"]))
            case "handed":
                self._handed(report["event"], at, life)
            case "gap":
                name, last = report["conversation"], report["last"]
                self.last[name] = max(last, self.last.get(name, 0))
                self.add(rows.Missing(at, life, name, report["first"], last, report["reason"]))
            case "kept":
                self.add(rows.Kept(at, life, report["cursors"]))
            case "put":
                self.add(rows.Put(at, life, report["key"], report["version"]))
            case "status":
                self.live = report["status"] == "live"
                self.add(rows.Status(at, life, report["status"], report["reason"]))
            case "shown":
                self._shown(report, at, life)
            case "bug":
                self.add(rows.Bug(at, life, report["text"]))

    def _acked(self, report: Report, at: int, life: int) -> None:
        ref, name, seq = report["ref"], report["conversation"], report["seq"]
        self.open.discard(ref)
        self.acked += 1
        if self._kinds.get(ref) == "send":
            self.own = [*self.own[-15:], (name, seq)]
        self.add(rows.Acked(at, life, ref, name, seq))

    def _handed(self, event: Report, at: int, life: int) -> None:
        name, seq = event["conversation"], event["seq"]
        self.handed += 1
        self.last[name] = max(seq, self.last.get(name, 0))
        if event["type"] == "message":
            self.recent = [*self.recent[-15:], (name, seq)]
        if "body" in event:
            event["body"] = value(event["body"])
        self.add(rows.Handed(at, life, name, entry(event)))

    def _shown(self, report: Report, at: int, life: int) -> None:
        found = {
            name: rows.ShownConversation(
                one["read"], [(seq or 0, digest(value(body))) for seq, body in one["messages"]]
            )
            for name, one in report["conversations"].items()
        }
        self.state = {key: digest(value(one)) for key, one in report["state"].items()}
        self.online = {user: report["online"].get(user) for user in self.watched}
        self.add(rows.Shown(at, life, found, report["open"], self.state, report["failed"], self.online))
        self.open &= set(report["open"])
        self.reads = {name: one["read"] for name, one in report["conversations"].items()}
        self.shown = True

    def close(self) -> None:
        self._writer.close()


class App(Protocol):
    """An application, as the people of a run use it."""

    name: str
    installations: list[Installation]

    async def start(self) -> None: ...

    def tell(self, installation: Installation, what: str, **fields: Any) -> None: ...

    async def close(self) -> None: ...


class ProcessApp:
    """A process with some installations, all on the same SDK."""

    def __init__(self, name: str, kind: str, folder: Path, api: str, token: TokenOf, rng: random.Random) -> None:
        self.name = name
        self.installations: list[Installation] = []
        self.busy = asyncio.Lock()  # held by the fault of the process
        self._kind = kind
        self._folder = folder
        self._api = api
        self._token = token
        self._rng = rng
        self._clock = Clock(folder / f"{name}.clock") if FAKETIME is not None else None
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.may_end = False  # it was killed, or told to end

    async def start(self) -> None:
        self.may_end = False
        env = dict(os.environ)
        if self._clock is not None:
            env |= self._clock.env
        if self._kind == "python":
            command = [sys.executable, str(HERE / "client_driver.py")]
            env["PYTHONPATH"] = str(PYTHON_SDK)
        else:
            command = [sdk.NODE, str(HERE / "client_node.mjs"), (sdk.PACKAGE / "src/index.js").as_uri()]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied(*command),
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_LIMIT,
                start_new_session=True,
            )
        self._reading = asyncio.create_task(self._read(self._process))
        for installation in self.installations:
            self.open(installation)

    def open(self, installation: Installation) -> None:
        installation.began()
        self.tell(
            installation, "open", api=self._api, user=installation.user, store=str(installation.store),
            device=installation.name.rpartition(".")[2], slow=SLOW, seed=self._rng.randrange(1 << 30),
            watch=installation.watched,
        )  # fmt: skip

    def tell(self, installation: Installation, what: str, **fields: Any) -> None:
        self._write({"do": what, "installation": installation.name, **fields})

    def _write(self, command: Report) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        by_name = {one.name: one for one in self.installations}
        while line := await process.stdout.readline():
            try:
                report = json.loads(line)
            except ValueError:
                continue  # the last line of a process that was killed
            if report["type"] == "token":
                self._write({"do": "token", "id": report["id"], "token": self._token(report["user"])})
                continue
            name = report["installation"]
            if name not in by_name:
                by_name = {one.name: one for one in self.installations}
            for installation in [by_name[name]] if name else self.installations[:1]:
                installation.reported(report)
        if not self.may_end:
            code = await process.wait()
            what = {"type": "bug", "text": f"{self.name} ended by itself with {code}, see {self.name}.log"}
            self.installations[0].reported(what)

    # -- faults

    async def kill(self) -> None:
        """End the process at once, and note what it had said until then."""
        assert self._process is not None
        self.may_end = True
        with suppress(ProcessLookupError):
            self._process.kill()
        assert self._reading is not None
        await self._process.wait()
        await self._reading
        forget(self._process.pid)
        for installation in self.installations:
            installation.ended(killed=True)

    async def died(self, within_s: float) -> None:
        """Wait for a process that was told to end; if it cannot store what is to be stored before, kill it."""
        assert self._process is not None
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._process.wait()
        await self.kill()

    def signal(self, signum: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def set_clock(self, by_s: float) -> None:
        if self._clock is not None:
            self._clock.set(by_s)

    def remove(self, installation: Installation) -> None:
        """Remove a store, as a person does who clears a folder."""
        for path in self._files(installation.store):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def copy(self, installation: Installation, to: Path) -> None:
        for path in self._files(installation.store):
            target = to.with_name(path.name.replace(installation.store.name, to.name, 1))
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)

    @staticmethod
    def _files(store: Path) -> list[Path]:
        return [
            path
            for path in store.parent.glob(f"{store.name}*")
            if path.name in (store.name, f"{store.name}-wal", f"{store.name}-shm")
        ]

    async def close(self) -> None:
        self.may_end = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            forget(self._process.pid)
        if self._reading is not None:
            self._reading.cancel()
