"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from deploy import limits
from router.contract.settings import PREFIX, Settings
from router.contract.wire import Commands

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_settings_table_lists_exactly_the_settings_of_the_code() -> None:
    """A variable that is not in the table, or is there and nowhere else, misleads operators."""
    rows = dict(re.findall(r"^\| `LINNET_(\w+)` \| (.*?) \|", README, re.MULTILINE))
    fields = {field.name.upper(): field.default for field in msgspec.structs.fields(Settings)}
    assert list(rows) == list(fields)
    for name, default in fields.items():
        shown = str(default).lower() if default != "" else ""
        assert rows[name].strip("` ") == shown, f"{PREFIX}{name}"


def test_every_test_file_that_the_promises_name_exists() -> None:
    for name in re.findall(r"`(test_\w+\.py)`", README):
        assert (ROOT / "tests/flow" / name).exists(), name


def test_every_metric_that_is_named_exists() -> None:
    declared = (ROOT / "router/contract/metrics.py").read_text()
    for name in re.findall(r"`(linnet_\w+?)(?:_total)?[`{]", README):
        assert f'"{name}"' in declared, name


def test_every_command_is_listed() -> None:
    """The table of commands knows every command of the wire."""
    table = README[README.index("| command | fields |") : README.index("`n` is an integer")]
    for command in msgspec.inspect.multi_type_info(Commands.__args__):
        assert isinstance(command, msgspec.inspect.StructType)
        assert f"`{command.tag}`" in table, command.tag


def test_every_guarantee_has_a_test_named_after_it() -> None:
    """G1 to G10: each row of promises points at a file with such a test."""
    for number in range(1, 11):
        row = next(line for line in README.splitlines() if line.startswith(f"| G{number} |"))
        files = re.findall(r"`(test_\w+\.py)`", row)
        assert any(f"def test_g{number}_" in (ROOT / "tests/flow" / name).read_text() for name in files), row


# Constants whose name says that they are limits, and that neither a client nor an operator can reach as such.
INNER_LIMITS = {
    "MAX_EVENT_BYTES": "a body of MAX_BODY_BYTES and its envelope",
    "MAX_CONTROL_BYTES": "RFC 6455's, of a ping or close frame",
    "CONNECTION_LIMIT": "a metric",
    "MAX_REQUESTS": "subscriptions of a gateway under way; more wait in its own queue",
    "MEMORY_LIMIT": "share of Redis' maxmemory beyond which sends answer `unavailable`",
    "LIMIT": "of one claim; the table has the places that follow from it",
    "E0": "epoch of a seq", "PER_SECOND": "of a seq", "AHEAD": "of a seq", "COALESCE_MS": "pace", "BROUGHT_MS": "pace",
    "CAP_EVERY": "pace", "TITLE_AT": "layout", "WHO_AT": "layout", "ROWS_AT": "layout", "ROW": "layout",
    "NOTE_SIZE": "layout", "FINAL": "seq after all others",
    "STEP": "entries read at once", "CHUNK": "entries read at once", "GRACE_MS": "pace", "BACK_US": "clocks of servers",
    "SKEW_MS": "clocks of servers", "CONNECT_MS": "clocks of servers",
    "AHEAD_MS": "clocks of servers", "LOOK": "entries looked at at once",
    "MOST_PUSH_MS": "the longest backoff of a push",
}  # fmt: skip


def test_limits_table_says_what_the_constants_say() -> None:
    """After a change of a limit: `make limits`."""
    assert limits.with_table(README) == README


def test_every_constant_that_is_a_limit_has_a_row() -> None:
    """A limit in no document surprises client authors: a row in deploy/limits.py, or a reason in INNER_LIMITS."""
    named = {
        name
        for package in ("gateway", "router")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(
            r"^(?!CLOSE_)([A-Z0-9_]*(?:MAX_|LIMIT)[A-Z0-9_]*)(?:: Final\S*)? = ", path.read_text(), re.MULTILINE
        )
    }
    for path in (ROOT / "router/store/functions").glob("*.lua"):
        named |= set(re.findall(r"^local ([A-Z0-9_]+) = [0-9A-Z]", path.read_text(), re.MULTILINE))
    rows = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", Path(limits.__file__).read_text()))
    assert named - rows - INNER_LIMITS.keys() == set()
    assert INNER_LIMITS.keys() <= named, "a reason for a constant that is gone"
