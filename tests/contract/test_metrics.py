"""Metrics: Prometheus's rules for names and units, and labels with few values."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.contract import metrics

ROOT = Path(metrics.__file__).parent.parent.parent
METRICS: dict[str, Any] = {
    name: value for name, value in vars(metrics).items() if isinstance(value, Counter | Gauge | Histogram)
}
# A child of another metric here is bound for the hot path and has no declaration of its own.
DECLARED = {name: metric for name, metric in METRICS.items() if not metric._labelvalues}
SUFFIXES = ("_seconds", "_bytes", "_ratio", "_info")
NO_UNITS = (
    r"_(ms|us|ns|milliseconds|microseconds|minutes|hours|days|kb|mb|kib|mib|kilobytes|megabytes|percent|pct)(_|$)"
)
UNBOUNDED = {
    "user",
    "conversation",
    "device",
    "session",
    "channel",
    "address",
    "id",
    "seq",
    "token",
    "url",
    "key",
}

each = pytest.mark.parametrize("metric", DECLARED.values(), ids=DECLARED)


def test_module_declares_metrics() -> None:
    assert len(DECLARED) > 40


@each
def test_metric_names_follow_prometheus(metric: Any) -> None:
    """Snake case, with Linnet's prefix, and without the `_total` that the client library adds to counters."""
    assert re.fullmatch(r"linnet(_[a-z0-9]+)+", metric._name)
    assert not metric._name.endswith(("_total", "_count", "_sum", "_bucket", "_created"))


@each
def test_metric_names_end_with_their_base_unit(metric: Any) -> None:
    """Seconds, bytes, ratios: never milliseconds, kilobytes or percent; every histogram has one."""
    assert not re.search(NO_UNITS, metric._name)
    for suffix in SUFFIXES:
        assert suffix not in metric._name.removesuffix(suffix), metric._name
    if isinstance(metric, Histogram):
        assert metric._name.endswith(("_seconds", "_bytes"))


@each
def test_labels_are_bounded(metric: Any) -> None:
    """No label takes a new value with each user."""
    assert not set(metric._labelnames) & UNBOUNDED
    assert len(metric._labelnames) <= 2 or metric is metrics.BUILD_INFO


@each
def test_every_metric_has_help(metric: Any) -> None:
    assert len(metric._documentation) > 10
    assert not metric._documentation.endswith(".")


def test_buckets_range_from_half_a_millisecond_to_ten_seconds() -> None:
    """The promises are about milliseconds, failures last seconds."""
    for metric in DECLARED.values():
        if isinstance(metric, Histogram):
            bounds = metric._upper_bounds
            assert bounds[0] <= 0.001
            assert bounds[-2] >= 10


def test_every_metric_is_updated() -> None:
    """A metric that no code updates would show a false constant."""
    code = "\n".join(
        path.read_text()
        for folder in ("gateway", "router")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "metrics"
    )
    children = {name: next(key for key, parent in DECLARED.items() if parent._name == child._name)
                for name, child in METRICS.items() if name not in DECLARED}  # fmt: skip
    used = {name for name in METRICS if re.search(rf"\b{name}\b", code)}
    used |= {children[name] for name in used & children.keys()}
    assert METRICS.keys() - used == set()


def test_counters_count_by_one_by_more_and_by_label() -> None:
    """They count as the library's own do, without its checks in every call."""
    registry = CollectorRegistry()
    counter = metrics.Counter("things", "Of a test", ("kind",), registry=registry)
    counter.labels("a").inc()
    counter.labels("a").inc(2)
    counter.labels("b").inc(0.5)
    found = {kind: registry.get_sample_value("things_total", {"kind": kind}) for kind in "ab"}
    assert found == {"a": 3, "b": 0.5}


def test_counts_of_several_threads_are_all_kept() -> None:
    counter, times = metrics.Counter("linnet_test_of_threads", "Calls of threads", registry=CollectorRegistry()), 50_000

    def count() -> None:
        for _ in range(times):
            counter.inc()

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((sample,),) = [family.samples for family in counter.collect()]
    assert sample.value == 4 * times
