"""What code in a sealed child can do: nothing but compute and use the files it was given."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from router.media.worker import sandbox

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not sandbox.filters(), reason="the kernel has no seccomp, or the machine is unknown"),
]

MEMORY, CPU_S = 400 << 20, 2


def sealed(act: Callable[[], object]) -> tuple[int, str]:
    """Do something in a sealed child; return the signal that ended it, and the name of what it raised."""
    reading, writing = os.pipe()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        text = ""
        try:
            sandbox.seal(parent, MEMORY + resident(), CPU_S, filtered=True)
            act()
        except Exception as error:  # noqa: BLE001 - its name is the result
            text = type(error).__name__
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), text


def resident() -> int:
    """Return the address space that the test's own process takes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


FORBIDDEN: dict[str, Callable[[], object]] = {
    "read a file": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "read its own environment": lambda: os.open("/proc/self/environ", os.O_RDONLY),
    "write a file": lambda: os.open("/tmp/linnet-sandbox", os.O_WRONLY | os.O_CREAT),
    "delete a file": lambda: os.unlink("/tmp/linnet-sandbox"),
    "list a folder": lambda: os.listdir("/"),
    "open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a socket of Unix": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "start a process": lambda: subprocess.Popen((sys.executable, "-c", "")),
    "fork": os.fork,
    "start a thread": lambda: threading.Thread(target=int).start(),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "become another user": lambda: os.setuid(65_534),
    "raise its own bounds": lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)),
    "sleep": lambda: signal.sigtimedwait({signal.SIGUSR1}, 0.01),
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_sealed_child_cannot(deed: str) -> None:
    died, raised = sealed(FORBIDDEN[deed])
    assert died == 0
    # Python has other types for a thread that cannot start and a bound that cannot be set.
    assert raised in ("PermissionError", "RuntimeError", "ValueError")


def test_sealed_child_cannot_read_another_process() -> None:
    """Also not by calls that Python has no function for."""
    libc = ctypes.CDLL(None, use_errno=True)

    def attach() -> None:
        if libc.ptrace(16, os.getppid(), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    assert sealed(attach) == (0, "PermissionError")


def test_sealed_child_has_the_files_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"hello")
    with (tmp_path / "in").open("rb") as given, (tmp_path / "out").open("wb", buffering=0) as out:
        assert sealed(lambda: out.write(given.read().upper())) == (0, "")
    assert (tmp_path / "out").read_bytes() == b"HELLO"


def test_memory_of_a_sealed_child_is_bounded() -> None:
    assert sealed(lambda: bytearray(MEMORY // 4)) == (0, "")
    assert sealed(lambda: bytearray(2 * MEMORY)) == (0, "MemoryError")


def test_cpu_time_of_a_sealed_child_is_bounded() -> None:
    def spin() -> None:
        while True:
            pass

    assert sealed(spin)[0] == signal.SIGXCPU


def test_written_files_of_a_sealed_child_are_bounded(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as out:
        out.seek(sandbox.FILE_BYTES - 1)
        assert sealed(lambda: (out.write(b"x"), out.write(b"x"))) == (0, "OSError")


def test_child_that_the_kernel_does_not_filter_any_more_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends before its work, because its parent has said that children are filtered."""
    monkeypatch.setattr(sandbox, "_filter", lambda: False)
    reading, writing = os.pipe()
    parent = os.getpid()
    if (child := os.fork()) == 0:
        sandbox.seal(parent, MEMORY + resident(), CPU_S, filtered=True)
        os.write(writing, b"unsealed")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
