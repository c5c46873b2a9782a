"""deploy/cluster.py without a cluster: its judgements, with a kubectl that gives prepared answers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from deploy import check, cluster
from deploy.check import Failed, Skipped

BUDGET = "Cannot evict pod as it would violate the pod's disruption budget."
DEAD = "The connection to the server 127.0.0.1:1 was refused"


class Cluster:
    """Two gateways; an evicted one drains for `drain` requests, and the budget refuses the other until it has
    drained."""

    def __init__(self, drain: int = 3, successor: int = 3) -> None:
        self.drain, self.successor = drain, successor
        self.leaving: dict[str, int] = {}
        self.left = 0
        self.harm = 0.0
        self.log: list[str] = []

    def kubectl(self, *arguments: object, stdin: str = "") -> str:
        match arguments:
            case ("create", "--raw", path, *_):
                return self._evict(str(path).split("/")[-2])
            case ("get", "pod", name, *_):
                self.leaving[str(name)] -= 1
                return f"pod/{name}" if self.leaving[str(name)] > 0 else ""
        return ""

    def _evict(self, name: str) -> str:
        self.left -= 1
        if self.left > 0:
            raise Failed(BUDGET)
        self.left = self.successor + 1
        self.leaving[name] = self.drain
        self.log.append(name)
        return ""

    def canary(self) -> dict[str, float]:
        self.log.append("canary")
        harms = {f"linnet_canary_{harm}_total": self.harm for harm in ("lost", "duplicated", "reordered")}
        return harms | {"linnet_canary_sent_total": float(len(self.log))}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    its = Cluster()
    clock = iter(range(10**6))
    pods = [{"metadata": {"name": name}} for name in ("a", "b")]
    monkeypatch.setattr(cluster, "kubectl", its.kubectl)
    monkeypatch.setattr(cluster, "canary", its.canary)
    monkeypatch.setattr(cluster, "objects", lambda *_: pods)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    return its


def test_evictions_happen_under_the_canarys_traffic(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both gateways are evicted between two looks at the canary, and a message lost meanwhile is a failure."""
    assert cluster.check_eviction().startswith("2 gateways, one after the other; ")
    assert two.log == ["canary", "a", "b", "canary"]
    two.log.clear()
    evict = two.kubectl

    def losing(*arguments: object, stdin: str = "") -> str:
        two.harm = 1.0
        return evict(*arguments, stdin=stdin)

    monkeypatch.setattr(cluster, "kubectl", losing)
    with pytest.raises(Failed, match="1 messages lost"):
        cluster.check_eviction()


def test_two_gateways_that_drain_at_once_are_a_failure(two: Cluster) -> None:
    """The budget allowed the second eviction while the first gateway still drained, or refused none."""
    two.drain = 100
    with pytest.raises(Failed, match="b was evicted while a was still draining"):
        cluster.check_eviction()
    two.drain = two.successor = two.left = 0
    with pytest.raises(Failed, match="at once"):
        cluster.check_eviction()


@pytest.mark.parametrize("enforced", ["all", "none", "not the admin port", "too much"])
def test_network_policies_are_compared_with_connections(monkeypatch: pytest.MonkeyPatch, enforced: str) -> None:
    """A network that enforces no policy is no failure of the manifests; a network that enforces only some is one."""
    pods = {"gateway": ("g1", "g2"), "router": ("r1",), "canary": ("c1",)}

    def objects(_: str, component: str) -> list[dict[str, Any]]:
        return [{"metadata": {"name": pod}, "status": {"podIP": f"ip-{pod}"}} for pod in pods[component]]

    def kubectl(_exec: object, pod: object, *rest: object, stdin: str = "") -> str:
        doors = [str(door) for door in rest[4:]]
        assert "ip-g1:9000" not in doors or pod != "g1", "a pod always reaches itself"
        names = {"g1": "gateway", "r1": "router", "c1": "canary"}
        allowed = {
            "all": cluster.REACHED[names[str(pod)]],
            "none": doors,
            "not the admin port": [*cluster.REACHED[names[str(pod)]], "ip-g1:9000"],
            "too much": ("gateway:8000",),
        }[enforced]
        return "\n".join(door for door in doors if door in allowed)

    monkeypatch.setattr(cluster, "objects", objects)
    monkeypatch.setattr(cluster, "kubectl", kubectl)
    match enforced:
        case "all":
            assert cluster.check_network() == "all that is allowed is reached, and nothing else"
        case "none":
            with pytest.raises(Skipped, match="does not enforce"):
                cluster.check_network()
        case "not the admin port":
            with pytest.raises(Failed, match="canary reaches GATEWAY:9000; router reaches GATEWAY:9000"):
                cluster.check_network()
        case _:
            with pytest.raises(Failed, match="gateway cannot reach valkey:6379"):
                cluster.check_network()


def test_kubectl_that_cannot_ask_is_no_refusal(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first failure of kubectl ends the check with the output of kubectl."""
    calls = 0

    def dead(*_: object, **__: object) -> str:
        nonlocal calls
        calls += 1
        raise Failed(DEAD)

    monkeypatch.setattr(cluster, "kubectl", dead)
    with pytest.raises(Failed, match="refused"):
        cluster.evicted("a")
    assert calls == 1


@pytest.mark.processes
def test_tool_that_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "TOOL_S", 0.1)
    with pytest.raises(Failed, match="sleep did not end within"):
        check.tool("sleep", 60)


def test_cluster_that_dies_is_reported_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the cluster dies during the checks, each failed check has one line, and there is no trace."""
    answers: dict[str, Any] = {"get": Failed("NotFound"), "create": "", "delete": Failed(DEAD)}

    def tool(_name: str, verb: object, *_: object, **__: object) -> str:
        if isinstance(answer := answers[str(verb)], Failed):
            raise answer
        return str(answer)

    def dry_run() -> str:
        raise Failed(DEAD)

    monkeypatch.setenv("KUBECONFIG", "somewhere")
    monkeypatch.setattr(cluster, "tool", tool)
    monkeypatch.setattr(cluster, "check_dry_run", dry_run)
    assert cluster.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-9] for line in lines] == ["FAILED", "FAILED"]
    assert all(DEAD in line for line in lines)
