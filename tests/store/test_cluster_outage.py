"""One server of a cluster is down for good: leases go on, processes start, and nobody else's calls fail."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from router.contract import keys
from router.contract.errors import LinnetError, Unavailable
from router.contract.settings import Settings, load
from router.store.accounts import Accounts
from router.store.audit import Audit, Page
from router.store.conversations import Conversations
from router.store.deployment import RowFormats, deployment_check
from router.store.presence import Presence
from router.store.redis import choose
from router.store.redis.cluster_client import ClusterClient
from router.store.reports import Reports
from tests import support
from tests.cluster import Cluster, Node, slot
from tests.store.calling import called

OURS: Settings = load({"LINNET_JWT_SECRET": support.JWT_SECRET})


async def _client(cluster: Cluster) -> ClusterClient:
    seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.primaries)
    client = await choose.connected(f"redis+cluster://{seeds}", "cluster")
    assert isinstance(client, ClusterClient)
    return client


async def _renewed(presence: Presence, node: str, now: int) -> None:
    await called(presence.renew, node, "ws://gateway", 1, now, now)


@pytest.mark.parametrize("lost", [keys.GATEWAYS, keys.DEPLOYMENT])
async def test_any_one_server_may_be_down(starts_processes: None, tmp_path: Path, lost: str) -> None:
    cluster = Cluster(tmp_path, (0, 0, 0))
    try:
        await cluster.start()
        first = await _client(cluster)
        channels = await deployment_check(first, OURS)
        presence = Presence(first)
        now = await first.clock_ms()
        await _renewed(presence, "a", now)
        dead = next(node for node in cluster.primaries if node.id == node.owner(slot(lost)))
        dead.kill()
        await support.eventually(lambda: len(first.servers) == 2)
        await _renewed(presence, "b", now + 1)
        second = await _client(cluster)
        assert await deployment_check(second, OURS) == channels
        await RowFormats(second).follow()
        assert (await Presence(second).gateways()).keys() == {"a", "b"}
        await _renewed(Presence(second), "a", now + 5000)
        assert (await presence.gateways())["a"].lease_until == now + 15_000
        await presence.remove("b")
        assert (await presence.gateways()).keys() == {"a"}
        assert await first.memory_ratio() == 0
        assert abs(await second.clock_ms() - await first.clock_ms()) < 5000
        answers = await asyncio.gather(
            *(first.fetch("GET", f"{tag}:none") for tag in keys.tags("c")), return_exceptions=True
        )
        failed = [answer for answer in answers if isinstance(answer, LinnetError)]
        assert 0 < len(failed) < 128
        assert all(isinstance(answer, Unavailable) for answer in failed)
        if lost == keys.DEPLOYMENT:
            await _refuses_all_calls(first, [node for node in cluster.primaries if node is not dead])
        await first.close()
        await second.close()
    finally:
        cluster.close()


async def _refuses_all_calls(client: ClusterClient, nodes: list[Node]) -> None:
    """Servers whose only answer is that the cluster is down count as down, and a process notices it without a call."""
    for node in nodes:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "yes")

    def refused() -> bool:
        for node in nodes:  # a server that knew of the dead one before looks at its state again only after a change
            node.call("CLUSTER", "SETSLOT", 0, "STABLE")
        return not client.available

    await support.eventually(refused, every_s=0.2)
    assert "say that it is down" in client.trouble
    assert client.cluster_statistics().partitions_served == 0
    with pytest.raises(Unavailable):
        await client.fetch("GET", next(keys.tags("c")))
    for node in nodes:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    await support.eventually(lambda: len(client.servers) == 2)
    assert not client.trouble


async def test_audit_and_reports_without_a_server_say_what_is_missing(starts_processes: None, tmp_path: Path) -> None:
    """Moderators see what the other servers have, and all of it once the server is back."""
    cluster = Cluster(tmp_path, (0, 0, 0))
    try:
        await cluster.start()
        client = await _client(cluster)
        accounts, audit, reports = Accounts(client), Audit(client), Reports(client)
        users = {f"user-{number}" for number in range(30)}
        for user in users:
            await accounts.ensure(user)
            await accounts.set_roles(user, ["moderator"])
            await reports.report_user("ann", user, "spam")

        async def read() -> tuple[Page, set[str]]:
            page = await audit.page("0", 100)
            return page, {entry.user for entry in page.entries}

        async def shows_all() -> Page | None:
            page, named = await read()
            return page if (named, page.missing) == (users, 0) else None

        async def lacks_some() -> bool:
            return (await read())[0].missing > 0

        async def is_unavailable() -> bool:
            with suppress(Unavailable):
                await read()
                return False
            return True

        whole = await support.eventually(shows_all)
        assert whole is not None
        dead = cluster.primaries[0]
        gone = {user for user in users if dead.owner(slot(keys.user(user))) == dead.id}
        assert gone
        dead.kill()
        await support.eventually(lacks_some)
        part, named = await read()
        assert named == users - gone
        assert part.entries == [entry for entry in whole.entries if entry.user not in gone]
        assert 0 < part.missing < 512
        found = await reports.page("0", "open", 100)
        assert ({one.user for one in found.reports}, found.missing) == (users - gone, part.missing)
        assert await reports.erase() == 0
        await asyncio.to_thread(dead.start)
        assert await support.eventually(shows_all) == whole
        for node in cluster.primaries:
            node.kill()
        await support.eventually(is_unavailable)
        await client.close()
    finally:
        cluster.close()


async def test_scan_finds_the_conversations_of_every_server(starts_processes: None, tmp_path: Path) -> None:
    """The row audit walks through all of them, so that it finds what a server has lost."""
    cluster = Cluster(tmp_path, (0, 0, 0))
    try:
        await cluster.start()
        client = await _client(cluster)
        conversations = Conversations(client, 1000)
        made = {keys.direct("ann", f"user-{number}") for number in range(100)}
        await asyncio.gather(*(client.fetch("HSET", keys.conversation(conv), "m", "") for conv in made))
        found: list[str] = []
        place, steps = "", 0
        while place or not steps:
            some, place = await conversations.scan(place, 10)
            found += some
            steps += 1
        assert set(found) == made
        assert steps > len(client.servers)
        await client.close()
    finally:
        cluster.close()
