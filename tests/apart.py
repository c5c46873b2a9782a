"""Runs a process as if every partition of Redis were on its own server: `python -m tests.apart gateway`.

That is how it would run on a cluster: no call has keys of two partitions. `append` does not deliver direct events, so
the gateway calls `deliver` for both users, and claims, audits and roles are asked for each partition.
"""

import runpy
import sys

from router.store.redis.client import Client

if __name__ == "__main__":
    module = sys.argv.pop(1)
    Client.one_server = property(lambda _: False)  # type: ignore[method-assign,assignment]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
