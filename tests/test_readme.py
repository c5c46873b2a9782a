"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

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
