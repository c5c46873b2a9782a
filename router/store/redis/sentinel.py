"""Where the primary is, as its sentinels say.

What lives here: the URL that names the sentinels, and one question to all of them. What never does: a connection to
the primary itself (`link` dials it, and makes it say that it is one), or a memory of failovers.

Invariants
- All sentinels are asked and the answer with the highest configuration epoch holds: right after a failover the one
  that led it knows, the others learn it within two seconds, and one that is cut off may never.
- An answer costs at most ASK_S, however many sentinels are dead.
- When no sentinel answers nobody is sent anywhere: a primary that works is kept.
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
ASK_S: Final = 1.0
SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
FORM: Final = "redis+sentinel://host:port,host:port/name, `name` being what the sentinels call the primary"

_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@ ]+)(:[0-9]{1,5})?\Z")


class Sentinels:
    """`redis+sentinel://user:password@host:port,…/name/db?sentinel_password=…&sentinel_username=…`, or `rediss+…`.

    User, password and database are the primary's; further options are redis-py's and hold for both.
    """

    def __init__(self, url: str) -> None:
        try:
            given = urlsplit(url)
            credentials, at, hosts = given.netloc.rpartition("@")
            self._name, _, database = given.path.strip("/").partition("/")
        except ValueError:  # the text may hold a piece of the password
            raise StartupError(f"LINNET_REDIS_URL: with LINNET_REDIS_MODE=sentinel it is {FORM}") from None
        self.epoch = 0  # of the last answer: it grows with every failover
        scheme = SCHEMES.get(given.scheme)
        self._hosts = hosts.split(",")
        named = self._name and (database or "0").isdecimal()
        if scheme is None or not named or not all(map(_HOST.match, self._hosts)):
            raise StartupError(f"LINNET_REDIS_URL: with LINNET_REDIS_MODE=sentinel it is {FORM}")
        options = dict(parse_qsl(given.query))
        user, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
        rest = urlencode(options)
        there = address(f"{scheme}://{credentials}{at}primary/{database or 0}?{rest}")
        greeting = (*there.greeting, ("ROLE",))
        self.address = msgspec.structs.replace(there, host=self._name, port=0, greeting=greeting)
        known = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        self._sentinels = [_sentinel(f"{scheme}://{known}{_with_port(host)}?{rest}") for host in self._hosts]

    async def primary(self) -> Address:
        answers = await asyncio.gather(*map(self._ask, self._sentinels))
        told = [answer for answer in answers if answer is not None]
        if not told:
            raise ConnectionError(f"none of the sentinels {', '.join(self._hosts)} tells where {self._name} is")
        self.epoch, host, port = max(told, key=itemgetter(0))
        self.address = msgspec.structs.replace(self.address, host=host, port=port)
        return self.address

    async def close(self) -> None:
        for sentinel in self._sentinels:
            await sentinel.aclose()

    async def _ask(self, sentinel: redis.asyncio.Redis) -> tuple[int, str, int] | None:
        """Epoch, host and port. In this order, for the address of a moment later is never the older one."""
        try:
            async with asyncio.timeout(ASK_S):
                state = await sentinel.sentinel_master(self._name)
                where = await sentinel.sentinel_get_master_addr_by_name(self._name)
        except (redis.RedisError, OSError, TimeoutError):
            return None
        if not isinstance(state, dict) or not isinstance(where, tuple):
            return None
        return int(state["config-epoch"]), str(where[0]), int(where[1])


def _sentinel(url: str) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, decode_responses=True)


def _with_port(host: str) -> str:
    return host if host.rpartition("]")[2].rpartition(":")[1] else f"{host}:{PORT}"
