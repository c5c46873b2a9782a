"""`python -m loadtest.peers`: start Linnet and the peers, load them in turn, print the table, stop them all.

The exit code is 1 if Linnet lost, duplicated or misordered a message. Losses of a peer are printed under the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec

from loadtest.api import Api
from loadtest.bench import report
from loadtest.limits import raise_file_limit
from loadtest.load import local
from loadtest.load.conductor import LoadFailed, Target, all_meters, conduct
from loadtest.load.results import Result
from loadtest.load.scenarios import direct, fanout
from loadtest.load.worker import Plan
from loadtest.peers import load
from loadtest.peers.deployment import Peer, deployment, installed, parts
from loadtest.peers.table import Parts, table


def measure(options: load.Options, target: Target, peers: list[Peer]) -> Result:
    """Measure deployments that are running."""
    raise_file_limit()
    api = Api(target.api, target.server_key, target.jwt_secret)
    writers, pairs = direct.prepare(direct.Options(pairs=options.pairs), api)
    members, group = fanout.prepare(fanout.Options(members=options.members), api)
    prepared = {
        **pairs,
        **group,
        "floor": target.floor,
        load.NODES: [load.Urls(peer.name, peer.urls) for peer in peers],
    }
    visitors = [user for number in range(options.rounds) for user in load.visitors(options, number)]
    tokens = {user: api.token(user) for user in [*writers, *members, *visitors]}
    plan = Plan("peers", msgspec.to_builtins(options), prepared, tokens, target.urls, 0, 1)
    meters = [*all_meters(target), *(meter for peer in peers for meter in peer.meters())]
    return conduct(load.main, [plan], meters)


def parts_of(names: list[str]) -> Parts:
    """Return the parts whose CPU is the cost of each side, in the order of the table."""
    return {
        load.LINNET: ("gateway", "router", "redis"),
        **{name: parts(name) for name in names},
        load.FLOOR: ("floor",),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(
        prog="python -m loadtest.peers", description="Linnet and what users pick today."
    )
    arguments.add_argument("--rounds", type=int, default=load.Options().rounds, help="(%(default)s)")
    arguments.add_argument("--seconds", type=float, default=load.Options().seconds, help="of a phase (%(default)s)")
    arguments.add_argument("--json", type=Path, help="write all measurements there")
    given = arguments.parse_args()
    names, began = installed(), time.monotonic()
    if not names:
        print("loadtest: the peers are not installed; `make bench-peers` does that", file=sys.stderr)
        return 1
    try:
        with local.deployment() as target, deployment(names) as peers:
            result = measure(load.Options(rounds=given.rounds, seconds=given.seconds), target, peers)
    except LoadFailed as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    print(table(result, parts_of(names)))
    print(f"{time.monotonic() - began:.0f} s in all")
    if given.json:
        report.write_json([result], given.json)
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
