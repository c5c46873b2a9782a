"""A bot: greets users who write to it, does what `/roll`, `/time` and `/help` say, and repeats everything else.

    python router/sdk/examples/bot.py --user echo --password-file bot-password --store echo.db

It makes its account if there is none. After a crash between an answer and the stored cursor it answers once more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from linnet_client import Api, Client, Event, Login, Message, Refused, Stopped

HELP = "/roll rolls a die, /time says the time (UTC), everything else is repeated"


def answer(text: str) -> str:
    """Return what the bot says to a text."""
    match text.strip().lower():
        case "/help" | "hi" | "hello":
            return f"Hello! {HELP}."
        case "/roll":
            return f"You rolled a {random.randint(1, 6)}."
        case "/time":
            return datetime.now(UTC).strftime("%H:%M UTC")
    return text


class Bot:
    """Answers messages of direct conversations, in their order."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def handle(self, event: Event) -> None:
        if not isinstance(event, Message) or event.sender == self._client.user:
            return
        conversation = self._client.conversation(event.conversation)
        if conversation.view.kind != "direct" or not isinstance(event.body, str):
            return
        conversation.mark_read(event.seq)
        await conversation.send(answer(event.body), reply_to=event.seq).stored


async def run(api: str, user: str, password: str, store: Path) -> None:
    """Run until SIGTERM or Ctrl-C, or until the client stops."""
    with suppress(Refused):  # the account exists; a wrong password shows at the login
        await Api(api).create_account(user, password, name="Echo bot")
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with Client(api, user, Login(api, user, password), store=store, device="bot") as client:
        working = asyncio.create_task(client.listen(Bot(client).handle))
        ending = asyncio.create_task(ended.wait())
        await asyncio.wait([working, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--api", default="http://127.0.0.1:8000")
    options.add_argument("--user", default="echo")
    options.add_argument("--password-file", type=Path, required=True)
    options.add_argument("--store", type=Path, default=Path("echo.db"))
    given = options.parse_args()
    try:
        asyncio.run(run(given.api, given.user, given.password_file.read_text().strip(), given.store))
    except Stopped as error:
        print(f"stopped: {error.reason}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
