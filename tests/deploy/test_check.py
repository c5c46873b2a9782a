"""How `make deploy-check` reports the results of its checks."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from deploy import check
from deploy.manifests import ROOT

LOADED = """
import importlib.metadata, json, sys
import deploy.slots, gateway.__main__, loadtest.__main__, router.__main__
owners = importlib.metadata.packages_distributions()
packages = {one for name in sys.modules for one in owners.get(name.partition(".")[0], ())}
print(json.dumps([[name for name in sys.modules if name.startswith("deploy.")], sorted(packages)]))
"""


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


@pytest.mark.processes
def test_image_has_all_that_its_programs_import() -> None:
    """Of deploy/ it has single files, and of the packages only those of its lock."""
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    modules, packages = json.loads(done.stdout)
    files = {f"{name.replace('.', '/')}.py" for name in modules}
    copies = re.compile(r"^COPY (deploy/__init__.py .*) deploy/$", re.MULTILINE)
    (copied,) = copies.findall((ROOT / "deploy/Dockerfile").read_text())
    assert files <= set(copied.split())
    assert {f"!{file}" for file in copied.split()} <= set((ROOT / ".dockerignore").read_text().splitlines())
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "deploy/requirements-image.txt").read_text(), re.MULTILINE))
    assert {re.sub("[._]", "-", name.lower()) for name in packages} <= locked
