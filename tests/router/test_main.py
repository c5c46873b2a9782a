"""`python -m router` for its operator: its start, its line if it cannot start, outages of Redis, its end."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router import __main__ as main
from router.contract import keys
from router.contract.tags import NUMBERED, SPREAD
from router.process import loop
from tests import support
from tests.conftest import StartProcess
from tests.router.world import SECRET, world


async def test_router_serves_the_api_and_exits_with_zero(valkey: EmbeddedValkey, process: StartProcess) -> None:
    """Ready, it answers on both ports; stopped, it exits with 0 within seconds; its log contains no secret."""
    router = await process("router", LINNET_REDIS_URL=valkey.url).ready()
    assert (await support.http_get(router.port, "/v1/openapi.json"))[0] == 200
    assert (await support.http_get(router.port, "/metrics"))[0] == 404
    assert (await support.http_get(router.admin_port, "/livez"))[0] == 200
    metrics = await router.metrics()
    assert "\nlinnet_redis_up 1.0\n" in metrics
    assert 'linnet_redis_calls_total{function="claim"}' in metrics
    assert 'linnet_build_info{node="' in metrics
    router.send(signal.SIGTERM)
    assert await router.ended() == 0
    assert "linnet.router: stopped" in router.log
    assert "Traceback" not in router.log
    assert support.JWT_SECRET not in router.log


async def test_router_finishes_the_work_of_a_dead_gateway(valkey: EmbeddedValkey, process: StartProcess) -> None:
    """A message that was only appended reaches its recipient's row, and waits there for a push."""
    async with world(valkey) as w:
        conv = await w.direct("ann", "bob")
        said = await w.say("ann", conv)
        hook = {"LINNET_WEBHOOK_URL": "http://127.0.0.1:9/", "LINNET_WEBHOOK_SECRET": SECRET}
        await process("router", LINNET_REDIS_URL=valkey.url, **hook).ready()

        async def armed() -> bool:
            return bool((await w.pushes.waiting("bob")).waits)

        await support.eventually(armed)
        assert (await w.row("bob", conv)).head == said.seq


async def test_router_without_redis_is_alive_and_waits(own_valkey: EmbeddedValkey, process: StartProcess) -> None:
    """Redis is unreachable at the start: alive, not ready, one line in the log; ready once Redis is reachable."""
    own_valkey.stop()
    router = process("router", LINNET_REDIS_URL=own_valkey.url)

    async def waits() -> bool:
        status, text = await support.http_get(router.admin_port, "/readyz")
        return status == 503 and text.startswith("waiting for Redis: Redis at ") and "cannot be reached: " in text

    await support.eventually(waits)
    assert (await support.http_get(router.admin_port, "/livez"))[0] == 200
    assert len(router.log.splitlines()) == 1
    own_valkey.start()
    await router.ready()


async def test_router_can_be_stopped_while_it_waits(process: StartProcess) -> None:
    """SIGTERM before Redis is reachable is an ordinary end."""
    router = process("router", LINNET_REDIS_URL=f"redis://127.0.0.1:{support.free_ports(1)[0]}/0")

    async def answers() -> bool:
        return (await support.http_get(router.admin_port, "/livez"))[0] == 200

    await support.eventually(answers)
    router.send(signal.SIGTERM)
    assert await router.ended() == 0
    assert "Traceback" not in router.log


async def test_outage_of_redis_leaves_the_router_ready(own_valkey: EmbeddedValkey, process: StartProcess) -> None:
    """Redis is killed: the router stays ready with the reason in its text, and works again when Redis is back."""
    router = await process("router", LINNET_REDIS_URL=own_valkey.url).ready()
    own_valkey.kill()

    async def says() -> bool:
        status, text = await support.http_get(router.admin_port, "/readyz")
        return status == 200 and text.startswith("ok, but Redis at 127.0.0.1:") and "cannot be reached: " in text

    await support.eventually(says)
    assert (await support.http_get(router.admin_port, "/livez"))[0] == 200
    own_valkey.start()
    async with world(own_valkey) as w:
        conv = await w.direct("ann", "bob")
        await w.say("ann", conv)
        w.due_now(conv)
        await support.eventually(lambda: not w.is_dirty(conv))
    router.send(signal.SIGTERM)
    assert await router.ended() == 0
    assert "Traceback" not in router.log


async def test_fault_at_the_start_is_one_line(valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path) -> None:
    """A wrong setting, a port in use, an unfit server: exit status 1 and one line."""
    with valkey.client() as redis, socket.create_server(("127.0.0.1", 0)) as taken:
        redis.hset(keys.DEPLOYMENT, "partitions", 7)
        port = taken.getsockname()[1]
        expected = {
            "LINNET_HEARTBEAT": ({"LINNET_HEARTBEAT": "3"}, "LINNET_HEARTBEAT is no setting"),
            "mode": ({"LINNET_REDIS_MODE": "cluster"}, "LINNET_REDIS_MODE=cluster expected redis+cluster://"),
            "cluster": ({"LINNET_REDIS_URL": "redis+cluster://h:1"}, "set LINNET_REDIS_MODE=cluster"),
            "sentinels": ({"LINNET_REDIS_URL": "redis+sentinel://h/main"}, "set LINNET_REDIS_MODE=sentinel"),
            "port": ({"LINNET_LISTEN": f"127.0.0.1:{port}"}, f"cannot listen on 127.0.0.1:{port}"),
            "admin": ({"LINNET_ADMIN_LISTEN": f"127.0.0.1:{port}"}, f"cannot listen on 127.0.0.1:{port}"),
            "deployment": ({}, "holds a deployment with partitions 7"),
        }
        routers = {
            name: process("router", **{"LINNET_REDIS_URL": valkey.url, **env}) for name, (env, _) in expected.items()
        }
        for name, router in routers.items():
            assert await router.ended() == 1, name
            assert router.log.startswith("linnet router: "), name
            assert expected[name][1] in router.log, name
            assert len(router.log.splitlines()) == 1, router.log


async def test_fault_of_a_part_at_the_start_is_one_line(
    valkey: EmbeddedValkey, process: StartProcess, tmp_path: Path
) -> None:
    """It is known only after Redis is reachable: a URL, a certificate, a server that could lose data."""
    hook = {"LINNET_WEBHOOK_URL": "ftp://x/", "LINNET_WEBHOOK_SECRET": SECRET}
    tls = {"LINNET_TLS_CERT": str(tmp_path / "no.pem"), "LINNET_TLS_KEY": str(tmp_path / "no.pem")}
    expected = {"LINNET_WEBHOOK_URL": hook, "LINNET_TLS_CERT and LINNET_TLS_KEY cannot be used": tls}
    routers = {
        text: process("router", LINNET_REDIS_URL=valkey.url, LINNET_DURABILITY="memory", **env)
        for text, env in expected.items()
    }
    with valkey.client() as redis:
        redis.config_set("appendfsync", "everysec")
    routers["appendfsync always"] = process("router", LINNET_REDIS_URL=valkey.url)
    for text, router in routers.items():
        assert await router.ended() == 1, text
        assert text in router.log
        assert len(router.log.splitlines()) == 1, router.log


async def test_process_whose_deployment_is_made_anew_with_other_tags_ends(
    valkey: EmbeddedValkey, process: StartProcess
) -> None:
    """Its supervisor starts it again, and it finds what the others write."""
    support.begin_deployment(valkey, NUMBERED)
    both = [process(module, LINNET_REDIS_URL=valkey.url) for module in ("router", "gateway")]
    await asyncio.gather(*(one.ready() for one in both))
    with valkey.client() as redis:
        redis.hset(keys.DEPLOYMENT, "partitions", SPREAD)
    for one in both:
        assert await one.ended() == 1
        assert f"the deployment has partitions {SPREAD} now, and had {NUMBERED}" in one.log


async def test_part_that_ends_by_itself_ends_the_process() -> None:
    """A router that looks healthy must not do only half of its work: the other parts end, and the error is raised."""
    stop = asyncio.Event()
    ended = asyncio.Event()

    class Server:
        should_exit = False

    async def works() -> None:
        await stop.wait()
        ended.set()

    async def breaks() -> None:
        raise ValueError("a bug")

    server = Server()
    with pytest.raises(ValueError, match="a bug"):
        await main.together(loop.Meter(), [works(), breaks()], stop, server)  # type: ignore[arg-type]  # all it needs of one
    assert ended.is_set()
    assert server.should_exit
