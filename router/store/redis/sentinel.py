"""Sentinels: the URL that names them, and the query for the address of the primary.

`connection` dials the primary and checks its role.

Invariants
- All sentinels are asked, and the answer with the highest configuration epoch is used: right after a failover only the
  sentinel that led it knows the new primary, the others learn it within two seconds, and one that is cut off may never.
- A query takes at most QUERY_S, independent of the number of dead sentinels.
- If no sentinel answers, connections stay on their present server.
"""

from __future__ import annotations

import asyncio
import re
from operator import itemgetter
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from router.contract.errors import StartupError
from router.store.redis.connection import Address, address

PORT: Final = 26379
QUERY_S: Final = 1.0
SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
EXPECTED: Final = "redis+sentinel://host:port,host:port/name, where `name` is the sentinels' name of the primary"

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@ ]+)(:[0-9]{1,5})?\Z")


class Sentinels:
    """`redis+sentinel://user:password@host:port,…/name/db?sentinel_password=…&sentinel_username=…`, or `rediss+…`.

    User, password and database are the primary's; further options are redis-py's and apply to both.
    """

    def __init__(self, url: str) -> None:
        try:
            given = urlsplit(url)
            credentials, at, hosts = given.netloc.rpartition("@")
            self._name, _, database = given.path.strip("/").partition("/")
        except ValueError:  # its text may contain a part of the password
            raise StartupError(f"LINNET_REDIS_URL: with LINNET_REDIS_MODE=sentinel expected {EXPECTED}") from None
        self.epoch = 0  # of the last answer; every failover increases it
        scheme = SCHEMES.get(given.scheme)
        self._hosts = hosts.split(",")
        named = self._name and (database or "0").isdecimal()
        if scheme is None or not named or not all(map(_HOST.match, self._hosts)):
            raise StartupError(f"LINNET_REDIS_URL: with LINNET_REDIS_MODE=sentinel expected {EXPECTED}")
        options = dict(parse_qsl(given.query))
        user, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
        rest = urlencode(options)
        there = address(f"{scheme}://{credentials}{at}primary/{database or 0}?{rest}")
        greeting = (*there.greeting, ("ROLE",))
        self.address = msgspec.structs.replace(there, host=self._name, port=0, greeting=greeting)
        known = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        self._sentinels = [_sentinel(f"{scheme}://{known}{_with_port(host)}?{rest}") for host in self._hosts]

    async def primary(self) -> Address:
        answers = await asyncio.gather(*map(self._query, self._sentinels))
        known = [answer for answer in answers if answer is not None]
        if not known:
            raise ConnectionError(f"none of the sentinels {', '.join(self._hosts)} knows the address of {self._name}")
        self.epoch, host, port = max(known, key=itemgetter(0))
        self.address = msgspec.structs.replace(self.address, host=host, port=port)
        return self.address

    async def close(self) -> None:
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _query(self, sentinel: redis.asyncio.Redis) -> tuple[int, str, int] | None:
        """Epoch, host and port. Both are asked in one write, so no failover comes between the two answers."""
        try:
            async with asyncio.timeout(QUERY_S), sentinel.pipeline(transaction=False) as both:
                both.execute_command("SENTINEL MASTER", self._name)
                both.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._name)
                state, where = await both.execute()
        except (redis.RedisError, OSError, TimeoutError):
            return None
        if not isinstance(state, dict) or not isinstance(where, tuple):
            return None
        return int(state["config-epoch"]), str(where[0]), int(where[1])


def _sentinel(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, decode_responses=True)


def _with_port(host: str) -> str:
    return host if host.rpartition("]")[2].rpartition(":")[1] else f"{host}:{PORT}"
