"""`linnet doctor`: looks for what keeps a client from connecting, and says what to do. It makes no device."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Origin

from linnet_client.connection import SUBPROTOCOL
from linnet_client.errors import ClientError, Refused
from linnet_client.http import TIMEOUT_S, Api
from linnet_client.session_file import Session, claims

SKEW_S: Final = 5.0
SLOW_S: Final = 0.5
PINGS: Final = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `advice` is set if something should be done."""

    check: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        mark = "--" if self.advice else "ok"
        return f"{mark} {self.check}: {self.found}" + (f"\n   {self.advice}" if self.advice else "")


async def examine(session: Session, origin: str | None) -> list[Finding]:
    """Make all checks, in the order in which a connection needs them."""
    found = [*_proxies(), *_token(session.token), await _clock(session.api)]
    try:
        gateways = await Api(session.api).gateways(session.token)
    except ClientError as error:
        advice = (
            "log in again: linnet login USER"
            if isinstance(error, Refused) and error.status == 401
            else "check the URL of the API, and that a router runs"
        )
        return [*found, Finding("API", str(error), advice)]
    found.append(Finding("API", f"{session.api} answers"))
    if not gateways:
        return [*found, Finding("gateways", "none is running", "start a gateway; check LINNET_GATEWAY_URL of gateways")]
    found += await asyncio.gather(*(_gateway(url, origin) for url in gateways))
    return found


def _proxies() -> Iterator[Finding]:
    for name, url in urllib.request.getproxies().items():
        if name in ("http", "https", "all", "ws", "wss", "socks"):
            yield Finding(
                f"proxy for {name}", url, "if the checks below fail, let no_proxy name the hosts of API and gateways"
            )
    if os.environ.get("no_proxy") or os.environ.get("NO_PROXY"):
        yield Finding("no_proxy", os.environ.get("no_proxy") or os.environ["NO_PROXY"])


def _token(token: str) -> Iterator[Finding]:
    found = claims(token)
    expires = found.get("exp")
    if not isinstance(expires, (int, float)):
        yield Finding("token", "no JWT with `exp`", "log in again: linnet login USER")
        return
    rest = expires - time.time()
    if rest <= 0:
        yield Finding("token", f"expired {-rest:.0f} s ago", "log in again: linnet login USER")
    else:
        kind = "renewed by itself" if "login" in found else "not renewable here"
        yield Finding("token", f"of {found.get('sub')}, valid for {rest:.0f} s, {kind}")


async def _clock(api: str) -> Finding:
    """Compare this clock with the header `Date` of the API, which has whole seconds."""
    try:
        skew = await asyncio.to_thread(_skew, api)
    except (OSError, ValueError, TypeError) as error:
        return Finding("clock", f"not compared: {error}")
    advice = "set this computer's clock (NTP): tokens look expired, or not yet valid" if abs(skew) > SKEW_S else ""
    return Finding("clock", f"{skew:+.0f} s against the API" if abs(skew) > 1 else "agrees with the API", advice)


def _skew(api: str) -> float:
    before = time.time()
    with urllib.request.urlopen(Api(api).origin + "/v1/schema.json", timeout=TIMEOUT_S) as answer:
        date = parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5
    return (before + time.time()) / 2 - date


async def _gateway(url: str, origin: str | None) -> Finding:
    """Open a WebSocket and measure round trips, without `hello`."""
    check = f"gateway {url}" + (f" from {origin}" if origin else "")
    try:
        async with connect(
            url, subprotocols=[SUBPROTOCOL], open_timeout=TIMEOUT_S, origin=Origin(origin) if origin else None
        ) as socket:
            times = []
            for _ in range(PINGS):
                began = time.perf_counter()
                await (await socket.ping())
                times.append(time.perf_counter() - began)
            if socket.subprotocol != SUBPROTOCOL:
                return Finding(check, "the subprotocol is lost", "a proxy drops Sec-WebSocket-Protocol; let it pass")
            best = min(times)
            advice = "the way to the gateway is slow; use one that is nearer" if best > SLOW_S else ""
            return Finding(check, f"round trip {best * 1000:.1f} ms", advice)
    except InvalidStatus as error:
        status = error.response.status_code
        if status == 403 and origin:
            return Finding(check, "HTTP 403", f"add {origin} to LINNET_ORIGINS of the gateways")
        if status == 503:
            return Finding(check, "HTTP 503", "the gateway is full or draining; it will be another one")
        return Finding(check, f"HTTP {status}", "a proxy or balancer on the way does not pass the WebSocket upgrade")
    except (OSError, TimeoutError, WebSocketException) as error:
        return Finding(check, f"{type(error).__name__}: {error}", "check that the address is reachable from here")
