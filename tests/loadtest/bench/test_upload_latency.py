"""Messages beside uploads of hostile pictures: a small run against a real deployment."""

from loadtest.bench import report, upload_latency
from loadtest.bench.upload_latency import CALM, COMPUTES, Options


def test_messages_beside_uploads_are_measured_and_every_upload_is_answered(starts_processes: None) -> None:
    result = upload_latency.measure(Options(pairs=4, rate=40, seconds=0.5, rounds=1, users=(1,)))
    assert result.good, upload_latency.table(result)
    phases = {one.name: one for one in report.shown(result)}
    assert phases.keys() == {CALM, "uploads of 1", COMPUTES}
    assert all(one.units == 20 and one.delivery_us for one in phases.values())
    assert sum(result.notes.values()) > 0
