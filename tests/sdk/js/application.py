"""An application on the JavaScript SDK, as a Node process that a test commands (`node_driver.js`).

`reports` holds all that the SDK has shown the application, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy import sdk
from deploy.embedded import tied
from tests.flow.client import token

HERE = Path(__file__).parent
SOURCE = sdk.PACKAGE / "src"
DEADLINE_S = 40.0

Report = dict[str, Any]


class Reports:
    """What an application has been shown, and waits for more of it."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self._changed = asyncio.Event()

    def add(self, report: Report) -> None:
        self.reports.append(report)
        self._changed.set()

    def last(self) -> str:
        """The last reports, for a failure."""
        return "the last reports:\n" + "\n".join(f"  {report!s:.300}" for report in self.reports[-12:])

    async def until(self, *, since: int = 0, deadline_s: float = DEADLINE_S, **wanted: Any) -> Report:
        """The first report with these fields, of those that came or come."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    for report in self.reports[since:]:
                        if wanted.items() <= report.items():
                            return report
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s:g} s: {wanted}; {self.last()}") from None

    async def handed(self, count: int, deadline_s: float = DEADLINE_S) -> list[Any]:
        """Until the handler had this many messages; their bodies."""
        try:
            async with asyncio.timeout(deadline_s):
                while len(self.bodies()) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not {count} messages within {deadline_s:g} s: {self.bodies()}") from None
        return self.bodies()

    def bodies(self) -> list[Any]:
        """The bodies of the messages that the handler had, in order."""
        events = [report["event"] for report in self.reports if report["type"] == "handed"]
        return [event["body"] for event in events if event["type"] == "message"]


class NodeApplication(Reports):
    """`async with NodeApplication(source) as app: await app.call("open", …)`; killed at the end."""

    def __init__(self, source: Path = SOURCE) -> None:
        super().__init__()
        self._source = source
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> NodeApplication:
        self._process = await asyncio.create_subprocess_exec(
            *tied(sdk.NODE, str(HERE / "node_driver.js"), (self._source / "index.js").as_uri()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL: the process writes nothing more."""
        assert self._process is not None
        assert self._reader is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def call(self, command: str, **args: Any) -> Any:
        """Run a command of the driver; its result."""
        assert self._process is not None
        assert self._process.stdin is not None
        ident = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[ident] = answer
        self._process.stdin.write(json.dumps({"id": ident, "command": command, "args": args}).encode() + b"\n")
        async with asyncio.timeout(DEADLINE_S):
            return await answer

    async def open(self, api: str, user: str, folder: Path | None, **options: Any) -> Report:
        """Open the client, with a store in this folder."""
        store = {"store": str(folder)} if folder else {}
        opened: Report = await self.call("open", api=api, user=user, token=token(user), **store, **options)
        return opened

    async def start(self, api: str, user: str, folder: Path | None, handler: str = "record") -> Report:
        """Open the client and connect it."""
        opened = await self.open(api, user, folder)
        await self.call("connect", handler=handler)
        await self.until(type="status", status="live")
        return opened

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            report: Report = json.loads(line)
            if report["type"] != "answer":
                self.add(report)
                continue
            answer = self._answers.pop(report["id"])
            if answer.done():
                continue
            if "error" in report:
                answer.set_exception(AssertionError(report["error"]))
            else:
                answer.set_result(report.get("result"))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(AssertionError("the application has ended"))
                answer.exception()
