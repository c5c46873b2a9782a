"""Settings: the accepted and refused values, and refusals that show no value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from router.contract import settings
from router.contract.errors import StartupError
from router.contract.settings import Settings, clamd_address, host_port, load, proxies

SECRET = "s" * 32
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


def loaded(**given: str) -> Settings:
    return load({f"LINNET_{name.upper()}": value for name, value in ({"jwt_secret": SECRET} | given).items()})


def refusal(**given: str) -> str:
    """The line that an operator reads."""
    with pytest.raises(StartupError) as caught:
        loaded(**given)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_defaults_serve_and_are_safe() -> None:
    """Only the secret is required; every default is the careful choice."""
    made = loaded()
    assert made == Settings(jwt_secret=SECRET)
    assert (made.durability, made.redis_mode) == ("fsync", "standalone")
    assert (made.origins, made.trusted_proxies) == ("", "")
    assert (host_port(made.listen)[0], host_port(made.admin_listen)[0]) == ("127.0.0.1", "127.0.0.1")
    with pytest.raises(AttributeError):
        made.listen = "0.0.0.0:1"  # type: ignore[misc]  # frozen


def test_every_setting_has_a_default_and_a_description() -> None:
    """The settings table is made of them."""
    for name, field in FIELDS.items():
        assert name == "jwt_secret" or field.default is not msgspec.NODEFAULT, name
        (meta,) = [meta for meta in field.type.__metadata__ if meta.description]
        assert not meta.description.endswith("."), name


def test_values_are_converted_by_type() -> None:
    made = loaded(heartbeat_s="2.5", send_burst="7", accounts="false", redis_mode="standalone", origins="https://a, *")
    assert (made.heartbeat_s, made.send_burst, made.accounts, made.origins) == (2.5, 7, False, "https://a, *")


def test_file_contains_the_value(tmp_path: Path) -> None:
    """Orchestrators mount secrets as files; a newline that an editor left at the end is not part of the value."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}é\n")
    assert load({"LINNET_JWT_SECRET_FILE": str(path)}).jwt_secret == f"{SECRET}é"


@pytest.mark.parametrize("content", [None, b"\xff" * 40])
def test_unreadable_file_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "missing-or-binary"
    if content:
        path.write_bytes(content)
    assert refusal(server_key_file=str(path)).startswith("LINNET_SERVER_KEY_FILE: ")


def test_value_and_file_of_one_setting_are_refused(tmp_path: Path) -> None:
    """The process cannot know which of the two was meant."""
    path = tmp_path / "secret"
    path.write_text("t" * 32)
    assert refusal(jwt_secret_file=str(path)) == "set LINNET_JWT_SECRET or LINNET_JWT_SECRET_FILE, not both"


@pytest.mark.parametrize(
    "variable", ["LINNET_JWTSECRET", "LINNET_", "LINNET_LISTENING", "LINNET_FILE", "LINNET_listen"]
)
def test_unknown_variable_with_the_prefix_is_refused(variable: str) -> None:
    """A typo must not become a default."""
    with pytest.raises(StartupError, match=f"^{variable} is no setting"):
        load({"LINNET_JWT_SECRET": SECRET, variable: "1"})


def test_variables_without_the_prefix_are_ignored() -> None:
    load({"LINNET_JWT_SECRET": SECRET, "PATH": "/bin", "LINNETX": "1", "linnet_listen": "1"})


WRONG = [
    ("redis_mode", "v4lue"), ("durability", "v4lue"), ("listen", "v4lue"), ("listen", "v4lue:"),
    ("listen", "a/v4lue:1"), ("admin_listen", "v4lue:123456"), ("accounts", "v4lue"), ("token_ttl_s", "v4lue"),
    ("max_connections", "v4lue"), ("send_burst", "1.5v4lue"), ("log_level", "v4lue"), ("log_format", "v4lue"),
    ("trusted_proxies", "10.0.0.0/8,v4lue"), ("jwt_secret", "v4lue"), ("server_key", "v4lue"),
    ("webhook_secret", "v4lue"), ("send_hook_secret", "v4lue"), ("jwt_secret", "é" * 15 + "v"),
    ("otlp_endpoint", "v4lue:4318"),
    ("trace_ratio", "v4lue"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_value_is_named_and_never_shown(name: str, value: str) -> None:
    """The line goes to logs; the value may be a secret that was put into the wrong variable."""
    line = refusal(**{name: value})
    assert line.startswith(f"LINNET_{name.upper()}: ")
    assert value not in line
    assert "v4lue" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [("heartbeat_s", "0"), ("max_connections", "0"), ("max_connections_per_address", "0"), ("max_age_s", "0"),
     ("sends_per_s", "0"), ("send_burst", "0"), ("drain_accept_s", "-1"), ("drain_window_s", "-1"),
     ("token_ttl_s", "0"), ("retention_events", "99"), ("retention_days", "0"),
     ("trace_ratio", "-0.1"), ("trace_ratio", "1.5")],
)  # fmt: skip
def test_value_out_of_range_is_refused(name: str, value: str) -> None:
    assert refusal(**{name: value}).startswith(f"LINNET_{name.upper()}: ")


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if isinstance(field.default, float | int)])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "infinity"])
def test_numbers_must_be_finite(name: str, value: str) -> None:
    """Comparisons with NaN and infinity pass or fail unexpectedly."""
    assert refusal(**{name: value}).startswith(f"LINNET_{name.upper()}: ")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"jwt_secret": ""}, "set LINNET_JWT_SECRET"),
        ({"jwt_secret": "", "jwks_url": "https://id.example/jwks"}, "login signs its tokens"),
        ({"webhook_url": "https://example.com/"}, "LINNET_WEBHOOK_URL needs LINNET_WEBHOOK_SECRET"),
        ({"send_hook_url": "https://example.com/"}, "LINNET_SEND_HOOK_URL needs LINNET_SEND_HOOK_SECRET"),
        ({"send_hook_timeout_ms": "99"}, "LINNET_SEND_HOOK_TIMEOUT_MS"),
        ({"send_hook_timeout_ms": "5001"}, "LINNET_SEND_HOOK_TIMEOUT_MS"),
        ({"send_hook_on_failure": "open"}, "LINNET_SEND_HOOK_ON_FAILURE: expected one of accept, reject"),
        ({"jwt_user_claim": "exp"}, "LINNET_JWT_USER_CLAIM"),
        ({"jwt_user_claim": "a\nb"}, "LINNET_JWT_USER_CLAIM"),
        ({"jwt_user_claim": ""}, "LINNET_JWT_USER_CLAIM"),
        ({"tls_cert": "cert.pem"}, "LINNET_TLS_CERT and LINNET_TLS_KEY"),
        ({"tls_key": "key.pem"}, "LINNET_TLS_CERT and LINNET_TLS_KEY"),
    ],
)
def test_settings_that_need_each_other_are_checked(given: dict[str, str], line: str) -> None:
    """A contradiction that would otherwise fail at the first client fails at the start."""
    assert refusal(**given).startswith(line)


@pytest.mark.parametrize(
    "given",
    [
        {"jwt_secret": "", "jwks_url": "https://id.example/jwks", "accounts": "false"},
        {"webhook_url": "https://example.com/", "webhook_secret": SECRET},
        {"send_hook_url": "http://10.0.0.1:8080/ask", "send_hook_secret": SECRET, "send_hook_timeout_ms": "100"},
        {"tls_cert": "cert.pem", "tls_key": "key.pem"},
        {"jwt_secret": "é" * 16},
    ],
)
def test_consistent_settings_are_accepted(given: dict[str, str]) -> None:
    loaded(**given)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8000", ("::1", 8000)), ("chat.example:443", ("chat.example", 443))],
)
def test_address_is_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert host_port(loaded(listen=address).listen) == parts


def test_proxies_are_addresses_and_networks() -> None:
    made = proxies(loaded(trusted_proxies="10.0.0.0/8, 192.168.1.7,, fd00::/8 ,10.1.2.3/16"))
    assert [str(network) for network in made] == ["10.0.0.0/8", "192.168.1.7/32", "fd00::/8", "10.1.0.0/16"]
    mapped = proxies(loaded(trusted_proxies="::ffff:10.1.2.3, ::ffff:10.0.0.0/104, ::ffff:0:0/95, ::/0"))
    assert [str(network) for network in mapped] == ["10.1.2.3/32", "10.0.0.0/8", "::fffe:0:0/95", "::/0"]


def test_every_setting_named_like_a_secret_is_checked_like_one() -> None:
    """A new secret must be added to the list of settings with a minimal length."""
    named: set[Any] = {name for name in FIELDS if name.endswith(("_secret", "_key")) and name != "tls_key"}
    assert named == set(settings.SECRETS)


@pytest.mark.parametrize("setting", ["gateway_url", "jwks_url", "webhook_url", "send_hook_url", "otlp_endpoint"])
@pytest.mark.parametrize(
    "url", ["example", "example:80", "//example", "ftp://example", "http//example", "://example", "SCHEME://",
            "SCHEME://user:pass@example", "SCHEME://example:99999", "SCHEME://[::1", "SCHEME://exa mple"],
)  # fmt: skip
def test_url_without_a_usable_host_is_refused(setting: str, url: str) -> None:
    """At the start, in a line that names the variable."""
    scheme = "ws" if setting == "gateway_url" else "https"
    given = url.replace("SCHEME", scheme)
    line = refusal(**{setting: given, "webhook_secret": SECRET, "send_hook_secret": SECRET})
    assert f"LINNET_{setting.upper()}" in line
    assert "user:pass" not in line
    loaded(**{setting: f"{scheme}://example.com:8443/ws", "webhook_secret": SECRET, "send_hook_secret": SECRET})


@pytest.mark.parametrize(
    "setting", ["token_ttl_s", "heartbeat_s", "max_age_s", "drain_accept_s", "drain_window_s", "retention_days"]
)
@pytest.mark.parametrize("value", ["1e18", "-1", "nan", "1h"])
def test_duration_is_a_finite_number_in_seconds(setting: str, value: str) -> None:
    """Infinite ones overflow times in milliseconds; negative ones and ones with a unit are refused too."""
    assert f"LINNET_{setting.upper()}" in refusal(**{setting: value})


@pytest.mark.parametrize("origins", ["app.example", "https://*.app.example", "https://app.example/chat"])
def test_origins_that_never_match_are_refused(origins: str) -> None:
    assert refusal(origins=origins).startswith("LINNET_ORIGINS: expected origins")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("clamd://scanner:3310", ("scanner", 3310, "")),
        ("clamd://[::1]:3310/", ("::1", 3310, "")),
        ("clamd:///run/clamav/clamd.ctl", ("", 0, "/run/clamav/clamd.ctl")),
    ],
)
def test_scanner_is_at_a_port_or_a_socket(url: str, parts: tuple[str, int, str]) -> None:
    assert clamd_address(loaded(media_scan_url=url).media_scan_url) == parts


@pytest.mark.parametrize(
    "url",
    ["clamd://scanner", "clamd://:3310", "clamd://", "clamd:///", "clamd://a:3310/path", "clamd://a:b@c:1", "clamd://a:99999",
     "clamd://[a:1", "ftp://scanner:3310", "scanner:3310", "http://"],
)  # fmt: skip
def test_scanner_without_a_usable_address_is_refused(url: str) -> None:
    assert refusal(media_scan_url=url).startswith("LINNET_MEDIA_SCAN_URL")


def test_links_are_signed_only_for_a_store_that_serves_files() -> None:
    public = "https://s3.example"
    assert loaded(media_url="s3://bucket", media_public_url=public).media_public_url == public
    assert "set LINNET_MEDIA_ORIGIN" in refusal(media_url="file:///files", media_public_url=public)
    assert refusal(media_url="s3://bucket", media_public_url=f"{public}?a=b").startswith("LINNET_MEDIA_PUBLIC_URL")
