"""The function library: functions/*.lua joined into one source, with names that are unique to this version.

`prelude*.lua` come first and unchanged: they define local helpers for all functions. Every other file is put into a
`do … end` block and registers with `register(name, callback, flags)`. `pipeline` loads the source if the server lacks
it.

Invariants
- Library and function names end in the hash of the sources. A version is loaded once and never replaced, so two
  versions serve side by side during a rolling deploy, and a name means the same code on every server.
- Loading it twice, or in two processes at once, is safe: the second gets "already exists".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

FOLDER: Final = Path(__file__).parent.parent / "functions"

# While a library loads, the only global is `redis`: there is no `string` or `table`, so names are joined with `..`.
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
        """The name of this version of the library on the server."""
        return f"linnet_{self.version}"

    def named(self, function: str) -> str:
        """The name of this version of a function on the server."""
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
