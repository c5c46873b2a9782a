"""Deployments: refused processes, and the names of channels."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import StartupError, Unavailable
from router.contract.settings import Settings
from router.contract.tags import NUMBERED, SPREAD
from router.store.deployment import ROTATING, RowFormats, deployment_check, fingerprint, partitions_of, restore
from router.store.redis.client import Client
from tests.store.function_calls import PartsClient

OURS = Settings(jwt_secret="a" * 32)
OTHERS = Settings(jwt_secret="b" * 32)


@asynccontextmanager
async def connected(valkey: EmbeddedValkey, database: int = 0) -> AsyncIterator[Client]:
    client = await Client.connect(f"{valkey.url}?db={database}")
    try:
        yield client
    finally:
        await client.close()


async def made_by_an_earlier_release(client: Client) -> None:
    await client.fetch("HSET", keys.DEPLOYMENT, "partitions", NUMBERED, "format", "1")


async def test_processes_that_start_at_once_agree_on_the_channels(valkey: EmbeddedValkey) -> None:
    """Also with those that start after the hash was lost: running processes keep the names they have."""
    async with connected(valkey) as client:
        names = await asyncio.gather(*(deployment_check(client, OURS) for _ in range(5)))
        assert len(set(names)) == 1
        assert names[0].also is None
        assert names[0].bus.endswith(".0:")
        await client.fetch("FLUSHALL")
        assert await deployment_check(client, OURS) == names[0]


async def test_deployments_in_two_databases_have_other_channels(valkey: EmbeddedValkey) -> None:
    """Also if one is a copy of the other, the id included."""
    async with connected(valkey) as first, connected(valkey, 1) as second:
        assert (first.database, second.database) == (0, 1)
        own = await deployment_check(first, OURS)
        assert own.user("bob") != (await deployment_check(second, OTHERS)).user("bob")
        await second.fetch("FLUSHDB")
        await first.fetch("COPY", keys.DEPLOYMENT, keys.DEPLOYMENT, "DB", 1)
        assert own.user("bob") != (await deployment_check(second, OURS)).user("bob")


async def test_new_deployment_has_spread_tags_and_an_earlier_one_keeps_its_own(valkey: EmbeddedValkey) -> None:
    """Each process makes its keys and channels with the tags of its deployment."""
    async with connected(valkey) as client:
        for partitions, own in ((SPREAD, "{u115.cp}:user:ann"), (NUMBERED, "{u115}:user:ann")):
            await client.fetch("FLUSHALL")
            if partitions == NUMBERED:
                await made_by_an_earlier_release(client)
            channels = await deployment_check(client, OURS)
            assert (keys.used_tags(), keys.user("ann")) == (partitions, own)
            assert channels.user("ann").endswith("{u115.cp}:ch:ann" if partitions == SPREAD else "{u115}:ch:ann")
            assert await client.fetch("HGET", keys.DEPLOYMENT, "partitions") == partitions.encode()
            assert await partitions_of(client) == partitions
            await RowFormats(client).follow()


async def test_other_layout_is_refused(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        await deployment_check(client, OURS)
        for field, value in (("partitions", "128"), ("format", "4")):
            await client.fetch("HSET", keys.DEPLOYMENT, field, value)
            with pytest.raises(StartupError, match=f"{field} {value}"):
                await deployment_check(client, OURS)
            assert await client.fetch("HGET", keys.DEPLOYMENT, field) == value.encode()
            await client.fetch("DEL", keys.DEPLOYMENT)
            await deployment_check(client, OURS)


@pytest.mark.parametrize(
    "other", [OTHERS, Settings(jwks_url="https://id.example/keys"), replace(OURS, deployment="staging")]
)
async def test_process_of_another_deployment_is_refused(valkey: EmbeddedValkey, other: Settings) -> None:
    """One line, which has no secret in it, and nothing is changed."""
    async with connected(valkey) as client:
        names = await deployment_check(client, OURS)
        with pytest.raises(StartupError, match="another deployment") as refused:
            await deployment_check(client, other)
        assert "\n" not in str(refused.value)
        assert other.jwt_secret not in str(refused.value) or not other.jwt_secret
        assert await client.fetch("HGET", keys.DEPLOYMENT, "fingerprint") == fingerprint(OURS).encode()
        assert await deployment_check(client, OURS) == names


async def test_named_deployment_accepts_a_new_secret(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        names = await deployment_check(client, replace(OURS, deployment="chat"))
        assert await deployment_check(client, replace(OTHERS, deployment="chat")) == names


async def test_secret_is_changed_by_a_rolling_restart(valkey: EmbeddedValkey) -> None:
    """As deploy/README.md has it: old and new processes start meanwhile, then only those with the new secret."""
    async with connected(valkey) as client:
        names = await deployment_check(client, OURS)
        await client.fetch("HSET", keys.DEPLOYMENT, "fingerprint", ROTATING)
        for settings in (OTHERS, OURS, OTHERS):
            assert await deployment_check(client, settings) == names
        await client.fetch("HDEL", keys.DEPLOYMENT, "fingerprint")
        assert await deployment_check(client, OTHERS) == names
        with pytest.raises(StartupError, match="another deployment"):
            await deployment_check(client, OURS)


async def test_deployment_of_an_earlier_release_keeps_its_channels_until_moved(valkey: EmbeddedValkey) -> None:
    """Nodes of both releases run side by side: the new ones publish where the old ones receive."""
    async with connected(valkey) as client:
        await made_by_an_earlier_release(client)
        plain = await deployment_check(client, OURS)
        assert plain.bus == ""
        assert await client.fetch("HGET", keys.DEPLOYMENT, "format") == b"1"
        await client.fetch("HSET", keys.DEPLOYMENT, "format", keys.MOVING)
        moving = await deployment_check(client, OURS)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", keys.OWN)
        own = await deployment_check(client, OURS)
        assert (moving.bus, moving.also) == (plain.also, plain.bus)
        assert (own.bus, own.also) == (moving.bus, None)


@pytest.mark.parametrize("form", [keys.PLAIN, keys.MOVING])
async def test_channels_without_id_are_refused_in_other_databases(valkey: EmbeddedValkey, form: str) -> None:
    """They would be those of database 0; a stopped deployment is moved in one step."""
    async with connected(valkey, 1) as client:
        await made_by_an_earlier_release(client)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", form)
        with pytest.raises(StartupError, match="database 1"):
            await deployment_check(client, OURS)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", keys.OWN)
        assert (await deployment_check(client, OURS)).bus.endswith(".1:")


@pytest.mark.parametrize("form", [keys.PLAIN, keys.MOVING, keys.OWN])
async def test_process_that_starts_after_the_hash_was_lost_has_the_channels_of_those_that_run(
    valkey: EmbeddedValkey, form: str
) -> None:
    """Whatever the format, and although the secret was changed since the id was made."""
    async with connected(valkey) as client:
        await made_by_an_earlier_release(client)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", form, "fingerprint", ROTATING)
        await deployment_check(client, OURS)
        client.channels = await deployment_check(client, OTHERS)
        await client.fetch("FLUSHALL")
        await restore(client, OTHERS)
        assert await deployment_check(client, OTHERS) == client.channels
        assert keys.used_tags() == NUMBERED


async def test_restoring_changes_nothing_that_is_there(valkey: EmbeddedValkey) -> None:
    """An operator moves the deployment, or changes its secret, while processes run that know the step before."""
    async with connected(valkey) as client:
        await made_by_an_earlier_release(client)
        client.channels = await deployment_check(client, OURS)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", keys.MOVING, "fingerprint", ROTATING)
        before = await client.fetch("HGETALL", keys.DEPLOYMENT)
        await restore(client, OURS)
        assert await client.fetch("HGETALL", keys.DEPLOYMENT) == before


async def test_copies_follow_what_an_operator_changes(valkey: EmbeddedValkey) -> None:
    """A process that starts while the server of the hash is down is not refused, and has the channels of the others."""
    client = PartsClient.make(valkey.url)
    await client.open()
    try:
        await made_by_an_earlier_release(client)
        await deployment_check(client, OURS)
        await client.fetch("HSET", keys.DEPLOYMENT, "format", keys.OWN, "fingerprint", fingerprint(OTHERS))
        await deployment_check(client, OTHERS)
        first, *copies = [await client.fetch("HGETALL", name) for name in keys.DEPLOYMENT_COPIES]
        assert [sorted(copy) for copy in copies] == [sorted(first)] * 2
    finally:
        await client.close()


class SilentCopies(PartsClient):
    """The servers of the copies do not answer."""

    async def fetch_each(self, commands: Iterable[Sequence[Any]]) -> list[Any]:
        first, *copies = await super().fetch_each(commands)
        return [first, *(Unavailable("no answer") for _ in copies)]


async def test_deployment_is_not_made_anew_while_its_copies_do_not_answer(valkey: EmbeddedValkey) -> None:
    """An empty server is back at once; those of the copies may still load the data."""
    client = SilentCopies.make(valkey.url)
    await client.open()
    try:
        await made_by_an_earlier_release(client)
        await client.fetch("DEL", keys.DEPLOYMENT)
        with pytest.raises(Unavailable):
            await deployment_check(client, OURS)
        assert await client.fetch("EXISTS", keys.DEPLOYMENT) == 0
    finally:
        await client.close()


async def test_deployment_whose_server_comes_back_empty_is_what_its_copies_say(valkey: EmbeddedValkey) -> None:
    """A new deployment would have other tags than the data on the other servers, and might be another application's."""
    client = PartsClient.make(valkey.url)
    await client.open()
    try:
        await made_by_an_earlier_release(client)
        names = await deployment_check(client, OURS)
        before = await client.fetch("HGETALL", keys.DEPLOYMENT)
        await client.fetch("DEL", keys.DEPLOYMENT)
        with pytest.raises(StartupError, match="another deployment"):
            await deployment_check(client, OTHERS)
        await client.fetch("DEL", keys.DEPLOYMENT, keys.DEPLOYMENT_COPIES[1])
        assert await deployment_check(client, OURS) == names
        assert keys.used_tags() == NUMBERED
        for name in keys.DEPLOYMENT_COPIES:
            assert sorted(await client.fetch("HGETALL", name)) == sorted(before)
    finally:
        await client.close()
