"""What the workers of one run agree on: a test with the mark `alone` runs while no other test does.

And the second try that `make test` gives a test: it must not hide a fault that is always there.
"""

import fcntl
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests import conftest
from tests.support import ROOT


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


class Tried:
    """A run of pytest over these files, with the hooks of this project and the second try of `make test`."""

    def __init__(self, folder: Path, **files: str) -> None:
        (folder / "conftest.py").write_text("from tests.conftest import pytest_pyfunc_call, pytest_runtest_protocol\n")
        for name, text in files.items():
            (folder / f"test_{name}.py").write_text("import pytest\n" + textwrap.dedent(text))
        options = re.findall(r"^SECOND_TRY = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", *options[0].split(), folder],
            cwd=folder,
            env={"PATH": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.code = run.returncode
        self.named = self._in_summary(run.stdout, "RERUN")
        self.failed = self._in_summary(run.stdout, "FAILED|ERROR")
        self.count = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", run.stdout.splitlines()[-1])}

    @staticmethod
    def _in_summary(out: str, words: str) -> list[str]:
        return sorted(set(re.findall(rf"^(?:{words}) .*::(\w+)", out, re.MULTILINE)))


@pytest.mark.processes
def test_second_try_hides_no_failure_that_is_always_there(tmp_path: Path) -> None:
    tried = Tried(
        tmp_path,
        chance="""
            @pytest.fixture(scope="module")
            def shared(): yield "shared"
            async def test_steady(shared): assert shared
            async def test_by_chance(shared, tmp_path, tmp_path_factory):
                before = tmp_path_factory.getbasetemp() / "before"
                if not before.exists():
                    before.touch()
                    raise AssertionError("the first time")
                assert shared and tmp_path.exists()
        """,
        module_setup="""
            @pytest.fixture(scope="module")
            def broken(): assert False
            def test_module_setup(broken): pass
        """,
        module_teardown="""
            @pytest.fixture(scope="module")
            def broken(): yield; assert False
            def test_module_teardown(broken): pass
        """,
        teardown="""
            @pytest.fixture
            def broken(): yield; assert False
            def test_teardown(broken): pass
        """,
        always="""
            async def test_always(): assert False
        """,
    )
    always = ["test_always", "test_module_setup", "test_module_teardown", "test_teardown"]
    assert tried.failed == always
    assert tried.named == [always[0], "test_by_chance", *always[1:]]
    assert tried.code == 1


@pytest.mark.processes
def test_run_with_a_second_try_passes_and_names_the_test(tmp_path: Path) -> None:
    tried = Tried(
        tmp_path,
        chance="""
            tries = []
            def test_by_chance():
                tries.append(1)
                assert len(tries) == 2
        """,
    )
    assert (tried.code, tried.named, tried.failed) == (0, ["test_by_chance"], [])


@pytest.mark.processes
def test_many_failures_are_not_all_tried_twice(tmp_path: Path) -> None:
    tried = Tried(
        tmp_path,
        always="""
            @pytest.mark.parametrize("n", range(9))
            def test_always(n): assert False
        """,
    )
    assert (tried.code, tried.count["failed"], tried.count["rerun"]) == (1, 9, 5)
