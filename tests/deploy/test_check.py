"""How `make deploy-check` reports the results of its checks."""

from __future__ import annotations

import pytest

from deploy import check


def passing() -> str:
    return "all of it"


def failing() -> str:
    return check.tool("false")


def skipping() -> str:
    return check.tool("no-such-tool")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECKS", {"one": passing, "two": skipping, "three": failing, "four": passing})


@pytest.mark.usefixtures("checks")
@pytest.mark.processes
def test_failure_fails_the_run_but_not_the_checks_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 1
    outcomes = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert outcomes == [["one", "ok"], ["two", "skipped"], ["three", "FAILED"], ["four", "ok"]]


@pytest.mark.usefixtures("checks")
def test_check_that_cannot_run_gives_its_reason_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["one", "two"]) == 0
    assert "no-such-tool is not installed here" in capsys.readouterr().out


@pytest.mark.processes
def test_failed_tool_is_quoted() -> None:
    """The output of the tool, on either stream, is the reason."""
    with pytest.raises(check.Failed, match=r"out\nerr"):
        check.tool("sh", "-c", "echo out; echo err >&2; exit 3")
