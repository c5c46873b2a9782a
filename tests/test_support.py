"""The helpers must be able to fail: a test that passes while its loop complains proves nothing."""

import asyncio
from typing import NoReturn

import pytest

from tests import support


def test_run_returns_the_result() -> None:
    """The coroutine's own value comes back."""

    async def main() -> int:
        return 7

    assert support.run(main()) == 7


def test_run_fails_on_an_unawaited_task_that_raised() -> None:
    """A task that raised unseen fails the test that started it."""

    async def dies() -> NoReturn:
        raise ValueError("unseen")

    async def main() -> None:
        await asyncio.wait([asyncio.ensure_future(dies())])

    with pytest.raises(AssertionError, match="unseen"):
        support.run(main())


def test_run_fails_on_a_callback_that_raised() -> None:
    """Its exception has no other way to the test."""

    async def main() -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.call_soon([].pop)
        loop.call_soon(done.set)
        await done.wait()

    with pytest.raises(AssertionError, match="pop from empty list"):
        support.run(main())


def test_run_has_a_deadline() -> None:
    """A test that hangs ends."""
    with pytest.raises(TimeoutError):
        support.run(asyncio.Event().wait(), deadline_s=0.01)


async def test_eventually_waits_and_gives_up() -> None:
    """It returns the first true value of a plain or async predicate; at its deadline it raises with the last value."""
    values = iter([0, None, "there"])
    assert await support.eventually(lambda: next(values)) == "there"

    async def never() -> bool:
        raise AssertionError("not even close")

    with pytest.raises(AssertionError, match=r"(?s)never.*→.*not even close"):
        await support.eventually(never, 0.01)


def test_free_ports_differ() -> None:
    """Of many ports none is returned twice."""
    assert len(set(support.free_ports(50))) == 50
