"""G11: the part of the checker that judges user state.

At the end every device has what the store has; no version stands for two changes; an answered change is stored, or a
later change of its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from loadtest.chaos.proof import client_history, history
from loadtest.chaos.proof.client_history import ClientRows
from loadtest.chaos.proof.evidence import StoredState
from loadtest.chaos.proof.findings import Violation
from loadtest.chaos.proof.history import Rows


def check_states(stored: Iterable[StoredState], histories: dict[str, Iterable[Rows]]) -> Iterator[Violation]:
    truth = {one.user: one for one in stored}
    for user, state in truth.items():
        devices = {device: rows for device, rows in histories.items() if device.partition("/")[0] == user}
        changes: dict[int, tuple[str, str]] = {key[1][0]: (key[0], key[1][1]) for key in state.keys.items()}
        for device, rows in devices.items():
            yield from _check(device, rows, state, changes)


def check_client_states(
    stored: Iterable[StoredState], clients: Mapping[str, Iterable[ClientRows]]
) -> Iterator[Violation]:
    """Judge the applications on an SDK: what they show, and the changes whose answers they were given."""
    truth = {one.user: one for one in stored}
    for installation, rows in clients.items():
        state = truth.get(installation.partition(".")[0], StoredState("", 0, {}))
        kept = {key: body for key, (_, body) in state.keys.items() if body}
        shown: client_history.Shown | None = None
        for row in rows:
            if isinstance(row, client_history.Put) and row.version > state.keys.get(row.key, (0, ""))[0]:
                what = f"the change {row.version} of {row.key} was answered, the store has {state.keys.get(row.key)}"
                yield Violation("G11", f"{installation}: {what}", row.at)
            elif isinstance(row, client_history.Shown):
                shown = row
        if shown is not None and shown.state != kept:
            lacks = sorted(key for key in kept.keys() | shown.state.keys() if kept.get(key) != shown.state.get(key))
            yield Violation("G11", f"{installation}: what it shows of the user's state differs in {lacks}", shown.at)


def _check(
    device: str, rows: Iterable[Rows], state: StoredState, changes: dict[int, tuple[str, str]]
) -> Iterator[Violation]:
    """Compare a device with the state; `changes` are those that are known so far, by version."""
    for row in rows:
        match row:
            case history.Stated(at, key, version, _, body):
                if changes.setdefault(version, (key, body)) != (key, body):
                    what = f"version {version} stands for {(key, body)} and {changes[version]}"
                    yield Violation("G11", f"{device}: {what}", at, devices=(device,))
            case history.Put(at, key, version, _):
                if version > state.keys.get(key, (0, ""))[0]:
                    what = f"the change {version} of {key} was answered, and the store has {state.keys.get(key)}"
                    yield Violation("G11", f"{device}: {what}", at, devices=(device,))
            case history.Holds(at, version, keys):
                kept = {key: value for key, value in state.keys.items() if value[1]}
                if (version, keys) != (state.version, kept):
                    lacks = sorted(key for key in kept.keys() | keys.keys() if kept.get(key) != keys.get(key))
                    what = f"has version {version} of the user state {state.version}, and differs in {lacks}"
                    yield Violation("G11", f"{device}: {what}", at, devices=(device,))
            case _:
                pass
