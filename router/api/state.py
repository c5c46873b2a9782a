"""A user's state over HTTP: keys and values that follow the user to every device.

A device compares the version in `welcome` and in `state` events with the one it has, and asks here for what it lacks.
The answer to a write is sent once the write is kept, as that to a message.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from router.api.call import Call
from router.api.types.state import StateChange, StateEntries, StateEntry, StateExpected, StateQuery, StateWritten
from router.contract.errors import NotFound
from router.contract.packing import json_of_value
from router.contract.state import check_key, pack_value, require_writable
from router.store.answers import reply_of
from router.store.state import Entry, Written

_NULL: Final = Raw(b"null")


async def list_state(call: Call, given: StateQuery) -> StateEntries:
    """List the keys that changed after a version, ascending by version.

    If `reset` is true, replace everything that you have: the changes since that version cannot be told. If there are
    `more`, ask again with the `cursor` of this answer. A removed key has the value null.
    """
    found = await call.services.state.entries(call.user, given.after, given.prefix, given.limit, given.cursor)
    more = found.cursor != ""
    return StateEntries([_entry(one) for one in found.entries], found.version, more, found.reset, found.cursor)


async def get_state(call: Call, _: None) -> StateEntry:
    """Get one key of the user's state."""
    found = await call.services.state.read(call.user, _key(call))
    if found is None:
        raise NotFound("no such key")
    return _entry(found)


async def put_state(call: Call, given: StateChange) -> StateWritten:
    """Write one key of the user's state; null removes it.

    With `expect`, only if the key has this version (0: it is absent); else the error has the key's `version`.
    """
    key = _key(call)
    written = await write_key(call, key, pack_value(given.value), given.expect)
    return StateWritten(key, written.version)


async def delete_state(call: Call, given: StateExpected) -> None:
    """Remove one key of the user's state."""
    await write_key(call, _key(call), None, given.expect)


async def write_key(call: Call, key: str, value: bytes | None, expect: int | None) -> Written:
    """Write a key of the caller's state; None removes it. Return once the write is kept."""
    require_writable(key)
    services = call.services
    services.durability.at_user(call.user).require_fit()
    written = await reply_of(services.state.write, call.user, key, value, expect)
    await reply_of(services.durability.at_user(call.user).when_kept, written.replid)
    return written


def _key(call: Call) -> str:
    """The key in the path. Starlette leaves out a line break at its end, so the path itself is read."""
    return check_key(call.request.scope["path"].partition("/v1/state/")[2])


def _entry(found: Entry) -> StateEntry:
    return StateEntry(found.key, _NULL if found.value is None else Raw(json_of_value(found.value)), found.version)
