"""Origins: read as browsers send them, and refused where no page could ever have them."""

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
def test_origins_are_read_as_browsers_send_them(setting: str, read: set[str]) -> None:
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
def test_an_entry_that_never_matches_is_refused(entry: str) -> None:
    """Beside good ones too; the text says what is expected and shows no value."""
    with pytest.raises(ValueError, match="expected origins") as refused:
        parse(f"https://good.example,{entry}x" if entry.endswith("\n") else f"https://good.example,{entry}")
    assert entry not in str(refused.value).replace("https://app.example, or", "")


def test_a_host_header_may_name_the_port_that_the_scheme_implies() -> None:
    """Browsers leave it out of the origin; some proxies write it into `Host`."""
    assert "https://app.example" in own("App.Example:443")
    assert "http://app.example" in own("app.example:80")
    assert "https://app.example" not in own("app.example:8443")
    assert own("") == frozenset()
