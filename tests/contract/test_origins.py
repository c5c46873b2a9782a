"""Origins: parsed into the form that browsers send, and refused if no page can have them."""

from __future__ import annotations

import pytest

from router.contract.origins import ANY, own, parse


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("", set()),
        (" , ", set()),
        ("*", {ANY}),
        ("https://App.Example/, http://other.example:8080", {"https://app.example", "http://other.example:8080"}),
        ("https://app.example:443,http://app.example:80", {"https://app.example", "http://app.example"}),
        ("https://app.example:80", {"https://app.example:80"}),
        ("http://localhost:3000,http://[::1]:3000", {"http://localhost:3000", "http://[::1]:3000"}),
        ("capacitor://localhost,chrome-extension://abcdef", {"capacitor://localhost", "chrome-extension://abcdef"}),
    ],
)
def test_origins_are_parsed_into_the_form_of_browsers(setting: str, read: set[str]) -> None:
    assert parse(setting) == read


@pytest.mark.parametrize(
    "entry",
    [
        "app.example", "//app.example", "https://", "https://*.app.example", "*.app.example", "https://app.example/chat",
        "https://app.example?x", "https://app.example#x", "https://user@app.example", "https://app.example:0",
        "https://app.example:99999", "https://app.example:x", "https://ä.example", "https://.app.example", "null",
        "wss://app.example", "ws://app.example", "https://a b", "https://app.example\n",
        "https://app.example;https://other.example",
    ],
)  # fmt: skip
def test_entry_that_can_never_match_is_refused(entry: str) -> None:
    """Also beside valid entries; the error states the expected form and does not show the value."""
    with pytest.raises(ValueError, match="expected origins") as refused:
        parse(f"https://good.example,{entry}x" if entry.endswith("\n") else f"https://good.example,{entry}")
    assert entry not in str(refused.value).replace("https://app.example, or", "")


def test_host_header_may_contain_the_implied_port() -> None:
    """Browsers leave it out of the origin; some proxies write it into `Host`."""
    assert "https://app.example" in own("App.Example:443")
    assert "http://app.example" in own("app.example:80")
    assert "https://app.example" not in own("app.example:8443")
    assert own("") == frozenset()
