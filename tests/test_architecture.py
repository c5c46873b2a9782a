"""The arrows between modules, and the things that stand in one place only."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from router.contract.settings import VERSION

ROOT = Path(__file__).parent.parent
STORE_BASE = {"redis"}


def modules(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
    return found


def loaded(path: Path) -> set[str]:
    """Modules that a file imports when it is loaded: not what only its annotations name."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    named = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return found | {f"{node.module}.{name.name}" for node in named for name in node.names}


def of(found: set[str], package: str) -> set[str]:
    return {name for name in found if name == package or name.startswith(f"{package}.")}


def test_router_never_imports_gateway() -> None:
    """The two processes meet only in Redis."""
    assert {str(path) for path in modules("router") if of(imports(path), "gateway")} == set()


def test_gateway_imports_only_what_the_processes_share() -> None:
    """Of the router's package a gateway knows the contract, the store and the outside of a process."""
    shared = ("router.contract", "router.store", "router.process")
    strangers = {
        (path.name, name)
        for path in modules("gateway")
        for name in of(imports(path), "router")
        if name != "router" and not name.startswith(shared)
    }
    assert strangers == set()


def test_contract_is_pure() -> None:
    """The contract knows neither the store nor a socket."""
    for path in modules("router/contract"):
        found = imports(path)
        inner = {name for name in of(found, "router") if name != "router" and not name.startswith("router.contract")}
        assert inner == set(), path
        assert not found & {"socket", "redis", "starlette", "uvicorn", "hiredis"}, path


def test_store_files_import_only_its_transport() -> None:
    """Domain files of the store never import each other, so that none can call another's function half way."""
    for path in modules("router/store"):
        if path.parent.name == "redis" or path.stem in {"__init__", "observe"}:
            continue
        siblings = {name.split(".")[2] for name in of(imports(path), "router.store") if name.count(".") >= 2}
        assert siblings <= STORE_BASE, (path, siblings)


def test_only_the_store_knows_redis() -> None:
    """Redis and its exceptions end in `store/`."""
    for folder in ("gateway", "router"):
        for path in modules(folder):
            if "store" not in path.parts:
                assert not of(imports(path), "redis") | of(imports(path), "hiredis"), path


def test_no_module_loads_itself() -> None:
    """Imports form no circle. (A gateway's parts know each other through `Node`, by annotation alone.)"""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for folder in ("gateway", "router", "deploy", "loadtest")
        for path in modules(folder)
        if path.name != "__init__.py"
    }
    arrows = {name: {other for other in loaded(path) if other in names} for name, path in names.items()}
    while arrows:
        ground = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert ground, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ground}


# The other parts of loadtest that each part imports. `base` are the modules beside the packages.
LOADTEST: Final[dict[str, set[str]]] = {
    "base": set(),
    "load": {"base"},
    "load.scenarios": {"load", "base"},
    "bench": {"load.scenarios", "load"},
    "peers": {"bench", "load.scenarios", "load", "base"},
    "chaos.proof": set(),
    "chaos": {"chaos.proof", "base"},
    "canary": {"chaos", "chaos.proof", "base"},
    "__main__": {"canary", "chaos", "bench", "load.scenarios", "load"},
}


def part_of_loadtest(name: str) -> str:
    """Return the key of `LOADTEST` that a module belongs to."""
    parts = name.split(".")[1:]
    return next((part for part in (".".join(parts[:2]), parts[0]) if part in LOADTEST), "base")


def test_loadtest_imports_only_downwards() -> None:
    """The table holds for every import, also of an annotation, and it has no circle: each row names earlier rows."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules("loadtest")}
    used: dict[str, set[str]] = {part: set() for part in LOADTEST}
    for name, path in files.items():
        if not name.endswith("__init__"):
            used[part_of_loadtest(name)] |= {part_of_loadtest(other) for other in imports(path) if other in files}
    assert {part: others - {part} for part, others in used.items()} == LOADTEST
    rows = list(LOADTEST)
    assert all(rows.index(other) < rows.index(part) for part, others in LOADTEST.items() for other in others)


def test_loadtest_files_form_no_circle() -> None:
    """Imports of annotations count, too."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in modules("loadtest")}
    arrows = {name: {other for other in imports(path) if other in files} for name, path in files.items()}
    while arrows:
        ground = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert ground, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ground}


def test_keys_are_spelled_in_one_file() -> None:
    """No file but keys.py spells a key or a channel."""
    spelled = re.compile(
        r"""["']f?\{\{[cu]\{|linnet:(gateways|deployment|tick)|:(conv|log|dirty|name|convs|recent|dev|cursor|ch|pr):"""
    )
    for folder in ("gateway", "router", "loadtest"):
        for path in modules(folder):
            if path.name != "keys.py":
                assert not spelled.search(path.read_text()), path


def test_metrics_are_declared_in_one_file() -> None:
    """Names and labels of metrics stand in metrics.py alone."""
    declares = re.compile(r"\b(Counter|Gauge|Histogram|Summary)\(\s*[\"']")
    for folder in ("gateway", "router"):
        for path in modules(folder):
            if path.name != "metrics.py":
                assert not declares.search(path.read_text()), path


def test_no_imports_in_package_maps() -> None:
    """Packages' __init__ files are maps, not code."""
    for folder in ("gateway", "router", "loadtest"):
        for path in modules(folder):
            if path.name == "__init__.py":
                assert imports(path) == set(), path


def test_every_module_opens_with_its_rule() -> None:
    for folder in ("gateway", "router", "deploy", "loadtest", "tests"):
        for path in modules(folder):
            if path.read_text().strip():
                assert ast.get_docstring(ast.parse(path.read_text())), path


def test_every_lua_function_has_its_file_and_its_caller() -> None:
    """One function, one file, one name, and one place in the store that calls it."""
    python = "\n".join(path.read_text() for path in (ROOT / "router/store").rglob("*.py"))
    for path in sorted((ROOT / "router/store/functions").glob("*.lua")):
        if path.name.startswith("prelude"):
            continue
        registered = re.findall(r"^register\('(\w+)'", path.read_text(), re.MULTILINE)
        assert registered == [path.stem], path
        assert f'"{path.stem}"' in python, path


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
