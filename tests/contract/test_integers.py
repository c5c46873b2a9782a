"""Integers that arrive as floats, from clients whose language or library has no integers.

`clients/golden.json` contains `clients/commands.json` as real libraries encode it. If Node with npm, or Go, is present,
the tests encode it again and compare. After a change of commands or locks run `python -m tests.contract.test_integers`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from router.contract import codecs, integers, packing, stamp, wire
from router.contract.errors import LinnetError
from tests.contract.codecs import GROUP, both, decoded, encoded, refused

CLIENTS = Path(__file__).parent / "clients"
COMMANDS: list[dict[str, Any]] = json.loads((CLIENTS / "commands.json").read_text())
NUMBERS = {"seq": 1653562408960001, "prev": 1653562408960000, "count": 7, "at": 1764252000123}
EVENT = stamp.fill(
    stamp.tail("message", "d:ann:bob", "ann", "phone", 1764252000000000, {"body": packing.pack("hi")}),
    stamp.Slots(**NUMBERS),
)


def golden() -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads((CLIENTS / "golden.json").read_text())
    return found


def expected() -> list[wire.Commands]:
    return [codecs.JSON.decode(json.dumps(command).encode()) for command in COMMANDS]


def fetched(command: list[str], folder: Path) -> str:
    """Run a command that fetches packages; skip the test if the registry does not answer, or not soon."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=80, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[0]} did not end within 80 s")
    if done.returncode:
        pytest.skip(f"{command[0]} cannot install or build the client here: {done.stderr.strip()[-200:]}")
    return done.stdout


def javascript(folder: Path) -> dict[str, Any]:
    """The commands and EVENT as Node's libraries encode them."""
    for name in ("package.json", "package-lock.json", ".npmrc", "encode.mjs", "commands.json"):
        shutil.copy(CLIENTS / name, folder)
    ci = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    fetched(ci, folder)
    ran = subprocess.run(["node", "encode.mjs", EVENT.hex()], cwd=folder, capture_output=True, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def go(folder: Path) -> dict[str, list[str]]:
    """The commands as Go's library encodes them."""
    for name in ("go.mod", "go.sum", "encode.go", "commands.json"):
        shutil.copy(CLIENTS / name, folder)
    found: dict[str, list[str]] = json.loads(fetched(["go", "run", "."], folder))
    return found


# -- real clients


@pytest.mark.parametrize("client", golden())
def test_commands_of_other_languages_keep_their_integers(client: str) -> None:
    """Each command that the library wrote is decoded as it was meant, n and seqs to the last digit."""
    written = [codecs.MSGPACK.decode(bytes.fromhex(packed)) for packed in golden()[client]]
    assert written == expected()
    integer_fields = [getattr(command, name) for command in written for name in ("n", "seq") if hasattr(command, name)]
    assert {type(number) for number in integer_fields} == {int}


def test_golden_bytes_contain_floats_where_libraries_write_floats() -> None:
    """Otherwise the test above would prove nothing."""
    as_floats = {
        client for client, packed in golden().items() if type(msgpack.unpackb(bytes.fromhex(packed[1]))["n"]) is float
    }
    assert as_floats == {"msgpackr", "msgpack-lite", "go, float64"}


@pytest.mark.processes
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="Node.js with npm is not installed")
def test_javascript_libraries_write_the_golden_bytes_and_read_events(tmp_path: Path) -> None:
    """The golden bytes come from these libraries, and each library reads the numbers of an event exactly."""
    for client, found in javascript(tmp_path).items():
        assert found["commands"] == golden()[client]
        assert found["read"] == {**NUMBERS, "n": 1764252000000000}


@pytest.mark.processes
@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed")
def test_go_writes_commands_with_the_same_integers(tmp_path: Path) -> None:
    """Maps of Go have no order, so the commands are compared, not their bytes."""
    for packed in go(tmp_path).values():
        assert [codecs.MSGPACK.decode(bytes.fromhex(command)) for command in packed] == expected()


# -- the rule


@both
@pytest.mark.parametrize("number", [1.5, 1e300, 2.0**53, -(2.0**53), float(2**64)])
def test_float_that_is_no_integer_in_range_is_bad_command(codec: codecs.Codec, number: float) -> None:
    assert refused(codec, encoded(codec, {"type": "send", "to": "@bob", "n": number, "body": 1})) == "bad_command"


@both
def test_bounds_apply_to_integers_sent_as_floats(codec: codecs.Codec) -> None:
    for command in (
        {"type": "send", "to": "@bob", "n": 0.0, "body": 1},
        {"type": "history", "conversation": GROUP, "limit": 201.0},
    ):
        assert refused(codec, encoded(codec, command)) == "bad_command"


@both
def test_free_values_keep_their_floats(codec: codecs.Codec) -> None:
    """In a body the client's own type counts."""
    sent = decoded(codec, type="send", to="@bob", n=5.0, body={"n": 5.0, "seq": [1.0]})
    assert (sent.n, type(sent.n)) == (5, int)
    assert [type(value) for value in (sent.body["n"], sent.body["seq"][0])] == [float, float]


@both
def test_ids_and_cursors_are_integers_too(codec: codecs.Codec) -> None:
    ack = decoded(codec, type="ack", id=5e9, cursors={GROUP: 5e9})
    assert (ack.id, ack.cursors) == (5_000_000_000, {GROUP: 5_000_000_000})
    assert {type(ack.id), type(ack.cursors[GROUP])} == {int}


class Inner(msgspec.Struct):
    seq: int | None
    ratio: float = 0.0


class Outer(msgspec.Struct):
    inner: list[Inner] | None
    free: Any = None


def test_nested_structs_are_repaired_and_floats_are_left() -> None:
    value = {"inner": [{"seq": 1.0, "ratio": 1.0}, {"seq": None}], "free": [1.0], "unknown": 1.0}
    assert integers.repair(value, Outer)
    assert repr(value) == repr({"inner": [{"seq": 1, "ratio": 1.0}, {"seq": None}], "free": [1.0], "unknown": 1.0})
    assert not integers.repair(value, Outer)


def test_value_that_cannot_be_repaired_is_refused_with_the_first_error() -> None:
    """The error names the first fault, whatever else the value contains."""
    for data in (b"[]", b"\x81\x81\x01\x02\x03", b"\xcb"):
        with pytest.raises(LinnetError):
            codecs.MSGPACK.decode(data)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        found = {client: made["commands"] for client, made in javascript(Path(one)).items()} | go(Path(two))
    (CLIENTS / "golden.json").write_text(json.dumps(found, indent=2) + "\n")
