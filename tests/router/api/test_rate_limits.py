"""Rates by key: burst, recovery, and the bound on keys."""

import pytest

from router.api import rate_limits as limits
from router.api.rate_limits import Limiter
from router.contract.errors import RateLimited


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_burst_is_followed_by_one_at_a_time() -> None:
    """The refusal has the time to wait and counts nothing; another key has its own rate."""
    clock = Clock()
    limiter = Limiter(2.0, 3, clock)
    for _ in range(3):
        limiter.spend("a")
    for _ in range(5):
        with pytest.raises(RateLimited) as refusal:
            limiter.spend("a")
        assert refusal.value.retry_after == 2.0
    limiter.spend("b")
    clock.now = 2.0
    limiter.spend("a")
    with pytest.raises(RateLimited):
        limiter.spend("a")


def test_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key whose rate has recovered is removed; a flood of keys evicts the ones seen longest ago."""
    monkeypatch.setattr(limits, "SIZE", 10)
    clock = Clock()
    limiter = Limiter(1.0, 1, clock)
    for i in range(100):
        limiter.spend(str(i))
    assert len(limiter) == 10
    with pytest.raises(RateLimited):
        limiter.spend("99")
    limiter.spend("0")
    clock.now = 1.0
    limiter.spend("new")
    assert len(limiter) == 1
