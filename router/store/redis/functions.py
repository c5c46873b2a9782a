"""The function library: functions/*.lua made into one source whose names no other version shares.

What lives here: reading the files and joining them. What never does: a connection (`hot` loads the source when the
server lacks it). `prelude*.lua` come first, as they stand: local helpers for all. Every other file stands in a
`do … end` of its own and registers with `register(name, callback, flags)`.

Invariants
- Library and function names end in the hash of the sources. A version is loaded once and never replaced, so two
  versions serve side by side through a rolling deploy, and a name means the same code on every server for ever.
- Loading twice, or by two processes at once, does no harm: the second gets "already exists".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

FOLDER: Final = Path(__file__).parent.parent / "functions"

# The only global that exists while a library loads is `redis`: no `string`, no `table`, so names are joined with `..`.
_REGISTER: Final = """\
local function register(name, callback, flags)
  redis.register_function{{function_name = name .. '_{version}', callback = callback, flags = flags or {{}}}}
end
"""


class Library(msgspec.Struct, frozen=True):
    version: str
    source: bytes

    @property
    def name(self) -> str:
        """What the server calls this version of the library."""
        return f"linnet_{self.version}"

    def named(self, function: str) -> str:
        """What the server calls this version of a function."""
        return f"{function}_{self.version}"


def build(folder: Path = FOLDER) -> Library:
    """The library of a folder of Lua files."""
    files = sorted(folder.glob("*.lua"), key=lambda file: (not _is_prelude(file.name), file.name))
    parts = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    hashed = "\0".join([_REGISTER, *(piece for part in parts for piece in part)])
    version = hashlib.sha256(hashed.encode()).hexdigest()[:8]
    chunks = [f"#!lua name=linnet_{version}\n", _REGISTER.format(version=version)]
    for name, text in parts:
        chunks.append(text + "\n" if _is_prelude(name) else f"do -- {name}\n{text}\nend\n")
    return Library(version, "".join(chunks).encode())


def _is_prelude(name: str) -> bool:
    return name.startswith("prelude")
