"""The command line `linnet`. Results go to standard output, everything else to standard error.

Exit status: 0 done, 1 refused or not possible, 2 wrong usage, 130 interrupted. A message that was stored and not acked
when a command ends is sent by the next one of its kind, of the same user.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import getpass
import json
import mimetypes
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import linnet_client.events as events
import linnet_client.values as values
from linnet_client.client import Client
from linnet_client.doctor import examine
from linnet_client.errors import ClientError, Refused
from linnet_client.events import Event, Logged
from linnet_client.http import Api
from linnet_client.machine import Status
from linnet_client.messages import MessageHandle
from linnet_client.session_file import Session, default_home

API: Final = "http://127.0.0.1:8000"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="linnet", description="Chat with a Linnet deployment from the terminal.")
    top.add_argument("--home", type=Path, default=default_home(), help="folder of the login and the stores")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *arguments: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        for argument in arguments:
            made.add_argument(argument)
        return made

    login = add("login", "log in; the password is asked for, or read from standard input", "user")
    login.add_argument("--api", default=API, help=f"URL of the HTTP API (default: {API})")
    login.add_argument("--create", action="store_true", help="make the account first, unless it exists")
    add("token", "print a valid token of the stored login")
    send = add("send", "send a message, and wait for its ack", "to")
    send.add_argument("text", nargs="?", help="the message; without it each line of standard input is one")
    send.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for the ack (default: 30)")
    listen = add("listen", "print events as they come")
    listen.add_argument("--json", action="store_true", help="one JSON object per line")
    history = add("history", "print the last events of a conversation", "conversation")
    history.add_argument("--limit", type=int, default=50)
    history.add_argument("--before", type=int, help="a seq")
    history.add_argument("--json", action="store_true", help="one JSON object per line")
    upload = add("upload", "upload a file, and print its hash; with --to send it in a message, too", "file")
    upload.add_argument("--to", help="a conversation id, or @user")
    upload.add_argument("--text", default="", help="the text of the message")
    upload.add_argument("--type", help="the media type (default: by the name)")
    add("chat", "a chat in the terminal: each line is sent", "to")
    doctor = add("doctor", "find out why a client cannot connect")
    doctor.add_argument("--origin", help="check that pages of this origin may connect")
    trace = add("trace", "show where a message is, as far as its sender may know", "conversation")
    trace.add_argument("seq", type=int)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    given = parser().parse_args(arguments)
    try:
        return asyncio.run(COMMANDS[given.command](given))
    except ClientError as error:
        print(f"linnet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _login(given: argparse.Namespace) -> int:
    api = Api(given.api)
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if given.create:
        try:
            await api.create_account(given.user, password)
        except Refused as error:
            if error.code != "conflict":  # the account is there already; the login decides
                raise
    try:
        last: str | None = Session.read(given.home).token
    except ClientError:
        last = None
    answer = await api.login(given.user, password, "cli", last)
    Session(given.home, api.origin, given.user, answer["token"]).write()
    print(f"logged in as {given.user}", file=sys.stderr)
    return 0


async def _token(given: argparse.Namespace) -> int:
    print(await Session.read(given.home).fresh_token())
    return 0


async def _send(given: argparse.Namespace) -> int:
    client = await Session.read(given.home).client("send")
    discarding = asyncio.create_task(client.listen(_discard))  # else every later start replays what came before it
    try:
        lines = [given.text] if given.text is not None else [line.rstrip("\n") for line in sys.stdin]
        handles = [client.conversation(given.to).send(line) for line in lines]
        for handle in handles:
            await handle.stored
        try:
            async with asyncio.timeout(given.timeout):
                return max([await _answer(handle) for handle in handles], default=0)
        except TimeoutError:
            reason = client.stopped or client.status
            print(f"linnet: stored, not acked yet ({reason}); the next `linnet send` sends it", file=sys.stderr)
            return 1
    finally:
        discarding.cancel()
        await asyncio.wait([discarding])
        await client.close()


async def _answer(handle: MessageHandle) -> int:
    """Print the ack or the refusal of a message. What was refused leaves the store: no later command shows it."""
    try:
        ack = await handle.acked
    except Refused as error:
        print(f"linnet: {error}", file=sys.stderr)
        await handle.cancel()
        return 1
    print(f"{ack.conversation} {ack.seq}")
    return 0


async def _discard(_event: Event) -> None:
    """Take an event without showing it."""


async def _listen(given: argparse.Namespace) -> int:
    client = await Session.read(given.home).client("listen")
    try:
        async for event in client.events():
            _print(event, as_json=given.json)
    finally:
        await client.close()
    return 0


def _print(event: Event | Logged, *, as_json: bool) -> None:
    if as_json:
        fields = values.jsonable(dataclasses.asdict(event))
        print(json.dumps({"type": type(event).__name__.lower(), **fields}, ensure_ascii=False), flush=True)
    else:
        print(describe(event), flush=True)


def describe(event: Event | Logged) -> str:
    """Return one line for a person. Control characters of other users are shown, not obeyed by the terminal."""
    match event:
        case events.Message():
            text = f"{event.conversation} {event.seq} {event.sender}: {_text(event.body)}"
        case events.Edit():
            text = f"{event.conversation} {event.seq} {event.sender} edited {event.target}: {_text(event.body)}"
        case events.Delete():
            text = f"{event.conversation} {event.seq} {event.sender} deleted {event.target}"
        case events.React():
            verb = "took back" if event.remove else "reacted"
            text = f"{event.conversation} {event.seq} {event.sender} {verb} {event.emoji} to {event.target}"
        case _:
            fields = dataclasses.asdict(event)
            text = f"{type(event).__name__.lower()} " + " ".join(f"{name}={fields[name]}" for name in fields)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(values.jsonable(body), ensure_ascii=False)


async def _history(given: argparse.Namespace) -> int:
    session = Session.read(given.home)
    query = f"limit={given.limit}" + (f"&before={given.before}" if given.before is not None else "")
    answer = await session.call("GET", f"{_path(session, given.conversation)}/events?{query}")
    for raw in answer["events"]:
        if raw["type"] in events.LOGGED:
            _print(events.LOGGED[raw["type"]](raw), as_json=given.json)
    return 0


def _id(session: Session, target: str) -> str:
    return "d:" + ":".join(sorted((session.user, target[1:]))) if target.startswith("@") else target


def _path(session: Session, target: str) -> str:
    return f"/v1/conversations/{quote(_id(session, target), safe='')}"


async def _upload(given: argparse.Namespace) -> int:
    client, path = await Session.read(given.home).client("upload"), Path(given.file)
    kind = given.type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"

    def show(done: int, size: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done * 100 // size} %", end="" if done < size else "\n", file=sys.stderr, flush=True)

    try:
        file = await client.media.upload(path, mime=kind, progress=show)
        print(file["sha256"])
        if given.to is not None:
            discarding = asyncio.create_task(client.listen(_discard))
            ack = await client.conversation(given.to).send(given.text, files=[file["sha256"]]).acked
            print(f"{ack.conversation} {ack.seq}")
            discarding.cancel()
            await asyncio.wait([discarding])
    except OSError as error:
        raise ClientError(f"{path}: {error.strerror}") from None
    finally:
        await client.close()
    return 0


async def _chat(given: argparse.Namespace) -> int:
    client = await Session.read(given.home).client("chat")
    conversation = client.conversation(given.to)
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
        loop.call_soon_threadsafe(lines.put_nowait, None)

    async def show(event: Event) -> None:
        if isinstance(event, Logged) and event.conversation == conversation.id and event.device != client.device:
            print(describe(event), flush=True)
            conversation.mark_read(event.seq)

    try:
        await client.until(Status.LIVE)
        print(f"linnet: connected; each line goes to {given.to}, Ctrl-D leaves", file=sys.stderr, flush=True)
        showing = asyncio.create_task(client.listen(show))
        threading.Thread(target=read, daemon=True).start()
        await _send_lines(client, conversation.id, lines)
        showing.cancel()
        await asyncio.wait([showing])
    finally:
        await client.close()
    return 0


async def _send_lines(client: Client, conversation: str, lines: asyncio.Queue[str | None]) -> None:
    while (line := await lines.get()) is not None:
        if line:
            handle = client.conversation(conversation).send(line)
            try:
                await handle.acked
            except Refused as error:
                print(f"linnet: {error}", file=sys.stderr)
                await handle.cancel()


async def _doctor(given: argparse.Namespace) -> int:
    findings = await examine(Session.read(given.home), given.origin)
    for finding in findings:
        print(finding)
    return int(any(finding.advice for finding in findings))


async def _trace(given: argparse.Namespace) -> int:
    session = Session.read(given.home)
    path = _path(session, given.conversation)
    answer = await session.call("GET", f"{path}/events?after={given.seq - 1}&limit=1")
    found = [raw for raw in answer["events"] if raw["seq"] == given.seq and raw["type"] in events.LOGGED]
    if not found:
        print(
            f"linnet: {given.conversation} has no event {given.seq}: deleted, trimmed or never there", file=sys.stderr
        )
        return 1
    print(f"in the log: {describe(events.LOGGED[found[0]['type']](found[0]))}")
    print(f"sent by device {found[0]['device']} as n {found[0]['n']}, accepted at {found[0]['at']} ms")
    try:
        reads = (await session.call("GET", f"{path}/reads"))["reads"]
    except Refused:
        print("read marks are kept in direct conversations and groups of at most 32 members only")
        return 0
    users = ",".join(quote(user) for user in reads)
    present = (await session.call("GET", f"/v1/presence?users={users}"))["users"]
    for user, read in sorted(reads.items()):
        where = "online" if present[user]["online"] else "offline"
        print(f"{user}: {'has read it' if read >= given.seq else f'has read up to {read}'}, {where}")
    return 0


COMMANDS: Final[dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, int]]]] = {
    "login": _login, "token": _token, "send": _send, "listen": _listen, "history": _history, "chat": _chat,
    "upload": _upload,    "doctor": _doctor, "trace": _trace,
}  # fmt: skip
