"""A mixed population: groups and pairs over all gateways, typing before writing, reading after."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loadtest.api import Api
from loadtest.load.client import Client, Route
from loadtest.load.worker import Worker


class Options(msgspec.Struct, frozen=True, kw_only=True):
    users: Annotated[int, Meta(description="users, one session each")] = 400
    members: Annotated[int, Meta(description="members of a group; each user is in one")] = 20
    rate: Annotated[float, Meta(description="messages per second in total")] = 300
    groups: Annotated[int, Meta(description="percentage of messages to groups; the others go to one user")] = 30
    body: Annotated[int, Meta(description="bytes of a body")] = 128
    seconds: Annotated[float, Meta(description="seconds of one round")] = 5
    rounds: Annotated[int, Meta(description="rounds")] = 3


def prepare(options: Options, api: Api) -> tuple[list[str], dict[str, Any]]:
    users = [f"user-{number}" for number in range(options.users)]
    groups = []
    for first in range(0, options.users, options.members):
        members = users[first : first + options.members]
        groups.append({"conversation": api.group(members), "members": members})
    return users, {"users": users, "groups": groups}


TYPING_EVERY = 5  # messages


class Person:
    """A user with a friend and a group, to which she writes in turns."""

    def __init__(self, chat: Client, friend: str, group: str, body_bytes: int) -> None:
        self.chat = chat
        self.friend = friend
        self.group = group
        self.to_friend = Route(f"@{friend}", body_bytes)
        self.to_group = Route(group, body_bytes)


async def run(worker: Worker, options: Options, prepared: dict[str, Any]) -> None:
    """Run whole groups in one process, so that the process knows what each of its users will receive."""
    people: dict[str, Person] = {}
    members: dict[str, list[str]] = {}
    for group in worker.mine(prepared["groups"]):
        names = group["members"]
        members[group["conversation"]] = names
        for number, user in enumerate(names):
            friend = names[(number + len(names) // 2) % len(names)]
            people[user] = Person(worker.client(user), friend, group["conversation"], options.body)
    urls = {user: worker.urls[number % len(worker.urls)] for number, user in enumerate(prepared["users"])}
    await worker.connect([person.chat for person in people.values()], lambda chat: urls[chat.user])
    expected: Counter[str] = Counter()
    order = list(people.values())

    def send(number: int, due: int) -> None:
        person = order[number % len(order)]
        to_group = number * 37 % 100 < options.groups
        route, to = (person.to_group, person.group) if to_group else (person.to_friend, f"@{person.friend}")
        if number % TYPING_EVERY == 0:
            person.chat.send_command("typing", to=to)
        person.chat.send(route, due)
        expected.update(members[person.group] if to_group else {person.chat.user, person.friend})

    worker.watch(person.chat for person in order)
    worker.watch_acks(person.chat for person in order)
    for number in range(options.rounds + 1):
        expected.clear()
        for person in order:
            person.chat.received = 0
        async with worker.measured("mixed" if number else "warm-up") as counting:
            counting.units = await worker.paced(options.rate / worker.plan.workers, options.seconds, send, "mixed")
            await worker.until(lambda: all(person.chat.received >= expected[person.chat.user] for person in order))
        for person in order:
            worker.failures.lost += max(0, expected[person.chat.user] - person.chat.received)
            worker.failures.duplicates += max(0, person.chat.received - expected[person.chat.user])
            _read(person.chat)


def _read(chat: Client) -> None:
    """Mark received messages as read."""
    for conversation, seq in chat.last.items():
        chat.send_command("read", conversation=conversation.decode(), seq=seq)
