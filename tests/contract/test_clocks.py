"""router/contract/clocks.py: the time of this node, and of Redis as far as a reading proves it."""

from router.contract.clocks import AGREE_MS, Clocks

NOW = 1_700_000_000_000
DAY_MS = 86_400_000


def clocks(redis_ms: int, asked: float = 10.0, answered: float = 10.0, now: float = 10.0) -> Clocks:
    made = Clocks(lambda: now)
    made.received(redis_ms, asked, answered)
    return made


def test_clocks_agree_before_the_first_reading() -> None:
    """Only this node's time is known then."""
    assert Clocks().moments(NOW) == (NOW,)
    assert Clocks().offset_ms(NOW) == 0


def test_small_difference_of_clocks_is_ignored() -> None:
    """Only this node's time counts."""
    for offset in (0, AGREE_MS - 10, 10 - AGREE_MS):
        assert clocks(NOW - offset).moments(NOW) == (NOW,)


def test_wrong_clock_yields_both_moments() -> None:
    """Whether the node's clock is ahead or behind, the second moment is Redis's time."""
    for offset in (-DAY_MS, DAY_MS):
        found = clocks(NOW - offset)
        own, redis = found.moments(NOW)
        assert own == NOW
        assert abs(redis - (NOW - offset)) <= 1
        assert abs(found.offset_ms(NOW) - offset) <= 1


def test_slow_reading_proves_no_difference_within_its_duration() -> None:
    """Redis may have read its clock at any moment of the 60 s that the reading took."""
    for late_ms in (0, 30_000, 60_000):
        assert clocks(NOW - late_ms, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) == 0
    assert clocks(NOW - 90_000, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) in (29_999, 30_000)
    assert clocks(NOW + 30_000, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) in (-30_000, -29_999)


def test_redis_time_advances_between_readings() -> None:
    """The monotonic clock advances it, so a step of this node's clock is noticed at once."""
    found = clocks(NOW, now=100.0)
    assert found.moments(NOW + 90_000) == (NOW + 90_000,)
    own, redis = found.moments(NOW + 90_000 - DAY_MS)
    assert redis - own in range(DAY_MS - 1, DAY_MS + 2)
