"""router/contract/clocks.py: this node's clock and Redis's, as far as an answer proves."""

from router.contract.clocks import AGREE_MS, Clocks

NOW = 1_700_000_000_000
DAY_MS = 86_400_000


def clocks(redis_ms: int, asked: float = 10.0, answered: float = 10.0, now: float = 10.0) -> Clocks:
    made = Clocks(lambda: now)
    made.heard(redis_ms, asked, answered)
    return made


def test_clocks_agree_until_redis_has_said_otherwise() -> None:
    """Before that there is one clock."""
    assert Clocks().moments(NOW) == (NOW,)
    assert Clocks().offset_ms(NOW) == 0


def test_a_small_difference_is_none() -> None:
    """This node's clock counts alone."""
    for offset in (0, AGREE_MS - 10, 10 - AGREE_MS):
        assert clocks(NOW - offset).moments(NOW) == (NOW,)


def test_a_clock_that_is_off_shows_both_moments() -> None:
    """Whichever way it is off, the second is Redis's time."""
    for offset in (-DAY_MS, DAY_MS):
        found = clocks(NOW - offset)
        own, redis = found.moments(NOW)
        assert own == NOW
        assert abs(redis - (NOW - offset)) <= 1
        assert abs(found.offset_ms(NOW) - offset) <= 1


def test_a_slow_answer_proves_no_difference_within_its_time() -> None:
    """What was asked 60 s ago may have been read at any moment since."""
    for late_ms in (0, 30_000, 60_000):
        assert clocks(NOW - late_ms, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) == 0
    assert clocks(NOW - 90_000, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) in (29_999, 30_000)
    assert clocks(NOW + 30_000, asked=10.0, answered=70.0, now=70.0).offset_ms(NOW) in (-30_000, -29_999)


def test_redis_time_goes_on_between_answers() -> None:
    """By the monotonic clock, so that a step of this node's clock shows at once."""
    found = clocks(NOW, now=100.0)
    assert found.moments(NOW + 90_000) == (NOW + 90_000,)
    own, redis = found.moments(NOW + 90_000 - DAY_MS)
    assert redis - own in range(DAY_MS - 1, DAY_MS + 2)
