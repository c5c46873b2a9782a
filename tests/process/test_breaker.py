"""router/process/breaker.py, with a clock that the test moves."""

from __future__ import annotations

import pytest

from router.process.breaker import PROBE_S, SAME_USER_S, Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for user in ("ann", "bob", "eve"):
        breaker.missing(user)
    return breaker


def test_missing_answers_of_one_or_two_users_do_not_open_it(clock: Clock) -> None:
    breaker = Breaker(clock)
    for _ in range(100):
        breaker.missing("eve")
        breaker.missing("mallory")
    assert not breaker.open
    assert breaker.permits("ann")


def test_missing_answers_of_three_users_open_it(clock: Clock) -> None:
    breaker = opened(clock)
    assert breaker.open
    assert not breaker.permits("ann")


def test_an_answer_between_missing_ones_keeps_it_closed(clock: Clock) -> None:
    breaker = Breaker(clock)
    for user in ("ann", "bob", "eve", "dan", "fay"):
        breaker.missing(user)
        breaker.answered()
    assert not breaker.open


def test_open_breaker_lets_one_probe_a_second_through(clock: Clock) -> None:
    breaker = opened(clock)
    for second in range(5):
        clock.now_s += PROBE_S
        permitted = [user for user in ("u1", "u2", "u3") if breaker.permits(f"{user}-{second}")]
        assert permitted == ["u1"]
        breaker.missing(f"u1-{second}")


def test_answer_to_a_probe_closes_it(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now_s += PROBE_S
    assert breaker.permits("ann")
    breaker.answered()
    assert not breaker.open
    assert all(breaker.permits(user) for user in ("ann", "bob", "eve"))


def test_user_whose_probe_has_no_answer_leaves_the_next_one_to_another(clock: Clock) -> None:
    """So a user whose text the other server cannot answer does not keep it open."""
    breaker = opened(clock)
    clock.now_s += PROBE_S
    assert breaker.permits("mallory")
    breaker.missing("mallory")
    clock.now_s += PROBE_S
    assert not breaker.permits("mallory")
    assert breaker.permits("ann")


def test_only_user_is_a_probe_again_after_a_while(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now_s += PROBE_S
    assert breaker.permits("ann")
    breaker.missing("ann")
    clock.now_s += SAME_USER_S
    assert breaker.permits("ann")
