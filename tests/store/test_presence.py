"""Presence: the state of a user, computed from leases and device rows."""

from functools import partial

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import LinnetError, Unavailable
from router.contract.wire import PresenceState
from router.store.presence import LEASE_S, Device, Gateway, Presence, state
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import connected, now

NOW = 1_000_000
LIVE = {"node-1": Gateway("ws://1", NOW + 1, 0, 0)}
DEAD = {"node-1": Gateway("ws://1", NOW, 0, 0)}


def device(gateway: str, started: int = 100, seen: int = 0) -> Device:
    return Device("phone", "s", gateway, started, seen)


def test_unknown_users_are_offline_and_were_never_seen() -> None:
    assert state([], LIVE, NOW) == PresenceState(False, None)


def test_user_is_online_with_a_device_on_a_live_gateway() -> None:
    """One such device is enough."""
    assert state([device("node-1")], LIVE, NOW) == PresenceState(True, 100)
    assert state([device("", seen=500), device("node-1")], LIVE, NOW) == PresenceState(True, 500)


def test_sessions_of_a_dead_gateway_are_offline_after_its_lease() -> None:
    """No process writes anything; its users were last seen at the end of the lease."""
    assert state([device("node-1")], DEAD, NOW) == PresenceState(False, NOW)


def test_device_without_a_lease_row_was_last_seen_at_its_start() -> None:
    assert state([device("node-2", started=100, seen=50)], LIVE, NOW) == PresenceState(False, 100)


def test_last_seen_is_the_latest_of_all_devices() -> None:
    assert state([device("", 100, 700), device("", 300, 400)], LIVE, NOW) == PresenceState(False, 700)


@pytest.mark.parametrize("step", [-3_600_000, -90_000, 90_000, 3_600_000])
def test_gateway_that_died_before_a_clock_step_is_dead_after_it(step: int) -> None:
    """Its lease is of another clock; so is its sessions' start, which is never reported in the future."""
    before = NOW - step  # the same moment on the clock before
    gateways = {"node-1": Gateway("ws://1", before + LEASE_S * 1000, 0, 0)}
    dead = state([device("node-1", started=before - 5), device("node-2", started=before - 1)], gateways, NOW)
    assert not dead.online
    assert (dead.last_seen or 0) <= NOW
    gateways = {"node-1": Gateway("ws://1", NOW + LEASE_S * 1000, 0, 0)}
    assert state([device("node-1", started=before)], gateways, NOW).online


class OlderGateway(msgspec.Struct, frozen=True, array_like=True):
    """A row as nodes without `draining` write and read it."""

    url: str
    lease_until: int
    connections: int
    started: int


async def test_older_and_newer_nodes_read_each_others_rows(valkey: EmbeddedValkey) -> None:
    """During a rolling upgrade: without the field a gateway does not drain; older nodes ignore it."""
    async with connected(valkey) as client:
        presence = Presence(client)
        older = msgspec.msgpack.encode(OlderGateway("ws://old", NOW, 1, NOW))
        await client.fetch("HSET", keys.GATEWAYS, "old", older)
        await called(partial(presence.renew, draining=True), "new", "", 0, NOW, NOW)
        assert await presence.gateways() == {
            "old": Gateway("ws://old", NOW, 1, NOW, draining=False),
            "new": Gateway("", NOW + LEASE_S * 1000, 0, NOW, draining=True, rows=keys.ROWS_2),
        }
        row = await client.fetch("HGET", keys.GATEWAYS, "new")
        assert msgspec.msgpack.decode(row, type=OlderGateway).lease_until == NOW + LEASE_S * 1000


async def test_lease_is_renewed_listed_and_removed(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        presence = Presence(client)
        assert await called(presence.renew, "node-1", "ws://one", 3, NOW - 5, NOW) is None
        assert await called(presence.renew, "node-2", "ws://two", 0, NOW, NOW) is None
        await called(presence.renew, "node-1", "ws://one", 4, NOW - 5, NOW + 3000)
        until = NOW + LEASE_S * 1000
        assert await presence.gateways() == {
            "node-1": Gateway("ws://one", until + 3000, 4, NOW - 5, rows=keys.ROWS_2),
            "node-2": Gateway("ws://two", until, 0, NOW, rows=keys.ROWS_2),
        }
        await presence.remove("node-1")
        assert list(await presence.gateways()) == ["node-2"]


async def test_damaged_lease_row_leaves_other_gateways_in_the_list(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        presence = Presence(client)
        await called(presence.renew, "node-1", "ws://one", 3, NOW - 5, NOW)
        for row in (b"", b"junk", msgspec.msgpack.encode([1, 2])):
            await client.fetch("HSET", keys.GATEWAYS, "damaged", row)
            assert list(await presence.gateways()) == ["node-1"]


async def test_presence_follows_sessions(valkey: EmbeddedValkey) -> None:
    """Registered: online; ended: offline since then; the reply is in the requested order."""
    async with connected(valkey) as client:
        users, presence = Users(client), Presence(client)
        for name in ("ann", "bob"):
            who = Sync(user=name, device="phone", session=f"s-{name}", node="node-1", started=100, register=True)
            await called(users.sync, who)
        await called(users.mark_away, "bob", "phone", "s-bob")
        devices = await called(presence.devices, ["bob", "nobody", "ann"])
        seen = devices[0][0].seen
        assert 0 <= await now(client) - seen < 3_600_000
        assert devices == [
            [Device("phone", "s-bob", "", 100, seen)],
            [],
            [Device("phone", "s-ann", "node-1", 100, 0)],
        ]
        lasting = {"node-1": Gateway("ws://1", seen + 1, 0, 0)}
        assert [state(found, lasting, seen) for found in devices] == [
            PresenceState(False, seen),
            PresenceState(False, None),
            PresenceState(True, 100),
        ]
        assert await called(presence.devices, []) == []


async def test_kick_mark_is_no_device(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        users, presence = Users(client), Presence(client)
        who = Sync(user="ann", device="phone", session="s", node="node-1", started=100, register=True)
        await called(users.sync, who)
        await users.kick("ann")
        assert await called(presence.devices, ["ann"]) == [[Device("phone", "s", "node-1", 100, 0)]]


async def test_user_whose_devices_cannot_be_read_costs_the_others_nothing(valkey: EmbeddedValkey) -> None:
    """Whether the user is online is not known then, which is not the same as offline."""
    async with connected(valkey) as client:
        await client.fetch("SET", keys.devices("bob"), "no hash")
        devices = await called(Presence(client).devices, ["ann", "bob"])
        assert devices[0] == []
        assert isinstance(devices[1], LinnetError)
        assert [state(found, LIVE, NOW) for found in devices] == [PresenceState(False, None), PresenceState(None, None)]


async def test_error_of_all_reads_is_the_only_reply(valkey: EmbeddedValkey) -> None:
    """`devices` replies exactly once, also during an outage of Redis."""
    answers: list[object] = []
    async with connected(valkey) as client:
        presence = Presence(client)
    presence.devices(["ann", "bob"], answers.append)
    with pytest.raises(Unavailable):  # calls are answered in their order, so that one has been by now
        await called(presence.renew, "node-1", "ws://one", 0, 0, 0)
    assert [type(value) for value in answers] == [Unavailable]
