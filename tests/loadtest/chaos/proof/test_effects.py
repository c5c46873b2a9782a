"""The figures of the table of failures: which effects count for a fault, and which a device caused itself."""

from __future__ import annotations

from loadtest.chaos.proof.effects import effects_of_faults
from loadtest.chaos.proof.evidence import Evidence, Fault, Run
from loadtest.chaos.proof.history import Acked, Closed, Entry, Left, Paused, Received, Refused, Rows, Sent, Welcomed

RUN = Run(seed=0, seconds=1, level="fsync", drain_window_s=1, rss_limit_bytes=1)


def sent(at: int, n: int) -> Sent:
    return Sent(at, "g:x", n, "send", 0, "", 1)


def received(stamp: int, at: int) -> Received:
    return Received(at, "g:x", Entry(1, 0, 1, stamp, "message", "ann", "phone", 1, 0, ""))


def line(*rows: Rows) -> list[str]:
    """Return the words of the line about one fault, from 100 to 102 s."""
    history: list[Rows] = [Welcomed(1_000, "ws://one", "node", "session", {}, []), *rows]
    _, told = effects_of_faults(
        Evidence(RUN, {}, {"ann/phone": history}, [Fault("gateway-kill", "", 100_000, 102_000)])
    )
    return told.replace("/", " ").split()


def test_effects_of_a_fault_are_counted() -> None:
    """Closes, refusals, and the times to an ack and to a delivery count."""
    told = line(
        sent(100_100, 1), Refused(100_200, 1, "unavailable", False), Acked(101_600, "g:x", 1, 5, False),
        received(100_000, 103_200), Closed(103_300, 1006, "", False),
    )  # fmt: skip
    assert told == ["gateway-kill", "1", "2.0s", "1", "1", "1.5", "1.5s", "3.2", "3.2s", "1", "×", "1006"]


def test_effects_of_other_causes_are_not_counted() -> None:
    """Not counted: what was over before or began long after, and waits of a device that slept or went offline."""
    told = line(
        sent(90_000, 1), Acked(99_000, "g:x", 1, 5, False), received(90_000, 99_000),
        sent(108_000, 2), Acked(109_000, "g:x", 2, 6, False), received(108_000, 109_000),
        Paused(110_000, True), received(101_000, 115_000), Paused(115_000, False),
        sent(121_000, 3), Left(121_400), Closed(121_500, 1000, "", True), Acked(130_000, "g:x", 3, 7, False),
    )  # fmt: skip
    assert told == ["gateway-kill", "1", "2.0s", "0", "0", "0.0", "0.0s", "0.0", "0.0s"]
