"""What a delivery costs as something grows: members of a group, gateways, or conversations on one gateway.

Everybody stays connected for the whole run and the sizes take turns, so that all meet the same machine; thousands who
still ack a phase are not left to the next.

`members`: at each size one group by itself, with one message outstanding; a floor of the same size; and the population
of the largest group divided into groups of that size, each with one message outstanding (*side by side*). A message has
costs of its own (a wake-up to read it, the call to Redis, its ack), which a small group has fewer deliveries to share:
by itself that is all there is, so the first figure falls as groups grow and says what a message costs. Side by side
every size has as many deliveries under way and as many writes in a turn of the loop, so wake-ups are shared alike, and
what still differs is the size of groups.

`gateways`: a group whose members are spread over so many, and pairs with as many messages on their way a gateway (twice
the traffic on twice the gateways is what people add gateways for), of which each end is on another gateway or, *at
home*, both are on the same. At home no gateway knows of any other: what such messages cost more on four gateways than
on one is what four processes cost that share a machine, and only the rest is what crossing costs.

`conversations`: one rate of messages, all to the same users, over more and more groups of theirs. Not a message each
millisecond: that is how long a gateway gathers what it writes to Redis, and whether two leave together were chance.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.client import Route
from loadtest.load.scenarios.direct import Pair, Pairs
from loadtest.load.scenarios.fanout import HEADER
from loadtest.load.scenarios.room import FloorRoom, Room, together
from loadtest.load.worker import Worker

SIZES = {
    "members": (10, 100, 1000, 5000),
    "gateways": (1, 2, 4),
    "conversations": (10, 100, 1000, 10_000),
}
SETTLE_S = 2.0  # clients ack what they have within a second, and gateways write that within another
GROUP = 1000  # members, where gateways grow
PAIRS = 50  # on each gateway, each with a message on its way
USERS, MEMBERS = 100, 10  # where conversations grow


class Options(msgspec.Struct, frozen=True, kw_only=True):
    over: Annotated[str, Meta(pattern="^(members|gateways|conversations)$", description="what grows")] = "members"
    sizes: Annotated[tuple[int, ...], Meta(description="to compare; none: the usual ones")] = ()
    rate: Annotated[float, Meta(description="messages a second, where conversations grow")] = 3000
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="of one phase")] = 1.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    sizes = options.sizes or SIZES[options.over]
    users, made = _PREPARE[options.over](sizes, api)
    return users, {"sizes": sizes, **made}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    await _RUN[options.over](worker, options, prepared)


# -- members


def _prepare_members(sizes: tuple[int, ...], api: Api) -> tuple[list[str], dict[str, Any]]:
    """The same people are in one group of each size."""
    users = [f"member-{number}" for number in range(max(sizes))]
    groups = {}
    for size in sizes:
        parts = [users[first : first + size] for first in range(0, len(users) - size + 1, size)]
        groups[size] = list(zip(parts, api.groups(parts), strict=True))
    return users, {"users": users, "groups": groups}


async def _run_members(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    """A load process has whole people and so a share of each group; the leading one sends to all of them."""
    chats = {user: worker.client(user) for user in worker.mine(prepared["users"])}
    rooms = {
        size: [
            Room(worker, [chats[user] for user in users if user in chats], conversation, options.body)
            for users, conversation in groups
        ]
        for size, groups in prepared["groups"].items()
    }
    await worker.connect(chats.values(), lambda _: worker.urls[0])
    floors = {}
    for size, many in rooms.items():
        await together(worker, many, "warm-up", 1, options.seconds / 2)
        if prepared["floor"]:
            users = prepared["groups"][size][0][0]
            floors[size] = FloorRoom(worker, worker.mine(users), many[0].readers[0].event_bytes + HEADER)
            await floors[size].connect(f"{prepared['floor']}{size}")
    for _ in range(options.rounds):
        for size, many in rooms.items():
            await many[0].outstanding(f"{size} members", 1, options.seconds)
            await together(worker, many, f"{size} members, side by side", 1, options.seconds)
            await asyncio.sleep(SETTLE_S)
            if size in floors:
                await floors[size].outstanding(f"floor, {size} members", 1, options.seconds)


# -- gateways


def _prepare_gateways(sizes: tuple[int, ...], api: Api) -> tuple[list[str], dict[str, Any]]:
    users, groups, pairs, at_home = list[str](), {}, {}, {}
    for size in sizes:
        members = [f"on-{size}-{number}" for number in range(GROUP)]
        groups[size] = {"conversation": api.group(members), "members": members}
        pairs[size] = [(f"ann-{size}-{number}", f"bob-{size}-{number}") for number in range(PAIRS * size)]
        at_home[size] = [(f"eve-{size}-{number}", f"ian-{size}-{number}") for number in range(PAIRS * size)]
        users += [*members, *(user for pair in (*pairs[size], *at_home[size]) for user in pair)]
    return users, {"groups": groups, "pairs": pairs, "at_home": at_home}


async def _run_gateways(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    sizes = prepared["sizes"]
    if max(sizes) > len(worker.urls):
        raise ValueError(f"{max(sizes)} gateways are to be compared, and {len(worker.urls)} are given")
    rooms, pairs, at_home = {}, {}, {}
    for size in sizes:
        group, urls = prepared["groups"][size], worker.urls[:size]
        readers = [worker.client(user) for user in worker.mine(group["members"])]
        rooms[size] = Room(worker, readers, group["conversation"], options.body)
        await rooms[size].connect(urls)
        pairs[size] = await _pairs(worker, prepared["pairs"][size], urls, options.body, 1)
        at_home[size] = await _pairs(worker, prepared["at_home"][size], urls, options.body, 0)
        await rooms[size].outstanding("warm-up", 1, options.seconds / 2)
        for some in (pairs[size], at_home[size]):
            await some.phase("warm-up", 0, PAIRS * size, options.seconds / 2)
    for _ in range(options.rounds):
        for size in sizes:
            await rooms[size].outstanding(f"group on {size}", 1, options.seconds)
            await pairs[size].phase(f"direct on {size}", 0, PAIRS * size, options.seconds)
            await at_home[size].phase(f"direct on {size}, at home", 0, PAIRS * size, options.seconds)


async def _pairs(worker: Worker, users: list[tuple[str, str]], urls: list[str], body_bytes: int, apart: int) -> Pairs:
    found, where = [], {}
    for number, (ann, bob) in enumerate(worker.mine(users)):
        found.append(Pair(worker.client(ann), worker.client(bob), body_bytes))
        where[ann], where[bob] = urls[number % len(urls)], urls[(number + apart) % len(urls)]
    await worker.connect([chat for pair in found for chat in (pair.ann, pair.bob)], lambda chat: where[chat.user])
    return Pairs(worker, found)


# -- conversations


def _prepare_conversations(sizes: tuple[int, ...], api: Api) -> tuple[list[str], dict[str, Any]]:
    """For each size users of its own, of whom each is in as many groups as any other."""
    everybody, groups = [], {}
    for size in sizes:
        users = [f"in-{size}-{number}" for number in range(USERS)]
        parts = [[users[(first + k * USERS // MEMBERS) % USERS] for k in range(MEMBERS)] for first in range(size)]
        groups[size] = list(zip(parts, api.groups(parts), strict=True))
        everybody += users
    return everybody, {"groups": groups}


class Population:
    """The users of one size, who all live in one load process, and their groups."""

    def __init__(self, worker: Worker, groups: list[tuple[list[str], str]], body_bytes: int) -> None:
        self._worker = worker
        self._body_bytes = body_bytes
        self._groups = groups
        self._sent = 0
        self._routes: dict[tuple[str, str], Route] = {}
        self._expected: Counter[str] = Counter()
        self.chats = {user: worker.client(user) for user in {user: None for users, _ in groups for user in users}}

    async def connect(self, url: str) -> None:
        await self._worker.connect(self.chats.values(), lambda _: url)

    def send(self, _: int, due: int) -> None:
        """To each group in turn, and from each member of it in turn."""
        users, conversation = self._groups[self._sent % len(self._groups)]
        user = users[self._sent // len(self._groups) % len(users)]
        route = self._routes.get((user, conversation)) or Route(conversation, self._body_bytes)
        self._routes[user, conversation] = route
        self.chats[user].send(route, due)
        self._expected.update(users)
        self._sent += 1

    async def phase(self, name: str, rate: float, seconds: float) -> None:
        chats, worker, expected = self.chats.values(), self._worker, self._expected
        expected.clear()
        for chat in chats:
            chat.received = 0
        worker.watch(chats)
        async with worker.measured(name, "delivery") as counting:
            if chats:
                await worker.paced(rate, seconds, self.send, name)
            await worker.until(lambda: all(chat.received >= expected[chat.user] for chat in chats))
            counting.units = sum(chat.received for chat in chats)
        for chat in chats:
            chat.sink = None
            worker.failures.lost += max(0, expected[chat.user] - chat.received)
            worker.failures.duplicates += max(0, chat.received - expected[chat.user])


async def _run_conversations(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    """Each size on a gateway of its own, as long as there are enough of them."""
    populations = {}
    for number, (size, groups) in enumerate(prepared["groups"].items()):
        populations[size] = population = Population(worker, groups if worker.leads else [], options.body)
        await population.connect(worker.urls[number % len(worker.urls)])
        await population.phase("warm-up", options.rate, len(groups) / options.rate)  # each group has been written to
    for _ in range(options.rounds):
        for size, population in populations.items():
            await population.phase(f"{size} conversations", options.rate, options.seconds)
            await asyncio.sleep(SETTLE_S)


_PREPARE = {"members": _prepare_members, "gateways": _prepare_gateways, "conversations": _prepare_conversations}
_RUN = {"members": _run_members, "gateways": _run_gateways, "conversations": _run_conversations}
