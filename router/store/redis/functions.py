"""The function library: functions/*.lua joined into one source, with names that are unique to this version.

`prelude*.lua` come first and unchanged: they define local helpers for all functions. Every other file is put into a
`do … end` block and registers with `register(name, callback, flags)`. `pipeline` loads the source if the server lacks
it.

Invariants
- Library and function names end in the hash of the sources. A version is loaded once and never replaced, so two
  versions serve side by side during a rolling deploy, and a name means the same code on every server.
- The databases of one server have libraries of their own, because functions remember what they know of a key, and the
  databases may have keys of the same name. The hash contains the number of the database, except 0.
- Loading it twice, or in two processes at once, is safe: the second gets "already exists".
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import msgspec

FOLDER: Final = Path(__file__).parent.parent / "functions"

# While a library loads, the only global is `redis`, with only `register_function`: there is no `string` or `table`, so
# names are joined with `..`. A global costs two lookups each time, because the globals of a library are an empty table
# behind which the real ones are. So those that are used most are locals, set by the first call. A library has at most
# 200 locals that are visible at once.
_REGISTER: Final = """\
local register = {{redis.register_function, function() return redis, string, struct, math, tonumber end}}
local redis, string, struct, math, tonumber
do
  local register_function, globals = register[1], register[2]
  register = function(name, callback, flags)
    register_function{{function_name = name .. '_{version}', flags = flags or {{}}, callback = function(keys, args)
      if not redis then redis, string, struct, math, tonumber = globals() end
      return callback(keys, args)
    end}}
  end
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


def build(folder: Path = FOLDER, *, database: int = 0) -> Library:
    """The library of a folder of Lua files, for one database of a server."""
    files = sorted(folder.glob("*.lua"), key=lambda file: (not _is_prelude(file.name), file.name))
    parts = [(file.name, file.read_text(encoding="utf-8")) for file in files]
    number = [str(database)] if database else []
    hashed = "\0".join([_REGISTER, *(piece for part in parts for piece in part), *number])
    version = hashlib.sha256(hashed.encode()).hexdigest()[:8]
    chunks = [f"#!lua name=linnet_{version}\n", _REGISTER.format(version=version)]
    for name, text in parts:
        chunks.append(text + "\n" if _is_prelude(name) else f"do -- {name}\n{text}\nend\n")
    return Library(version, "".join(chunks).encode())


def _is_prelude(name: str) -> bool:
    return name.startswith("prelude")
