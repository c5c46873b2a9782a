"""What the workers of one run agree on: a test with the mark `alone` runs while no other test does."""

import fcntl
from pathlib import Path
from typing import Any

import pytest

from tests import conftest


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(conftest, "LOCK", path)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    return path


class Item:
    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None


def free(lock: Path, how: int) -> bool:
    """Whether another worker would get the lock at once."""
    with lock.open() as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def around(item: Any) -> Any:
    running = conftest.pytest_runtest_protocol(item)
    next(running)
    return running


def test_tests_of_several_workers_run_side_by_side(lock: Path) -> None:
    running = around(Item())
    assert free(lock, fcntl.LOCK_SH)
    assert not free(lock, fcntl.LOCK_EX)
    with pytest.raises(StopIteration):
        running.send(True)
    assert free(lock, fcntl.LOCK_EX)


def test_no_test_runs_beside_one_that_is_alone(lock: Path) -> None:
    running = around(Item("alone"))
    assert not free(lock, fcntl.LOCK_SH)
    with pytest.raises(RuntimeError, match="a hook failed"):
        running.throw(RuntimeError("a hook failed"))
    assert free(lock, fcntl.LOCK_EX)


def test_tests_that_run_alone_come_last_in_their_order() -> None:
    items: list[Any] = [Item("alone"), Item(), Item("alone"), Item()]
    sorted_items = list(items)
    conftest.pytest_collection_modifyitems(sorted_items)
    assert sorted_items == [items[1], items[3], items[0], items[2]]
