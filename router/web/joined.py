"""Joins modules that a page always loads together, so that a browser asks for a few files in place of many.

Over HTTP/1.1 a browser has six connections to a host, so a page of forty modules costs seven round trips in a row. The
tree keeps its small modules; the router joins them once, when it starts.

Invariants
- Each module keeps a scope of its own: it becomes a function that sees what it imports, and nothing else of the others.
- Each module runs once, after all modules that it imports. A circle is refused.
- A joined file exports all that its modules export. The import map leads their addresses to the file, so other modules
  import them as before, and none is loaded twice.
- A module that cannot be joined safely (an import or export in an unknown form, a name that two modules export) is
  refused at the start, by its name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

_FROM: Final = re.compile(r"""^(import|export)\s*([\w\s{},*$]*?)\s*from\s*"([^"]+)";""", re.MULTILINE)
_LIST: Final = re.compile(r"^export\s*\{([^}]*)\};", re.MULTILINE)
_DECLARED: Final = re.compile(r"^export\s+((?:async\s+)?function\*?|class|const)\s+(\w+)", re.MULTILINE)
_UNKNOWN: Final = re.compile(r"^(?:import\s|export\b|await\b).*", re.MULTILINE)
_NAME: Final = re.compile(r"\w+")


class Module(Struct, frozen=True):
    """A module's imports and exports, and its body without them."""

    imports: tuple[tuple[str, tuple[str, ...]], ...]  # addresses, and the names from there, or `default: NAME`
    exports: tuple[str, ...]
    body: str


def imports_of(name: str, source: str) -> list[str]:
    """The modules that a module imports at its top, by the names under which they are served."""
    return [_resolved(name, address) for _, _, address in _FROM.findall(source)]


def with_imports(root: str, sources: Mapping[str, str]) -> list[str]:
    """A module and all that it imports at its top, in the order in which they run."""
    found: list[str] = []
    entered: list[str] = []

    def visit(name: str) -> None:
        if name in found:
            return
        if name in entered:
            raise ValueError(f"{name} imports itself in a circle: {' → '.join(entered)}")
        entered.append(name)
        for other in imports_of(name, sources[name]):
            visit(other)
        entered.remove(name)
        found.append(name)

    visit(root)
    return found


def join(names: Iterable[str], sources: Mapping[str, str]) -> str:
    """Return one module that does what several do. `names` is in the order in which they run; all are in one folder, so
    that the relative addresses of other modules stay right."""
    outside: dict[str, str] = {}  # address of an imported module that is not among them -> its name here
    inside: dict[str, str] = {}
    exports: dict[str, tuple[str, ...]] = {}
    exported: dict[str, str] = {}
    code: list[str] = []
    for name in names:
        part = parse(name, sources[name])
        bound: dict[str, str] = {}
        for address, wanted in part.imports:
            source = _resolved(name, address)
            if source in inside and (missing := [one for one in wanted if one not in exports[source]]):
                raise ValueError(f"{name} imports {', '.join(missing)} from {source}, which exports none of that name")
            of = inside.get(source) or outside.setdefault(address, f"$o{len(outside)}")
            bound |= dict.fromkeys(wanted, of)
        for one in part.exports:
            of = exported.setdefault(one, name)
            if of != name and inside[of] != bound.get(one):  # a module may export again what it imports
                raise ValueError(f"{of} and {name} both export {one}")
        inside[name], exports[name] = f"$i{len(inside)}", part.exports
        first = "".join(f"const {{ {one} }} = {of};\n" for one, of in bound.items())
        last = f"\nreturn {{ {', '.join(part.exports)} }};"
        code.append(f"// {name}\nconst {inside[name]} = (() => {{\n{first}{part.body}{last}\n}})();\n")
    head = [f'import * as {of} from "{address}";\n' for address, of in outside.items()]
    ends = [f"const {{ {one}: $e_{one} }} = {inside[name]};\n" for one, name in exported.items()]
    listed = ", ".join(f"$e_{one} as {one}" for one in exported)
    return "".join((*head, *code, *ends, f"export {{ {listed} }};\n"))


def parse(name: str, source: str) -> Module:
    """Take a module apart."""
    imports: list[tuple[str, tuple[str, ...]]] = []
    exports: list[str] = []

    def take_from(found: re.Match[str]) -> str:
        names = _names(name, found[2])
        imports.append((found[3], names))
        if found[1] == "export":
            exports.extend(names)
        return ""

    def take_list(found: re.Match[str]) -> str:
        exports.extend(_names(name, f"{{{found[1]}}}"))
        return ""

    def take_declared(found: re.Match[str]) -> str:
        exports.append(found[2])
        return f"{found[1]} {found[2]}"

    body = _DECLARED.sub(take_declared, _LIST.sub(take_list, _FROM.sub(take_from, source)))
    if unknown := _UNKNOWN.search(body):
        raise ValueError(f"{name} cannot be joined: {unknown[0]}")
    return Module(tuple(imports), tuple(exports), body.strip())


def _names(module: str, clause: str) -> tuple[str, ...]:
    """The names of `{ a, b }` or of `a`, the default."""
    clause = clause.strip()
    if _NAME.fullmatch(clause):
        return (f"default: {clause}",)
    names = [one.strip() for one in clause.removeprefix("{").removesuffix("}").split(",") if one.strip()]
    if not clause.startswith("{") or not all(_NAME.fullmatch(one) for one in names):
        raise ValueError(f"{module} cannot be joined: import or export {clause}")
    return tuple(names)


def _resolved(name: str, address: str) -> str:
    return "vendor/preact.js" if address == "preact" else posixpath.normpath(posixpath.join(name, "..", address))
