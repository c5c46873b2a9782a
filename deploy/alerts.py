"""Alerts as lines at the terminal: the receiver of Alertmanager's notifications in `make stack`.

It reads one POST per connection, within bounds, and prints one line per alert. Routing is decided by alertmanager.yml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

MAX_BODY = 1 << 20
READ_S = 5.0


class Alert(msgspec.Struct, frozen=True):
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Notice(msgspec.Struct, frozen=True):
    receiver: str
    alerts: list[Alert]


def lines(notice: Notice) -> list[str]:
    return [_line(notice.receiver, alert.status, alert.labels, alert.annotations) for alert in notice.alerts]


def _line(receiver: str, status: str, labels: dict[str, str], notes: dict[str, str]) -> str:
    where = f" (see {notes['runbook_url']})" if "runbook_url" in notes else ""
    return f"{receiver}: {labels.get('alertname', '?')} {status}: {notes.get('summary', '')}{where}"


async def serve_alerts(host: str, port: int, say: Callable[[str], Any]) -> asyncio.Server:
    """Answer on this address until the server is closed."""
    return await asyncio.start_server(partial(_answer, say), host, port, limit=MAX_BODY)


async def _answer(say: Callable[[str], Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    status = "200 OK"
    try:
        async with asyncio.timeout(READ_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            body = await reader.readexactly(min(length, MAX_BODY))
        for line in lines(msgspec.json.decode(body, type=Notice)):
            say(f"alert     | {line}")
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, OSError):
        status = "400 Bad Request"
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    writer.close()
