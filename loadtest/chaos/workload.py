"""The people of a chaos run: to whom they write and what, when they are offline, which devices read slowly, who is
watched.

One seeded generator decides all of it, at a modest rate, with the devices of `device.py`. `settle` ends the run: all
devices connect and wait until every command is answered and every event received, or until a deadline. The checker then
decides whether that was enough.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt

from loadtest.api import Api
from loadtest.chaos.cluster import Cluster
from loadtest.chaos.device import Device
from loadtest.chaos.moderators import Moderators
from loadtest.chaos.proof.evidence import Mark, stored_pairs, stored_state
from loadtest.chaos.proof.history import Writer, now_ms
from loadtest.chaos.relations import Relations

SLICES: Final = 10
PEERS: Final = 3
GROUP_OF: Final = 10
LARGE_GROUP: Final = 60
WATCHERS: Final = 10
WATCHED: Final = 20
SETTLE_S: Final = 90.0
TOKEN_S: Final = 30
STATE_USERS: Final = 40
STATE_KEYS: Final = 8
STATE_PAGE: Final = 3  # small, so that pages follow each other
RELATED: Final = 20
MEMBERS_EVERY_S: Final = 1.0
# After lease, heartbeat, grace period and some time for a busy machine, presence is right.
PRESENCE_S: Final = 25.0


class Person:
    """A user: the devices, and the `targets` of their messages (as the command names them)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.devices: list[Device] = []
        self.targets: list[str] = []


class Workload:
    def __init__(self, cluster: Cluster, folder: Path, seed: int, users: int) -> None:
        self.rng = random.Random(seed)
        self.people = [Person(f"u{number:03}") for number in range(users)]
        self.devices: list[Device] = []
        self.late: list[Device] = []
        self.writers: list[Writer] = []
        self._cluster = cluster
        self._folder = folder
        self._group_members: dict[str, list[Person]] = {}  # group -> its first members; the first one owns it
        self._tasks: list[asyncio.Task[None]] = []
        self._lives: list[asyncio.Task[None]] = []
        self._timers: list[asyncio.TimerHandle] = []
        (folder / "histories").mkdir()
        for person in self.people:
            self._add(person, "phone", folder)
            if self.rng.random() < 0.4:
                self._add(person, "laptop", folder, late=self.rng.random() < 0.4)

    def _add(self, person: Person, name: str, folder: Path, *, late: bool = False) -> None:
        writer = Writer(folder / "histories" / f"{person.name}_{name}.jsonl")
        self.writers.append(writer)
        device = Device(
            person.name,
            name,
            self.rng.choice(("json", "msgpack")),
            self._cluster.urls,
            self._token,
            writer,
            random.Random(self.rng.random()),
            small=self.rng.random() < 0.1,
            forgetful=0.2 if self.rng.random() < 0.2 else 0.02,
            fetch_state=self._fetch_state,
        )
        device.renews = self.rng.random() < 0.8
        person.devices.append(device)
        (self.late if late else self.devices).append(device)

    def _token(self, user: str) -> str:
        """Return a new token of short validity, so that every run contains renewals. Every other user has tokens of the
        identity provider."""
        claims = {"sub": user, "exp": int(time.time()) + TOKEN_S}
        if int(user[1:]) % 2:
            return self._cluster.key_set.token(claims)
        return jwt.encode(claims, self._cluster.jwt_secret, algorithm="HS256")

    async def _fetch_state(self, user: str, after: int, cursor: str) -> dict[str, Any]:
        path = f"/state?after={after}&cursor={cursor}&limit={STATE_PAGE}"
        router = self._api(random.randrange(2))  # not the seeded generator: when calls come is not seeded
        page: dict[str, Any] = await asyncio.to_thread(router.call, "GET", path, None, user)
        return page

    # -- start

    async def gather(self) -> None:
        """Connect all devices except the late ones, create the groups, and start the watches."""
        for device in self.devices:
            self._begin(device)
        self._tasks.append(asyncio.create_task(self._tick()))
        if not await self.until(lambda: all(device.ready for device in self.devices), SETTLE_S):
            raise RuntimeError("not all devices could connect before the first fault")
        await self._groups()
        for person in self.people:
            others = [other.name for other in self.people if other is not person]
            person.targets += [f"@{other}" for other in self.rng.sample(others, PEERS)]
        pairs = {(person.name, self.rng.choice(person.targets[-PEERS:])[1:]) for person in self.people[:RELATED]}
        pairs = {(min(pair), max(pair)) for pair in pairs}
        rng = random.Random(self.rng.random())
        self._relations = Relations(lambda: self._api(rng.randrange(2)), rng, sorted(pairs), self._folder)
        for device in self._watchers():
            device.watch([person.name for person in self.rng.sample(self.people, min(WATCHED, len(self.people)))])

    def _begin(self, device: Device) -> None:
        self._lives.append(asyncio.create_task(device.run()))
        device.go_online()

    def _begin_late(self, device: Device) -> None:
        self.devices.append(device)
        self._begin(device)

    async def _groups(self) -> None:
        rounds = [self.rng.sample(self.people, len(self.people)) for _ in range(2)]
        groups = [some[start : start + GROUP_OF] for some in rounds for start in range(0, len(some), GROUP_OF)]
        groups.append(self.rng.sample(self.people, min(LARGE_GROUP, len(self.people))))
        for members in groups:
            group = await asyncio.to_thread(self._api(0).group, [person.name for person in members])
            self._group_members[group] = members
            for person in members:
                person.targets.append(group)
        named = {group: [person.name for person in members] for group, members in self._group_members.items()}
        rng = random.Random(self.rng.random())
        self._moderators = Moderators(lambda: self._api(rng.randrange(2)), rng, named, self._ban)

    def _ban(self, group: str, user: str) -> None:
        """Stop the writing of a user in this conversation, because the user will be banned from it."""
        person = next(person for person in self.people if person.name == user)
        if group in person.targets:
            person.targets.remove(group)

    def _api(self, router: int) -> Api:
        return Api(self._cluster.routers[router].url, self._cluster.server_key, self._cluster.jwt_secret)

    def _watchers(self) -> list[Device]:
        return [person.devices[0] for person in self.people[:WATCHERS]]

    # -- run

    async def run(self, seconds: float, rate: float, _every_s: float) -> None:
        """Let all people act for so many seconds."""
        tasks = [
            asyncio.create_task(self._every(1 / rate, self._speak)),
            asyncio.create_task(self._every(0.1, self._read)),
            asyncio.create_task(self._every(0.1, self._put)),
            asyncio.create_task(self._every(0.5, self._leave)),
            asyncio.create_task(self._every(1.0, self._stall)),
            asyncio.create_task(self._come_and_go()),
            asyncio.create_task(self._moderators.run()),
            asyncio.create_task(self._relations.run()),
        ]
        for device in self.late:
            asyncio.get_running_loop().call_later(self.rng.uniform(0.1, 0.9) * seconds, self._begin_late, device)
        try:
            await asyncio.sleep(seconds)
        finally:
            for task in tasks:
                task.cancel()
            for timer in self._timers:
                timer.cancel()

    async def _come_and_go(self) -> None:
        """Add and remove members of groups; the backend does not learn the outcome while routers are down."""
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / MEMBERS_EVERY_S))
            group = self.rng.choice(list(self._group_members))
            person = self.rng.choice([*self._group_members[group][1:], *self.rng.sample(self.people, GROUP_OF // 2)])
            path, inside = f"/conversations/{group}/members/{person.name}", group in person.targets
            if inside:
                person.targets.remove(group)
            elif person is not self._group_members[group][0]:
                person.targets.append(group)
            method, body = ("DELETE", None) if inside else ("PUT", {"role": "member"})
            with suppress(OSError, HTTPException):
                await asyncio.to_thread(self._api(self.rng.randrange(2)).call, method, path, body)

    async def _every(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` at random times with this mean interval; catch up to one second of delay of a busy machine."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self.rng.expovariate(1 / seconds), loop.time() - 1.0)
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            act()

    def _speak(self) -> None:
        person = self.rng.choice(self.people)
        device, kind = self.rng.choice(person.devices), self.rng.random()
        if kind < 0.9:
            device.message(self.rng.choice(person.targets), self._body())
        elif device.mine and kind < 0.96:
            conversation, seq = self.rng.choice(device.mine)
            if kind < 0.94:
                device.act("edit", conversation, seq, body=self._body())
            else:
                device.act("delete", conversation, seq)
        elif device.recent:
            conversation, seq = self.rng.choice(device.recent)
            device.act("react", conversation, seq, emoji="👍", remove=False)

    def _body(self) -> Any:
        """Return a body, now and then with everything that a body may contain."""
        text = "".join(
            self.rng.choices('abcdefghij klmnop – äöü 漢字 🙂\n"\\', k=int(self.rng.expovariate(1 / 60)) + 1)
        )
        if self.rng.random() < 0.9:
            return text
        odd = {
            "text": text,
            "float": self.rng.random() * 1e9,
            "none": None,
            "list": [True, {"bytes": self.rng.randbytes(20)}],
        }
        return odd if self.rng.random() < 0.7 else {"long": (text * self.rng.randint(10, 400))[:20_000]}

    def _read(self) -> None:
        device = self.rng.choice(self.devices)
        if device.last:
            device.read(self.rng.choice(list(device.last)))

    def _put(self) -> None:
        """Write a key of the state of one of a few users, so that their devices do so at once."""
        person = self.rng.choice(self.people[:STATE_USERS])
        value = None if self.rng.random() < 0.2 else {"text": self._body(), "n": self.rng.random()}
        key = f"draft/{self.rng.randrange(STATE_KEYS)}"
        if value is None or len(str(value)) < 1000:
            self.rng.choice(person.devices).put(key, value)

    def _leave(self) -> None:
        device = self.rng.choice(self.devices)
        device.go_offline(politely=self.rng.random() < 0.5)
        self._later(self.rng.choice((0.0, 1.0, 5.0, 40.0)) * self.rng.random(), device.go_online)

    def _stall(self) -> None:
        device = self.rng.choice(self.devices)
        device.stop_reading()
        self._later(self.rng.uniform(1, 20), device.resume_reading)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call `act` later, unless the run settles before."""
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act))

    async def _tick(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(1 / SLICES)
            number = (number + 1) % SLICES
            for device in self.devices[number::SLICES]:
                device.tick()

    # -- end

    async def until(self, reached: Callable[[], bool], deadline_s: float) -> bool:
        until = asyncio.get_running_loop().time() + deadline_s
        while not reached():
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(0.1)
        return True

    async def settle(self, heads: Callable[[], dict[str, dict[str, int]]]) -> list[Mark]:
        """Connect all devices and wait until they have received everything; `heads`: by user and conversation, from the
        store."""
        await asyncio.gather(self._moderators.end(), self._relations.end())
        for device in self.devices:
            device.resume_reading()
            device.go_online()
            device.renews = True  # no token may expire while presence is judged
        await self.until(lambda: all(device.ready and not device.waiting for device in self.devices), SETTLE_S)
        wanted = await asyncio.to_thread(heads)
        await self.until(lambda: all(self._has_all(device, wanted[device.user]) for device in self.devices), SETTLE_S)
        until = asyncio.get_running_loop().time() + SETTLE_S
        while asyncio.get_running_loop().time() < until:
            if await asyncio.to_thread(self._pairs_agree):
                break
            await asyncio.sleep(0.5)
        versions = await asyncio.to_thread(self._state_versions)
        await self.until(
            lambda: all(device.user_state.version == versions[device.user] for device in self.devices), SETTLE_S
        )
        for device in self.devices:
            device.record_state()
        await self.until(lambda: all(_agree(person) for person in self.people), PRESENCE_S)
        return [await self._settled([]), await self._settled(self.people[WATCHERS:][::2])]

    @staticmethod
    def _has_all(device: Device, heads: dict[str, int]) -> bool:
        return all(
            max(device.last.get(conversation, 0), device.announced.get(conversation, 0)) >= head
            for conversation, head in heads.items()
        )

    def _state_versions(self) -> dict[str, int]:
        """Return, by user, the version of the user's state in the store."""
        with self._cluster.store.client() as client:
            return {person.name: stored_state(client, person.name).version for person in self.people}

    def _pairs_agree(self) -> bool:
        with self._cluster.store.client() as client:
            return all(pair.record == pair.copies for pair in stored_pairs(client))

    async def _settled(self, leaving: list[Person]) -> Mark:
        """Wait until the watchers see the right presence, or until a deadline; return that moment."""
        for person in leaving:
            for device in person.devices:
                device.go_offline(politely=self.rng.random() < 0.5)
        gone = {person.name for person in leaving}
        await self.until(lambda: all(_sees_truth(device, gone) for device in self._watchers()), PRESENCE_S)
        present = [person.name for person in self.people if person.name not in gone]
        return Mark(now_ms(), present, sorted(gone))

    def progress(self) -> str:
        connected, waiting = sum(one.ready for one in self.devices), sum(len(one.waiting) for one in self.devices)
        acked, received = sum(one.acked for one in self.devices), sum(one.received for one in self.devices)
        return f"{connected}/{len(self.devices)} connected  {acked} acked  {waiting} waiting  {received} received"

    async def stop(self) -> None:
        for device in self.devices:
            device.stop()
        await asyncio.wait(self._lives, timeout=10)
        for task in (*self._lives, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._lives, *self._tasks, return_exceptions=True)
        self.flush()

    def flush(self) -> None:
        for writer in self.writers:
            writer.flush()


def _agree(person: Person) -> bool:
    return all(device.read_up_to == person.devices[0].read_up_to for device in person.devices)


def _sees_truth(device: Device, gone: set[str]) -> bool:
    return device.ready and all(online is (user not in gone) for user, online in device.seen.items())
