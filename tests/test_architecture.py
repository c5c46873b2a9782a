"""The arrows between modules, and the things that stand in one place only."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from router.contract.settings import VERSION

ROOT = Path(__file__).parent.parent
FOLDERS: Final = ("gateway", "router", "deploy", "loadtest", "tests")


PYTHON_SDK: Final = "router/sdk/python"


def modules(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def server_modules(folder: str) -> Iterator[Path]:
    """The modules of a folder, without those of the SDKs, which are packages of their own."""
    yield from (path for path in modules(folder) if "sdk" not in path.relative_to(ROOT).parts)


@cache  # most tests here ask for all files, and parsing them takes seconds
def parsed(path: Path) -> tuple[frozenset[str], str | None]:
    """The modules that a file imports, at its top or under TYPE_CHECKING, and its docstring."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
    return frozenset(found), ast.get_docstring(tree)


def imports(path: Path) -> frozenset[str]:
    return parsed(path)[0]


def of(found: frozenset[str], package: str) -> set[str]:
    return {name for name in found if name == package or name.startswith(f"{package}.")}


def test_router_never_imports_gateway() -> None:
    """The two processes meet only in Redis."""
    assert {str(path) for path in modules("router") if of(imports(path), "gateway")} == set()


def test_gateway_imports_only_shared_packages_of_the_router() -> None:
    """The contract, the store and the process package."""
    shared = ("router.contract", "router.store", "router.process")
    strangers = {
        (path.name, name)
        for path in modules("gateway")
        for name in of(imports(path), "router")
        if name != "router" and not name.startswith(shared)
    }
    assert strangers == set()


def test_contract_imports_neither_the_store_nor_sockets() -> None:
    """The contract knows neither the store nor a socket."""
    for path in modules("router/contract"):
        found = imports(path)
        inner = {name for name in of(found, "router") if name != "router" and not name.startswith("router.contract")}
        assert inner == set(), path
        assert not found & {"socket", "redis", "starlette", "uvicorn", "hiredis"}, path


# What the larger files of the store consist of: structs, formats and replies that need several calls.
STORE_PARTS: Final[dict[str, set[str]]] = {
    "conversations": {"appends", "heads", "members", "openings", "rules"},
    "heads": {"rules"},
    "users": {"sync", "rows"},
    "sync": {"rows"},
    "files": {"attaching", "file_records"},
    "attaching": {"file_records"},
}


def test_store_files_import_only_their_transport() -> None:
    """Domain files of the store do not import each other, so that none calls a function of another half way. Above them
    are `direct` and `contacts`, sequences of calls that several callers need, and `observe`; below them `cursor_keys`
    and `due`, and the files with the structs and formats of one of them."""
    for path in modules("router/store"):
        if path.parent.name == "redis" or path.stem in {"__init__", "observe", "direct", "contacts"}:
            continue
        siblings = {name.split(".")[2] for name in of(imports(path), "router.store") if name.count(".") >= 2}
        below = {"redis", "cursor_keys", "due", "answers"} | STORE_PARTS.get(path.stem, set())
        assert siblings <= below - {path.stem}, (path, siblings)


def test_only_the_store_imports_redis() -> None:
    """Redis and its exceptions do not leave `store/`."""
    for folder in ("gateway", "router"):
        for path in modules(folder):
            if "store" not in path.parts:
                assert not of(imports(path), "redis") | of(imports(path), "hiredis"), path


# The other parts of a tree that each of its parts imports, imports of annotations included. Each row names earlier rows
# only, so there is no circle. A part is a package, or a module beside the packages.
GATEWAY: Final[dict[str, set[str]]] = {
    "tasks": set(),
    "websocket": set(),
    "delivery": {"websocket"},
    "presence": {"delivery"},
    "reconcile": {"delivery"},
    "commands": {"reconcile", "presence", "delivery"},
    "admission": {"delivery"},
    "clock": {"commands", "reconcile", "presence", "delivery"},
    "drain": {"presence", "delivery"},
    "node": {"drain", "clock", "admission", "commands", "reconcile", "presence", "delivery", "tasks"},
    "app": {"admission", "delivery"},
    "__main__": {"app", "node", "drain", "websocket"},
}
ROUTER: Final[dict[str, set[str]]] = {
    "contract": set(),
    "tls": set(),
    "store.redis": {"tls", "contract"},
    "store": {"store.redis", "contract"},
    "process": {"store", "store.redis", "tls", "contract"},
    "media.worker": set(),
    "media": {"media.worker", "process", "store", "contract"},
    "jobs": {"media", "process", "store", "contract"},
    "search": {"jobs", "process", "store", "store.redis", "contract"},
    "api": {"search", "media", "process", "store", "store.redis", "contract"},
    "web": {"contract"},
    "__main__": {"web", "api", "search", "jobs", "media", "process", "store", "store.redis", "contract"},
}
LOADTEST: Final[dict[str, set[str]]] = {
    "base": set(),
    "load": {"base"},
    "load.scenarios": {"load", "base"},
    "bench": {"load.scenarios", "load", "base"},
    "peers": {"bench", "load.scenarios", "load", "base"},
    "chaos.proof": set(),
    "chaos": {"chaos.proof", "base"},
    "canary": {"chaos", "chaos.proof", "base"},
    "__main__": {"canary", "chaos", "bench", "load.scenarios", "load"},
}
TREES: Final = {"gateway": GATEWAY, "router": ROUTER, "loadtest": LOADTEST}


def dotted(path: Path) -> str:
    base = ROOT / PYTHON_SDK if path.is_relative_to(ROOT / PYTHON_SDK) else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts)


def part_of(name: str, table: dict[str, set[str]]) -> str:
    """Return the key of the table that a module belongs to. `base` are the modules beside the packages."""
    parts = name.split(".")[1:]
    return next((part for part in (".".join(parts[:2]), parts[0]) if part in table), "base")


@pytest.mark.parametrize("tree", TREES)
def test_tree_imports_only_what_its_table_allows(tree: str) -> None:
    table = TREES[tree]
    files = {dotted(path): path for path in server_modules(tree)}
    used: dict[str, set[str]] = {part: set() for part in table}
    for name, path in files.items():
        if not name.endswith("__init__"):
            used[part_of(name, table)] |= {part_of(other, table) for other in imports(path) if other in files}
    assert {part: others - {part} for part, others in used.items()} == table
    rows = list(table)
    assert all(rows.index(other) < rows.index(part) for part, others in table.items() for other in others)


def test_websocket_imports_nothing_of_linnet() -> None:
    for path in modules("gateway/websocket"):
        found = imports(path)
        assert not of(found, "router"), path
        assert all(name.startswith("gateway.websocket") for name in of(found, "gateway")), path


def test_sdk_imports_nothing_of_the_server() -> None:
    """A client package depends on the standard library, `websockets` and itself; no part of the server imports it."""
    for path in modules(f"{PYTHON_SDK}/linnet_client"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert tops - sys.stdlib_module_names <= {"websockets", "linnet_client", "__future__"}, path
    for folder in ("gateway", "router"):
        for path in server_modules(folder):
            assert not of(imports(path), "linnet_client"), path


# Each module of the SDK imports only modules of earlier rows.
SDK_ORDER: Final = (
    "wire", "errors", "values", "events", "machine", "model", "store", "outbox", "http", "uploading", "media", "state",
    "people", "profiles", "moderation", "messages", "sending", "receiving", "connection", "conversation", "client",
    "session_file", "doctor", "cli", "__main__", "__init__",
)  # fmt: skip


def test_modules_of_the_sdk_import_only_earlier_ones() -> None:
    for path in modules(f"{PYTHON_SDK}/linnet_client"):
        own = {name.split(".")[1] for name in of(imports(path), "linnet_client") if name.count(".") >= 1}
        later = SDK_ORDER[SDK_ORDER.index(path.stem) :]
        assert not own & set(later), path


def test_imports_form_no_circle_of_files() -> None:
    """Imports for annotations and of the packages' `__init__` count, too."""
    files = {dotted(path).removesuffix(".__init__"): path for top in FOLDERS for path in modules(top)}
    arrows = {name: {other for other in imports(path) if other in files} for name, path in files.items()}
    while arrows:
        ground = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert ground, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ground}


def test_keys_are_spelled_in_one_file() -> None:
    """No file but keys.py spells a key or a channel."""
    spelled = re.compile(
        r"""["']f?\{\{[cu]\{|linnet:(gateways|deployment|tick)|:(conv|log|dirty|name|convs|recent|dev|cursor|state|versions|removed|ch|pr):"""
    )
    for folder in ("gateway", "router", "loadtest"):
        for path in modules(folder):
            if path.name != "keys.py":
                assert not spelled.search(path.read_text()), path


def test_metrics_are_declared_in_one_file() -> None:
    """Names and labels of metrics are only in metrics.py."""
    declares = re.compile(r"\b(Counter|Gauge|Histogram|Summary)\(\s*[\"']")
    for folder in ("gateway", "router"):
        for path in modules(folder):
            if path.name != "metrics.py":
                assert not declares.search(path.read_text()), path


def test_package_maps_have_no_imports() -> None:
    """Packages' `__init__` files are maps, not code."""
    for folder in ("gateway", "router", "loadtest"):
        for path in server_modules(folder):
            if path.name == "__init__.py":
                assert imports(path) == set(), path


@pytest.mark.parametrize("tree", ["gateway", "router", "loadtest"])
def test_package_maps_name_every_module(tree: str) -> None:
    """Except the scenarios, which are in a table, and the SDKs, which are packages of their own."""
    for path in modules(tree):
        if path.parent.name == "scenarios" or "sdk" in path.parts:
            continue
        package_map = (path.parent / "__init__.py").read_text()
        assert path.stem == "__init__" or re.search(rf"^(\w+, )*{path.stem}\b", package_map, re.MULTILINE), path


def test_every_module_of_the_gateway_has_its_test_file() -> None:
    """At the same place of the tree: `gateway/delivery/hub.py` and `tests/gateway/delivery/test_hub.py`."""
    for path in modules("gateway"):
        place = path.relative_to(ROOT)
        test = ROOT / "tests" / place.parent / f"test_{place.stem.strip('_')}.py"
        assert path.stem == "__init__" or test.exists(), path


def test_every_module_has_a_docstring() -> None:
    for folder in ("gateway", "router", "deploy", "loadtest", "tests"):
        for path in modules(folder):
            if path.read_text().strip():
                assert parsed(path)[1], path


def test_every_lua_function_has_its_file_and_its_caller() -> None:
    """One function, one file, one name, and one place in the store that calls it."""
    python = "\n".join(path.read_text() for path in (ROOT / "router/store").rglob("*.py"))
    for path in sorted((ROOT / "router/store/functions").glob("*.lua")):
        if path.name.startswith("prelude"):
            continue
        registered = re.findall(r"^register\('(\w+)'", path.read_text(), re.MULTILINE)
        assert registered == [path.stem], path
        assert f'"{path.stem}"' in python, path


def test_version_of_the_project_is_that_of_the_settings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
