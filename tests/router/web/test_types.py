"""The types of the page, as the JSDoc of its modules says them, checked by TypeScript."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy import sdk, web
from router.web.site import ADMIN, NOT_SERVED, PAGE, SDK

pytestmark = pytest.mark.skipif(
    not (sdk.MODULES.exists() and web.MODULES.exists()), reason="`make test` installs TypeScript and preact's types"
)

OPTIONS = {
    "allowJs": True,
    "checkJs": True,
    "noEmit": True,
    "strict": True,
    "noUncheckedIndexedAccess": True,
    "noImplicitReturns": True,
    "noUnusedLocals": True,
    "noUnusedParameters": True,
    "skipLibCheck": True,
    "preserveSymlinks": True,
    "target": "es2022",
    "lib": ["es2024", "dom", "dom.iterable"],
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}

# Others' modules have no types inside; their packages have.
VENDORED = {
    "hooks.d.ts": 'export * from "preact/hooks";',
    "htm.d.ts": 'export { default } from "htm";',
    "qrcode.d.ts": 'export { default } from "qrcode-generator";',
}


def merged(folder: Path) -> Path:
    """The modules under the names by which they import each other, as `site.py` serves them."""
    (folder / "sdk").mkdir()
    (folder / "vendor").mkdir()
    for path in PAGE.glob("*.js"):
        if path.name not in ("boot.js", "sw.js"):  # scripts; the one is three lines, the other a worker
            (folder / path.name).symlink_to(path)
    (folder / "lang").symlink_to(PAGE / "lang")
    for path in SDK.glob("*.js"):
        if f"sdk/{path.name}" not in NOT_SERVED or path.name in ("types.js", "wire.js"):
            (folder / "sdk" / path.name).symlink_to(path)
    for name, text in VENDORED.items():
        (folder / "vendor" / name).write_text(text)
    (folder / "node_modules").symlink_to(web.MODULES.resolve())
    (folder / "sdk/store_sqlite.d.ts").write_text("export const openSqlite: any;\nexport const SqliteStore: any;\n")
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["main.js", "boards.d.ts"]}))
    (folder / "boards.d.ts").write_text("interface Window { trustedTypes?: any }\ndeclare var trustedTypes: any;\n")
    return folder


def found(folder: Path) -> list[str]:
    """What TypeScript finds in a folder, apart from the SDK, which has a test of its own."""
    program = sdk.MODULES.resolve() / "typescript/bin/tsc"
    done = subprocess.run(
        [sdk.NODE, program, "-p", "."], cwd=folder, capture_output=True, text=True, timeout=170, check=False
    )  # it names files as seen from here
    assert done.returncode in (0, 1, 2), done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith(("sdk/", " "))]


def test_types_of_the_page_hold(tmp_path: Path) -> None:
    wrong = found(merged(tmp_path))
    assert wrong == [], "\n".join(wrong)


def test_types_of_the_admin_view_hold(tmp_path: Path) -> None:
    (tmp_path / "page/vendor").mkdir(parents=True)
    for name, text in VENDORED.items():
        (tmp_path / "page/vendor" / name).write_text(text)
    (tmp_path / "admin").mkdir()
    for path in ADMIN.glob("*.js"):
        (tmp_path / "admin" / path.name).symlink_to(path)
    (tmp_path / "node_modules").symlink_to(web.MODULES.resolve())
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["admin/main.js"]}))
    wrong = found(tmp_path)
    assert wrong == [], "\n".join(wrong)
