"""A cluster's URL, and the map that its servers tell."""

from __future__ import annotations

from typing import Any

import pytest

from router.contract.errors import StartupError
from router.store.redis.cluster import Cluster, reachable_of, state_of


def cluster(**more: Any) -> Cluster:
    return Cluster("redis+cluster://10.0.0.1:7001,10.0.0.2:7002", **more)


def test_url_names_several_servers() -> None:
    made = Cluster("redis+cluster://ann:s%40cret@redis-1:7001,redis-2,[::1]:7003")
    assert [(one.host, one.port) for one in made.seeds] == [("redis-1", 7001), ("redis-2", 6379), ("::1", 7003)]
    assert made.seeds[0].greeting == (("AUTH", "ann", "s@cret"), ("PING",), ("CLUSTER", "MYID"))
    assert made.seeds[0].tls is None
    assert "cret" not in str(made.seeds)


def test_tls_url_has_a_trust_and_a_name() -> None:
    made = Cluster("rediss+cluster://10.0.0.1", tls_name="redis.example")
    assert made.seeds[0].tls is not None
    assert made.seeds[0].tls_name == "redis.example"


@pytest.mark.parametrize(
    "url",
    [
        "redis://10.0.0.1:7001",
        "redis+cluster://",
        "redis+cluster://:7001",
        "redis+cluster://a:1,",
        "redis+cluster://a:port",
        "redis+cluster://[::1",
        "redis+cluster://user:sEcReT@a b:1",
    ],
)
def test_wrong_url_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(StartupError, match=r"LINNET_REDIS_URL: .*redis\+cluster://") as refused:
        Cluster(url)
    assert "sEcReT" not in str(refused.value)


def test_cluster_has_one_database() -> None:
    with pytest.raises(StartupError, match="database 0"):
        Cluster("redis+cluster://a:1/2")
    Cluster("redis+cluster://a:1/0")


def test_map_names_the_primaries() -> None:
    made = cluster()
    reply = [
        [0, 99, [b"10.0.0.5", 7005, b"id", []], [b"10.0.0.6", 7006, b"id", []]],
        [100, 200, [None, 7007, b"id", []]],
        [201, 300, [b"", 7008, b"id", []]],
        [301, 400, [b"?", 7009, b"id", []]],
    ]
    ranges = made.owners(reply, made.seeds[1]).ranges
    assert [(first, last, str(where)) for first, last, where in ranges] == [
        (0, 99, "10.0.0.5:7005"),
        (100, 200, "10.0.0.2:7007"),
        (201, 300, "10.0.0.2:7008"),
        (301, 400, "None"),
    ]


@pytest.mark.parametrize("reply", [[[0]], [[0, 16384, [b"h", 1]]], [[5, 1, [b"h", 1]]], [7], [[0, 1, b"h"]], ["abc"]])
def test_reply_that_is_no_map_is_refused(reply: list[Any]) -> None:
    made = cluster()
    with pytest.raises(ValueError, match="not a reply to CLUSTER SLOTS"):
        made.owners(reply, made.seeds[0])


def test_announced_addresses_are_translated() -> None:
    made = cluster(reachable={"10.0.0.1:7001": "127.0.0.1:17001", "10.1.0.1:6379": "proxy:1"})
    assert str(made.seeds[0]) == "127.0.0.1:17001"
    assert str(made.named("10.1.0.1:6379", made.seeds[1])) == "proxy:1"
    assert str(made.named("10.1.0.2:6379", made.seeds[1])) == "10.1.0.2:6379"


def test_map_of_the_setting_is_read() -> None:
    assert reachable_of("") == {}
    assert reachable_of("10.0.0.1:7001=a:1, [::1]:7002=b:2,") == {"10.0.0.1:7001": "a:1", "::1:7002": "b:2"}


@pytest.mark.parametrize("text", ["a:1", "a:1=", "=b:2", "a:1=b:2=c:3", "a b:1=c:2"])
def test_wrong_map_is_refused(text: str) -> None:
    with pytest.raises(StartupError, match="LINNET_REDIS_MAP"):
        reachable_of(text)


def test_redirect_without_a_host_means_the_server_that_answered() -> None:
    made = cluster()
    assert str(made.named(":7009", made.seeds[1])) == "10.0.0.2:7009"
    assert str(made.named("::1:7009", made.seeds[1])) == "::1:7009"
    assert made.named("?:7009", made.seeds[1]) is None
    assert made.named("", made.seeds[1]) is None


async def test_seeds_and_known_servers_are_dialed_in_turn() -> None:
    made = cluster()
    assert {str(await made.primary()) for _ in range(4)} == {"10.0.0.1:7001", "10.0.0.2:7002"}
    made.known = {made.at("10.0.0.9", 7009)}
    assert {str(await made.primary()) for _ in range(8)} == {"10.0.0.1:7001", "10.0.0.2:7002", "10.0.0.9:7009"}


def test_state_of_a_server() -> None:
    assert state_of(b"cluster_state:ok\r\ncluster_current_epoch:12\r\n") == (True, 12)
    assert state_of(b"cluster_state:fail\r\ncluster_current_epoch:3\r\n") == (False, 3)
    assert state_of(b"") == (False, 0)
