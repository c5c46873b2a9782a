"""The command line and the example bot, as processes, against real gateways and routers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from linnet_client import Client, Login, Message
from linnet_client.cli import describe
from linnet_client.http import Api

from tests.flow.client import token
from tests.flow.conftest import Names, System
from tests.support import ROOT, eventually

PASSWORD = "correct horse battery"
ENV = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
    "PYTHONPATH": str(ROOT / "router/sdk/python"),
    "PYTHONUNBUFFERED": "1",
}


async def started(*arguments: object, stdin: int = PIPE) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *map(str, arguments), env=ENV, stdin=stdin, stdout=PIPE, stderr=PIPE
    )


async def linnet(home: Path, *arguments: object, given: str | None = None) -> tuple[int, str, str]:
    """Exit status, output and errors of one command. Only a command that reads its input gets a pipe: uvloop raises if
    the process has ended before its input is written.
    """
    process = await started("-m", "linnet_client", "--home", home, *arguments, stdin=DEVNULL if given is None else PIPE)
    out, err = await process.communicate(None if given is None else given.encode())
    assert "Traceback" not in err.decode(), err.decode()
    return process.returncode or 0, out.decode(), err.decode()


async def ended(process: Process) -> None:
    process.send_signal(signal.SIGINT)
    await process.communicate()


async def line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(40):
        return (await process.stdout.readline()).decode().strip()


async def logged_in(chat: System, home: Path, user: str) -> Path:
    assert chat.router is not None
    status, _, said = await linnet(home, "login", user, "--create", "--api", chat.router.url, given=PASSWORD + "\n")
    assert (status, said) == (0, f"logged in as {user}\n")
    assert (home / "session.json").stat().st_mode & 0o777 == 0o600
    return home


async def test_a_message_is_sent_listened_to_listed_and_traced(chat: System, names: Names, tmp_path: Path) -> None:
    ann, bob = names("ann", "bob")
    at_ann, at_bob = await asyncio.gather(logged_in(chat, tmp_path / "a", ann), logged_in(chat, tmp_path / "b", bob))
    listening = await started("-m", "linnet_client", "--home", at_bob, "listen", "--json")
    status, out, _ = await linnet(at_ann, "send", f"@{bob}", "hello \x1b[31mbob")
    assert status == 0
    conversation, seq = out.split()
    event: dict[str, Any] = {}
    while event.get("type") != "message":
        event = json.loads(await line(listening))
    assert (event["conversation"], event["seq"], event["body"]) == (conversation, int(seq), "hello \x1b[31mbob")
    # While `listen` runs another command of the same user has a store of its own.
    status, out, _ = await linnet(at_bob, "send", f"@{ann}", given="one\ntwo\n")
    assert (status, len(out.splitlines())) == (0, 2)
    await ended(listening)
    (_, listed, _), (status, traced, _), (_, printed, _) = await asyncio.gather(
        linnet(at_bob, "history", f"@{ann}"), linnet(at_bob, "trace", conversation, seq), linnet(at_ann, "token")
    )
    assert [row.split(": ", 1)[1] for row in listed.splitlines()] == [r"hello \x1b[31mbob", "one", "two"]
    assert status == 0
    assert f"{bob}: has read it" in traced
    assert await Api(chat.router.url).gateways(printed.strip()) if chat.router else None


async def test_refused_line_is_named_and_the_others_are_sent(chat: System, names: Names, tmp_path: Path) -> None:
    """It leaves the store, too: no later command sends it or loads it again."""
    ann, bob = names("ann", "bob")
    at_ann = await logged_in(chat, tmp_path / "a", ann)
    await chat.api("POST", "/v1/tokens", {"user": bob})
    status, out, said = await linnet(at_ann, "send", f"@{bob}", given=f"one\n{'x' * 70_000}\ntwo\n")
    assert (status, len(out.splitlines())) == (1, 2)
    assert "too_large" in said
    with closing(sqlite3.connect(next(at_ann.rglob("*send*.db")))) as db:
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_chat_sends_lines_and_shows_answers(chat: System, names: Names, tmp_path: Path) -> None:
    ann, bob = names("ann", "bob")
    at_ann = await logged_in(chat, tmp_path / "a", ann)
    await chat.api("POST", "/v1/tokens", {"user": bob})
    assert chat.router is not None
    chatting = await started("-m", "linnet_client", "--home", at_ann, "chat", f"@{bob}")
    assert chatting.stdin is not None
    chatting.stdin.write(b"hi bob\n")
    async with Client(chat.router.url, bob, token(bob)) as other:
        events = other.events()
        async with asyncio.timeout(40):
            while not isinstance(event := await anext(events), Message):
                pass
        assert event.body == "hi bob"
        await other.conversation(f"@{ann}").send("hi ann").acked
        assert (await line(chatting)).endswith(f"{bob}: hi ann")
    chatting.stdin.close()
    assert await chatting.wait() == 0


async def test_doctor_finds_a_deployment_well_and_says_what_is_wrong(
    chat: System, names: Names, tmp_path: Path
) -> None:
    (ann,) = names("ann")
    home = await logged_in(chat, tmp_path / "a", ann)
    (status, out, _), (refused, found, _) = await asyncio.gather(
        linnet(home, "doctor"), linnet(home, "doctor", "--origin", "https://elsewhere.example")
    )
    assert (status, out.count("round trip")) == (0, len(chat.gateways)), out
    assert refused == 1
    assert "add https://elsewhere.example to LINNET_ORIGINS" in found
    session = json.loads((home / "session.json").read_text())
    (home / "session.json").write_text(json.dumps({**session, "api": "http://127.0.0.1:9"}))
    status, out, _ = await linnet(home, "doctor")
    assert status == 1
    assert "check the URL of the API" in out


@pytest.mark.processes
async def test_command_without_a_login_says_how_to_log_in(tmp_path: Path) -> None:
    status, out, said = await linnet(tmp_path, "token")
    assert (status, out) == (1, "")
    assert "linnet login" in said


async def test_bot_answers_and_goes_on_after_a_restart(chat: System, names: Names, tmp_path: Path) -> None:
    """The example: messages that come while it is down are answered by its next life."""
    ann, echo = names("ann", "echo")
    assert chat.router is not None
    (tmp_path / "password").write_text(PASSWORD)
    store = tmp_path / "echo.db"
    command = ("--api", chat.router.url, "--user", echo, "--password-file", tmp_path / "password", "--store", store)
    await Api(chat.router.url).create_account(ann, PASSWORD)
    async with Client(chat.router.url, ann, Login(chat.router.url, ann, PASSWORD)) as client:
        conversation = client.conversation(f"@{echo}")

        def answers() -> list[Any]:
            return [entry.body for entry in conversation.view.entries.values() if entry.sender == echo]

        bot = await started(ROOT / "router/sdk/examples/bot.py", *command)
        await eventually(store.exists)
        await conversation.send("one").acked
        await eventually(lambda: answers() == ["one"])
        bot.send_signal(signal.SIGTERM)
        assert (await bot.communicate(), bot.returncode) == ((b"", b""), 0)
        await conversation.send("two").acked
        bot = await started(ROOT / "router/sdk/examples/bot.py", *command)
        await conversation.send("three").acked
        await eventually(lambda: answers() == ["one", "two", "three"])
        bot.kill()
        await bot.communicate()


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    message = Message(
        conversation="g:1", seq=1, prev=0, count=1, at=0, sender="bob", device="d", n=1, body="a\x1b]0;x\x07b\n"
    )
    assert describe(message) == r"g:1 1 bob: a\x1b]0;x\x07b\n"
