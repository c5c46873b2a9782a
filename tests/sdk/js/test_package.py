"""The package of the JavaScript SDK: types, generated parts, size, and what it imports."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from deploy import sdk

SRC = sdk.PACKAGE / "src"
BROWSER_ONLY_LIMIT = 40 * 1024
BUNDLED_LIMIT = 20 * 1024
ELSEWHERE = ("store_sqlite.js", "store_memory.js", "place.js")

modules = pytest.mark.skipif(not sdk.MODULES.exists(), reason="`make test` installs TypeScript into .venv/sdk")


def node(*args: str | Path) -> str:
    done = subprocess.run([sdk.NODE, *args], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_wire_types_are_those_of_the_served_schema(api: str) -> None:
    """After a change of the wire: `make sdk`."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        schema = (await http.get(f"{api}/v1/schema.json")).json()
    assert (SRC / "wire.js").read_text() == sdk.wire_types(schema)


@pytest.mark.processes
@modules
def test_types_hold_and_declarations_are_emitted(tmp_path: Path) -> None:
    roots = sdk.MODULES / "@types"
    node(sdk.MODULES / "typescript/bin/tsc", "-p", sdk.PACKAGE, "--typeRoots", roots, "--outDir", tmp_path)
    assert {path.name for path in tmp_path.glob("*.d.ts")} >= {"index.d.ts", "client.d.ts", "wire.d.ts"}


@pytest.mark.processes
@modules
def test_no_promise_is_dropped() -> None:
    """A promise that is neither awaited, nor `void`, nor given a function for its failure ends the process in Node."""
    node(sdk.PACKAGE / "tools/floating.cjs", sdk.MODULES.resolve(), sdk.PACKAGE)


@pytest.mark.processes
@modules
def test_reference_is_generated_from_the_types() -> None:
    """After a change of the API: `make sdk`."""
    assert (sdk.PACKAGE / "REFERENCE.md").read_text() == sdk.reference()


def served() -> set[Path]:
    """The modules that a page loads: all that `index.js` imports, but those of Node, of pages without Web Locks or
    IndexedDB, which are loaded there alone."""
    found: set[Path] = set()
    waiting = [SRC / "index.js"]
    while waiting:
        path = waiting.pop()
        if path in found or path.name in ELSEWHERE:
            continue
        found.add(path)
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        waiting += [SRC / name for name in re.findall(r"""(?:from|import\()\s*"\./([\w.]+)\"""", code)]
    return found


def test_files_as_served_are_small() -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in served()}
    assert "wire.js" not in sizes  # types alone
    assert sum(sizes.values()) <= BROWSER_ONLY_LIMIT, sizes


@pytest.mark.processes
@modules
def test_minified_bundle_is_small(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.js"
    [esbuild] = (sdk.MODULES / "@esbuild").glob("*/bin/esbuild")
    options = ["--bundle", "--minify", "--format=esm", "--external:node:*", "--external:./store_sqlite.js"]
    subprocess.run(
        [esbuild, SRC / "index.js", *options, f"--outfile={bundle}"], check=True, capture_output=True, timeout=60
    )
    assert len(gzip.compress(bundle.read_bytes())) <= BUNDLED_LIMIT


def test_package_has_no_dependencies_and_its_lock_has_hashes() -> None:
    package = json.loads((sdk.PACKAGE / "package.json").read_text())
    assert "dependencies" not in package
    locked = json.loads((sdk.PACKAGE / "package-lock.json").read_text())["packages"]
    assert all("integrity" in entry for name, entry in locked.items() if name)


def test_modules_import_nothing_but_each_other_and_node() -> None:
    for path in SRC.glob("*.js"):
        for name in re.findall(r"""(?:from|import\()\s*"([^"]+)\"""", path.read_text()):
            assert (SRC / name).exists() if name.startswith("./") else name.startswith("node:"), (path.name, name)
