"""The rights on the operating page are sufficient, each of them is needed, and a missing one is named."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import StartupError
from router.store.durability import durability
from router.store.redis import functions, rights
from router.store.redis.client import Client
from router.store.redis.functions import FOLDER
from router.store.redis.pubsub import Bus
from tests.support import ROOT

SOURCE = functions.build().source.decode()
LINE = rights.acl_line(SOURCE)
PROBED = sorted(command.lower() for command in re.findall(r"try\('([A-Z]+)'", (FOLDER / "probe.lua").read_text()))


def test_operating_page_contains_the_acl_line() -> None:
    """After a change of a function's commands, copy the result of `rights.acl_line`."""
    assert LINE in (ROOT / "deploy/README.md").read_text().splitlines()


def test_probe_tries_every_command_of_the_functions() -> None:
    assert set(PROBED) == rights.commands(SOURCE)


def test_line_has_every_command_of_the_store() -> None:
    """All commands that the store sends outside functions are in `OWN`."""
    sources = "\n".join(path.read_text() for path in Path(ROOT / "router/store").rglob("*.py"))
    sent = {name.lower() for name in re.findall(r'(?:fetch|command|call)\(\s*\(?"([A-Z]+)"', sources)}
    assert {"hscan", "time", "wait"} <= sent
    assert sent - {"function"} <= set(rights.OWN)


@asynccontextmanager
async def as_user(server: EmbeddedValkey, *changes: str) -> AsyncIterator[Client]:
    """A client of the user that the line creates, with these changes."""
    with server.client() as redis:
        redis.execute_command(*LINE.replace("PASSWORD", "pw").split(), *changes)
    client = await Client.connect(server.url.replace("://", f"://{rights.USER}:pw@"))
    try:
        yield client
    finally:
        await client.close()


async def test_user_of_the_line_passes_every_check_and_the_probe_leaves_no_keys(own_valkey: EmbeddedValkey) -> None:
    async with as_user(own_valkey) as client:
        await client.check_server("fsync")
        await client.probe()
        kept = durability("replicated", client, 1)
        await kept.connect(10)
        await kept.close()
        bus = Bus(client, client.channels.echo("n"), *[lambda *_: None] * 4)
        await bus.connect(10)
        await bus.probe(client.channels.probes())
        assert bus.restored
        await bus.close()
    with own_valkey.client() as redis:
        assert redis.keys("*") == []


async def test_each_missing_command_is_named(own_valkey: EmbeddedValkey) -> None:
    async with as_user(own_valkey) as client:
        with own_valkey.client() as redis:
            for command in {*PROBED, "hscan", "scan", "fcall", "fcall_ro"}:
                redis.execute_command("ACL", "SETUSER", rights.USER, f"-{command}")
                with pytest.raises(StartupError, match=rf"'{command}['|]") as error:
                    await client.probe()
                assert "\n" not in str(error.value)
                redis.execute_command("ACL", "SETUSER", rights.USER, f"+{command}")
        await client.probe()


@pytest.mark.parametrize("pattern", [*rights.KEYS, *rights.CHANNELS])
async def test_each_missing_pattern_is_named(own_valkey: EmbeddedValkey, pattern: str) -> None:
    kind, reset = ("key", "resetkeys") if pattern in rights.KEYS else ("channel", "resetchannels")
    left = [other for other in (rights.KEYS if kind == "key" else rights.CHANNELS) if other != pattern]
    async with as_user(own_valkey, reset, *left) as client:
        with pytest.raises(StartupError, match=f"No permissions to access a {kind}"):
            await client.probe()


@pytest.mark.parametrize(
    ("without", "named"), [("-ssubscribe", "'ssubscribe'"), ("resetchannels", "No permissions to access a channel")]
)
async def test_refused_subscription_stops_the_start(own_valkey: EmbeddedValkey, without: str, named: str) -> None:
    async with as_user(own_valkey, without) as client:
        bus = Bus(client, client.channels.echo("n"), *[lambda *_: None] * 4)
        await bus.connect(10)
        try:
            with pytest.raises(StartupError, match=named):
                await bus.probe(client.channels.probes())
        finally:
            await bus.close()


async def test_refused_wait_stops_the_start_under_replicated(own_valkey: EmbeddedValkey) -> None:
    async with as_user(own_valkey, "-wait") as client:
        await durability("fsync", client, 1).connect(10)
        kept = durability("replicated", client, 1)
        with pytest.raises(StartupError, match="'wait'"):
            await kept.connect(10)
        await kept.close()


async def test_functions_that_may_not_be_loaded_stop_the_start(own_valkey: EmbeddedValkey) -> None:
    with pytest.raises(StartupError, match=r"function\|load"):
        async with as_user(own_valkey, "-function|load"):
            pass


def test_scratch_keys_and_channels_belong_to_no_user_and_no_conversation() -> None:
    for name in (*keys.PROBES, *keys.Channels("id").probes()):
        assert name.endswith((":probe", ":{probe}"))
        assert name.count(":") == 1
