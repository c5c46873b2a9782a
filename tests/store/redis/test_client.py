"""The client with a real server: calls, publishing, and the checks at start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.errors import FunctionError, StartupError, Unavailable
from router.store.redis.client import Client
from router.store.redis.functions import Library
from router.store.redis.pipeline import Denied
from tests import support
from tests.store.conftest import LIBRARY

pytestmark = pytest.mark.usefixtures("either_loop")


@asynccontextmanager
async def connected(url: str, library: Library = LIBRARY) -> AsyncIterator[Client]:
    client = await Client.connect(url, library=library)
    try:
        yield client
    finally:
        await client.close()


async def test_functions_and_commands_reply_by_callback_and_by_await(valkey: EmbeddedValkey) -> None:
    async with connected(valkey.url) as client:
        replies: list[object] = []
        client.call("echo", (), ("x", 1), replies.append)
        client.command("SET", "k", "v", reply=replies.append)
        assert replies == []
        assert await client.fcall("push", ("list",), (b"y",)) == 1
        assert replies == [[b"x", b"1"], b"OK"]
        assert await client.fetch("GET", "k") == b"v"
        with pytest.raises(FunctionError, match="NOTFOUND"):
            await client.fcall("refuse", (), ("NOTFOUND",))
        assert client.statistics().functions == {"echo": 1, "push": 1, "refuse": 1}
        assert client.statistics().hot.errors["NOTFOUND"] == 1


async def test_cancelled_waiter_harms_no_other_call(valkey: EmbeddedValkey) -> None:
    async with connected(valkey.url) as client:
        given_up = asyncio.ensure_future(client.fetch("PING"))
        asyncio.get_running_loop().call_soon(given_up.cancel)
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert await client.fetch("ECHO", "x") == b"x"
        assert client.statistics().hot.callback_errors == 0


async def test_published_payload_reaches_a_subscriber(valkey: EmbeddedValkey) -> None:
    async with connected(valkey.url) as client:
        with valkey.client() as other, other.pubsub() as listener:
            listener.ssubscribe("channel")
            assert listener.get_sharded_message(timeout=40)["type"] == "ssubscribe"
            client.publish("channel", b"payload")
            await client.fetch("PING")
            assert listener.get_sharded_message(timeout=40)["data"] == b"payload"


async def test_client_reports_whether_its_server_is_reachable(own_valkey: EmbeddedValkey) -> None:
    """While it is not, calls are `Unavailable` at once."""
    async with connected(own_valkey.url) as client:
        assert client.available
        own_valkey.kill()
        await support.eventually(lambda: not client.available)
        with pytest.raises(Unavailable):
            await client.fetch("PING")
        client.publish("channel", b"nobody waits for this")
        own_valkey.start()
        await support.eventually(lambda: client.available)
        assert await client.fetch("PING") == b"PONG"


async def test_library_is_loaded_after_connecting_also_by_two_at_once(valkey: EmbeddedValkey) -> None:
    first, second = await asyncio.gather(*(Client.connect(valkey.url, library=LIBRARY) for _ in range(2)))
    with valkey.client() as client:
        assert len(client.function_list()) == 1
    assert await first.fcall("echo", (), ("x",)) == [b"x"]
    assert await second.fcall("echo", (), ("x",)) == [b"x"]
    assert first.statistics().hot.loads == second.statistics().hot.loads == 0
    await first.close()
    await second.close()


async def test_functions_that_do_not_compile_stop_the_start(valkey: EmbeddedValkey) -> None:
    with pytest.raises(StartupError, match="cannot load the functions"):
        await Client.connect(valkey.url, library=Library("1", b"#!lua name=linnet_1\nthis is no Lua"))


async def test_server_without_memory_does_not_stop_the_start(valkey: EmbeddedValkey) -> None:
    """Its functions may have been loaded before, and functions that free memory must run."""
    async with connected(valkey.url):
        pass
    with valkey.client() as other:
        other.config_set("maxmemory", 1)
        try:
            async with connected(valkey.url) as client:
                assert await client.fetch("PING") == b"PONG"
                with pytest.raises(Unavailable):
                    await client.fetch("SET", "x", "1")
        finally:
            other.config_set("maxmemory", 0)


async def test_sentinels_in_another_mode_are_refused() -> None:
    with pytest.raises(StartupError, match="set LINNET_REDIS_MODE=sentinel"):
        await Client.connect("redis+sentinel://127.0.0.1:1/main")


async def test_cluster_in_another_mode_is_refused() -> None:
    with pytest.raises(StartupError, match="set LINNET_REDIS_MODE=cluster"):
        await Client.connect("rediss+cluster://127.0.0.1:1,127.0.0.1:2")


async def test_fsync_level_requires_appendfsync_always(valkey: EmbeddedValkey) -> None:
    """Without it a process with that durability does not start; level `memory` accepts the server."""
    async with connected(valkey.url) as client:
        await client.check_server("fsync")
        with valkey.client() as other:
            other.config_set("appendfsync", "everysec")
            with pytest.raises(StartupError, match="appendfsync always"):
                await client.check_server("fsync")
            await client.check_server("memory")
            other.config_set("appendfsync", "always")


async def test_server_that_hides_its_configuration_stops_the_start(own_valkey: EmbeddedValkey) -> None:
    with own_valkey.client() as other:
        other.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config")
        url = own_valkey.url.replace("://", "://app:pw@")
        async with connected(url) as client:
            with pytest.raises(StartupError, match="CONFIG GET"):
                await client.check_server("fsync")
            await client.check_server("memory")


async def test_acl_that_refuses_a_function_or_its_commands_is_unavailable(own_valkey: EmbeddedValkey) -> None:
    """It is no bug of Linnet, so the caller may try again; operators read the server's text."""
    with own_valkey.client() as other:
        other.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-rpush")
        async with connected(own_valkey.url.replace("://", "://app:pw@")) as client:
            with pytest.raises(Denied, match="unavailable") as refused:
                await client.fcall("push", ("list",), ("x",))
            assert "'rpush'" in refused.value.why
            assert "'rpush'" in client.trouble
            other.execute_command("ACL", "SETUSER", "app", "-fcall")
            with pytest.raises(Denied) as refused:
                await client.fcall("push", ("list",), ("x",))
            assert "'fcall'" in refused.value.why


async def test_library_of_the_same_name_with_another_source_stops_the_start(valkey: EmbeddedValkey) -> None:
    foreign = LIBRARY.source.replace(b"'echo'", b"'ohce'")
    with valkey.client() as other:
        other.function_load(foreign.decode())
        with pytest.raises(StartupError, match=r"linnet_00000000, or a function of it, is not.*FUNCTION DELETE"):
            await Client.connect(valkey.url, library=LIBRARY)
        other.function_delete("linnet_00000000")
        other.function_load(LIBRARY.source.replace(b"name=linnet_00000000", b"name=another").decode())
        with pytest.raises(StartupError, match="FUNCTION DELETE"):
            await Client.connect(valkey.url, library=LIBRARY)


async def test_library_replaced_at_run_time_is_named_in_the_log(
    valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(valkey.url) as client:
        with valkey.client() as other:
            other.function_delete("linnet_00000000")
            other.function_load(LIBRARY.source.replace(b"'echo'", b"'ohce'").decode())
        with pytest.raises(Unavailable):
            await client.fcall("echo", (), ("x",))
        assert "is not Linnet's" in caplog.text


async def test_connection_that_raises_keeps_no_other_from_the_new_primary(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round asks the sentinels again, also after a round in which the query raised."""
    monkeypatch.setattr("router.store.redis.client.FOLLOW_S", 0.0)
    async with connected(valkey.url) as client:
        told: list[object] = []
        asked = iter([RuntimeError("broken"), "there"])

        async def primary() -> object:
            answer = next(asked, "there")
            if isinstance(answer, Exception):
                raise answer
            return answer

        def follow(where: object) -> None:
            told.append(where)
            raise RuntimeError("broken")

        monkeypatch.setattr(client, "topology", SimpleNamespace(primary=primary))
        monkeypatch.setattr(client, "links", [SimpleNamespace(follow=follow), SimpleNamespace(follow=told.append)])
        following = asyncio.create_task(client._follow())
        await support.eventually(lambda: len(told) >= 4)
        following.cancel()
        assert told[:4] == ["there"] * 4
