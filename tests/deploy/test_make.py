"""The Makefile on machines that lack a requirement: it prints one line with the remedy and leaves nothing half made."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture
def checkout(starts_processes: None, tmp_path: Path) -> Path:
    """The part of a fresh clone that `make` reads before it has a .venv."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "Makefile", tmp_path)
    for lock in (ROOT / "deploy").glob("requirements*.txt"):
        shutil.copy(lock, tmp_path / "deploy")
    return tmp_path


def refusal(checkout: Path, python: str | Path, **env: str) -> str:
    """Return the output of a failed `make up`."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_"))}
    done = subprocess.run(
        ["make", "up", f"PYTHON={python}"],
        cwd=checkout,
        env={**outer, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def stand_in(checkout: Path, script: str) -> Path:
    """An interpreter that lacks one feature."""
    python = checkout / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


def test_no_python(checkout: Path) -> None:
    """The line names the packages to install."""
    assert refusal(checkout, "no-such-python").endswith("apt-get install python3 python3-venv")


def test_python_too_old(checkout: Path) -> None:
    """The line names the version found and the version needed."""
    python = stand_in(checkout, 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    assert "Python 3.9.2 is too old, 3.11 is needed" in refusal(checkout, python)


def test_python_without_venv(checkout: Path) -> None:
    """Debian packages venv separately."""
    python = stand_in(checkout, f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac')
    assert refusal(checkout, python).endswith("apt-get install python3-venv")


def test_no_package_index(checkout: Path) -> None:
    """The line says that the index cannot be reached, and pip's own output is kept."""
    line = refusal(checkout, sys.executable, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0")
    assert "cannot install deploy/requirements.txt: anyio==" in line
    assert "the package index cannot be reached" in line
    assert (checkout / ".venv" / "pip.log").read_text()


def test_wheel_that_is_not_the_locked_one(checkout: Path) -> None:
    """A file with another hash than the lock's is not installed, and pip's reason is printed."""
    (checkout / "deploy" / "requirements.txt").write_text(f"linnet-test==1 --hash=sha256:{'0' * 64}\n")
    wheel = checkout / "linnet_test-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("linnet_test-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: linnet-test\nVersion: 1\n")
        file.writestr("linnet_test-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("linnet_test-1.dist-info/RECORD", "")
    line = refusal(checkout, sys.executable, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(checkout))
    assert "DO NOT MATCH THE HASHES" in line
