"""The library of functions, in which a function fails if it uses a key that is not among its KEYS.

All tests of the store run with it, so it checks every branch that a test reaches. Redis itself does not check this: on
a cluster such a function fails only while a slot moves (test_slot_moves.py).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from router.store.redis.functions import FOLDER, Library, build

# Loaded before the other preludes, because of its name. If one server has all slots, `append` also receives the keys of
# the two users of a direct conversation, among its arguments (on a cluster its caller gives none), and functions that
# read users' rows may use the keys of conversations whose rows lag (prelude_user_lagging.lua).
_CHECK: Final = """\
local running, declared
local register_unchecked = register

local function register(name, callback, flags)
  register_unchecked(name, function(keys, args)
    running, declared = name, {}
    for _, key in ipairs(keys) do declared[key] = true end
    return callback(keys, args)
  end, flags)
end

local function check(key)
  if declared[key] then return end
  if (running == 'append' or running == 'mark_routed') and string.sub(key, 1, 2) == '{u' then return end
  if string.find(key, ':lagging:', 1, true) then declared.lags = true return end
  if declared.lags and (string.find(key, ':conv:d:', 1, true) or string.find(key, ':user:', 1, true)) then return end
  error(running .. ' uses ' .. tostring(key) .. ', which is not among its KEYS')
end

local function checked(call, command, ...)
  local a = {...}
  if command == 'UNLINK' then
    for _, key in ipairs(a) do check(key) end
  elseif command == 'XINFO' then
    check(a[2])
  elseif command ~= 'TIME' and command ~= 'INFO' and command ~= 'SPUBLISH' then
    check(a[1])
  end
  return call(command, ...)
end
"""
_CALLS: Final = re.compile(r"redis\.(p?call)\(")


@cache
def checked_library(*, database: int = 0) -> Library:
    with TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "prelude-check.lua").write_text(_CHECK)
        for file in FOLDER.glob("*.lua"):
            source = _CALLS.sub(r"checked(redis.\1, ", file.read_text())
            (folder / file.name).write_text(source)
        return build(folder, database=database)
