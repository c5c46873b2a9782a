"""G11, user state converges on all of a user's devices: after kills, and after a failover that takes changes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests import support
from tests.flow.client import Event, token
from tests.flow.conftest import Names, Start, System
from tests.flow.resilient import ResilientClient
from tests.replication import REPLICATION, Replication

KEYS = ("draft/a", "draft/b", "pin/c", "x")


class StateDevice(ResilientClient):
    """A device that keeps its user's state by the rules for client authors."""

    def __init__(self, user: str, urls: Sequence[str], device: str, api: httpx.AsyncClient) -> None:
        super().__init__(user, urls, device, "msgpack" if device == "laptop" else "json")
        self.api = api
        self.keys: dict[str, Any] = {}
        self.version = 0
        self.fetches = 0
        self._applied = 0

    async def catch_up(self) -> None:
        """Apply the events that came since the last call, and ask for what they do not tell."""
        while self._applied < len(self.events):
            event = self.events[self._applied]
            self._applied += 1
            if event["type"] == "welcome":
                await self._compare(event["state"])
            elif event["type"] == "state" and "key" not in event:
                await self._compare(event["version"])
            elif event["type"] == "state" and event["version"] > self.version:
                await self._change(event)

    async def _compare(self, version: int) -> None:
        if version != self.version:
            await self._fetch(self.version if version > self.version else 0)

    async def _change(self, event: Event) -> None:
        if event["prev"] == self.version:
            self._set(event)
            self.version = event["version"]
        else:
            await self._fetch(self.version if event["prev"] > self.version else 0)

    async def _fetch(self, after: int) -> None:
        self.fetches += 1
        cursor, first = "", True
        while first or cursor:
            path = f"/v1/state?after={after}&cursor={cursor}&limit=2"
            answer = await self.api.get(path, headers={"Authorization": f"Bearer {token(self.user)}"})
            if answer.status_code == 503:
                continue
            page = answer.raise_for_status().json()
            if page["reset"] or (first and after == 0):
                self.keys.clear()
            for entry in page["entries"]:
                self._set(entry)
            self.version, cursor, first = page["version"], page["cursor"], False

    def _set(self, change: Event) -> None:
        if change["value"] is None:
            self.keys.pop(change["key"], None)
        else:
            self.keys[change["key"]] = change["value"]

    async def put(self, key: str, value: Any) -> Event:
        """Write a key until it is answered."""

        async def attempt() -> Event:
            await self.ready.wait()
            try:
                answer = await self.ask("state", key=key, value=value)
            except ConnectionClosed:
                return {}
            return {} if "retry_after" in answer else answer

        answer = await support.eventually(attempt)
        assert answer["type"] == "state", answer
        return answer


def api_of(system: System) -> httpx.AsyncClient:
    assert system.router is not None
    return httpx.AsyncClient(base_url=system.router.url, trust_env=False, timeout=30)


async def truth(system: System, user: str) -> tuple[dict[str, Any], int]:
    page = await system.api("GET", "/v1/state?limit=1000", user=user)
    return {one["key"]: one["value"] for one in page["entries"] if one["value"] is not None}, page["version"]


async def converge(system: System, devices: Sequence[StateDevice]) -> None:
    """Wait until every device has what the server has."""

    async def equal() -> bool:
        for device in devices:
            await device.catch_up()
        keys, version = await truth(system, devices[0].user)
        return all((device.keys, device.version) == (keys, version) for device in devices)

    await support.eventually(equal)


def no_version_twice(devices: Sequence[StateDevice]) -> None:
    """No two changes that any device received have one version."""
    changes: dict[int, tuple[str, Any]] = {}
    for device in devices:
        for event in device.events:
            if event["type"] == "state" and "key" in event:
                change = (event["key"], event["value"])
                assert changes.setdefault(event["version"], change) == change


async def test_g11_user_state_converges_after_gateways_and_redis_are_killed(start: Start) -> None:
    """Three devices write the same keys. A gateway is killed, and Redis; every answered change is kept."""
    system = await start(gateways=3)
    async with api_of(system) as api:
        devices = [StateDevice("ann", system.urls, name, api) for name in ("phone", "laptop", "tablet")]
        for at, device in enumerate(devices):
            await device.stay(at)
        answered: list[Event] = []

        async def write(device: StateDevice) -> None:
            for number in range(60):
                value = None if number % 7 == 6 else f"{device.device} {number}"
                answered.append(await device.put(KEYS[number % len(KEYS)], value))

        async def wait_for(number: int) -> None:
            await support.eventually(lambda: len(answered) >= number, 60)

        writing = [asyncio.create_task(write(device)) for device in devices]
        await wait_for(20)
        system.gateways[0].kill()
        await wait_for(60)
        system.valkey.kill()
        system.valkey.start()
        await wait_for(100)
        system.gateways[1].kill()
        await asyncio.gather(*writing)
        await converge(system, devices)
        no_version_twice(devices)
        keys, version = await truth(system, "ann")
        assert version >= max(event["version"] for event in answered)
        last = {event["key"]: event for event in sorted(answered, key=lambda event: event["version"])}
        for key, event in last.items():
            listed = await system.api("GET", f"/v1/state?prefix={key}", user="ann")
            (entry,) = (one for one in listed["entries"] if one["key"] == key)
            assert entry["version"] >= event["version"], "an answered change was lost"
            if entry["version"] == event["version"]:
                assert keys.get(key) == event["value"]


async def test_device_that_was_away_receives_only_what_changed(chat: System, names: Names) -> None:
    """Removals too. A user without state has version 0."""
    (ann,) = names("ann")
    async with api_of(chat) as api:
        phone, laptop = (StateDevice(ann, chat.urls, name, api) for name in ("phone", "laptop"))
        for device in (phone, laptop):
            await device.stay(0)
        assert phone.welcome["state"] == 0
        for number in range(5):
            await phone.put(f"k/{number}", number)
        await converge(chat, [phone, laptop])
        assert laptop.fetches == 0
        await laptop.end()
        await phone.put("k/0", None)
        await phone.put("k/1", "new")
        await laptop.stay(1)
        await converge(chat, [phone, laptop])
        assert laptop.keys == {"k/1": "new", "k/2": 2, "k/3": 3, "k/4": 4}
        assert laptop.fetches == 1


@pytest.fixture
def replication(tmp_path: Path) -> Iterator[Replication]:
    made = Replication(tmp_path / "replication")
    yield made
    made.close()


async def test_g11_user_state_converges_after_a_failover_that_takes_changes_back(
    replication: Replication, start: Start
) -> None:
    """At `memory` a failover may lose answered changes. Devices that have them lose them too: one that stays connected,
    though nothing is written any more; one that reconnects; and one that comes after others have written again."""
    await replication.start()
    system = await start(
        LINNET_REDIS_URL=replication.url,
        LINNET_REDIS_MODE="sentinel",
        LINNET_DURABILITY="memory",
        LINNET_REPLICAS="2",
    )
    async with api_of(system) as api:
        stays, returns, late = devices = [StateDevice("ann", system.urls, name, api) for name in ("a", "b", "c")]
        for at, device in enumerate(devices):
            await device.stay(at % 2)
        await stays.put("draft/a", "kept")
        await stays.put("gone", "kept")
        first = replication.primary
        with first.client() as redis:
            assert redis.wait(2, 40_000) == 2
            replication.forbid(first, *REPLICATION)
            redis.client_kill_filter(_type="replica")
        for key, value in (("draft/a", "lost"), ("draft/b", "lost"), ("gone", None)):
            lost = await stays.put(key, value)
        for device in devices:
            await device.event("state", version=lost["version"])
            await device.catch_up()
            assert device.keys == {"draft/a": "lost", "draft/b": "lost"}
        await late.end()
        first.kill()
        await replication.replaced(first)
        await converge(system, [stays])
        assert stays.keys == {"draft/a": "kept", "gone": "kept"}
        returns.abort()
        await support.eventually(lambda: len(returns.partings) > 0)
        await converge(system, [stays, returns])
        new = await stays.put("draft/c", "new")
        assert new["version"] > lost["version"]
        await late.stay(0)
        await converge(system, devices)
        assert late.keys == {"draft/a": "kept", "gone": "kept", "draft/c": "new"}
        no_version_twice(devices)
