"""router/process/logs.py: one entry per line, without secrets."""

import json
import logging
import sys

import pytest

from router.contract import metrics
from router.contract.settings import Settings, load
from router.process.logs import Formatter, JsonFormatter, Refusals, TextFormatter, secrets, set_up

SECRET = 'a-jwt-secret-of-more-than-32-bytes-"quoted"'
SETTINGS = {
    "LINNET_JWT_SECRET": SECRET,
    "LINNET_SERVER_KEY": "a-server-key-of-more-than-32-bytes-x",
    "LINNET_WEBHOOK_SECRET": "a-webhook-secret-of-more-than-32-bytes",
    "LINNET_REDIS_URL": "redis://user:p%40ssword@127.0.0.1/0?password=another-one&sentinel_password=a-third",
}


def settings(**changes: str) -> Settings:
    return load({**SETTINGS, **changes})


def entry(message: str, *args: object, failed: bool = False) -> logging.LogRecord:
    trace = None
    if failed:
        try:
            raise ValueError(f"wrong: {SECRET}\n2026-01-01T00:00:00.000Z info forged: entry")
        except ValueError:
            trace = sys.exc_info()
    record = logging.LogRecord("linnet.test", logging.WARNING, __file__, 1, message, args, trace)
    record.created = 1_767_225_600.25
    return record


def test_text_is_for_people() -> None:
    """Time in UTC with milliseconds, level, logger, message."""
    assert TextFormatter().format(entry("lost %d", 3)) == "2026-01-01T00:00:00.250Z warning linnet.test: lost 3"


def test_json_is_for_collectors() -> None:
    """One object per line, with the traceback in its own field."""
    line = JsonFormatter().format(entry("lost %d", 3, failed=True))
    value = json.loads(line)
    assert "\n" not in line
    assert "ValueError" in value.pop("trace")
    assert value == {
        "at": "2026-01-01T00:00:00.250Z", "level": "warning", "logger": "linnet.test", "message": "lost 3",
    }  # fmt: skip


@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()])
def test_no_message_starts_a_second_entry(form: Formatter) -> None:
    """Line ends and terminal controls of clients are escaped; in text a traceback is indented below its entry."""
    text = form.format(entry("from %s", "eve\r\n\x1b[2Jforged", failed=True))
    assert "\r" not in text
    assert "\x1b" not in text
    assert all(line.startswith("    ") for line in text.split("\n")[1:])


@pytest.mark.parametrize("form", [TextFormatter, JsonFormatter])
def test_no_secret_is_ever_logged(form: type[Formatter]) -> None:
    """In the message, in its arguments, in a traceback, as it is or as JSON escapes it."""
    given = settings()
    formatter = form(secrets(given))
    line = formatter.format(entry("%s and %s", given.redis_url, given, failed=True))
    for secret in (
        SECRET,
        json.dumps(SECRET)[1:-1],
        given.server_key,
        given.webhook_secret,
        "p%40ssword",
        "another-one",
        "a-third",
    ):
        assert secret not in line
    assert "***" in line


def test_refused_requests_are_counted_and_one_of_a_kind_is_logged_a_minute() -> None:
    """A flood of them does not fill the log; other warnings, and errors of the same logger, are all logged."""

    def said(message: str, at: float, level: int = logging.WARNING) -> bool:
        record = entry(message)
        record.levelno, record.created = level, at
        return refusals.filter(record)

    def counted() -> list[float]:
        return [metrics.HTTP_REFUSED.labels(why)._value.get() for why in ("malformed", "upgrade", "full")]

    refusals, before = Refusals(), counted()
    assert [said("Invalid HTTP request received.", at) for at in (100, 101, 159.9, 160, 161)] == [1, 0, 0, 1, 0]
    assert said("Unsupported upgrade request.", 101)
    assert not said('No supported WebSocket library detected. Please use "pip install …"', 101)
    assert said("Exceeded concurrency limit.", 101)
    assert all(said("another", 101) for _ in range(2))
    assert all(said("Invalid HTTP request received.", 102, logging.ERROR) for _ in range(2))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [5, 1, 1]


def test_set_up_follows_the_settings(capfd: pytest.CaptureFixture[str]) -> None:
    """Level and format come from the settings, and uvicorn's lines about its start are left out."""
    root, level, handlers = logging.getLogger(), logging.getLogger().level, list(logging.getLogger().handlers)
    try:
        set_up(settings(LINNET_LOG_FORMAT="json", LINNET_LOG_LEVEL="info"))
        logging.getLogger("linnet.test").info("heard")
        logging.getLogger("linnet.test").debug("not heard")
        logging.getLogger("uvicorn.error").info("not heard either")
        assert [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()] == ["heard"]
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.handlers[:] = handlers
