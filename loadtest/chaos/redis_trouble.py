"""Trouble with a Redis server that keeps running: its clock, settings, rights, functions and keys change.

Each method causes one fault, waits, undoes it if it can be undone, and returns what it did as the target of the fault's
row. What the checker must know beyond that (which events were deleted) is written to `losses.jsonl`.

Blocking calls run in threads. The client of the nemesis is the same Redis user as the processes, so the rights to
change settings and rights are never removed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import redis

from loadtest.chaos.proof.evidence import Loss, append
from loadtest.chaos.proof.history import now_ms
from loadtest.chaos.stores import Single, Store
from router.contract import keys

STEPS_S: Final = (-3600.0, -90.0, 90.0, 3600.0)
SETTLED_S: Final = 60.0

# Values with which a server does not keep what a level promises, by level.
_EVICTS: Final = ("maxmemory-policy", "allkeys-lru")
UNFIT: Final = {
    "memory": (_EVICTS,),
    "fsync": (_EVICTS, ("appendfsync", "everysec"), ("appendfsync", "no"), ("appendonly", "no")),
    "replicated": (_EVICTS,),
}

# Rights that are removed; `_ALL_RIGHTS` gives them back.
RIGHTS: Final = (
    ("-fcall",),
    ("-xadd",),
    ("-info",),
    ("-subscribe", "-ssubscribe"),
    ("-publish", "-spublish"),
    ("resetchannels",),
    ("resetkeys",),
)
_ALL_RIGHTS: Final = ("+@all", "allchannels", "allkeys")


class RedisTrouble:
    """The faults of one run; `level` is the durability that the deployment promises."""

    def __init__(self, store: Store, level: str, folder: Path, rng: random.Random) -> None:
        self._store = store
        self._level = level
        self._losses = folder / "losses.jsonl"
        self._rng = rng

    async def step_clock(self, for_s: float) -> str:
        """Step the server's wall clock, and later back."""
        assert isinstance(self._store, Single)
        offset_s = self._rng.choice(STEPS_S)
        self._store.set_clock(offset_s)
        await asyncio.sleep(for_s)
        self._store.set_clock(0)
        return f"by {offset_s:+.0f} s"

    async def change_settings(self, for_s: float) -> tuple[str, int, int]:
        """Break the durability by one setting, restore it, and return the setting, and when it was broken and restored.

        A busy server answers `CONFIG SET` seconds later, and no process can notice the setting before.
        """
        name, value = self._rng.choice(UNFIT[self._level])
        with await asyncio.to_thread(self._store.client) as client:
            before = str(await asyncio.to_thread(_setting, client, name))
            await asyncio.to_thread(client.config_set, name, value)
            broken = now_ms()
            await asyncio.sleep(for_s)
            ended = now_ms()
            await asyncio.to_thread(client.config_set, name, before)
            await self._until(lambda: _persists(client))
        return f"{name} {value}", broken, ended

    async def remove_rights(self, for_s: float) -> str:
        """Take rights from the Redis user of the processes, on one server, and give them back."""
        rules = self._rng.choice(RIGHTS)
        with (await asyncio.to_thread(self._store.primary)).client() as client:
            await asyncio.to_thread(client.execute_command, "ACL", "SETUSER", "default", *rules)
            await asyncio.sleep(for_s)
            await asyncio.to_thread(client.execute_command, "ACL", "SETUSER", "default", *_ALL_RIGHTS)
        return " ".join(rules)

    def flush_functions(self) -> str:
        """Delete the library of functions on one server. Blocking."""
        with self._store.primary().client() as client:
            client.execute_command("FUNCTION", "FLUSH")
        return ""

    def delete_keys(self) -> str:
        """Delete keys of one conversation or user, as an operator's mistake would. Blocking."""
        with self._store.client() as client:
            found = sorted(keys.conversation_of(key) for key in client.scan_iter(match=keys.EVERY_CONVERSATION))
            directs = [name for name in found if name[0] == keys.DIRECT]
            deletes = (
                lambda: self._delete(client, self._rng.choice(directs), "hash and log"),
                lambda: self._delete(client, self._rng.choice(found), "log"),
                lambda: self._delete_user(client, self._rng.choice(keys.parties(self._rng.choice(directs)))),
                lambda: self._delete_row(client, self._rng.choice(directs)),
            )
            return self._rng.choice(deletes)()

    def _delete(self, client: redis.Redis, conversation: str, what: str) -> str:
        hash_key, log_key = keys.conversation(conversation), keys.log(conversation)
        with client.pipeline(transaction=True) as both:
            both.hget(hash_key, "m")
            both.delete(*((log_key,) if what == "log" else (hash_key, log_key)))
            meta, _ = both.execute()
        append(self._losses, Loss(now_ms(), conversation, int.from_bytes(meta[:8], "big"), "", what != "log"))
        return f"{what} of {conversation}"

    def _delete_user(self, client: redis.Redis, user: str) -> str:
        client.delete(keys.user(user))
        return f"hash of {user}"

    def _delete_row(self, client: redis.Redis, conversation: str) -> str:
        user = self._rng.choice(keys.parties(conversation))
        client.hdel(keys.convs(user), conversation)
        append(self._losses, Loss(now_ms(), conversation, 0, user))
        return f"row of {conversation} at {user}"

    async def _until(self, reached: Callable[[], bool]) -> None:
        until = asyncio.get_running_loop().time() + SETTLED_S
        while not await asyncio.to_thread(reached):
            if asyncio.get_running_loop().time() > until:
                raise RuntimeError("the server does not persist again after its settings were restored")
            await asyncio.sleep(0.1)


def _setting(client: redis.Redis, name: str) -> str:
    return str(client.config_get(name)[name])


def _persists(client: redis.Redis) -> bool:
    """Whether the append-only file is complete again: after `appendonly yes` the server first rewrites it."""
    info = client.info("persistence")
    return not info["aof_rewrite_in_progress"] and not info.get("aof_rewrite_scheduled", 0)
