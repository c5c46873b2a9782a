"""The log of both processes: entries on standard error, as text or as JSON, uvicorn's included.

Parts never log a user's content, and never one line per message (except for traced events, at debug). In JSON, an entry
about a step in the life of the process (`life`) has the fields `event` and the step's figures, and an entry about a
traced event has its `trace_id`.

Invariants
- An entry is one line (as text, an indented traceback follows it): data of a client cannot begin another line.
- Refused requests do not flood the log: each kind of uvicorn's warnings about them is logged once a minute, and
  `linnet_http_refused_total` counts all of them.
- A configured secret never appears in the log, whatever a message or a traceback contains: the formatter blanks every
  secret of the settings. This is the last line of defence; code must not rely on it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from router.contract import metrics
from router.contract.settings import Settings

QUIET_S: Final = 60.0
BLANK: Final = "***"
_CONTROL: Final = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class Formatter(logging.Formatter):
    """Base of both formats: the time, and the blanking of secrets."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        super().__init__()
        # The longest first, because one secret may contain another.
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record, self.trace(record))
        for secret in self._secrets:
            line = line.replace(secret, BLANK)
        return line

    def line(self, record: logging.LogRecord, trace: str) -> str:
        raise NotImplementedError

    def trace(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""

    @staticmethod
    def at(record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class TextFormatter(Formatter):
    """A line for people: `2026-01-31T12:00:00.000Z warning linnet.redis: connection lost`."""

    def line(self, record: logging.LogRecord, trace: str) -> str:
        message = record.getMessage().translate(_CONTROL)
        return f"{self.at(record)} {record.levelname.lower()} {record.name}: {message}{_indented(trace)}"


def _indented(trace: str) -> str:
    return "".join(f"\n    {line.translate(_CONTROL)}" for line in trace.splitlines())


class JsonFormatter(Formatter):
    """One JSON object per line, for collectors."""

    def line(self, record: logging.LogRecord, trace: str) -> str:
        entry = {
            "at": self.at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if (trace_id := getattr(record, "trace_id", None)) is not None:
            entry["trace_id"] = trace_id
        if trace:
            entry["trace"] = trace
        return msgspec.json.encode(entry).decode()


def life(log: logging.Logger, event: str, message: str, *arguments: object, **fields: str | float) -> None:
    """Log a step in the life of the process; JSON entries have `event` and the fields beside the message."""
    log.info(message, *arguments, extra={"fields": {"event": event, **fields}})


class Refusals(logging.Filter):
    """Filter of uvicorn's warnings about refused requests: counts all, passes the first of its kind in a minute."""

    # The beginning of uvicorn's message → the kind in the metric.
    KINDS: Final = {"Invalid HTTP": "malformed", "Unsupported upgrade": "upgrade", "Exceeded concurrency": "full"}

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[str, float] = {}  # kind → time of its last log line

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        if record.getMessage().startswith("No supported WebSocket library"):
            return False  # follows an unsupported upgrade, and advises to install a library that Linnet does not use
        found = (kind for begin, kind in self.KINDS.items() if record.getMessage().startswith(begin))
        if (kind := next(found, None)) is None:
            return True
        metrics.HTTP_REFUSED.labels(kind).inc()
        if record.created < self._logged.get(kind, 0.0) + QUIET_S:
            return False
        self._logged[kind] = record.created
        return True


def set_up(settings: Settings) -> None:
    """Set up logging by the settings, and remove any earlier set-up."""
    form = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(form(secrets(settings)))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # the process itself logs its start and stop
    refusals = logging.getLogger("uvicorn.error")
    refusals.filters[:] = [Refusals()]


def secrets(settings: Settings) -> list[str]:
    """Every secret in the settings, in each form in which it could appear."""
    redis = urlsplit(settings.redis_url)
    password = redis.password or ""
    found = [settings.jwt_secret, settings.server_key, settings.webhook_secret, password, unquote(password)]
    options = parse_qs(redis.query)
    found += options.get("password", []) + options.get("sentinel_password", [])
    return [*found, *(msgspec.json.encode(secret).decode()[1:-1] for secret in found)]
