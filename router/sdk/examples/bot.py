"""A bot: greets users who write to it, does what `/roll`, `/time` and `/help` say, and repeats everything else.

    python router/sdk/examples/bot.py --user echo --password-file bot-password --store echo.db

It makes its account if there is none. After a crash between an answer and the stored cursor it answers once more. With
`--lobby` it has a channel of that title, to which it adds each user who says `/start`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from linnet_client import Api, Client, Event, Login, Message, Refused, Stopped, Unreachable

HELP = "/roll rolls a die, /time says the time (UTC), everything else is repeated"
GREETING = """Hello {user}! I am a program, and I answer at once. Three things to try:
1. Send me /roll or /time, or anything else.
2. Open a second person in a new tab, and write to each other.
3. Stop a gateway while you talk, and watch: nothing is lost."""
AGAIN_S = 0.5


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

    def __init__(self, client: Client, lobby: str = "") -> None:
        self._client = client
        self._lobby = lobby

    async def handle(self, event: Event) -> None:
        if not isinstance(event, Message) or event.sender == self._client.user:
            return
        conversation = self._client.conversation(event.conversation)
        if conversation.view.kind != "direct" or not isinstance(event.body, str):
            return
        conversation.mark_read(event.seq)
        if event.body.strip() == "/start":
            await conversation.send(GREETING.format(user=event.sender)).stored
            if self._lobby:
                await self._invite(event.sender)
        else:
            await conversation.send(answer(event.body), reply_to=event.seq).stored

    async def _invite(self, user: str) -> None:
        """Add a user to the lobby, which is made for the first of them. A repetition changes nothing."""
        known = (await self._client.call("GET", "/v1/conversations?limit=200"))["conversations"]
        mine = [one["conversation"] for one in known if (one["kind"], one["title"]) == ("channel", self._lobby)]
        if not mine:
            made = await self._client.create_conversation(self._lobby, [], "channel")
            await made.send("Welcome to the lobby. Everybody who is new here comes by.").stored
            mine = [made.id]
        with suppress(Refused):  # a user who was removed, or is gone
            await self._client.call("PUT", f"/v1/conversations/{mine[0]}/members/{user}", {"role": "member"})


async def make_account(api: Api, user: str, password: str) -> None:
    """Make the account, once the API answers."""
    while True:
        try:
            with suppress(Refused):  # the account exists; a wrong password shows at the login
                await api.create_account(user, password)
            return
        except Unreachable:
            await asyncio.sleep(AGAIN_S)


async def run(api: str, user: str, password: str, store: Path, lobby: str = "") -> None:
    """Run until SIGTERM or Ctrl-C, or until the client stops."""
    await make_account(Api(api), user, password)
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with Client(api, user, Login(api, user, password), store=store, device="bot") as client:
        working = asyncio.create_task(client.listen(Bot(client, lobby).handle))
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
    options.add_argument("--lobby", default="", help="title of a channel for all who say /start")
    given = options.parse_args()
    try:
        asyncio.run(run(given.api, given.user, given.password_file.read_text().strip(), given.store, given.lobby))
    except Stopped as error:
        print(f"stopped: {error.reason}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
