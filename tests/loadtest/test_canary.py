"""The canary: it notices each fault in what its users receive, and it works on a real deployment."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter

from deploy.embedded import EmbeddedValkey, tied
from loadtest import canary
from loadtest.api import Api
from loadtest.canary import FORGOTTEN_S, LATE_S, LOST_S, Flight, Flights, Ledger, names_over, share_of, sweep
from loadtest.chaos.device import Device
from loadtest.chaos.proof.history import Acked, Closed, Entry, Gap, Known, Received, Refused, Welcomed
from router.contract import keys
from router.contract.tags import NUMBERED
from tests.conftest import StartProcess
from tests.support import SERVER_KEY, begin_deployment, eventually, free_ports, http_get

TALK = "g:talk"


def value(metric: Counter) -> float:
    return float(metric._value.get())


def observed() -> float:
    (found,) = canary.DELIVERY_SECONDS.collect()
    return sum(sample.value for sample in found.samples if sample.name.endswith("_count"))


class Clock:
    """The time that the ledgers see."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class Users:
    """Two users with their ledgers, a clock, and the earlier values of the counters."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.flights: Flights = {}
        self.ann, self.bob = (Ledger(user, self.flights, self.clock.time) for user in ("ann", "bob"))
        for ledger in (self.ann, self.bob):
            self.connect(ledger)
        self._before = {name: value(metric) for name, metric in self.metrics().items()}

    @staticmethod
    def metrics() -> dict[str, Counter]:
        return {"lost": canary.LOST, "late": canary.LATE, "again": canary.DUPLICATED, "order": canary.REORDERED}

    def counted(self) -> dict[str, float]:
        now = {name: value(metric) - self._before[name] for name, metric in self.metrics().items()}
        return {name: count for name, count in now.items() if count}

    def connect(self, ledger: Ledger, cursor: int = 0) -> None:
        ledger.add(Welcomed(0, "ws://one", "node", "session", None, [Known(TALK, cursor, cursor, 0)]))

    def sent(self, n: int, *, acked: bool = True) -> None:
        self.flights["ann", n] = Flight(self.clock.now, {"ann", "bob"})
        if acked:
            self.ann.add(Acked(0, TALK, n, n, False))

    def given(self, ledger: Ledger, seq: int, n: int = 0) -> None:
        event = Entry(seq, seq - 1, seq, 0, "message", "ann", "phone", n or seq, 0, "")
        ledger.add(Received(0, TALK, event))

    def later(self, seconds: float) -> None:
        """Advance the clock and sweep."""
        self.clock.now += seconds
        sweep(self.flights, {"ann": self.ann, "bob": self.bob}, self.clock.now)


@pytest.fixture
def users() -> Users:
    return Users()


def test_message_that_every_receiver_has_is_forgotten(users: Users) -> None:
    """If every receiver has the message, only its delivery time is counted."""
    before = observed()
    for n in (1, 2):
        users.sent(n)
        for ledger in (users.ann, users.bob):
            users.given(ledger, n)
    users.later(LOST_S + 1)
    assert (users.counted(), users.flights, observed() - before) == ({}, {}, 4)


def test_message_missing_after_seconds_counts_as_late(users: Users) -> None:
    """A connected receiver lacks the message after a few seconds: it counts as late once, however late it then
    arrives."""
    users.sent(1)
    users.given(users.ann, 1)
    users.later(LATE_S + 1)
    users.later(1)
    assert users.counted() == {"late": 1}
    users.given(users.bob, 1)
    users.later(LOST_S)
    assert (users.counted(), users.flights) == ({"late": 1}, {})


def test_message_that_never_arrives_counts_as_lost(users: Users) -> None:
    """The message never reaches a receiver that was connected all the time."""
    users.sent(1)
    users.given(users.ann, 1)
    users.later(LOST_S + 1)
    users.later(LOST_S + 1)
    assert (users.counted(), users.flights) == ({"late": 1, "lost": 1}, {})


def test_offline_receiver_counts_as_neither_late_nor_lost(users: Users) -> None:
    """The canary waits for a receiver that is offline, and gives it time to receive everything."""
    users.bob.add(Closed(0, 1012, "", False))
    users.sent(1)
    users.given(users.ann, 1)
    users.later(LOST_S + 1)
    users.connect(users.bob)
    users.later(LOST_S - 1)
    assert users.counted() == {}
    users.later(2)
    assert users.counted() == {"lost": 1}


def test_unacked_message_may_be_lost(users: Users) -> None:
    """A send that was never acked is not expected anywhere, and is forgotten."""
    users.sent(1, acked=False)
    users.later(LOST_S + 1)
    assert users.flights
    users.later(FORGOTTEN_S)
    assert (users.counted(), users.flights) == ({}, {})


def test_event_received_twice_counts_as_duplicated(users: Users) -> None:
    """The same event arrives twice."""
    users.given(users.bob, 1)
    users.given(users.bob, 1)
    assert users.counted() == {"again": 1}


def test_n_stored_at_two_seqs_counts_as_duplicated(users: Users) -> None:
    """The same n is stored at two seqs: a resend made a second event."""
    users.given(users.bob, 1)
    users.given(users.bob, 2, n=1)
    assert users.counted() == {"again": 1}


def test_earlier_event_after_a_later_one_counts_as_reordered(users: Users) -> None:
    """An earlier event arrives after a later one."""
    for seq in (1, 3, 2):
        users.given(users.bob, seq)
    assert users.counted() == {"order": 1}


def test_replay_of_a_new_session_is_no_duplicate(users: Users) -> None:
    """A reconnected user receives again what the server does not know it has."""
    users.given(users.bob, 1)
    users.bob.add(Closed(0, 1006, "", False))
    users.connect(users.bob)
    users.given(users.bob, 1)
    assert users.counted() == {}


def test_gaps_errors_and_closes_are_counted(users: Users) -> None:
    """They are counted by reason, code and close code; closes by the canary itself are not."""
    gap, refused, closed = (
        canary.GAPS.labels("failover"),
        canary.REFUSED.labels("conflict"),
        canary.CLOSES.labels("1006"),
    )
    before = [value(metric) for metric in (gap, refused, closed)]
    users.bob.add(Gap(0, TALK, 1, 2, "failover"))
    users.bob.add(Refused(0, 1, "conflict", True))
    for ours in (True, False):
        users.bob.add(Closed(0, 1006, "", ours))
    assert [value(metric) for metric in (gap, refused, closed)] == [count + 1 for count in before]


async def test_canary_loses_nothing_on_a_real_deployment(
    valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """With two gateways and a router, all messages arrive; SIGTERM ends the canary; it finds its groups again. The
    deployment has the tags of earlier releases, of which the canary must be told."""
    begin_deployment(valkey, NUMBERED)
    router = process("router", LINNET_REDIS_URL=valkey.url)
    gateways = [process("gateway", LINNET_REDIS_URL=valkey.url) for _ in range(2)]
    await asyncio.gather(router.ready(), *(gateway.ready() for gateway in gateways))
    (tmp_path / "key").write_text(SERVER_KEY + "\n")
    (port,) = free_ports(1)

    async def metric(name: str) -> float:
        _, text = await http_get(port, "/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split()[0] == name)

    async def writes() -> None:
        command = [sys.executable, "-m", "loadtest", "canary", "--api", router.url, "--listen", f"127.0.0.1:{port}"]
        one = await asyncio.create_subprocess_exec(
            *tied(
                *command,
                "--users",
                "4",
                "--every",
                "0.05",
                "--shards",
                "3",
                "--numbered-tags",
                "--target",
                *(gateway.url for gateway in gateways),
            ),
            env={"PATH": "", "LINNET_SERVER_KEY_FILE": str(tmp_path / "key")},
            cwd=Path(__file__).parent.parent.parent,
        )
        try:
            await eventually(lambda: metric("linnet_canary_delivery_seconds_count"), 40, every_s=0.1)
            await eventually(lambda: _reaches(metric, 60), 40, every_s=0.1)
            assert await metric("linnet_canary_gateways") == 2
            for fault in ("lost", "duplicated", "reordered"):  # a busy machine may be late
                assert await metric(f"linnet_canary_{fault}_total") == 0
        finally:
            one.terminate()
        assert await asyncio.wait_for(one.wait(), 30) == 0

    await writes()
    await writes()
    with valkey.client() as client:
        found = [share_of(key.decode(), 3) for key in client.scan_iter(match="{c*}:conv:g:*")]
        assert sorted(found) == [0, 1, 2], "a group in each range of slots, and none twice"


def test_users_are_in_all_ranges_of_slots() -> None:
    """Without a cluster, the names are those of earlier versions."""
    assert names_over(1, 3) == ["canary-0", "canary-1", "canary-2"]
    names = names_over(3, 7)
    assert [share_of(keys.user(name), 3) for name in names] == [0, 1, 2, 0, 1, 2, 0]
    assert len(set(names)) == 7


async def _reaches(metric: object, count: int) -> bool:
    assert callable(metric)
    return bool(await metric("linnet_canary_received_total") >= count)


async def test_device_that_raises_keeps_neither_the_others_nor_the_sweep_from_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A canary that stopped looking would report that nothing is lost."""
    probe = canary.Canary(["ws://127.0.0.1:1/ws"], Api("http://127.0.0.1:1", SERVER_KEY, ""), 3, 1.0)
    ticked: list[str] = []

    def tick(device: Device) -> None:
        if device is probe.devices[0]:
            raise RuntimeError("broken")
        ticked.append(device.user)

    monkeypatch.setattr(Device, "tick", tick)
    probe._flights["canary-0", 1] = Flight(0.0, {"canary-1"}, acked=True)
    probe.ledgers["canary-1"].connected_at = 0.1
    before = value(canary.LOST)
    probe.turn(LOST_S + 1)
    assert ticked == ["canary-1", "canary-2"]
    assert value(canary.LOST) == before + 1
