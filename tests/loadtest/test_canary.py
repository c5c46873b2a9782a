"""The canary: it finds each fault in what its users are given, and sings on a real deployment."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter

from deploy.embedded import EmbeddedValkey, tied
from loadtest import canary
from loadtest.canary import FORGOTTEN_S, LATE_S, LOST_S, Flight, Flights, Ledger, sweep
from loadtest.chaos.proof.history import Acked, Closed, Entry, Gap, Known, Received, Refused, Welcomed
from tests.conftest import StartProcess
from tests.support import SERVER_KEY, eventually, free_ports, http_get

TALK = "g:talk"


def value(metric: Counter) -> float:
    return float(metric._value.get())


def observed() -> float:
    (found,) = canary.DELIVERY_SECONDS.collect()
    return sum(sample.value for sample in found.samples if sample.name.endswith("_count"))


class Clock:
    """Time, as the ledgers see it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class Aviary:
    """Two users with their ledgers, a clock, and what the counters said before."""

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
        """Time passes, and the ledgers are looked through."""
        self.clock.now += seconds
        sweep(self.flights, {"ann": self.ann, "bob": self.bob}, self.clock.now)


@pytest.fixture
def aviary() -> Aviary:
    return Aviary()


def test_what_everybody_has_is_forgotten(aviary: Aviary) -> None:
    """All is well: nothing is counted but the time that it took."""
    before = observed()
    for n in (1, 2):
        aviary.sent(n)
        for ledger in (aviary.ann, aviary.bob):
            aviary.given(ledger, n)
    aviary.later(LOST_S + 1)
    assert (aviary.counted(), aviary.flights, observed() - before) == ({}, {}, 4)


def test_late(aviary: Aviary) -> None:
    """A connected receiver does not have it after a few seconds: counted once, however late it then comes."""
    aviary.sent(1)
    aviary.given(aviary.ann, 1)
    aviary.later(LATE_S + 1)
    aviary.later(1)
    assert aviary.counted() == {"late": 1}
    aviary.given(aviary.bob, 1)
    aviary.later(LOST_S)
    assert (aviary.counted(), aviary.flights) == ({"late": 1}, {})


def test_lost(aviary: Aviary) -> None:
    """It never comes to a receiver that was there all the time."""
    aviary.sent(1)
    aviary.given(aviary.ann, 1)
    aviary.later(LOST_S + 1)
    aviary.later(LOST_S + 1)
    assert (aviary.counted(), aviary.flights) == ({"late": 1, "lost": 1}, {})


def test_who_is_away_misses_nothing(aviary: Aviary) -> None:
    """A receiver that is not connected is waited for, and given the time to be told everything."""
    aviary.bob.add(Closed(0, 1012, "", False))
    aviary.sent(1)
    aviary.given(aviary.ann, 1)
    aviary.later(LOST_S + 1)
    aviary.connect(aviary.bob)
    aviary.later(LOST_S - 1)
    assert aviary.counted() == {}
    aviary.later(2)
    assert aviary.counted() == {"lost": 1}


def test_what_is_not_acked_may_be_lost(aviary: Aviary) -> None:
    """A send that was never accepted owes nobody anything, and is not kept for ever."""
    aviary.sent(1, acked=False)
    aviary.later(LOST_S + 1)
    assert aviary.flights
    aviary.later(FORGOTTEN_S)
    assert (aviary.counted(), aviary.flights) == ({}, {})


def test_duplicated_in_a_session(aviary: Aviary) -> None:
    """The same event twice."""
    aviary.given(aviary.bob, 1)
    aviary.given(aviary.bob, 1)
    assert aviary.counted() == {"again": 1}


def test_duplicated_in_the_log(aviary: Aviary) -> None:
    """The same n in two places: a resend that made a second event."""
    aviary.given(aviary.bob, 1)
    aviary.given(aviary.bob, 2, n=1)
    assert aviary.counted() == {"again": 1}


def test_reordered(aviary: Aviary) -> None:
    """An earlier event after a later one."""
    for seq in (1, 3, 2):
        aviary.given(aviary.bob, seq)
    assert aviary.counted() == {"order": 1}


def test_replay_of_a_new_session_is_no_duplicate(aviary: Aviary) -> None:
    """Who comes back is given what the server does not know it has."""
    aviary.given(aviary.bob, 1)
    aviary.bob.add(Closed(0, 1006, "", False))
    aviary.connect(aviary.bob)
    aviary.given(aviary.bob, 1)
    assert aviary.counted() == {}


def test_gaps_errors_and_closes_are_counted(aviary: Aviary) -> None:
    """By reason, code and close code; what the canary ends itself is not."""
    gap, refused, closed = (
        canary.GAPS.labels("failover"),
        canary.REFUSED.labels("conflict"),
        canary.CLOSES.labels("1006"),
    )
    before = [value(metric) for metric in (gap, refused, closed)]
    aviary.bob.add(Gap(0, TALK, 1, 2, "failover"))
    aviary.bob.add(Refused(0, 1, "conflict", True))
    for ours in (True, False):
        aviary.bob.add(Closed(0, 1006, "", ours))
    assert [value(metric) for metric in (gap, refused, closed)] == [count + 1 for count in before]


async def test_sings_on_a_real_deployment(valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path) -> None:
    """Two gateways and a router: messages go everywhere, none is lost; SIGTERM ends it; it finds its group again."""
    router = process("router", LINNET_REDIS_URL=valkey.url)
    gateways = [process("gateway", LINNET_REDIS_URL=valkey.url) for _ in range(2)]
    await asyncio.gather(router.ready(), *(gateway.ready() for gateway in gateways))
    (tmp_path / "key").write_text(SERVER_KEY + "\n")
    (port,) = free_ports(1)

    async def metric(name: str) -> float:
        _, text = await http_get(port, "/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.split("{")[0].split()[0] == name)

    async def sings() -> None:
        command = [sys.executable, "-m", "loadtest", "canary", "--api", router.url, "--listen", f"127.0.0.1:{port}"]
        one = await asyncio.create_subprocess_exec(
            *tied(*command, "--users", "4", "--every", "0.05", "--target", *(gateway.url for gateway in gateways)),
            env={"PATH": "", "LINNET_SERVER_KEY_FILE": str(tmp_path / "key")},
            cwd=Path(__file__).parent.parent.parent,
        )
        try:
            await eventually(lambda: metric("linnet_canary_delivery_seconds_count"), 40, every_s=0.1)
            await eventually(lambda: _reaches(metric, 60), 40, every_s=0.1)
            assert await metric("linnet_canary_gateways") == 2
            for fault in ("lost", "duplicated", "reordered"):  # late is what a busy machine may be
                assert await metric(f"linnet_canary_{fault}_total") == 0
        finally:
            one.terminate()
        assert await asyncio.wait_for(one.wait(), 10) == 0

    await sings()
    await sings()
    with valkey.client() as client:
        assert len(list(client.scan_iter(match="{c*}:conv:g:*"))) == 1


async def _reaches(metric: object, count: int) -> bool:
    assert callable(metric)
    return bool(await metric("linnet_canary_received_total") >= count)
