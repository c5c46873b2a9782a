"""`python -m loadtest SCENARIO`: run one scenario; `bench`: run a set of them; `report`: turn JSON into plots.

`chaos`, `check` and `canary` have modules of their own. Without `--target` the scenario starts its own deployment. The
exit code is 1 if a message was lost, delivered twice, out of order or refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from loadtest import canary
from loadtest.bench import hook_latency, report, sets, upload_latency
from loadtest.chaos import command as chaos
from loadtest.load import local
from loadtest.load.conductor import LoadFailed, Target, run
from loadtest.load.results import Result
from loadtest.load.scenarios.table import SCENARIOS

IN_TURNS = {"hook-latency": hook_latency, "upload-latency": upload_latency}  # the last option is not the user's


def parser() -> argparse.ArgumentParser:
    """Return a parser with one subcommand per scenario, whose options are the fields of the scenario's struct."""
    root = argparse.ArgumentParser(prog="python -m loadtest", description="A load test for Linnet.")
    commands = root.add_subparsers(dest="scenario", required=True, metavar="SCENARIO")
    for name, scenario in SCENARIOS.items():
        one = commands.add_parser(name, help=scenario.about, description=scenario.about)
        for field in msgspec.structs.fields(scenario.Options):
            _add_option(one, field)
        _add_target(one)
    sets = commands.add_parser("bench", help="sets of scenarios, against the figures that are promised")
    which = sets.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="all that is promised, at its full size: 20 minutes")
    which.add_argument(
        "--quick", action="store_true", help="all of it small and without a verdict on figures: 1 minute"
    )
    _add_outputs(sets)
    for name, measured in IN_TURNS.items():
        one = commands.add_parser(name, help=measured.SCENARIO.about)
        for field in msgspec.structs.fields(measured.Options)[:-1]:
            _add_option(one, field)
    chaos.add_commands(commands)
    canary.add_command(commands)
    page = commands.add_parser("report", help="a JSON result as an HTML page, or as pictures")
    page.add_argument("json", type=Path)
    page.add_argument("--html", type=Path, help="write a page with plots there")
    page.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the plots of RESULTS.md there, as SVG")
    return root


def _add_option(one: argparse.ArgumentParser, field: msgspec.structs.FieldInfo) -> None:
    kind, *extra = get_args(field.type)
    many = get_origin(kind) is tuple
    one.add_argument(
        f"--{field.name.replace('_', '-')}",
        type=get_args(kind)[0] if many else kind,
        nargs="*" if many else None,
        default=field.default if field.default is not msgspec.NODEFAULT else field.default_factory(),
        help=f"{extra[0].description} (%(default)s)",
    )


def _add_target(one: argparse.ArgumentParser) -> None:
    target = one.add_argument_group("target", "without --target a deployment is started here and stopped again")
    target.add_argument("--target", nargs="+", default=[], metavar="ws://…/ws", help="gateways")
    target.add_argument("--api", default="", metavar="http://…", help="the router's HTTP API")
    target.add_argument("--metrics", nargs="*", default=[], metavar="http://…", help="/metrics of every process")
    target.add_argument(
        "--redis",
        default="",
        metavar="redis://…",
        help="to read its CPU and memory from INFO; of a cluster all primaries, in one argument",
    )
    target.add_argument("--jwt-secret", default=os.environ.get("LINNET_JWT_SECRET", ""), help="mints tokens here")
    target.add_argument("--server-key", default=os.environ.get("LINNET_SERVER_KEY", ""), help="of the HTTP API")
    target.add_argument("--durability", default="memory", choices=("memory", "fsync"), help="of what is started here")
    one.add_argument("--workers", type=int, default=1, help="load processes (%(default)s)")
    _add_outputs(one)


def _add_outputs(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", type=Path, help="write the result there")
    one.add_argument("--html", type=Path, help="write a page with plots there")


def one_scenario(arguments: argparse.Namespace) -> Result:
    """Run the scenario of the command line."""
    scenario = SCENARIOS[arguments.scenario]
    given: dict[str, Any] = {name: getattr(arguments, name) for name in scenario.Options.__struct_fields__}
    options = msgspec.convert(given, scenario.Options)
    if not arguments.target:
        with local.deployment(arguments.durability, scenario.gateways) as target:
            return run(scenario, options, target, arguments.workers)
    target = Target(
        urls=arguments.target,
        api=arguments.api,
        metrics=arguments.metrics,
        redis=arguments.redis,
        jwt_secret=arguments.jwt_secret,
        server_key=arguments.server_key,
    )
    return run(scenario, options, target, arguments.workers)


def _bench(arguments: argparse.Namespace) -> list[Result]:
    if arguments.quick:
        return sets.quick()
    return sets.full() if arguments.full else sets.short()


def main() -> int:
    arguments = parser().parse_args()
    if arguments.scenario == "report":
        results = report.read_json(arguments.json)
        if arguments.html:
            report.write_html(results, arguments.html)
        if arguments.pictures:
            report.write_pictures(results, arguments.pictures)
        return 0
    if arguments.scenario in IN_TURNS:
        bench = IN_TURNS[arguments.scenario]
        given = {name: getattr(arguments, name) for name in bench.Options.__struct_fields__[:-1]}
        measured = bench.measure(bench.Options(**given))
        print(bench.table(measured))
        return 0 if measured.good else 1
    if arguments.scenario == "canary":
        return canary.run(arguments)
    if arguments.scenario in chaos.COMMANDS:
        return chaos.COMMANDS[arguments.scenario](arguments)
    try:
        results = _bench(arguments) if arguments.scenario == "bench" else [one_scenario(arguments)]
    except LoadFailed as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1
    if arguments.scenario != "bench":
        print(report.table(results[0]))
    if arguments.json:
        report.write_json(results, arguments.json)
    if arguments.html:
        report.write_html(results, arguments.html)
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
