"""The router's side of the worker processes: starts them, gives them jobs, replaces those that end.

Invariants
- At most `count` jobs run and WAITING wait; further ones are `Unavailable` at once.
- A job ends within its `Bounds`: the kernel bounds a child's memory and CPU, and this class kills the process of a job
  that takes longer on the clock. The same happens to a job whose caller was cancelled.
- Only memory and CPU are the file's fault. A job that took its CPU time too slowly ran on a busy machine, and may be
  tried again.
- A worker gets an empty environment and open files, never a path, a secret or a setting. What it answers is decoded
  into the types of `worker.job`, so that no other value gets out of it.
- A process is started at the first job that needs one. It ends with this process, because its socket closes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final, Literal

from msgspec import DecodeError, MsgspecError, Struct

from router.contract import metrics
from router.contract.errors import TooLarge, Unavailable
from router.media.turns import RETRY_S, Turns
from router.media.types import Unreadable
from router.media.worker.job import Answer, Ended, Failure, Job, PictureJob, decode_answer, decode_ended, encode

START_S: Final = 60.0
MESSAGE_BYTES: Final = 8192
ROOT: Final = Path(__file__).parents[2]

Reason = Literal["memory", "cpu", "crash"]

log = logging.getLogger("linnet.media")


class Bounds(Struct, frozen=True):
    """Of one job: address space, CPU time, and time on the clock, which passes faster on a busy machine."""

    memory_bytes: int = 512 * 1024 * 1024
    cpu_s: int = 10
    wall_s: float = 120.0


class Killed(TooLarge):
    """The worker hit its bound of memory or CPU time with this file, or died of it."""


class Lost(Exception):
    """The worker process itself ended, or never became ready."""


class Worker:
    """One template process, for one job at a time."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    async def start(cls, bounds: Bounds) -> Worker:
        """Start a process and wait until it is ready; `Lost` if it ends before or takes too long."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-B", "-m", "router.media.worker"),
                *map(str, (theirs.fileno(), bounds.memory_bytes, bounds.cpu_s)),
                cwd=ROOT,
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = cls(process, ours)
        try:
            async with asyncio.timeout(START_S):
                ready = await worker._receive()
        except (TimeoutError, OSError):
            worker.kill()
            raise Lost from None
        except BaseException:
            worker.kill()
            raise
        if ready != b"ready":
            log.warning("the picture worker runs %s: only its memory, CPU and files are bounded", ready[7:].decode())
        return worker

    async def do(self, job: Job, files: list[int]) -> Ended:
        try:
            socket.send_fds(self._control, [encode(job)], files)
            return decode_ended(await self._receive())
        except (OSError, DecodeError):
            raise Lost from None

    async def _receive(self) -> bytes:
        message = await asyncio.get_running_loop().sock_recv(self._control, MESSAGE_BYTES)
        if not message:
            raise Lost
        return message

    def kill(self) -> None:
        """End the process and the child of its job."""
        self._control.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def gone(self) -> bool:
        return self._process.returncode is not None

    async def ended(self) -> None:
        await self._process.wait()


class Workers:
    """`count` workers; `close` it at the end."""

    def __init__(self, count: int, bounds: Bounds | None = None) -> None:
        self._turns = Turns(count, metrics.MEDIA_WAITING.labels("worker"))
        self._idle: list[Worker] = []
        self._killed: list[Worker] = []  # whose end is not noted yet
        self._bounds = bounds or Bounds()

    async def do(self, job: Job, files: list[int]) -> Answer:
        """Do a job; raise `Unreadable`, `TooLarge` (`Killed` at a bound) or `Unavailable`; never return a `Failure`.

        The open files are the caller's, who closes them.
        """
        name = "picture" if isinstance(job, PictureJob) else "recording"
        async with self._turns.turn():
            start = monotonic()
            result = "unavailable"
            try:
                answer = await self._in_worker(job, files)
                result = answer.cause if isinstance(answer, Failure) else "ok"
            except Killed:
                result = "killed"
                raise
            finally:
                metrics.MEDIA_WORK_SECONDS.labels(name, result).observe(monotonic() - start)
        if not isinstance(answer, Failure):
            return answer
        if answer.cause == "unreadable":
            raise Unreadable(answer.why)
        if answer.cause == "memory":
            raise killed("memory", answer.why)
        raise TooLarge(answer.why)

    async def _in_worker(self, job: Job, files: list[int]) -> Answer:
        worker = None
        try:
            worker = self._idle.pop() if self._idle else await Worker.start(self._bounds)
            async with asyncio.timeout(self._bounds.wall_s):
                ended = await worker.do(job, files)
        except TimeoutError:
            self._retire(worker)
            metrics.MEDIA_WORKER_KILLS.labels("time").inc()
            raise Unavailable("this router is too busy to read the file: try again", RETRY_S) from None
        except Lost:
            self._retire(worker)
            metrics.MEDIA_WORKER_KILLS.labels("lost").inc()
            raise Unavailable("the worker for pictures ended: try again", RETRY_S) from None
        except BaseException:
            self._retire(worker)
            raise
        self._idle.append(worker)
        return _answer(ended)

    def _retire(self, worker: Worker | None) -> None:
        """Kill a worker in the middle of a job; the next job gets a new one."""
        if worker is not None:
            worker.kill()
            self._killed = [other for other in self._killed if not other.gone] + [worker]

    async def close(self) -> None:
        """End all processes. No job may be running."""
        for worker in self._idle:
            worker.kill()
        for worker in self._idle + self._killed:
            await worker.ended()
        self._idle.clear()
        self._killed.clear()


def _answer(ended: Ended) -> Answer:
    if ended.signal == signal.SIGXCPU:
        raise killed("cpu", "the file takes too long to read")
    if ended.signal == signal.SIGKILL:  # the kernel had to free memory
        raise killed("memory", "the file needs too much memory")
    try:
        answer: Answer = decode_answer(ended.answer)
    except (MsgspecError, ValueError):
        raise killed("crash", "the file cannot be read") from None
    return answer


def killed(reason: Reason, why: str) -> Killed:
    """Count a job that hit a bound."""
    metrics.MEDIA_WORKER_KILLS.labels(reason).inc()
    return Killed(why)
