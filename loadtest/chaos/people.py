"""The people of a run whose clients are the real SDKs: what they write and read, and what happens to their clients.

`python`: 8 processes with 10 installations each; `js`: 4 of Node; `browser`: 3 Chromiums with 2 tabs each. One seeded
generator decides what people do, and another the faults of clients (`schedule`), beside those of `nemesis.py`.

Faults of processes: killed (at any moment, or by itself between storing and writing), frozen (in long runs for a
minute), a wrong clock, a store that is removed (under the client, or between two lives) or copied. Faults of tabs: the
renderer crashed, the main thread stopped (also within a transaction), hidden, closed, reloaded, offline, a wrong clock,
the storage evicted.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, cast

import jwt
import msgspec

from loadtest.api import Api
from loadtest.chaos.apps import App, Installation, ProcessApp
from loadtest.chaos.cluster import Cluster
from loadtest.chaos.moderators import Moderators
from loadtest.chaos.proof import client_history as rows
from loadtest.chaos.proof.evidence import Fault, Mark, append
from loadtest.chaos.proof.history import now_ms

CLIENTS: Final = ("python", "js", "browser")
PROCESSES: Final = {"python": (8, 10), "js": (4, 10), "browser": (3, 1)}
RATES: Final = {"python": 30.0, "js": 20.0, "browser": 8.0}
TOKEN_S: Final = 30
PEERS: Final = 3
GROUP_OF: Final = 10
START_S: Final = 120.0
SETTLE_S: Final = 120.0
AGREE_S: Final = 40.0  # presence needs the time of a lease, a heartbeat and the grace period
WATCHED: Final = 5  # users whose presence every application watches
SHOWN_S: Final = 3.0  # then all are asked again: a tab that was just opened does not answer
DIED_S: Final = 15.0
CLOCK_S: Final = 60.0
COPIES: Final = 3
FIRST_S: Final = 3.0
KEYS: Final = 8  # of a user's state
FROZEN_LONG_S: Final = 60.0

# Weight, and least and most seconds.
PROCESS_TROUBLE: Final[dict[str, tuple[float, float, float]]] = {
    "app-kill": (4, 0.2, 4),
    "app-die": (3, 0.2, 2),
    "app-freeze": (3, 1, 20),
    "app-freeze-long": (1, FROZEN_LONG_S, FROZEN_LONG_S),
    "app-wipe": (1.5, 0.2, 2),
    "app-copy": (0.7, 0.1, 0.5),
    "app-clock": (2, 2, 12),
}
TAB_TROUBLE: Final[dict[str, tuple[float, float, float]]] = {
    "tab-crash": (4, 0.1, 2),
    "tab-stop": (3, 1, 12),
    "tab-stop-long": (1, FROZEN_LONG_S, FROZEN_LONG_S),
    "tab-stop-within": (2, 1, 8),
    "tab-close": (2, 0.1, 2),
    "tab-reload": (3, 0, 0),
    "tab-hide": (2, 1, 6),
    "app-offline": (2, 1, 10),
    "app-clock": (1, 2, 10),
    "app-wipe": (0.7, 0, 0),
}
FROZEN_LONG: Final = {"python": "app-freeze-long", "js": "app-freeze-long", "browser": "tab-stop-long"}


class Trouble(msgspec.Struct, frozen=True):
    at_s: float
    kind: str
    app: int
    for_s: float


def schedule(clients: str, seed: int, seconds: float, every_s: float) -> list[Trouble]:
    """Return the faults of clients in order; all of them end within `seconds`.

    A run that is long enough begins with a client that is frozen for a minute.
    """
    rng = random.Random(f"clients {seed}")
    kinds = TAB_TROUBLE if clients == "browser" else PROCESS_TROUBLE
    found, at = list[Trouble](), FIRST_S
    if seconds > FIRST_S + FROZEN_LONG_S:
        found.append(Trouble(FIRST_S, FROZEN_LONG[clients], rng.randrange(PROCESSES[clients][0]), FROZEN_LONG_S))
    while (at := at + rng.expovariate(1 / every_s)) < seconds:
        kind = rng.choices(list(kinds), [weight for weight, _, _ in kinds.values()])[0]
        for_s = rng.uniform(*kinds[kind][1:])
        if at + for_s < seconds:
            found.append(Trouble(round(at, 3), kind, rng.randrange(PROCESSES[clients][0]), round(for_s, 3)))
    return found


class People:
    """The users of a run, and the applications that act for them."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int, clients: str) -> None:
        self.rng = random.Random(seed)
        self.installations: list[Installation] = []
        self.targets: dict[str, list[str]] = {}
        self.done = 0
        self._clients = clients
        self._cluster = cluster
        self._folder = folder
        self._seed = seed
        self._apps: list[App] = []
        self._copies = 0
        self._texts = 0
        self._watched: list[str] = []
        self._closing: Callable[[], None] = lambda: None
        (folder / "clients").mkdir()
        (folder / "stores").mkdir()

    # -- start

    async def gather(self) -> None:
        """Start all applications, wait until their clients are live, and make the groups."""
        count, each = PROCESSES[self._clients]
        users = [f"u{number:02}" for number in range(max(count, count * each * 5 // 8))]
        self._watched = users[:WATCHED]
        devices = [f"{user}.phone" for user in users] + [f"{user}.laptop" for user in users]
        for number in range(count):
            app = self._app(number)
            for name in devices[number * each : (number + 1) * each]:
                app.installations.append(self._installation(name))
            self._apps.append(app)
        for user in users:
            await asyncio.to_thread(self._api.call, "POST", "/tokens", {"user": user})
        for app in self._apps:
            await app.start()
        if not await self.until(lambda: all(one.live for one in self.installations), START_S):
            raise RuntimeError(f"not all clients could connect before the first fault, see {self._folder}/*.log")
        await self._make_groups(users)

    def _app(self, number: int) -> App:
        router = self._cluster.routers[0].url
        rng = random.Random(self.rng.random())
        if self._clients != "browser":
            return ProcessApp(f"app-{number}", self._clients, self._folder, router, self._token, rng)
        from loadtest.chaos.browsers import BrowserApp, Server  # only here, as it needs Chromium and what drives it

        if not number:
            self._server = Server()
            self._closing = self._server.close
        return BrowserApp(f"app-{number}", self._folder, router, self._token, rng, self._server)

    def _installation(self, name: str) -> Installation:
        user = name.partition(".")[0]
        store, histories = self._folder / "stores" / name, self._folder / "clients"
        installation = Installation(name, user, store, histories, self._watched)
        self.installations.append(installation)
        return installation

    def _token(self, user: str) -> str:
        """Return a new token of short validity, so that every run contains renewals."""
        claims = {"sub": user, "exp": int(time.time()) + TOKEN_S, "jti": secrets.token_hex(8)}
        return jwt.encode(claims, self._cluster.jwt_secret, algorithm="HS256")

    @property
    def _api(self) -> Api:
        return Api(self._cluster.routers[0].url, self._cluster.server_key, self._cluster.jwt_secret)

    async def _make_groups(self, users: list[str]) -> None:
        shuffled = self.rng.sample(users, len(users))
        groups = [shuffled[start : start + GROUP_OF] for start in range(0, len(shuffled), GROUP_OF)]
        groups.append(shuffled)
        self.targets = {user: [] for user in users}
        named: dict[str, list[str]] = {}
        for members in groups:
            group = await asyncio.to_thread(self._api.group, members)
            named[group] = members
            for user in members:
                self.targets[user].append(group)
        self._moderators = Moderators(lambda: self._api, random.Random(self.rng.random()), named)
        for user in users:
            others = [other for other in users if other != user]
            for other in self.rng.sample(others, min(PEERS, len(others))):
                self.targets[user].append("d:" + ":".join(sorted((user, other))))

    # -- run

    async def run(self, seconds: float, rate: float, every_s: float) -> None:
        """Let all people act for so many seconds, and cause the faults of clients."""
        acting = [asyncio.create_task(self._every(1 / rate, self._act)), asyncio.create_task(self._moderators.run())]
        troubles = schedule(self._clients, self._seed, seconds, every_s)
        causing = [asyncio.create_task(self._cause(trouble)) for trouble in troubles]
        try:
            await asyncio.sleep(seconds)
        finally:
            for task in acting:
                task.cancel()
        await asyncio.gather(*causing)

    async def _every(self, seconds: float, act: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.rng.expovariate(1 / seconds), loop.time() - 1.0)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            act()

    def _act(self) -> None:
        app = self.rng.choice(self._apps)
        installation, kind = self.rng.choice(app.installations), self.rng.random()
        if kind < 0.8:
            self._send(app, installation)
        elif kind < 0.85 and installation.own:
            self._change(app, installation, "edit", self.rng.choice(installation.own))
        elif kind < 0.9 and installation.recent:
            self._change(app, installation, "react", self.rng.choice(installation.recent))
        elif kind < 0.95:
            key, told = f"app/{self.rng.randrange(KEYS)}", self._body("state") if self.rng.random() < 0.9 else None
            app.tell(installation, "set", key=key, value=told)
        elif installation.last:
            app.tell(installation, "read", conversation=self.rng.choice(list(installation.last)))

    def _send(self, app: App, installation: Installation, *, die: bool = False) -> None:
        conversation, ref = self.rng.choice(self.targets[installation.user]), installation.ref()
        direct = conversation.startswith("d:")
        body = self._body(ref, ask=direct and self.rng.random() < 0.1)
        installation.asked(ref, conversation, "send", body)
        app.tell(installation, "send", ref=ref, conversation=conversation, body=body, die=die)

    def _change(self, app: App, installation: Installation, kind: str, place: tuple[str, int]) -> None:
        ref, (conversation, seq) = installation.ref(), place
        body = self._body(ref) if kind == "edit" else None
        installation.asked(ref, conversation, kind, body)
        app.tell(installation, kind, ref=ref, conversation=conversation, seq=seq, body=body, emoji="👍")

    def _body(self, ref: str, *, ask: bool = False) -> Any:
        text = "".join(self.rng.choices('abc def – äöü 漢字 🙂\n"\\', k=self.rng.randrange(60)))
        if ask or self.rng.random() < 0.1:
            return {"ref": ref, "ask": ask, "text": text, "none": None, "list": [True, self.rng.randrange(100) + 0.5]}
        return f"{ref}|{text}"

    # -- faults

    async def _cause(self, trouble: Trouble) -> None:
        await asyncio.sleep(trouble.at_s)
        app = self._apps[trouble.app]
        busy = cast("ProcessApp", app).busy
        if busy.locked() and not trouble.kind.startswith("tab-"):
            return  # it has a fault already
        began = now_ms()
        async with busy:
            if isinstance(app, ProcessApp):
                target = await self._in_process(app, trouble)
            else:
                target = await self._in_browser(app, trouble)
        self.done += 1
        append(self._folder / "faults.jsonl", Fault(trouble.kind, target, began, now_ms()))

    async def _in_process(self, app: ProcessApp, trouble: Trouble) -> str:
        rng, installation = self.rng, self.rng.choice(app.installations)
        match trouble.kind:
            case "app-kill":
                await app.kill()
                await asyncio.sleep(trouble.for_s)
                await app.start()
            case "app-die":
                app.may_end = True
                self._send(app, installation, die=True)
                await app.died(DIED_S)
                await asyncio.sleep(trouble.for_s)
                await app.start()
            case "app-freeze" | "app-freeze-long":
                app.signal(signal.SIGSTOP)
                await asyncio.sleep(trouble.for_s)
                app.signal(signal.SIGCONT)
            case "app-clock":
                by_s = rng.uniform(-CLOCK_S, CLOCK_S)
                app.set_clock(by_s)
                await asyncio.sleep(trouble.for_s)
                app.set_clock(0)
                return f"{app.name} by {by_s:+.1f} s"
            case "app-wipe" if installation.opened and rng.random() < 0.5:
                app.remove(installation)
                installation.wiped(running=True)
                await asyncio.sleep(trouble.for_s)
                return f"{installation.name}, which ran"
            case "app-wipe":
                await app.kill()
                app.remove(installation)
                installation.wiped(running=False)
                await app.start()
                return installation.name
            case _:
                return await self._copy(app, installation)
        return app.name

    async def _copy(self, app: ProcessApp, installation: Installation) -> str:
        """Copy the store of a client that does not run, and let another application use the copy."""
        others = [cast("ProcessApp", other) for other in self._apps if other is not app]
        free = [other for other in others if not other.busy.locked()]
        if self._copies == COPIES or not free:
            return ""
        self._copies += 1
        twin = self._installation(f"{installation.user}.{installation.name.partition('.')[2]}-copy{self._copies}")
        other = self.rng.choice(free)
        async with other.busy:
            await app.kill()
            app.copy(installation, twin.store)
            for one, of in ((twin, installation), (installation, twin)):
                one.add(rows.Copied(now_ms(), of.name))
                one.copied = True
            await app.start()
            other.installations.append(twin)
            other.open(twin)
        return f"{installation.name} as {twin.name}"

    async def _in_browser(self, app: Any, trouble: Trouble) -> str:
        """`app`: a `BrowserApp`, which cannot be named where no Chromium can be driven."""
        tab = app.some_tab()
        match trouble.kind:
            case "tab-crash" | "tab-close":
                await (app.crash(tab) if trouble.kind == "tab-crash" else app.close_tab(tab))
                await asyncio.sleep(trouble.for_s)
                await app.add_tab()
            case "tab-stop" | "tab-stop-long":
                await app.stop(tab, round(trouble.for_s * 1000))
            case "tab-stop-within":
                await app.stop(tab, round(trouble.for_s * 1000), within=self.rng.choice(("outbox", "events")))
            case "tab-reload":
                await app.reload(tab)
            case "app-wipe":
                app.installation.wiped(running=True)
                await app.evict()
                app.installation.wiped(running=True, done=True)
            case _:
                acts: dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]] = {
                    "tab-hide": (lambda: app.hide(tab, hidden=True), lambda: app.hide(tab, hidden=False)),
                    "app-offline": (lambda: app.offline(offline=True), lambda: app.offline(offline=False)),
                    "app-clock": (
                        lambda: app.step_clock(round(self.rng.uniform(-CLOCK_S, CLOCK_S) * 1000)),
                        lambda: app.step_clock(0),
                    ),
                }
                begin, end = acts[trouble.kind]
                await begin()
                await asyncio.sleep(trouble.for_s)
                await end()
        return f"{app.name} {tab.id}"

    # -- end

    async def until(self, reached: Callable[[], bool], deadline_s: float) -> bool:
        until = asyncio.get_running_loop().time() + deadline_s
        while not reached():
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(0.1)
        return True

    async def settle(self, heads: Callable[[], dict[str, dict[str, int]]]) -> list[Mark]:
        """Wait until every client is live, every command has its end, and every event was handed over; then let all
        show what they have."""
        await self._moderators.end()
        await self.until(lambda: all(one.live for one in self.installations), SETTLE_S)
        until = asyncio.get_running_loop().time() + SETTLE_S
        while any(one.open for one in self.installations) and asyncio.get_running_loop().time() < until:
            await self._show()
        wanted = await asyncio.to_thread(heads)
        await self.until(lambda: all(self._has_all(one, wanted[one.user]) for one in self.installations), SETTLE_S)
        for app in self._apps:
            for installation in app.installations:
                for conversation in installation.last:
                    app.tell(installation, "read", conversation=conversation)
        until = asyncio.get_running_loop().time() + AGREE_S
        await self._show()
        while not self._agree() and asyncio.get_running_loop().time() < until:
            await self._show()
        return []

    async def _show(self) -> None:
        for app in self._apps:
            for installation in app.installations:
                installation.shown = False
                app.tell(installation, "show")
        await self.until(lambda: all(one.shown for one in self.installations), SHOWN_S)
        await asyncio.sleep(0.5)

    def _agree(self) -> bool:
        first: dict[str, Installation] = {}
        pairs = [(first.setdefault(one.user, one), one) for one in self.installations]
        online = all(all(one.online.values()) for one in self.installations)
        return online and all(one.reads == other.reads and one.state == other.state for one, other in pairs)

    @staticmethod
    def _has_all(installation: Installation, heads: dict[str, int]) -> bool:
        """A copied store may lack what the other client has acked in the name of both."""
        return installation.copied or all(installation.last.get(name, 0) >= head for name, head in heads.items())

    def progress(self) -> str:
        live, waiting = sum(one.live for one in self.installations), sum(len(one.open) for one in self.installations)
        acked, handed = sum(one.acked for one in self.installations), sum(one.handed for one in self.installations)
        count = len(self.installations)
        return f"{live}/{count} live  {acked} acked  {waiting} waiting  {handed} handed  {self.done} of clients"

    async def stop(self) -> None:
        for app in self._apps:
            await app.close()
        self._closing()
        for installation in self.installations:
            installation.close()
