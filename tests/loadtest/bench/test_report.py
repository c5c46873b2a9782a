"""Reports: a table, JSON, a self-contained page and pictures."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadtest.bench import report
from loadtest.load.client import Failures
from loadtest.load.results import Measurement, Result, Sample, encoded, measure
from loadtest.meters import Reading


def measured(name: str, cpu_s: float, units: int = 1000, latencies: tuple[int, ...] = (1000,)) -> Measurement:
    sample = Sample(units // 2, 1.0, 0.5, encoded(latencies), encoded(()))
    before = {"gateway": Reading(5.0, 1000), "redis": Reading(1.0, 10)}
    after = {"gateway": Reading(5.0 + cpu_s, 3000), "redis": Reading(1.0, 10)}
    return measure(name, "message", [sample, sample], before, after)


def result(*measurements: Measurement, failures: Failures | None = None) -> Result:
    return Result(
        "fanout", {"members": 2}, "today", "here", list(measurements), failures or Failures(), {"a note": 1.0}
    )


def test_failure_makes_a_result_bad_and_shows_in_the_table() -> None:
    bad = result(measured("x", 0.1), failures=Failures(lost=3))
    assert not bad.good
    assert "WRONG: lost 3" in report.table(bad)
    assert "nothing lost" in report.table(result(measured("x", 0.1)))


def test_results_survive_json_and_become_a_self_contained_page(tmp_path: Path) -> None:
    whole = [result(measured("a & b", 0.1), measured("warm-up", 9.0))]
    report.write_json(whole, tmp_path / "r.json")
    assert report.read_json(tmp_path / "r.json") == whole
    report.write_html(whole, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "<svg" in page
    assert "a &amp; b" in page
    assert "warm-up" not in page
    assert "src=" not in page
    assert "https://" not in page.replace('xmlns:xlink="http', "")


def test_pictures_are_self_contained_and_only_of_existing_data(tmp_path: Path) -> None:
    """A README's plots, of the phases of any number of runs; small enough to be kept beside it."""
    growth = [measured(name.format(size), 0.01) for size in (10, 1000) for name in ("{} members", "floor, {} members")]
    connects = [msgspec.structs.replace(measured(f"connect to {n}", 0.1), unit="connect") for n in (1, 2)]
    runs = [("growth", growth), ("idle", connects), ("direct", [measured("direct, 2000/s", 0.1)])]
    whole = [msgspec.structs.replace(result(*phases), scenario=name) for name, phases in runs]
    report.write_pictures(whole, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"groups", "memory", "latency"}
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert text.startswith("<svg")
        assert len(text) < 60_000
        assert "<script" not in text
    report.write_pictures(whole[1:2], tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["memory.svg"]
