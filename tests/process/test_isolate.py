"""router/process/isolate.py: if entries of a round raise, the round goes on."""

from __future__ import annotations

import logging

import pytest

from router.contract import metrics
from router.process import isolate


def test_entry_that_raises_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """The later entries are processed; every exception is counted, and one traceback of a part is logged."""
    done: list[int] = []

    def act(entry: int) -> None:
        if entry % 2:
            raise RuntimeError(f"{entry} is odd")
        done.append(entry)

    errors = metrics.ROUND_ERRORS.labels("a test's")
    before = errors._value.get()
    with caplog.at_level(logging.ERROR, "linnet.isolate"):
        isolate.each("a test's", act, range(6))
        assert not isolate.attempt("a test's", lambda: act(7))
        assert isolate.attempt("a test's", lambda: act(8))
    assert done == [0, 2, 4, 8]
    assert errors._value.get() == before + 4
    assert [record.exc_info is not None for record in caplog.records] == [True]
