"""The reference page of the Python client, made from its types and docstrings: `make sdk`."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

SDK: Final = Path(__file__).parent.parent / "router/sdk/python"
PAGE: Final = SDK / "REFERENCE.md"
HEAD: Final = """# Reference of linnet-client

<!-- made by `make sdk` from the types and docstrings; change them there -->
"""
# The names of the package, by subject; a name that is in no group fails the test.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Client": ("Client", "Conversation", "MessageHandle", "Ack", "State"),
    "Tokens and the HTTP API": ("Login", "TokenSource", "Api"),
    "Model": ("ConversationModel", "Entry"),
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
    "MessageHandle": ("__init__", "move", "was_stored", "renumbered", "was_not_stored", "acked", "failed",
                      "queued_again"),
    "ConversationModel": ("__init__", "apply_state", "queue", "unqueue", "settle", "apply", "load", "gap", "receipt"),
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


if __name__ == "__main__":
    PAGE.write_text(page())
