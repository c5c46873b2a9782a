"""The cost of a delivery as something grows: members of a group, gateways, or conversations on one gateway.

All users stay connected for the whole run and the sizes take turns, so that all sizes meet the same machine. Acks that
thousands of clients still send after a phase are awaited before the next.

`members`: at each size one group by itself with one message outstanding; a floor of the same size; and the users of the
largest group divided into groups of that size, each with one message outstanding (*side by side*). A message has costs
of its own (a wake-up to read it, the call to Redis, its ack), and a small group has fewer deliveries to share them. By
itself the cost of a delivery therefore falls as groups grow, and shows the cost of a message. Side by side, every size
has as many deliveries and writes under way per turn of the loop, so wake-ups are shared alike, and the remaining
difference is due to the size of the groups.

`gateways`: a group whose members are spread over the gateways, and pairs with as many outstanding messages per gateway
(operators add gateways for more traffic). The users of a pair are on different gateways or, *at home*, on the same one.
At home no gateway has a message for another. If such messages cost more on four gateways than on one, that is the
cost of four processes that share a machine; only the rest is the cost of crossing gateways.

`conversations`: one rate of messages to the same users, over more and more of their groups. The rate is not one message
per millisecond, because a gateway gathers its writes to Redis for that long, and chance would decide which share one.
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
SETTLE_S = 2.0  # clients ack within a second, and gateways write acks within another
GROUP = 1000  # members of the group, if gateways grow
PAIRS = 50  # per gateway, each with one message outstanding
USERS, MEMBERS = 100, 10  # if conversations grow


class Options(msgspec.Struct, frozen=True, kw_only=True):
    over: Annotated[str, Meta(pattern="^(members|gateways|conversations)$", description="the quantity that grows")] = (
        "members"
    )
    sizes: Annotated[tuple[int, ...], Meta(description="sizes to compare (none: the default ones)")] = ()
    rate: Annotated[float, Meta(description="messages per second, if conversations grow")] = 3000
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds of one phase")] = 1.0
    rounds: Annotated[int, Meta(description="rounds of all phases")] = 5


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    sizes = options.sizes or SIZES[options.over]
    users, made = _PREPARE[options.over](sizes, api)
    return users, {"sizes": sizes, **made}


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    await _RUN[options.over](worker, options, prepared)


# -- members


def _prepare_members(sizes: tuple[int, ...], api: Api) -> tuple[list[str], dict[str, Any]]:
    """Create one group of each size, all with the same users."""
    users = [f"member-{number}" for number in range(max(sizes))]
    groups = {}
    for size in sizes:
        parts = [users[first : first + size] for first in range(0, len(users) - size + 1, size)]
        groups[size] = list(zip(parts, api.groups(parts), strict=True))
    return users, {"users": users, "groups": groups}


async def _run_members(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    """Run whole users, and so a share of each group, in each process; the leading process sends to all groups."""
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
        raise ValueError(f"{max(sizes)} gateways are needed, but the target has {len(worker.urls)}")
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
    """Create users for each size, each of them in as many groups as any other."""
    all_users, groups = [], {}
    for size in sizes:
        users = [f"in-{size}-{number}" for number in range(USERS)]
        parts = [[users[(first + k * USERS // MEMBERS) % USERS] for k in range(MEMBERS)] for first in range(size)]
        groups[size] = list(zip(parts, api.groups(parts), strict=True))
        all_users += users
    return all_users, {"groups": groups}


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
        """Send to each group in turn, and from each of its members in turn."""
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
    """Run each size on a gateway of its own, as long as there are enough gateways."""
    populations = {}
    for number, (size, groups) in enumerate(prepared["groups"].items()):
        populations[size] = population = Population(worker, groups if worker.leads else [], options.body)
        await population.connect(worker.urls[number % len(worker.urls)])
        await population.phase("warm-up", options.rate, len(groups) / options.rate)  # writes to each group once
    for _ in range(options.rounds):
        for size, population in populations.items():
            await population.phase(f"{size} conversations", options.rate, options.seconds)
            await asyncio.sleep(SETTLE_S)


_PREPARE = {"members": _prepare_members, "gateways": _prepare_gateways, "conversations": _prepare_conversations}
_RUN = {"members": _run_members, "gateways": _run_gateways, "conversations": _run_conversations}
