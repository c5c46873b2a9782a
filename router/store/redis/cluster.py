"""A cluster's URL, and its map: which server is the primary of which slots. Pure; `map_follower` asks for the map.

Invariants
- A host that a server leaves out (null or empty) is the host that was asked; `?` is a server that nobody can name yet,
  whose slots have no primary.
- Every address that a server tells is translated by LINNET_REDIS_MAP before it is used.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from router.contract.errors import StartupError
from router.store.redis.connection import MYID, Address, address
from router.store.redis.slots import SLOTS

SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
PORT: Final = 6379
SEEDS: Final = 64  # that a URL may name
EXPECTED: Final = "redis+cluster://[user:password@]host:port,host:port, or rediss+cluster://…"

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@ ]+)(:[0-9]{1,5})?\Z")


class Owners(msgspec.Struct, frozen=True):
    """A map: ranges of slots (first, last) with the address of their primary, or None if it cannot be named; and the
    ids of the primaries."""

    ranges: tuple[tuple[int, int, Address | None], ...]
    ids: dict[Address, str] = {}

    @property
    def addresses(self) -> set[Address]:
        return {where for _, _, where in self.ranges if where is not None}


class Cluster:
    """The addresses of a cluster. It is also the topology of the connection that asks for the map.

    `reachable`: where an announced `host:port` can be reached. `tls_name`: the name in the certificates of all servers;
    empty for the host that is dialed.
    """

    def __init__(self, url: str, *, reachable: Mapping[str, str] | None = None, tls_name: str = "") -> None:
        wrong = StartupError(f"LINNET_REDIS_URL: with LINNET_REDIS_MODE=cluster expected {EXPECTED}")
        try:
            given = urlsplit(url)
        except ValueError:  # its text may contain a part of the password
            raise wrong from None
        credentials, at, hosts = given.netloc.rpartition("@")
        scheme = SCHEMES.get(given.scheme)
        seeds = hosts.split(",")
        if scheme is None or len(seeds) > SEEDS or not all(map(_HOST.match, seeds)):
            raise wrong
        if given.path.strip("/") not in ("", "0"):
            raise StartupError("LINNET_REDIS_URL: a cluster has database 0 only")
        self._reachable = dict(reachable or {})
        self._tls_name = tls_name
        base = address(f"{scheme}://{credentials}{at}seed:{PORT}/0?{given.query}")
        self._base = msgspec.structs.replace(base, greeting=(*base.greeting, MYID))
        self.seeds = tuple(self.at(*_parts(seed)) for seed in seeds)
        self.known: set[Address] = set()  # by the present map
        self.epoch = 0  # of the present map
        self.address = self.seeds[0]
        self._dialed = 0

    def at(self, host: str, port: int) -> Address:
        """The address of a server that was named so."""
        where = self._reachable.get(f"{host}:{port}")
        if where is not None:
            host, port = _parts(where)
        return msgspec.structs.replace(self._base, host=host, port=port, tls_name=self._tls_name)

    async def primary(self) -> Address:
        """A server that may know the map: the seeds in turn, and between them the servers of the present map."""
        self._dialed += 1
        if self.known and self._dialed % 2:
            self.address = random.choice(sorted(self.known, key=str))
        else:
            self.address = self.seeds[self._dialed // 2 % len(self.seeds) if self.known else
                                      (self._dialed - 1) % len(self.seeds)]  # fmt: skip
        return self.address

    def named(self, where: str, asked: Address) -> Address | None:
        """The address in a MOVED or ASK that `asked` has answered."""
        host, _, port = where.rpartition(":")
        return self._named(host, port, asked)

    def owners(self, reply: Sequence[Any], asked: Address) -> Owners:
        """The map in a reply to CLUSTER SLOTS; `ValueError` if it is none."""
        try:
            ranges, ids = [], {}
            for first, last, primary, *_ in reply[:SLOTS]:
                host = (primary[0] or b"").decode()
                if not 0 <= first <= last < SLOTS:
                    raise ValueError(first, last)
                where = self._named(host, str(primary[1]), asked)
                ranges.append((first, last, where))
                if where is not None and len(primary) > 2:
                    ids[where] = primary[2].decode()
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError("not a reply to CLUSTER SLOTS") from error
        return Owners(tuple(ranges), ids)

    def _named(self, host: str, port: str, asked: Address) -> Address | None:
        if host == "?" or not port.isdecimal():
            return None
        return self.at(host.strip("[]"), int(port)) if host else msgspec.structs.replace(asked, port=int(port))


def reachable_of(text: str) -> dict[str, str]:
    """The announced addresses of a LINNET_REDIS_MAP, and where they can be reached."""
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        announced, _, reachable = pair.partition("=")
        (host, port), _ = _parts(announced), _parts(reachable)
        found[f"{host}:{port}"] = reachable
    return found


def _parts(host: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[v6]:port`."""
    found = _HOST.match(host)
    if found is None:
        raise StartupError("LINNET_REDIS_MAP: expected announced=reachable,…, each as host:port")
    return found[1].strip("[]"), int(found[2][1:]) if found[2] else PORT


def state_of(reply: bytes) -> tuple[bool, int]:
    """From a reply to CLUSTER INFO: whether the server is with the majority, and the newest epoch it knows."""
    fields = dict(line.split(":", 1) for line in reply.decode().split("\r\n") if ":" in line)
    return fields.get("cluster_state") == "ok", int(fields.get("cluster_current_epoch", 0))
