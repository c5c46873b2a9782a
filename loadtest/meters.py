"""CPU and memory of all measured processes.

The meter of a process on this machine reads the CPU clock of that process (nanoseconds) and /proc. The meter of a
process elsewhere scrapes its /metrics (the smallest visible step is 10 ms of CPU). The meter of Redis reads INFO. Each
meter belongs to a *part* (gateway, router, redis), and costs are reported by part.

Invariant: a reading adds nothing to what is measured except the cost of one scrape, outside of the measured phase.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import redis


class Reading(msgspec.Struct, frozen=True):
    """CPU seconds since the start and resident bytes now, of one part."""

    cpu_s: float
    rss_bytes: int


class Meter(Protocol):
    part: str

    def read(self) -> Reading: ...


class LocalProcess:
    """A process of this machine, by pid."""

    def __init__(self, part: str, pid: int) -> None:
        self.part = part
        self.pid = pid

    def read(self) -> Reading:
        clock = (~self.pid << 3) | 2  # the id of that process's CPU clock (clock_getcpuclockid)
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return Reading(time.clock_gettime(clock), pages * os.sysconf("SC_PAGE_SIZE"))


class Scraped:
    """A process elsewhere, by its /metrics."""

    def __init__(self, part: str, url: str) -> None:
        self.part = part
        self._url = url

    def read(self) -> Reading:
        text = scrape(self._url)
        return Reading(metric(text, "process_cpu_seconds_total"), int(metric(text, "process_resident_memory_bytes")))


class RedisServer:
    """Redis, by INFO."""

    part = "redis"

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def read(self) -> Reading:
        info = self._client.info()
        cpu = sum(float(info[f"used_cpu_{kind}"]) for kind in ("user", "sys"))
        return Reading(cpu, int(info["used_memory_rss"]))


def scrape(url: str) -> str:
    """Return the text of a /metrics endpoint; the URL may leave out the path."""
    url = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def metric(text: str, name: str) -> float:
    """Return the sum of a metric's series."""
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def meters(urls: Iterable[str], redis_url: str) -> list[Meter]:
    """Return a meter for each endpoint: by pid if the endpoint is on this machine, else by scraping.

    `redis_url`: of Redis, or of all primaries of a cluster with spaces between them.
    """
    found: list[Meter] = []
    for url in urls:
        build = re.search(r'^linnet_build_info\{.*?process="(\w+)"', scrape(url), re.MULTILINE)
        part = build[1] if build else "other"
        where = urlsplit(url)
        pid = listener(where.port or 80) if where.hostname in ("127.0.0.1", "localhost", "::1") else None
        found.append(LocalProcess(part, pid) if pid else Scraped(part, url))
    for url in redis_url.split():
        client = redis.Redis.from_url(url)
        pid = int(client.info("server")["process_id"])
        local = url.startswith("unix") or urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
        found.append(LocalProcess("redis", pid) if local and Path(f"/proc/{pid}").exists() else RedisServer(client))
    return found


def listener(port: int) -> int | None:
    """Return the pid that listens on a port of this machine, or None if that cannot be found out."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and inodes:
            try:
                if any(os.readlink(link) in inodes for link in (folder / "fd").iterdir()):
                    return int(folder.name)
            except OSError:
                continue  # the process belongs to another user, or has ended
    return None


def read_all(all_meters: Iterable[Meter]) -> dict[str, Reading]:
    """Return the sum of the readings of each part."""
    found: dict[str, Reading] = {}
    for meter in all_meters:
        now, before = meter.read(), found.get(meter.part, Reading(0.0, 0))
        found[meter.part] = Reading(before.cpu_s + now.cpu_s, before.rss_bytes + now.rss_bytes)
    return found
