"""CPU and memory of a process, read from outside."""

from __future__ import annotations

import os
import socket
import time

from loadtest.meters import LocalProcess, Reading, listener, metric, read_all


def test_cpu_is_read_from_the_clock_of_the_process() -> None:
    """The CPU that another process reads is the CPU that this process used."""
    meter = LocalProcess("gateway", os.getpid())
    before, spent = meter.read(), time.process_time()
    while time.process_time() - spent < 0.02:
        pass
    assert 0.02 <= meter.read().cpu_s - before.cpu_s < 2.0
    assert before.rss_bytes > 1_000_000


def test_listener_of_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listener(server.getsockname()[1]) == os.getpid()
    assert listener(1) is None


def test_metric_is_the_sum_of_its_series() -> None:
    text = '# HELP a x\na{k="1"} 2\na{k="2"} 3.5\nab 7\na_total 9\n'
    assert metric(text, "a") == 5.5


def test_processes_of_a_part_are_added() -> None:
    class Fixed:
        def __init__(self, part: str, cpu_s: float) -> None:
            self.part = part
            self.cpu_s = cpu_s

        def read(self) -> Reading:
            return Reading(self.cpu_s, 10)

    found = read_all([Fixed("gateway", 1.0), Fixed("gateway", 2.0), Fixed("redis", 4.0)])
    assert found == {"gateway": Reading(3.0, 20), "redis": Reading(4.0, 10)}
