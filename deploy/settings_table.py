"""`make settings`: the table of settings in deploy/README.md, made from `Settings`, grouped by the process
that reads them.

Adding a setting: its field in router/contract/settings.py with a description, its name in GROUPS, then `make settings`.
"""

from __future__ import annotations

from typing import Any, Final, get_args

import msgspec
from msgspec import inspect

from deploy.tables import replace, write
from router.contract import settings
from router.contract.settings import PREFIX, Settings

PAGE: Final = "deploy/README.md"
MADE_BY: Final = "settings"

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Gateways and routers": (
        "redis_url", "redis_mode", "redis_map", "redis_tls_name", "deployment", "durability", "replicas", "listen",
        "admin_listen",
        "trusted_proxies", "tls_cert", "tls_key", "jwt_secret", "jwks_url", "jwt_audience", "jwt_issuer",
        "jwt_user_claim", "origins", "heartbeat_s", "sends_per_s", "send_burst", "retention_events", "log_level",
        "log_format", "send_hook_url", "send_hook_secret", "send_hook_timeout_ms", "send_hook_on_failure",
    ),
    "Gateways": (
        "gateway_url", "max_connections", "max_connections_per_address", "max_age_s", "drain_accept_s",
        "drain_window_s", "otlp_endpoint", "trace_ratio",
    ),
    "Routers": (
        "server_key", "accounts", "token_ttl_s", "session_ttl_s", "password_min", "retention_days", "trust_redis_clock",
        "webhook_url", "webhook_secret", "media_url", "media_public_url", "media_origin", "media_spool",
        "media_image_mb", "media_voice_mb", "media_video_mb", "media_file_mb", "media_quota_mb",
        "media_uploads_per_min", "media_uploads_at_once", "media_workers", "media_scan_url", "media_scan_on_failure",
        "media_scan_timeout_s", "search_url", "search_address",
        "web", "web_connect", "web_bot",
    ),
}  # fmt: skip

# Values that the types of the fields do not describe.
VALUES: Final = {
    "media_scan_url": "`clamd://` `http://` `https://`",
    "deployment": "0 to 64 of `A-Z a-z 0-9 . _ -`",
    "jwt_user_claim": "1 to 256 characters",
    "web_bot": "0 to 64 of `A-Z a-z 0-9 . _ -`",
    "web_connect": "`ws://` `wss://`",
    "listen": "`host:port`",
    "admin_listen": "`host:port`",
    "redis_url": "`redis://` `rediss://` `unix://` `redis+sentinel://` `rediss+sentinel://` `redis+cluster://` `rediss+cluster://`",
}


def accepted(field: msgspec.structs.FieldInfo) -> str:
    """Return what the setting accepts; empty if that is any text."""
    name = field.name
    if name in VALUES:
        return VALUES[name]
    if name in settings.URL_SCHEMES:
        return " ".join(f"`{scheme}://`" for scheme in settings.URL_SCHEMES[name])
    if name in settings.SECRETS:
        return f"≥ {settings.MIN_SECRET_BYTES} bytes"
    info = inspect.type_info(field.type)
    kind = info.type if isinstance(info, inspect.Metadata) else info
    if isinstance(kind, inspect.LiteralType):
        return " ".join(f"`{value}`" for value in get_args(get_args(field.type)[0]))
    if isinstance(kind, inspect.BoolType):
        return "`true` `false`"
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return number_range(kind)
    return ""


def number_range(kind: inspect.IntType | inspect.FloatType) -> str:
    most = "" if kind.le is None else f"{kind.le:,}"
    if kind.gt is not None:
        return f"> {kind.gt:g}" + (most and f", ≤ {most}")
    return f"{kind.ge:g} to {most}" if most else f"≥ {kind.ge:g}"


def shown(default: Any) -> str:
    """Return the default as it would be given in the environment."""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""


def description(field: msgspec.structs.FieldInfo) -> str:
    (schema,) = msgspec.json.schema_components((field.type,))[0]
    return str(schema["description"])


def table() -> str:
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    lines = ["| variable | default | values | meaning |", "|---|---|---|---|"]
    for heading, names in GROUPS.items():
        lines.append(f"| **{heading}** | | | |")
        for name in names:
            field = fields[name]
            cells = (f"`{PREFIX}{name.upper()}`", shown(field.default), accepted(field), description(field))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_table(_: str, text: str) -> str:
    """Return the page's text with the table as the settings have it now."""
    return replace(text, MADE_BY, table())


if __name__ == "__main__":
    write(PAGE, with_table)
