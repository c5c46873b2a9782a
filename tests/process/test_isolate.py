"""router/process/isolate.py: a round goes on, whatever some of its entries raise."""

from __future__ import annotations

import logging

import pytest

from router.contract import metrics
from router.process import isolate


def test_a_raising_entry_costs_itself_only(caplog: pytest.LogCaptureFixture) -> None:
    """The entries behind it have their turn; every fault is counted, and one trace of a part is logged."""
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
