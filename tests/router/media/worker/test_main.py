"""The template process: what a child of a job has of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from router.media.worker import __main__ as worker
from router.media.worker.job import Failure, PictureJob, decode_answer
from tests.router.media.worker.test_sandbox import CPU_S, MEMORY, resident
from tests.support import ROOT


@pytest.mark.processes
def test_child_cannot_speak_to_the_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its files, but not the socket on which the next job comes and answers are sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (tmp_path / "picture").write_bytes(b"x")

    def work(_: object, files: list[object]) -> Failure:
        with suppress(OSError):  # the number may be that of another file by now
            os.write(theirs.fileno(), b"an answer to the next job")
        return Failure("unreadable", f"{len(files)} file")

    monkeypatch.setattr(worker, "work", work)
    with ours, theirs, (tmp_path / "picture").open("rb") as file:
        bounds = MEMORY + resident(), CPU_S
        ended = worker.run(PictureJob("image/png"), [file.fileno()], bounds, theirs.fileno(), filtered=False)
        assert decode_answer(ended.answer) == Failure("unreadable", "1 file")
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(99)


@pytest.mark.processes
def test_worker_ends_quietly_if_its_router_has_died() -> None:
    """In the log of a router that was killed, a trace would look like a fault of the router."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        command = [sys.executable, "-m", "router.media.worker", str(theirs.fileno()), str(MEMORY), str(CPU_S)]
        done = subprocess.run(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], capture_output=True, check=False, timeout=60
        )
    assert (done.returncode, done.stderr) == (0, b"")
