"""The conductor starts the load processes, waits for them at barriers, reads the meters there and gathers the results.

It blocks throughout: it has no work while the workers run, and must not use CPU then.
Invariant: meters are read only while every worker waits at a barrier.
"""

from __future__ import annotations

import multiprocessing
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from loadtest.api import Api
from loadtest.limits import raise_file_limit
from loadtest.load.client import Failures
from loadtest.load.process import Scenario, main
from loadtest.load.results import Measurement, Result, measure
from loadtest.load.worker import Plan
from loadtest.meters import LocalProcess, Meter, meters, read_all


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The deployment that is put under load."""

    urls: list[str]
    api: str
    metrics: list[str]
    redis: str = ""
    jwt_secret: str = ""
    server_key: str = ""
    floor: str = ""  # ws:// URL of a floor, for scenarios that compare with it
    floor_pid: int = 0


class LoadFailed(Exception):
    """A load process could not continue; the text says why."""


def run(scenario: Scenario, options: Any, target: Target, workers: int = 1) -> Result:
    """Run one scenario against one target."""
    raise_file_limit()
    api = Api(target.api, target.server_key, target.jwt_secret)
    users, prepared = scenario.prepare(options, api)
    prepared["floor"] = target.floor
    tokens = {user: api.token(user) for user in users}
    options = msgspec.to_builtins(options)
    plans = [Plan(scenario.name, options, prepared, tokens, target.urls, index, workers) for index in range(workers)]
    return conduct(partial(main, scenario), plans, all_meters(target))


def conduct(target: Callable[[Plan, Connection], None], plans: list[Plan], parts: list[Meter]) -> Result:
    """Run one load process for each plan until all have finished, and return the result."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for plan in plans:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(plan, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        measurements, failures, notes, complaint = Conductor(pipes, parts).conduct()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return Result(
        scenario=plans[0].scenario,
        options=plans[0].options,
        at=time.strftime("%Y-%m-%d %H:%M"),
        machine=f"{multiprocessing.cpu_count()} × {_cpu()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}",
        measurements=measurements,
        failures=failures,
        notes=notes,
        complaint=complaint,
    )


def all_meters(target: Target) -> list[Meter]:
    found = meters(target.metrics, target.redis)
    if target.floor_pid:
        found.append(LocalProcess("floor", target.floor_pid))
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


class Conductor:
    """The barriers of one run."""

    def __init__(self, pipes: list[Connection], parts: list[Meter]) -> None:
        self._pipes = pipes
        self._parts = parts
        self._measurements: list[Measurement] = []

    def conduct(self) -> tuple[list[Measurement], Failures, dict[str, float], str]:
        before = after = read_all(self._parts)
        while True:
            kind, values = self._await_barrier()
            match kind:
                case "begin":
                    show(values[0])
                    before = read_all(self._parts)
                case "stop":
                    after = read_all(self._parts)
                case "end":
                    name, unit, _ = values[0]
                    self._measurements.append(measure(name, unit, [value[2] for value in values], before, after))
                case "finished":
                    show("")
                    return self._finish(values)
            for pipe in self._pipes:
                pipe.send(values)

    def _await_barrier(self) -> tuple[str, list[Any]]:
        """Wait until every worker has reached the same barrier."""
        said = [self._receive(pipe) for pipe in self._pipes]
        kinds = {kind for kind, _ in said}
        if len(kinds) != 1:
            raise LoadFailed(f"the load processes wait at different barriers: {sorted(kinds)}")
        return said[0][0], [value for _, value in said]

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        while True:
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise LoadFailed("a load process died") from None
            if kind == "failed":
                raise LoadFailed(value)
            if kind != "progress":
                return kind, value
            show(value[0], value[1])

    def _finish(self, values: list[Any]) -> tuple[list[Measurement], Failures, dict[str, float], str]:
        failures, notes, complaint = Failures(), dict[str, float](), ""
        for found, noted, said in values:
            failures = failures + found
            complaint = complaint or said
            for name, value in noted.items():
                notes[name] = max(notes.get(name, value), value)
        return self._measurements, failures, notes, complaint


def show(what: str, fraction: float | None = None) -> None:
    """Show progress on one line of the terminal, if standard error is one."""
    if sys.stderr.isatty():
        bar = "" if fraction is None else f" [{'#' * round(20 * fraction):20}]"
        print(f"\r\033[K{what}{bar}", end="", file=sys.stderr, flush=True)
