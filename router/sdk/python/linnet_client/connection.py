"""The connection: keeps one socket to a gateway alive, by the table of `machine.py`.

The read loop hands each frame to `Handlers`, whose functions never wait and never call the application. Commands are
written by a task of their own, in their order. Answers are found by `id`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from typing import Any, Final, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

import linnet_client.machine as machine
import linnet_client.values as values
from linnet_client.errors import ClientError, NotConnected, Refused, Unreachable, retry_at
from linnet_client.http import Api, TokenSource
from linnet_client.machine import Ending, Signal, Status
from linnet_client.wire import Welcome

HANDSHAKE_S: Final = 10.0
ANSWER_S: Final = 15.0
PING_S: Final = 15.0
TICK_S: Final = 1.0
STEADY_S: Final = 10.0  # a connection that lived so long begins the backoff anew
SUBPROTOCOL: Final = Subprotocol("linnet.v1.json")

log = logging.getLogger("linnet_client")


class Handlers(Protocol):
    """The calls from the connection to the client, one per event. None of them waits."""

    def hello(self) -> dict[str, Any]: ...

    def welcomed(self, welcome: Welcome) -> None: ...

    def received(self, event: dict[str, Any]) -> None: ...

    def ticked(self) -> bool: ...

    def changed(self, state: Status, reason: str | None) -> None: ...

    def found_gateways(self, urls: list[str]) -> None: ...


class Connection:
    """One device's connection. `fixed`: gateways to use without asking the API; `known`: those of an earlier run."""

    def __init__(
        self, api: Api, token: TokenSource, handlers: Handlers, fixed: list[str] | None, known: list[str]
    ) -> None:
        self.state = Status.IDLE
        self.expires_at = 0
        self._api = api
        self._token = token
        self._handlers = handlers
        self._fixed = fixed
        self._gateways = fixed or known
        self._instance = secrets.token_hex(8)
        self._reason = "connect"
        self._last_token: str | None = None
        self._failed: str | None = None
        self._attempt = 0
        self._stop_reason: str | None = None
        self._drain_s: float | None = None
        self._socket: ClientConnection | None = None
        self._outgoing: asyncio.Queue[str] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._ids = 0
        self._welcomed_at = 0.0
        self._running: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._renew_at = float("inf")

    @property
    def live(self) -> bool:
        return self.state is Status.LIVE

    def start(self) -> None:
        self._stop_reason, self._last_token, self._reason = None, None, "connect"
        self._move(Signal.START)
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None
        self._lose()
        self._move(Signal.CLOSE)

    def write(self, command: dict[str, Any]) -> None:
        """Write a command to the live connection, after all that was written before."""
        if self.live:
            self._outgoing.put_nowait(values.encode(command))

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a command; `Refused` for an error, `NotConnected` if the connection ends first."""
        if not self.live:
            raise NotConnected("the connection is not live")
        self._ids += 1
        ident = f"a{self._ids}"
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[ident] = answer
        try:
            self.write({**command, "id": ident})
            async with asyncio.timeout(ANSWER_S):
                event = await answer
        except TimeoutError:
            raise NotConnected(f"no answer within {ANSWER_S:g} s") from None
        finally:
            del self._answers[ident]
        if event["type"] == "error":
            raise Refused(event["code"], event.get("message", ""), retry_at(event.get("retry_after")))
        return event

    def stop(self, reason: str) -> None:
        """End the connection, and do not reconnect."""
        self._stop_reason = reason
        self.reconnect()

    async def flush(self, deadline_s: float = 1.0) -> None:
        """Wait until all commands are written, or the deadline."""
        if self.live:
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._outgoing.join()

    def reconnect(self) -> None:
        """Give the connection up and make a new one."""
        if self._socket is not None:
            self._socket.transport.abort()

    # -- the loop

    def _move(self, signal: Signal, reason: str | None = None) -> None:
        self.state = machine.step(self.state, signal)
        self._handlers.changed(self.state, reason)

    async def _run(self) -> None:
        while True:
            try:
                end = await self._once()
            except ClientError as error:
                end = _after(error)
                log.info("no connection: %s", error)
            except (OSError, WebSocketException, TimeoutError) as error:
                end = _after_handshake(error)
                log.info("no connection: %s: %s", type(error).__name__, error)
            except Exception:  # a bug, here or in the token source, must not end the connection for good
                end = Ending()
                log.exception("no connection")
            self._lose()
            if self._stop_reason is not None:
                end = Ending(stop=self._stop_reason)
            if end.stop is not None:
                self._move(Signal.REFUSED, end.stop)
                return
            if end.token is not None:
                self._reason = end.token
            self._move(Signal.LOST)
            if self._welcomed_at and time.monotonic() - self._welcomed_at > STEADY_S:
                self._attempt = 0
            wait_s = machine.backoff_s(self._attempt) if end.wait_s is None else end.wait_s
            self._attempt += 1
            self._welcomed_at = 0.0
            await asyncio.sleep(wait_s)
            self._move(Signal.WAITED)

    async def _once(self) -> Ending:
        """One connection, from the token to its end."""
        refused = self._last_token if self._reason not in ("connect", "expiring") else None
        try:
            token = await self._token(self._reason)
        except Refused as error:
            if error.retry_at is None and error.status < 500:
                return Ending(stop=error.code)
            raise
        if refused is not None and token == refused:
            return Ending(stop=self._reason)
        self._last_token, self._reason = token, "connect"
        url = machine.choose(await self._find(token), self._failed)
        self._move(Signal.PREPARED)
        self._failed = url
        async with connect(
            url, subprotocols=[SUBPROTOCOL], max_size=None, open_timeout=HANDSHAKE_S, close_timeout=1,
            ping_interval=PING_S, ping_timeout=PING_S, compression=None,
        ) as socket:  # fmt: skip
            self._socket = socket
            try:
                hello = {"type": "hello", "token": token, "instance": self._instance, **self._handlers.hello()}
                await socket.send(values.encode(hello))
                return await self._talk(socket)
            except asyncio.CancelledError:
                await socket.close()  # with 1000; leaving the context by an exception would say 1011
                raise
            except ConnectionClosed:
                code = socket.close_code or 1006
                log.info("the connection ended: %d %s", code, socket.close_reason)
                return machine.ending(code, socket.close_reason or "", self._drain_s)

    async def _find(self, token: str) -> list[str]:
        """Return the gateways to choose from; those of before if the API does not answer."""
        if self._fixed:
            return self._fixed
        try:
            found = await self._api.gateways(token)
        except Unreachable:
            found = []
        except Refused as error:
            if error.status == 401:
                raise
            found = []
        if found:
            self._gateways = found
            self._handlers.found_gateways(found)
        if not self._gateways:
            raise Unreachable("no gateway is known")
        return self._gateways

    async def _talk(self, socket: ClientConnection) -> Ending:
        async with asyncio.timeout(HANDSHAKE_S):
            welcome = values.decode(await socket.recv())
        if welcome["type"] == "error":
            code = welcome["code"]
            if code in ("unauthorized", "token_expired"):
                return Ending(token=code)
            with suppress(TimeoutError):  # the close frame has the reason
                async with asyncio.timeout(HANDSHAKE_S):
                    while True:
                        await socket.recv()
            return Ending(wait_s=welcome.get("retry_after"))
        if welcome["type"] != "welcome":
            raise ClientError(f"the gateway answers hello with {welcome['type']}")
        self._welcome(welcome)
        tasks = [asyncio.create_task(self._write_all(socket)), asyncio.create_task(self._tick())]
        try:
            async for frame in socket:
                self._take(values.decode(frame))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        raise ConnectionClosed(None, None)  # the iteration ends in silence after a normal close

    def _welcome(self, welcome: Welcome) -> None:
        self._welcomed_at, self._drain_s, self._failed = time.monotonic(), None, None
        self._outgoing = asyncio.Queue()
        self._expire(welcome["expires_at"])
        self._move(Signal.WELCOMED)
        self._handlers.welcomed(welcome)

    def _take(self, event: dict[str, Any]) -> None:
        answer = self._answers.get(event.get("id") or "") if isinstance(event.get("id"), str) else None
        if answer is not None:
            if not answer.done():
                answer.set_result(event)
        elif event["type"] == "drain":
            self._drain_s = float(event["retry_after"])
        else:
            self._handlers.received(event)

    async def _write_all(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await socket.send(await self._outgoing.get())
                self._outgoing.task_done()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self._handlers.ticked():
                log.warning("a command has no answer: the connection is made anew")
                self.reconnect()
            if time.monotonic() >= self._renew_at and self._renewing is None:
                self._renew_at = float("inf")
                self._renewing = asyncio.get_running_loop().create_task(self._renew())
                self._renewing.add_done_callback(self._renewed)

    def _lose(self) -> None:
        self._socket = None
        if self._renewing is not None:
            self._renewing.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(NotConnected("the connection ended before the answer"))

    # -- tokens

    def _expire(self, expires_at: int) -> None:
        self.expires_at = expires_at
        self._renew_at = time.monotonic() + machine.renew_after_s(expires_at / 1000 - time.time())

    async def _renew(self) -> None:
        token = await self._token("expiring")
        answer = await self.ask({"type": "auth", "token": token})
        self._last_token = token
        self._expire(answer["expires_at"])

    def _renewed(self, task: asyncio.Task[None]) -> None:
        self._renewing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("the token was not renewed: %s", error)
            self._renew_at = time.monotonic() + machine.renew_again_s(self.expires_at / 1000 - time.time())


def _after(error: ClientError) -> Ending:
    if isinstance(error, Refused) and error.retry_at is not None:
        return Ending(wait_s=error.wait_s)
    if isinstance(error, Refused) and error.status == 401:
        return Ending(token=error.code)
    return Ending()


def _after_handshake(error: Exception) -> Ending:
    if isinstance(error, InvalidStatus):
        retry = error.response.headers.get("Retry-After", "")
        if retry.isdigit():
            return Ending(wait_s=float(retry))
    return Ending()
