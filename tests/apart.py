"""Runs a process as if every partition of Redis were on its own server: `python -m tests.apart gateway`.

That is how it would run on a cluster: no call has keys of two partitions. `append` does not deliver direct events, so
the gateway calls `deliver` for both users, and claims, audits and roles are asked for each partition.

TEST_WITHOUT names a part that is switched off besides: a test that looks for faults must find them then.
"""

import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

from router.contract.errors import Internal
from router.store.redis.client import Client
from router.store.redis.pipeline import HotConnection
from router.store.redis.routing import Routing


def without_hold() -> None:
    """A redirected call is answered at once."""

    def redirected(self: Routing, call: Any, why: Exception) -> None:
        self.ended(call)
        call.reply(why)

    Routing.redirected = redirected  # type: ignore[method-assign]


def without_barrier() -> None:
    """Calls that wait are sent as soon as the slot has an owner, not behind those sent before."""
    Routing._await = lambda self, slot, hold, line: self._release(slot, hold)  # type: ignore[method-assign]


def without_library() -> None:
    """A server that has no functions does not get them."""
    HotConnection._missing = lambda self, packed, reply: self._answer(reply, Internal())  # type: ignore[method-assign]


WITHOUT: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "hold": without_hold,
    "barrier": without_barrier,
    "library": without_library,
}

if __name__ == "__main__":
    module = sys.argv.pop(1)
    Client.one_server = property(lambda _: False)  # type: ignore[method-assign,assignment]
    WITHOUT[os.environ.get("TEST_WITHOUT", "")]()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
