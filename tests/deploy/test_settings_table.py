"""The table of settings: what each column says. That the page has this table is tested in tests/test_readme.py."""

from __future__ import annotations

import msgspec
import pytest

from deploy import settings_table
from router.contract.settings import Settings

FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("heartbeat_s", "0.1 to 3,600"),
        ("retention_events", "≥ 100"),
        ("retention_days", "> 0, ≤ 36,500"),
        ("sends_per_s", "> 0"),
        ("durability", "`memory` `fsync` `replicated` `provider`"),
        ("accounts", "`true` `false`"),
        ("jwt_secret", "≥ 32 bytes"),
        ("gateway_url", "`ws://` `wss://`"),
        ("tls_cert", ""),
    ],
)
def test_values_of_a_setting_are_those_that_it_accepts(setting: str, values: str) -> None:
    assert settings_table.accepted(FIELDS[setting]) == values


def test_default_is_shown_as_it_would_be_set() -> None:
    assert settings_table.shown(True) == "`true`"
    assert settings_table.shown(0.01) == "`0.01`"
    assert settings_table.shown("") == ""
