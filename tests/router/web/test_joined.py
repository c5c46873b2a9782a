"""Modules that are joined to one file behave in Node as they do apart."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy import sdk
from router.web.joined import join, with_imports

MODULES = {
    "a.js": """/** Asks others, e.g. import { b } from "./b.js"; */

import { b, Counter } from "./b.js";
import words from "./words.js";

const secret = `a ${words.hello}`;
export async function a(given = 1) {
  const { late } = await import("./late.js");
  return [secret, b(), new Counter().next(given), typeof d, late];
}
export const open = 1;
""",
    "b.js": """import {
  d,
} from "./d.js";
export { d } from "./d.js";
const secret = "b";
export function* steps() { yield d; }
export class Counter { next(by) { return 1 + by; } }
const b = () => secret + d + typeof open;
export { b };
globalThis.ran.push("b");
""",
    "d.js": """export const d = "d";
globalThis.ran.push("d");
""",
    "words.js": """export default { hello: "hello" };
""",
    "late.js": """export const late = "late";
""",
}


@pytest.mark.processes
def test_joined_modules_keep_their_scopes_their_order_and_their_exports(tmp_path: Path) -> None:
    """A module sees only what it imports: b.js not the `open` of a.js, a.js not `d`; and each has its own `secret`."""
    assert with_imports("a.js", MODULES) == ["d.js", "b.js", "words.js", "a.js"]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for name, code in MODULES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "joined.js").write_text(join(("d.js", "b.js", "a.js"), MODULES))
    script = """globalThis.ran = [];
        const m = await import(process.argv[1]);
        console.log(JSON.stringify([Object.keys(m).sort(), await m.a(2), ran]))"""
    found = [
        subprocess.run(
            [sdk.NODE, "--input-type=module", "-e", script, str(tmp_path / name)],
            check=True, capture_output=True, text=True, timeout=60,
        ).stdout
        for name in ("a.js", "joined.js")
    ]  # fmt: skip
    (own, *apart), (every, *together) = map(json.loads, found)
    assert together == apart == [["a hello", "bdundefined", 3, "undefined", "late"], ["d", "b"]]
    assert own == ["a", "open"]
    assert every == ["Counter", "a", "b", "d", "open", "steps"]


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        ({"a.js": 'import { b } from "./b.js";', "b.js": 'import { a } from "./a.js";'}, "circle"),
        ({"b.js": "export const x = 1;", "a.js": 'import "./b.js";\nexport const x = 2;'}, "import"),
        ({"b.js": "export const x = 1;", "a.js": 'import { x as y } from "./b.js";'}, "x as y"),
        ({"b.js": "export const x = 1;", "a.js": 'import * as y from "./b.js";'}, "as y"),
        ({"b.js": "export const x = 1, y = 2;", "a.js": 'import { y } from "./b.js";'}, "y"),
        ({"a.js": "export let x = 1;"}, "export let"),
        ({"a.js": "export default 1;"}, "export default"),
        ({"a.js": "await 1;"}, "await"),
    ],
)
def test_module_that_cannot_be_joined_is_refused_by_its_name(modules: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.js.*{why}"):
        join(with_imports("a.js", modules), modules)


def test_two_exports_of_one_name_are_refused() -> None:
    modules = {"a.js": 'import { x } from "./b.js";\nexport const y = x;', "b.js": "export const x = 1;"}
    assert join(["b.js", "a.js"], modules)
    with pytest.raises(ValueError, match=r"b\.js and a\.js both export x"):
        join(["b.js", "a.js"], {**modules, "a.js": "export const x = 2;"})
