"""Generates parts of the Python client, by `make sdk`: its wire types and its reference.

`wire.py` has the types of commands and events, from the JSON Schema that the router serves at `/v1/schema.json`.
`REFERENCE.md` lists what the package exports, from its types and docstrings. Tests compare both with what is made here.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import keyword
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from router.contract import codecs

SDK: Final = Path(__file__).parent.parent / "router/sdk/python"
PAGE: Final = SDK / "REFERENCE.md"
WIRE: Final = SDK / "linnet_client/wire.py"
LINE: Final = 121
WIRE_HEAD: Final = '''"""Types of the wire, from the schema that the router serves (`/v1/schema.json`): `make sdk`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


'''
PLAIN: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
HEAD: Final = """# Reference of linnet-client

<!-- made by `make sdk` from the types and docstrings; change them there -->
"""
# The names of the package, by subject; a name that is in no group fails the test.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Client": ("Client", "Conversation", "MessageHandle", "Ack", "Status"),
    "Tokens and the HTTP API": ("Login", "TokenSource", "Api"),
    "Media, state, people": ("Media", "State", "People"),
    "Profiles": ("Profiles", "Profile", "Me", "Privacy", "ProfileChange"),
    "Moderation": ("Moderation", "Rules", "Ban", "AuditEntry", "AuditPage", "Reports", "Report", "ReportPage"),
    "Views": ("ConversationView", "MessageView"),
    "Events": (
        "Event", "Logged", "Message", "Edit", "Delete", "React", "Member", "Title", "Gap", "Gone", "Joined", "Receipt",
        "Typing", "Presence", "Online",
    ),
    "Errors": (
        "ClientError", "Refused", "Unreachable", "NotConnected", "Stopped", "Cancelled", "InvalidValue", "StoreError",
        "StoreInUse", "StoreMismatch", "StoreLost",
    ),
}  # fmt: skip
# Parts that the client's own modules call, and an application does not.
INNER: Final = {
    "Client": ("put", "hello", "welcomed", "received", "ticked", "changed", "found_gateways", "settled", "cancelled",
               "copied", "lost"),
    "Conversation": ("__init__",),
    "Media": ("__init__",),
    "State": ("__init__", "told", "close", "refresh"),
    "People": ("__init__",),
    "MessageHandle": ("__init__", "move", "was_stored", "renumbered", "was_not_stored", "was_acked", "was_refused",
                      "queued_again"),
    "ConversationView": ("__init__", "apply_state", "begin", "oldest", "queue", "unqueue", "settle", "apply", "load",
                         "gap", "receipt"),
}  # fmt: skip


def page() -> str:
    """Return the page as the code has it now."""
    if str(SDK) not in sys.path:
        sys.path.append(str(SDK))
    package = importlib.import_module("linnet_client")
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [_described(name, getattr(package, name)) for name in names]
    return "\n".join(parts)


def _described(name: str, kind: Any) -> str:
    if not inspect.isclass(kind):
        return f"### `{name}`\n\n`{_plain(str(kind))}`\n"
    bases = [base.__name__ for base in kind.__bases__ if base not in (object, enum.StrEnum)]
    title = f"### `{name}`" + (f" ({', '.join(bases)})" if bases else "")
    lines = [title, "", _text(kind), ""]
    shown = "__init__" in vars(kind) and "__init__" not in INNER.get(name, ())
    if shown and not dataclasses.is_dataclass(kind):
        lines += [f"- `{name}{_signature(kind.__init__)}`"]
    lines += [*_members(name, kind)]
    return "\n".join(lines).rstrip() + "\n"


def _members(name: str, kind: Any) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        yield "- " + ", ".join(f"`{member.name}`" for member in kind)
        return
    if dataclasses.is_dataclass(kind):
        own = vars(kind).get("__annotations__", {})
        for field in dataclasses.fields(kind):
            if field.name in own:
                default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
                yield f"- `{field.name}: {field.type}{default}`"
    for member, value in vars(kind).items():
        if member.startswith("_") or member in INNER.get(name, ()):
            continue
        if isinstance(value, property):
            yield f"- `{member}` → `{inspect.signature(value.fget).return_annotation}`. {_text(value)}".rstrip()  # type: ignore[arg-type]  # every property of ours has a getter
        elif inspect.isfunction(value):
            kind_of = "await " if inspect.iscoroutinefunction(value) else ""
            yield f"- `{kind_of}{member}{_signature(value)}`. {_text(value)}".rstrip()


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    made = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(signature.replace(parameters=kept)))
    return made.removesuffix(" -> None")


def _text(of: Any) -> str:
    """Return the docstring on one line."""
    return re.sub(r"\s+", " ", inspect.getdoc(of) or "")


def _plain(kind: str) -> str:
    return re.sub(r"linnet_client\.\w+\.|collections\.abc\.", "", kind)


# -- the types of the wire


def wire_types(schema: dict[str, Any]) -> str:
    """Return the module with one type per command and event, and one for all of each."""
    parts = [WIRE_HEAD]
    parts += [_definition(name, definition) for name, definition in schema["$defs"].items()]
    for name in ("command", "event"):
        members = [str(one["$ref"]).rpartition("/")[2] for one in schema["properties"][name]["anyOf"]]
        line = f"Any{name.capitalize()} = {' | '.join(members)}\n"
        long = f"Any{name.capitalize()} = (\n    " + "\n    | ".join(members) + "\n)\n"
        parts.append(line if len(line) <= LINE else long)
    return "".join(parts)


def _definition(name: str, definition: dict[str, Any]) -> str:
    """Return the type of an object; one with a field whose name is a keyword cannot be written as a class."""
    required = definition.get("required", [])
    fields = {field: _wire_type(kind) for field, kind in definition["properties"].items()}
    fields = {field: kind if field in required else f"NotRequired[{kind}]" for field, kind in fields.items()}
    if any(map(keyword.iskeyword, fields)):
        rows = [f'        "{field}": {_quoted(kind)},\n' for field, kind in fields.items()]
        return f'{name} = TypedDict(\n    "{name}",\n    {{\n{"".join(rows)}    }},\n)\n\n\n'
    rows = [f"    {field}: {kind}\n" for field, kind in fields.items()]
    return f"class {name}(TypedDict):\n{''.join(rows)}\n\n"


def _quoted(kind: str) -> str:
    """Return a type whose names of this module are read later."""
    return re.sub(r"\b([A-Z]\w+(?:Event|State))\b", r'"\1"', kind)


def _wire_type(kind: dict[str, Any]) -> str:
    """Return the Python type of a schema; what a body may be is `Any`."""
    if "$ref" in kind:
        return str(kind["$ref"].rpartition("/")[2])
    if "anyOf" in kind:
        return " | ".join(dict.fromkeys(_wire_type(one) for one in kind["anyOf"]))
    if "enum" in kind:
        return f"Literal[{', '.join(json.dumps(value) for value in kind['enum'])}]"
    match kind.get("type"):
        case "array":
            return f"list[{_wire_type(kind.get('items', {}))}]"
        case "object":
            values = kind.get("additionalProperties", True)
            return f"dict[str, {_wire_type(values) if isinstance(values, dict) else 'Any'}]"
        case str(plain):
            return PLAIN[plain]
        case _:
            return "Any"


def main() -> None:
    WIRE.write_text(wire_types(codecs.schema()))
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
