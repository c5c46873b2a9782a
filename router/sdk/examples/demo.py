"""Five people who talk: what `make up DEMO=1` adds to a deployment, so that a visitor finds somebody to talk to.

    python router/sdk/examples/demo.py --store demo/ --bot linnet --picture photo.png

They make their accounts, talk through a day once, and then stay online and answer whoever writes to them. The number of
the line that comes next is in the state of the first person: after a crash the talk goes on there, at most one line
twice. All accounts have the password `correct-horse`, so this is nothing for a deployment that strangers can reach.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple

from linnet_client import Api, Client, Conversation, Event, Login, Message, MessageHandle, Refused, Unreachable

PASSWORD: Final = "correct-horse"  # noqa: S105  # printed by `make up`
PEOPLE: Final = {
    "mia": ("Mia Keller", "Walks before breakfast."),
    "noah": ("Noah Brandt", "Bread, bicycles, bad puns."),
    "lena": ("Lena Öztürk", "On the night shift this week."),
    "omar": ("Omar Haddad", "If it is not tested, it does not work."),
    "yuki": ("Yuki 佐藤", "写真とコーヒー"),
}
NEXT_LINE: Final = "demo/next-line"
AGAIN_S: Final = 0.5
ANSWER_S: Final = 1.5, 4.0
ANSWERS: Final = (
    "Hello {user}! Nice to meet you.",
    "Good question. What do you think?",
    "I will look at it tonight.",
    "😄",
    "Tell me more.",
    "Ask Omar, he knows such things.",
)


class Line(NamedTuple):
    """One line of the talk: who writes what, and where; the line it answers to is so many lines back in that place."""

    who: str
    where: str
    text: str
    back: int = 0
    reactions: Mapping[str, str] = {}  # by person


WALK, RELEASE = "Harbour walk", "Release 1.4"
GROUPS: Final = {WALK: ("mia", "noah", "lena", "yuki"), RELEASE: ("omar", "mia", "yuki", "noah")}
PICTURE: Final = "(the picture)"
DAY: Final = (
    Line("mia", WALK, "Good morning! Who comes to the harbour on Saturday?", reactions={"yuki": "🙋", "noah": "🙋"}),
    Line("noah", WALK, "Me. I bring bread."),
    Line("yuki", WALK, "What is the weather going to be?"),
    Line("mia", WALK, "Dry until four, they say. Meet at nine at the lighthouse?", 1, {"lena": "👍", "noah": "👍"}),
    Line("lena", WALK, "Nine is early after a night shift. But all right."),
    Line("noah", WALK, "There is coffee in the flask. 🥖☕"),
    Line("omar", RELEASE, "The release notes are up for review: https://example.org/notes/1.4"),
    Line("yuki", RELEASE, "Reading. The part about exports needs an example."),
    Line("omar", RELEASE, "Added. Look again?", 1, {"yuki": "🎉"}),
    Line("mia", RELEASE, "The page looks good on my phone now"),
    Line("mia", RELEASE, PICTURE, reactions={"omar": "❤️", "noah": "👏"}),
    Line("noah", RELEASE, "Two tests are red on my machine: `export` and `export_again`."),
    Line("omar", RELEASE, "Same here. I take it.", 1),
    Line("omar", RELEASE, "It was the time zone. It always is.", reactions={"yuki": "😂", "mia": "😂"}),
    Line("yuki", RELEASE, "Green now. I tag it at three?"),
    Line("omar", RELEASE, "@mia @noah last chance to object.", reactions={"mia": "👍"}),
    Line("mia", "@noah", "Can I borrow your bicycle on Saturday?"),
    Line("noah", "@mia", "The blue one, yes. The red one has a flat tyre."),
    Line("mia", "@noah", "Blue is fine. Thank you!", reactions={"noah": "🚲"}),
    Line("lena", "@mia", "Are you still awake?"),
    Line("mia", "@lena", "Hardly. What is it?"),
    Line("lena", "@mia", "The cat is back! She sat on the stairs as if nothing had happened.", reactions={"mia": "🐈"}),
    Line("omar", "@yuki", "Thank you for the review. I owe you a coffee."),
    Line("yuki", "@omar", "二杯お願いします 🙂"),
    Line("yuki", RELEASE, "1.4 is out. 🎉", reactions={"omar": "🎉", "mia": "🎉", "noah": "🎉"}),
    Line("noah", WALK, "Who else is hungry after this day?"),
    Line("lena", WALK, "Always.", 1, {"noah": "😄"}),
    Line("mia", WALK, "See you on Saturday, then. Good night!", reactions={"lena": "🌙"}),
)


class Talk:
    """The people's clients, and the places where they talk."""

    def __init__(self, clients: Mapping[str, Client], picture: Path | None) -> None:
        self._clients = clients
        self._picture = picture
        self._groups: dict[str, str] = {}
        self._said: dict[str, list[int]] = {}

    async def run(self, bot: str) -> None:
        """Say what is not said yet."""
        state = self._clients[DAY[0].who].state
        begin = int(await state.get(NEXT_LINE) or 0)
        if begin >= len(DAY):
            return
        if begin == 0 and bot:
            for client in self._clients.values():
                await client.conversation(f"@{bot}").send("/start").acked
        for title, (owner, *others) in GROUPS.items():
            self._groups[title] = await self._group(self._clients[owner], title, others)
        for number, line in enumerate(DAY[begin:], begin):
            await self._say(line)
            await state.set(NEXT_LINE, number + 1)

    async def _group(self, owner: Client, title: str, others: list[str]) -> str:
        known = (await owner.call("GET", "/v1/conversations?limit=200"))["conversations"]
        for one in known:
            if one["title"] == title:
                return str(one["conversation"])
        return (await owner.create_conversation(title, others)).id

    def _place(self, who: str, where: str) -> Conversation:
        return self._clients[who].conversation(self._groups.get(where, where))

    async def _say(self, line: Line) -> None:
        place = self._place(line.who, line.where)
        said = self._said.setdefault(place.id, [])
        reply_to = said[-line.back] if 0 < line.back <= len(said) else None
        ack = await (await self._sent(place, line, reply_to)).acked
        said.append(ack.seq)
        for who, emoji in line.reactions.items():
            there = self._clients[who].conversation(place.id)
            with suppress(Refused):
                await there.react(ack.seq, emoji).acked

    async def _sent(self, place: Conversation, line: Line, reply_to: int | None) -> MessageHandle:
        if line.text == PICTURE:
            with suppress(Refused):  # a deployment without a store of files
                if self._picture is not None:
                    file = await self._clients[line.who].media.upload(self._picture, mime="image/png")
                    return place.send("", media="image", files=[file["sha256"]])
            return place.send("📷")
        named = [name for name in PEOPLE if f"@{name}" in line.text]
        return place.send({"text": line.text, "mentions": named} if named else line.text, reply_to=reply_to)


async def answers(client: Client, bot: str) -> None:
    """Answer strangers who write directly, after a while in which the person types; never the bot, which repeats."""
    silent = {client.user, bot, *PEOPLE}

    async def handle(event: Event) -> None:
        if not isinstance(event, Message) or event.sender in silent:
            return
        conversation = client.conversation(event.conversation)
        if conversation.view.kind != "direct" or event.body == "":
            return
        conversation.mark_read(event.seq)
        conversation.typing()
        await asyncio.sleep(random.uniform(*ANSWER_S))
        await conversation.send(random.choice(ANSWERS).format(user=event.sender)).stored

    await client.listen(handle)


async def make_person(api: Api, user: str) -> None:
    while True:
        try:
            with suppress(Refused):  # the account exists
                await api.create_account(user, PASSWORD, name=PEOPLE[user][0])
            return
        except Unreachable:
            await asyncio.sleep(AGAIN_S)


async def run(api: str, store: Path, bot: str, picture: Path | None) -> None:
    """Run until SIGTERM or Ctrl-C."""
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    async with AsyncExitStack() as stack:
        clients = {}
        for user in PEOPLE:
            await make_person(Api(api), user)
            one = Client(api, user, Login(api, user, PASSWORD), store=store / f"{user}.db", device="demo")
            clients[user] = await stack.enter_async_context(one)
            await clients[user].call("PATCH", "/v1/me", {"about": PEOPLE[user][1]})
        working = [asyncio.create_task(answers(client, bot)) for client in clients.values()]
        working.append(asyncio.create_task(Talk(clients, picture).run(bot)))
        ending = asyncio.create_task(ended.wait())
        waiting = {ending, *working}
        while not ending.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--api", default="http://127.0.0.1:8000")
    options.add_argument("--store", type=Path, default=Path("demo"))
    options.add_argument("--bot", default="", help="a bot that everybody greets")
    options.add_argument("--picture", type=Path)
    given = options.parse_args()
    given.store.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(given.api, given.store, given.bot, given.picture))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
