"""The client's types against the schema that the server serves, its reference page, and its package."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, get_args

import httpx
import linnet_client
import pytest
from linnet_client import events, machine
from linnet_client.machine import Signal, Status

from deploy import sdk_reference
from router.contract import codecs
from router.contract.settings import VERSION
from tests.flow.conftest import System

DEFINITIONS: dict[str, Any] = codecs.schema()["$defs"]
RENAMED = {"from": "sender", "with": "other"}
TAGS = {
    definition["properties"]["type"]["enum"][0]: definition
    for name, definition in DEFINITIONS.items()
    if name.endswith(("Event", "Welcome"))
}


def of_logged(tag: str) -> type[Any]:
    found: type[Any] = next(kind for kind in get_args(events.LoggedEvent) if kind.__name__.lower() == tag)
    return found


@pytest.mark.parametrize("tag", ["message", "edit", "delete", "react", "member", "title"])
def test_logged_event_has_the_fields_of_the_served_schema(tag: str) -> None:
    """A field that the server adds must be added here; a required one must be required here."""
    properties = {RENAMED.get(name, name): name for name in TAGS[tag]["properties"] if name != "type"}
    fields = {field.name: field for field in dataclasses.fields(of_logged(tag))}
    assert fields.keys() == properties.keys()
    for name, field in fields.items():
        if properties[name] not in TAGS[tag]["required"]:
            assert field.default is not dataclasses.MISSING, name
    raw = {name: object() for name in properties.values()}
    event = events.LOGGED[tag](raw)
    assert all(getattr(event, name) is raw[named] for name, named in properties.items())


def test_every_event_of_the_schema_is_known_to_the_client() -> None:
    """An event that the client does not know would be lost without a word."""
    source = "".join(
        path.read_text()
        for path in Path(linnet_client.__file__).parent.glob("*.py")
        if path.stem not in ("cli", "wire")
    )
    assert [tag for tag in TAGS if f'"{tag}"' not in source] == []


async def test_wire_types_are_those_of_the_served_schema(chat: System) -> None:
    """After a change of the wire: `make sdk`."""
    assert chat.router is not None
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        schema = (await http.get(f"{chat.router.url}/v1/schema.json")).json()
    assert sdk_reference.WIRE.read_text() == sdk_reference.wire_types(schema)


def test_reference_says_what_the_code_says() -> None:
    """After a change of a signature or docstring: `make sdk`."""
    assert sdk_reference.PAGE.read_text() == sdk_reference.page()


def test_every_name_of_the_package_is_in_the_reference() -> None:
    assert sorted(name for names in sdk_reference.GROUPS.values() for name in names) == sorted(linnet_client.__all__)


def test_quick_start_has_at_most_ten_lines_and_uses_what_there_is() -> None:
    text = (sdk_reference.SDK / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    body = [row for row in code.splitlines() if row.strip() and not row.startswith(("import", "from", "asyncio.run"))]
    assert len(body) <= 10
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert {name.name for node in imported for name in node.names} <= set(linnet_client.__all__)


def test_package_depends_on_websockets_alone_and_has_the_project_s_version() -> None:
    project = tomllib.loads((sdk_reference.SDK / "pyproject.toml").read_text())["project"]
    assert [name.split(">")[0] for name in project["dependencies"]] == ["websockets"]
    assert project["version"] == VERSION


def test_every_state_can_be_left_and_reached() -> None:
    """The table has no state without a way in or out, and the README lists the same states."""
    assert {state for state, _ in machine.TABLE} == set(Status)
    assert set(machine.TABLE.values()) == set(Status)
    assert {signal for _, signal in machine.TABLE} == set(Signal)
    with pytest.raises(KeyError):
        machine.step(Status.LIVE, Signal.WELCOMED)
    text = (sdk_reference.SDK / "README.md").read_text()
    assert all(f"| `{state}` |" in text for state in Status)


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (1012, "retry_after=1.25", machine.Ending(wait_s=1.25)),
        (1012, "", machine.Ending(wait_s=7.0)),
        (4000, "retry_after=2", machine.Ending(wait_s=2.0)),
        (4003, "", machine.Ending(wait_s=7.0)),
        (4008, "retry_after=30", machine.Ending(wait_s=30.0)),
        (4409, "replaced", machine.Ending(stop="replaced")),
        (4500, "unauthorized", machine.Ending(token="unauthorized")),
        (4501, "token_expired", machine.Ending(token="token_expired")),
        (4502, "", machine.Ending(stop="banned")),
        (4503, "", machine.Ending(stop="bad_protocol")),
        (4504, "", machine.Ending(stop="ended")),
    ],
)
def test_each_close_code_is_obeyed(code: int, reason: str, expected: machine.Ending) -> None:
    """The wait of a `drain` (7 s here) counts where the close code names none."""
    assert machine.ending(code, reason, 7.0) == expected


def test_backoff_has_full_jitter_between_its_bounds() -> None:
    waits = [[machine.backoff_s(attempt) for _ in range(200)] for attempt in range(12)]
    assert all(0.3 <= wait <= 30 for tries in waits for wait in tries)
    assert max(waits[0]) <= 0.6
    assert max(waits[11]) > 15
    assert min(waits[11]) < 15


@pytest.mark.parametrize(
    ("rest_s", "after_s", "again_s"),
    [(3600.0, 3540.0, 1800.0), (100.0, 80.0, 50.0), (6.0, 4.0, 3.0), (1.0, 0.0, 1.0), (-7200.0, 30.0, 30.0)],
)
def test_token_is_renewed_before_it_ends_and_seldom_if_the_clock_is_wrong(
    rest_s: float, after_s: float, again_s: float
) -> None:
    assert machine.renew_after_s(rest_s) == pytest.approx(after_s)
    assert machine.renew_again_s(rest_s) == pytest.approx(again_s)


def test_gateway_that_failed_is_not_chosen_again_while_there_is_another() -> None:
    gateways = ["a", "b", "c"]
    assert {machine.choose(gateways, "a") for _ in range(50)} == {"b", "c"}
    assert {machine.choose(gateways, None) for _ in range(50)} == {"a", "b"}
    assert machine.choose(["a"], "a") == "a"


@pytest.mark.processes
def test_package_is_built_whole_and_nothing_of_the_server_is_in_it(tmp_path: Path) -> None:
    """The wheel has every module, the marker of its types, and the command line's script."""
    source = tmp_path / "source"
    shutil.copytree(sdk_reference.SDK, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("linnet_client-*.whl")
    with zipfile.ZipFile(wheel) as found:
        names = {name for name in found.namelist() if ".dist-info/" not in name}
        scripts = next(name for name in found.namelist() if name.endswith("entry_points.txt"))
        assert b"linnet = linnet_client.cli:main" in found.read(scripts)
    package = Path(linnet_client.__file__).parent
    assert names == {f"linnet_client/{path.name}" for path in [*package.glob("*.py"), package / "py.typed"]}
