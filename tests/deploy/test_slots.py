"""`python -m deploy.slots`: slots move only where they are safe."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from deploy import slots
from deploy.slot_plans import SlotsError
from deploy.slots import Servers, main, move
from router.contract import keys
from router.contract.tags import NUMBERED, SPREAD
from router.store.redis.slots import slot_of
from tests import support
from tests.cluster import Cluster


async def test_slots_move_only_to_a_server_whose_replicas_have_them(
    starts_processes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path, (1, 1, 0), timeout_ms=15_000)
    try:
        await cluster.start()
        url = f"redis+cluster://127.0.0.1:{cluster.primaries[0].port}"
        servers = Servers(url)
        first, second, bare = (f"127.0.0.1:{node.port}" for node in cluster.primaries)
        number = slot_of("{c1}")
        owner = next(node for node in cluster.primaries if node.id == node.owner(number))
        target = second if owner is cluster.primaries[0] else first
        owner.call("SET", "{c1}:x", "kept")
        said: list[str] = []
        with pytest.raises(SlotsError, match="has no replica"):
            move(servers, [number], bare, said.append)
        with pytest.raises(SlotsError, match="is no primary"):
            move(servers, [number], "127.0.0.1:1", said.append)
        assert said == []
        move(servers, [number], target, said.append)
        assert said == [f"moved {number} from 127.0.0.1:{owner.port} to {target}"]
        at = next(node for node in cluster.primaries if target.endswith(str(node.port)))
        assert at.call("GET", "{c1}:x") == b"kept"
        move(servers, [number], target, said.append)
        assert len(said) == 1, "it is there already"
        replica = cluster.replicas[cluster.primaries.index(at)][0]
        another = next(slot for tag in keys.tags("c") if owner.owner(slot := slot_of(tag)) == owner.id)
        at.call("CLUSTER", "SETSLOT", another, "IMPORTING", owner.id)
        with pytest.raises(SlotsError, match=f"slot {another} of {target} moves key by key"):
            move(servers, [another], target, said.append)
        with monkeypatch.context() as unseen:
            unseen.setattr(slots, "OPEN", re.compile("(?!)"))
            unseen.setattr(slots, "AGREE_S", 1.0)
            with pytest.raises(SlotsError, match=r"does not move slots to .* manually imported"):
                move(servers, [another], target, said.append)
        at.call("CLUSTER", "SETSLOT", another, "STABLE")
        monkeypatch.setattr(slots, "REPLICAS_S", 1.0)
        replica.pause()
        try:
            with pytest.raises(SlotsError, match="did not receive the slots in time"):
                move(servers, [another], target, said.append)
        finally:
            replica.resume()
        servers.close()
        with socket.create_server(("127.0.0.1", 0)) as hanging, monkeypatch.context() as impatient:
            impatient.setattr(slots, "ANSWER_S", 1.0)
            impatient.setattr(slots, "PATIENCE_S", 1_000.0)
            main(["--url", url.replace("//", f"//127.0.0.1:{hanging.getsockname()[1]},"), "check"])
        assert keys.used_tags() == SPREAD, "what a new deployment will have"
        home = next(node for node in cluster.primaries if node.id == node.owner(slot_of(keys.DEPLOYMENT)))
        home.call("HSET", keys.DEPLOYMENT, "partitions", NUMBERED)
        main(["--url", url, "check"])
        assert keys.used_tags() == NUMBERED, "what the deployment has"
        assert f"{target}: " in capsys.readouterr().out
        main(["--url", url, "plan"])
        assert capsys.readouterr().out
        with pytest.raises(SlotsError, match="cluster-slot-stats-enabled yes"):
            main(["--url", url, "plan", "--by", "cpu"])
        for node in cluster.primaries:
            node.call("CONFIG", "SET", "cluster-slot-stats-enabled", "yes")
        main(["--url", url, "plan", "--by", "cpu"])
        await cluster.caught_up(replica, at)
        await isolates_a_busy_group(cluster, url, capsys)
        cluster.replicas[0][0].kill()
        cluster.replicas[1][0].kill()
        await support.eventually(lambda: at.info()["connected_slaves"] == 0)
        again = Servers(url)
        with pytest.raises(SlotsError, match=r"has no replica|is failing"):
            move(again, [slot_of("{c2}")], target, said.append)
        again.close()
    finally:
        cluster.close()


async def isolates_a_busy_group(cluster: Cluster, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The group gets a primary for itself, with all its keys; what was there goes to one that has a replica."""
    first, second, bare = cluster.primaries
    group = next(
        conv for conv in iter(lambda: keys.new_conversation("g"), "") if bare.owner(slot_of(keys.log(conv))) != bare.id
    )
    home, target = (first, second) if first.id == first.owner(slot_of(keys.log(group))) else (second, first)
    home.call("SET", keys.log(group), "x" * 200_000)
    for node, size in ((home, 60_000), (target, 100)):
        tag = next(tag for tag in keys.tags("u") if node.owner(slot_of(tag)) == node.id)
        node.call("SET", f"{tag}:other", "x" * size)
    to = f"127.0.0.1:{target.port}"
    with pytest.raises(SlotsError, match="has no replica"):
        main(["--url", url, "isolate", group, "--to", f"127.0.0.1:{bare.port}"])
    capsys.readouterr()
    main(["--url", url, "isolate", group, "--to", to, "--only-say"])
    assert f"move {slot_of(keys.log(group))} --to {to}" in capsys.readouterr().out
    assert home.call("EXISTS", keys.log(group)) == 1
    main(["--url", url, "isolate", group, "--to", to])
    servers = Servers(url)
    alone = next(one for one in servers.primaries() if one.address == to)
    servers.close()
    assert set(alone.loads) == {slot_of(keys.log(group))}
    assert target.call("EXISTS", keys.log(group)) == 1
    main(["--url", url, "isolate", group, "--to", to])
    assert "has this slot and no other" in capsys.readouterr().out


def test_url_of_the_processes_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod it is in a file, as all secrets are."""
    file = tmp_path / "url"
    monkeypatch.setenv("LINNET_REDIS_URL_FILE", str(file))
    with pytest.raises(SlotsError, match="cannot read the file"):
        slots.main(["check"])
    file.write_text("redis+cluster://127.0.0.1:1\n")
    with pytest.raises(SlotsError, match="none of the cluster's servers"):
        slots.main(["check"])


def test_other_urls_are_refused() -> None:
    with pytest.raises(SlotsError, match="redis\\+cluster"):
        slots.main(["--url", "redis://127.0.0.1:1", "check"])
