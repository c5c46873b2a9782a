"""Every environment variable of the gateway and the router, read once at start and frozen.

The struct is the table: the variable of a field is `LINNET_` and its name in upper case (`…_FILE` names a file that
contains the value, the way orchestrators mount secrets), its type is the range of valid values, and its description is
its row in the settings table of deploy/README.md (`make settings`).

Invariants
- A wrong value stops the process with one line that names the variable, never its value (it may be a secret).
- An unknown variable with the prefix is refused, so that a typo does not silently leave a default in force.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from router.contract import origins
from router.contract.errors import StartupError

PREFIX: Final = "LINNET_"
VERSION: Final = "0.1.0"
DECADE_S: Final = 10 * 365 * 86_400  # upper bound of ages and lifetimes; above it times in ms could overflow

Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\[\]/ ]+):[0-9]{1,5}$")]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of both processes; each process reads the ones it needs."""

    # -- Redis
    redis_url: Annotated[
        str,
        Meta(
            description="URL of a Redis >= 7.0 or Valkey; with TLS rediss://; with sentinels"
            " redis+sentinel://[user:password@]host:port,host:port/name[/db][?sentinel_password=…]; of a cluster"
            " redis+cluster://[user:password@]host:port,host:port with some of its servers; or rediss+…"
        ),
    ] = "redis://127.0.0.1:6379/0"
    redis_mode: Annotated[Literal["standalone", "sentinel", "cluster"], Meta(description="layout of Redis")] = (
        "standalone"
    )
    redis_map: Annotated[
        str,
        Meta(
            description="with a cluster whose servers announce addresses that cannot be reached from here: where they"
            " can, as `announced=reachable,…`, each `host:port`"
        ),
    ] = ""
    redis_tls_name: Annotated[
        str,
        Meta(
            description="with a cluster and TLS: name that the certificates of all its servers contain; empty: the host"
            " that each server announces"
        ),
    ] = ""
    deployment: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9._-]{0,64}$",
            description="name of this deployment, the same for all its processes; a process with another name does not"
            " start on the same Redis database. Empty: a digest of JWT_SECRET, else of JWKS_URL",
        ),
    ] = ""
    durability: Annotated[
        Literal["memory", "fsync", "replicated", "provider"],
        Meta(
            description="what an acked send survives: memory: gateways and routers; fsync: also Redis killed and"
            " restarted on its disk; replicated: also a failover; provider: what the provider of a managed Redis"
            " promises, which Linnet cannot check"
        ),
    ] = "fsync"
    replicas: Annotated[
        int,
        Meta(
            ge=1,
            description="with replicated: number of replicas that must have a send before its ack. Count every replica"
            " that may be promoted, else a failover can lose sends",
        ),
    ] = 1
    # -- addresses and TLS
    listen: Annotated[Address, Meta(description="address for clients (gateway: WebSocket, router: HTTP API)")] = (
        "127.0.0.1:8000"
    )
    admin_listen: Annotated[
        Address, Meta(description="address of /livez, /readyz, /joinz, /metrics and a router's admin view")
    ] = "127.0.0.1:9000"
    gateway_url: Annotated[
        str,
        Meta(
            description="URL by which clients reach this gateway; empty: LISTEN or, if LISTEN is all addresses, the"
            " host of the API call"
        ),
    ] = ""
    trusted_proxies: Annotated[
        str, Meta(description="addresses or networks of proxies, comma-separated; only their X-Forwarded-For counts")
    ] = ""
    tls_cert: Annotated[
        str, Meta(description="certificate chain (PEM), if this process itself serves wss:// and https://")
    ] = ""
    tls_key: Annotated[str, Meta(description="private key (PEM) of TLS_CERT")] = ""
    # -- tokens, keys and accounts
    jwt_secret: Annotated[str, Meta(description="HS256 key that signs and checks user tokens")] = ""
    jwks_url: Annotated[
        str, Meta(description="key set (JWKS) of an outside identity provider (RS256, ES256, EdDSA)")
    ] = ""
    jwt_audience: Annotated[str, Meta(description="`aud` that tokens must contain; empty: not checked")] = ""
    jwt_issuer: Annotated[str, Meta(description="`iss` that tokens must contain; empty: not checked")] = ""
    jwt_user_claim: Annotated[
        str, Meta(min_length=1, max_length=256, description="claim of the provider's tokens that names the user")
    ] = "sub"
    server_key: Annotated[str, Meta(description="bearer key of backends on the HTTP API")] = ""
    origins: Annotated[
        str, Meta(description="browser origins that may connect, comma-separated; `*`: any; empty: same host only")
    ] = ""
    accounts: Annotated[
        bool, Meta(description="whether accounts and login are served; set false with an outside identity provider")
    ] = True
    token_ttl_s: Annotated[
        float, Meta(gt=0, le=DECADE_S, description="seconds for which a token from login or /v1/tokens is valid")
    ] = 86_400
    session_ttl_s: Annotated[
        float, Meta(gt=0, le=DECADE_S, description="seconds after a login during which its tokens can be renewed")
    ] = 2_592_000
    password_min: Annotated[
        int, Meta(ge=1, le=256, description="characters that a new password must have at least")
    ] = 8
    # -- the web page
    web: Annotated[bool, Meta(description="whether the router serves the web client at `/`")] = True
    web_connect: Annotated[
        str,
        Meta(
            pattern=r"^(wss?://[A-Za-z0-9._*\[\]:-]+([ ,]+|$))*$",
            description="where the page may connect to, as `wss://chat.example`, comma-separated; empty: the hosts of"
            " the gateways' addresses",
        ),
    ] = ""
    web_bot: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{0,64}$",
            description="user to whom the page writes `/start` for each new account; empty: none",
        ),
    ] = ""
    # -- connections
    max_connections: Annotated[int, Meta(ge=1, description="connections of one gateway; more are refused with 503")] = (
        20_000
    )
    max_connections_per_address: Annotated[
        int, Meta(ge=1, description="connections of one client address on one gateway")
    ] = 10_000
    heartbeat_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="seconds between pings and audits of a session")
    ] = 30
    max_age_s: Annotated[
        float,
        Meta(gt=0, le=DECADE_S, description="seconds after which a connection is closed, up to a quarter earlier"),
    ] = 14_400
    sends_per_s: Annotated[
        float, Meta(gt=0, description="sends per second, of each connection and of each device in a conversation")
    ] = 200
    send_burst: Annotated[int, Meta(ge=1, description="sends that may come at once, on top of that rate")] = 1000
    # -- drain
    drain_accept_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds for which a gateway that stops still accepts connections")
    ] = 5
    drain_window_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds over which it then closes its connections")
    ] = 20
    # -- the router
    retention_events: Annotated[int, Meta(ge=100, description="events that the log of a conversation keeps")] = 10_000
    retention_days: Annotated[float, Meta(gt=0, le=36_500, description="days that an event is kept")] = 90
    trust_redis_clock: Annotated[
        bool, Meta(description="whether to trim by age even if Redis's clock is more than a day ahead of the router's")
    ] = False
    webhook_url: Annotated[
        str, Meta(description="URL to which pushes for absent users are posted; empty: no pushes")
    ] = ""
    webhook_secret: Annotated[str, Meta(description="HMAC-SHA256 key that signs the posts")] = ""
    # -- the pre-send hook
    send_hook_url: Annotated[
        str,
        Meta(
            description="URL of a service that accepts, rejects or replaces what users write, before it is written; the"
            " same for all gateways and routers. Empty: nothing is asked"
        ),
    ] = ""
    send_hook_secret: Annotated[str, Meta(description="HMAC-SHA256 key that signs the questions to it")] = ""
    send_hook_timeout_ms: Annotated[
        int, Meta(ge=100, le=5000, description="milliseconds in which the service must answer one question")
    ] = 1500
    send_hook_on_failure: Annotated[
        Literal["accept", "reject"],
        Meta(
            description="what is written while the service gives no verdict: accept: it is let through; reject: it is"
            " refused as `unavailable`, and clients send it again"
        ),
    ] = "accept"
    # -- files
    media_url: Annotated[
        str,
        Meta(
            description="where files are stored: `file:///folder`, `s3://bucket/prefix`, `gs://…` or `az://…`; endpoint"
            " and credentials come from the store's own variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`). Empty: no files"
        ),
    ] = ""
    media_public_url: Annotated[
        str,
        Meta(
            description="URL by which clients reach the object store, as `https://s3.eu-central-1.amazonaws.com`; links"
            " to pictures, audio and video are signed for it and lead there. Empty: routers serve all files"
        ),
    ] = ""
    media_origin: Annotated[
        str,
        Meta(
            description="origin of its own for the files that routers serve, an https:// URL that leads to the routers;"
            " empty: that of the API"
        ),
    ] = ""
    media_spool: Annotated[
        str, Meta(description="folder in which uploads wait until they are stored; empty: that of temporary files")
    ] = ""
    media_image_mb: Annotated[float, Meta(gt=0, le=1e6, description="megabytes of one picture")] = 20
    media_voice_mb: Annotated[float, Meta(gt=0, le=1e6, description="megabytes of one voice message")] = 20
    media_video_mb: Annotated[float, Meta(gt=0, le=1e6, description="megabytes of one video")] = 200
    media_file_mb: Annotated[float, Meta(gt=0, le=1e6, description="megabytes of one other file")] = 100
    media_quota_mb: Annotated[
        float, Meta(gt=0, le=1e9, description="megabytes of all files that one user has uploaded and that are kept")
    ] = 10_000
    media_uploads_per_min: Annotated[int, Meta(ge=1, le=100_000, description="uploads of one user in a minute")] = 60
    media_uploads_at_once: Annotated[int, Meta(ge=1, le=1000, description="uploads of one user at the same time")] = 3
    media_workers: Annotated[
        int,
        Meta(ge=1, le=16, description="processes of one router that read pictures and recordings, 512 MB at most each"),
    ] = 1
    media_scan_url: Annotated[
        str,
        Meta(
            description="scanner of uploads: clamd://host:port or clamd:///path/of/socket for ClamAV's daemon, or the"
            " http(s):// URL of a service; empty: no scan"
        ),
    ] = ""
    media_scan_on_failure: Annotated[
        Literal["open", "closed"],
        Meta(
            description="uploads without a verdict (the scanner is down, or does not take files of this size): open:"
            " kept; closed: refused with 503"
        ),
    ] = "closed"
    media_scan_timeout_s: Annotated[
        float, Meta(gt=0, le=600, description="seconds for one scan; then there is no verdict")
    ] = 60
    # -- search
    search_url: Annotated[
        str,
        Meta(
            pattern=r"^(file:///[^?#]+)?$",
            description="folder of this router's own, as `file:///var/lib/linnet/search`, in which it keeps its part of"
            " the index of all messages; the same kind for all routers. Empty: no search",
        ),
    ] = ""
    search_address: Annotated[
        str,
        Meta(
            pattern=r"^((\[[0-9A-Fa-f:.]+\]|[^:\[\]/ ]+):[0-9]{1,5})?$",
            description="`host:port` at which other routers reach this one's ADMIN_LISTEN, to ask its part of the"
            " index; empty: ADMIN_LISTEN, or the name of the host if that is all addresses",
        ),
    ] = ""
    # -- logs and traces
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="log level")] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="log lines as text or JSON")] = "text"
    otlp_endpoint: Annotated[
        str,
        Meta(
            pattern=r"^(https?://[^ ]+)?$",
            description="OTLP/HTTP collector of traces, as `http://collector:4318`; empty: no traces",
        ),
    ] = ""
    trace_ratio: Annotated[
        float, Meta(ge=0, le=1, description="share of events that are traced; the same on all gateways")
    ] = 0.01


SECRETS: Final = ("jwt_secret", "server_key", "webhook_secret", "send_hook_secret")
URL_SCHEMES: Final = {
    "gateway_url": ("ws", "wss"),
    "jwks_url": ("http", "https"),
    "webhook_url": ("http", "https"),
    "send_hook_url": ("http", "https"),
    "media_public_url": ("http", "https"),
    "media_origin": ("http", "https"),
    "otlp_endpoint": ("http", "https"),
}
MEDIA_SCHEMES: Final = ("file", "s3", "gs", "az")
_OTHER_CLAIMS: Final = ("exp", "nbf", "iat", "aud", "iss", "jti")
MIN_SECRET_BYTES: Final = 32


def load(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment; `StartupError` names the wrong variable and the expected value."""
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    given: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        in_file = name not in fields and name.endswith("_file")
        if in_file:
            name = name.removesuffix("_file")
        if name not in fields or not variable.isupper():
            raise StartupError(f"{variable} is no setting of Linnet; see the settings table in deploy/README.md")
        if name in given:
            raise StartupError(f"set {PREFIX}{name.upper()} or {PREFIX}{name.upper()}_FILE, not both")
        given[name] = _read(variable, value) if in_file else value
    for name, value in given.items():
        _convert(name, value, fields[name].type)
    settings = msgspec.convert(given, Settings, strict=False)
    _check(settings)
    return settings


def _read(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{variable}: cannot read the file ({type(error).__name__})") from None


def _convert(name: str, value: str, kind: Any) -> None:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        choices = get_args(get_args(kind)[0])  # of a Literal: msgspec's own message would repeat the value
        why = f"expected one of {', '.join(choices)}" if choices else str(error)
        raise StartupError(f"{PREFIX}{name.upper()}: {why}") from None


def _check(settings: Settings) -> None:
    """Check the rules between settings, and those that a type cannot express."""
    for name, number in msgspec.structs.asdict(settings).items():
        if number == inf:
            raise StartupError(f"{PREFIX}{name.upper()}: expected a finite number")
    for name, schemes in URL_SCHEMES.items():
        _check_url(name, getattr(settings, name), schemes)
    if settings.media_scan_url.startswith("clamd:"):
        clamd_address(settings.media_scan_url)
    else:
        _check_url("media_scan_url", settings.media_scan_url, ("http", "https"))
    _check_media(settings.media_url)
    if settings.media_public_url and urlsplit(settings.media_public_url).query:
        raise StartupError(f"{PREFIX}MEDIA_PUBLIC_URL must be a URL without a query")
    if settings.media_public_url and settings.media_url.startswith("file:"):
        raise StartupError(f"{PREFIX}MEDIA_PUBLIC_URL needs an object store, because a folder serves no files: for an"
                           f" origin that leads to the routers, set {PREFIX}MEDIA_ORIGIN")  # fmt: skip
    try:
        origins.parse(settings.origins)
    except ValueError as error:
        raise StartupError(f"{PREFIX}ORIGINS: {error}") from None
    try:
        proxies(settings)
    except ValueError:
        raise StartupError(f"{PREFIX}TRUSTED_PROXIES: expected addresses or networks, comma-separated") from None
    for name in SECRETS:
        value = getattr(settings, name)
        if value and len(value.encode()) < MIN_SECRET_BYTES:
            raise StartupError(f"{PREFIX}{name.upper()}: a secret needs at least {MIN_SECRET_BYTES} bytes")
    if not settings.jwt_secret and not settings.jwks_url:
        raise StartupError(f"set {PREFIX}JWT_SECRET (HS256) or {PREFIX}JWKS_URL: without it no token can be checked")
    if settings.jwt_user_claim in _OTHER_CLAIMS or not settings.jwt_user_claim.isprintable():
        raise StartupError(f"{PREFIX}JWT_USER_CLAIM: expected a claim that names the user, as `sub`")
    if settings.accounts and not settings.jwt_secret:
        raise StartupError(f"login signs its tokens with {PREFIX}JWT_SECRET: set it, or {PREFIX}ACCOUNTS=false")
    if settings.webhook_url and not settings.webhook_secret:
        raise StartupError(f"{PREFIX}WEBHOOK_URL needs {PREFIX}WEBHOOK_SECRET to sign with")
    if settings.send_hook_url and not settings.send_hook_secret:
        raise StartupError(f"{PREFIX}SEND_HOOK_URL needs {PREFIX}SEND_HOOK_SECRET to sign with")
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise StartupError(f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY go together")


def _check_media(url: str) -> None:
    """Check that a store's URL names one of the known kinds, and has no credentials in it."""
    if not url:
        return
    parts = urlsplit(url)
    if (
        parts.scheme not in MEDIA_SCHEMES
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
        or not url.isprintable()
    ):
        known = ", ".join(f"{scheme}://" for scheme in MEDIA_SCHEMES)
        raise StartupError(f"{PREFIX}MEDIA_URL must be a URL of {known} without credentials, query or fragment")
    if parts.scheme == "file" and (parts.netloc or len(parts.path) < 2):
        raise StartupError(f"{PREFIX}MEDIA_URL must name a folder as file:///absolute/path")
    if parts.scheme != "file" and not parts.netloc:
        raise StartupError(f"{PREFIX}MEDIA_URL must name a bucket, as s3://bucket/prefix")


def _check_url(name: str, value: str, schemes: tuple[str, str]) -> None:
    """Check that the value is empty or a URL with one of the schemes and a host, and without a user name."""
    if not value:
        return
    try:
        url = urlsplit(value)
        good = url.scheme in schemes and url.hostname and url.port != 0 and "@" not in url.netloc and not url.fragment
        good = good and value.isprintable() and " " not in value
    except ValueError:  # the brackets do not match, or the port is not valid
        good = False
    if not good:
        plain, secure = schemes
        raise StartupError(f"{PREFIX}{name.upper()} must be a {plain}:// or {secure}:// URL, without a"
                           " user name in it")  # fmt: skip


def proxies(settings: Settings) -> list[IPv4Network | IPv6Network]:
    """The networks of TRUSTED_PROXIES; a network of IPv4-mapped IPv6 addresses becomes the IPv4 network."""
    return [_network(part.strip()) for part in settings.trusted_proxies.split(",") if part.strip()]


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


def clamd_address(url: str) -> tuple[str, int, str]:
    """Host, port and socket path of a clamd:// URL, either the first two or the last."""
    expected = f"{PREFIX}MEDIA_SCAN_URL: expected clamd://host:port or clamd:///path/of/socket"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # the brackets do not match, or the port is not valid
        raise StartupError(expected) from None
    if parts.query or parts.fragment or "@" in parts.netloc or not url.isprintable():
        raise StartupError(expected)
    if not parts.netloc and len(parts.path) > 1:
        return "", 0, parts.path
    if not host or not port or parts.path not in ("", "/"):
        raise StartupError(expected)
    return host, port, ""


def host_port(address: str) -> tuple[str, int]:
    """The two parts of a `host:port` setting."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
