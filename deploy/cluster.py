"""`make k8s-check`: the manifests on the cluster that KUBECONFIG names, and promises under its own rollouts.

It checks what needs an API server, a scheduler and a kubelet; check.py and tests/deploy/test_k8s.py check the rest.

Everything happens in the namespace `linnet`, which must not exist before and does not exist afterwards, so a deployment
in use is never touched. The witness is the canary: its users must miss no message, and receive none twice or out of
order.

It takes ten to fifteen minutes. The cluster needs two nodes with 2 CPUs and 16 GiB free in all, seven volumes of 2
GiB (a default StorageClass, or PersistentVolumes without a claim), and images: `linnet:VERSION` or the one that IMAGE
names, and the Valkeys of overlays/dev and overlays/dev-cluster, or the one that VALKEY_IMAGE names. With one node, a
volume and 4 GiB are enough, and the checks of components/cluster are skipped.

Invariant: every wait is for an answer of the cluster. If kubectl cannot ask it, or does not end, the check fails at
once with the output of kubectl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from deploy import manifests
from deploy.check import CUSTOM, Failed, Skipped, tool
from loadtest.canary import LOST_S
from router.contract.settings import VERSION

NAMESPACE = "linnet"
IMAGE = f"linnet:{VERSION}"
VALKEY = "valkey/valkey:8.1"
VALKEY_9 = "valkey/valkey:9.1"  # of components/cluster
SHARDS = ("valkey-0", "valkey-1", "valkey-2")
DEADLINE_S = 600
GONE_S = 10.0  # from the end of a drain, which lets the successor join, to the end of the pod
ALL_SEEN_S = LOST_S + 10.0  # after a change: until then, every message of its last moment has arrived or counts as lost

# From each component: targets that base/network.yaml allows, and targets that it forbids.
REACHED = {
    "canary": ("gateway:8000", "router:8000"),
    "gateway": ("valkey:6379",),
    "router": ("valkey:6379",),
}
UNREACHED = {
    "canary": ("valkey:6379", "GATEWAY:9000"),
    "gateway": ("router:8000", "GATEWAY:9000"),
    "router": ("gateway:8000", "GATEWAY:9000"),
}

CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 3).close()
        print(target)
    except (TimeoutError, ConnectionError):
        pass
"""

READ_METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:9000/metrics").read().decode())
"""


def kubectl(*arguments: object, stdin: str = "") -> str:
    return tool("kubectl", "--namespace", NAMESPACE, *arguments, stdin=stdin)


def objects(kind: str, selector: str) -> list[dict[str, Any]]:
    found = json.loads(
        kubectl("get", kind, "--selector", f"app.kubernetes.io/component={selector}", "--output", "json")
    )
    return list(found["items"])


def rolled_out(*more: str) -> None:
    for name in (*more, "deployment/gateway", "deployment/router", "deployment/canary"):
        kubectl("rollout", "status", name, f"--timeout={DEADLINE_S}s")


def canary() -> dict[str, float]:
    """Return the canary's counters by name."""
    text = kubectl("exec", "deployment/canary", "--", "/opt/linnet/bin/python", "-c", READ_METRICS)
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("linnet_canary_"))
    found: dict[str, float] = {}
    for series, value in lines:
        name = series.partition("{")[0]
        found[name] = found.get(name, 0.0) + float(value)
    return found


def unharmed(change: Callable[[], None]) -> str:
    """Make the change under the canary's traffic, then wait until all its messages can have arrived."""
    before = canary()
    change()
    time.sleep(ALL_SEEN_S)
    after = canary()
    for harm in ("lost", "duplicated", "reordered"):
        name = f"linnet_canary_{harm}_total"
        if after[name] != before[name]:
            raise Failed(f"{after[name] - before[name]:g} messages {harm}")
    sent = after["linnet_canary_sent_total"] - before["linnet_canary_sent_total"]
    if sent <= 0:
        raise Failed("the canary sent nothing")
    return f"{sent:g} messages, none lost, doubled or out of order"


def check_dry_run() -> str:
    """Let the server admit every rendering; kinds that it does not have are skipped and named."""
    known = set(kubectl("api-resources", "--output", "name").split())
    strangers: set[str] = set()
    for text in manifests.render_all().values():
        ours = []
        for one in manifests.documents(text):
            plural = f"{one['kind'].lower()}s.{one['apiVersion'].partition('/')[0]}"
            if one["apiVersion"].startswith(CUSTOM) and plural not in known:
                strangers.add(one["kind"])
            else:
                ours.append(json.dumps(one))
        kubectl("apply", "--dry-run=server", "--filename", "-", stdin="\n---\n".join(ours))
    return "all admitted" + (f", but the cluster has no {', '.join(sorted(strangers))}" if strangers else "")


def with_given_images(text: str) -> str:
    for name, image in (("IMAGE", IMAGE), ("VALKEY_IMAGE", VALKEY), ("VALKEY_IMAGE", VALKEY_9)):
        text = text.replace(f"image: {image}", f"image: {os.environ.get(name) or image}")
    return text


def check_deployed() -> str:
    kubectl("apply", "--filename", "-", stdin=with_given_images(manifests.render_with("overlays/dev", "canary")))
    rolled_out()
    return "gateways, router, Valkey and canary are up"


def check_network() -> str:
    """Check that pods reach exactly the targets that the policies allow, where the cluster enforces policies."""
    wrong, unprotected = [], []
    for name, targets in REACHED.items():
        wrong += [f"{name} cannot reach {target}" for target in targets if target not in reached(name, targets)]
    for name, targets in UNREACHED.items():
        unprotected += [f"{name} reaches {target}" for target in reached(name, targets)]
    if len(unprotected) == sum(map(len, UNREACHED.values())) and not wrong:
        raise Skipped("the cluster's network does not enforce NetworkPolicies")
    if wrong or unprotected:
        raise Failed("; ".join(wrong + unprotected))
    return "all that is allowed is reached, and nothing else"


def reached(name: str, targets: Sequence[str]) -> list[str]:
    """Return the targets that the pod of a Deployment can connect to; GATEWAY is another gateway's pod."""
    addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in objects("pods", "gateway")}
    pods = [pod["metadata"]["name"] for pod in objects("pods", name)]
    (other, *_) = (address for pod, address in addresses.items() if pod != pods[0])
    asked = [target.replace("GATEWAY", other) for target in targets]
    answer = kubectl("exec", pods[0], "--", "/opt/linnet/bin/python", "-c", CONNECT, *asked).split()
    return [target for target, address in zip(targets, asked, strict=True) if address in answer]


def check_rollout() -> str:
    def restart() -> None:
        kubectl("rollout", "restart", "deployment/gateway", "deployment/router")
        rolled_out()

    return unharmed(restart)


def check_scaling() -> str:
    def scale() -> None:
        for replicas in (4, 2):
            kubectl("scale", "deployment/gateway", f"--replicas={replicas}")
            rolled_out()

    return unharmed(scale)


def check_eviction() -> str:
    """Evict all gateways as a node drain does: the next one when the last one has drained."""
    refusals: list[int] = []

    def drain() -> None:
        leaving = ""
        for pod in objects("pods", "gateway"):
            name = pod["metadata"]["name"]
            refusals.append(evicted(name))
            if leaving and not gone(leaving):
                raise Failed(f"{name} was evicted while {leaving} was still draining")
            leaving = name
        rolled_out()

    found = unharmed(drain)
    if not all(refusals[1:]):
        raise Failed("two gateways were evicted at once")
    return f"{len(refusals)} gateways, one after the other; {found}"


def evicted(pod: str) -> int:
    """Request a pod's eviction until the budget allows it; return the number of refusals."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    for refused in range(DEADLINE_S):
        try:
            kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))
            return refused
        except Failed as refusal:
            if "disruption budget" not in str(refusal):
                raise
        time.sleep(1)
    raise Failed(f"the budget did not allow the eviction of {pod} within {DEADLINE_S} s")


def gone(pod: str) -> bool:
    """Return whether the pod ends within `GONE_S`."""
    until = time.monotonic() + GONE_S
    while kubectl("get", "pod", pod, "--ignore-not-found", "--output", "name"):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def require_two_nodes() -> None:
    if len(tool("kubectl", "get", "nodes", "--output", "name").split()) < 2:
        raise Skipped("the two servers of a shard need two nodes")


def check_cluster_deployed() -> str:
    """Begin anew on the Valkey Cluster of components/cluster, and apply a second time, which changes nothing."""
    require_two_nodes()
    check_removed()
    tool("kubectl", "create", "namespace", NAMESPACE)
    text = with_given_images(manifests.render(manifests.ROOT / "k8s/overlays/dev-cluster"))
    kubectl("apply", "--filename", "-", stdin=text)
    rolled_out(*(f"statefulset/{name}" for name in SHARDS))
    kubectl("apply", "--filename", "-", stdin=text)
    python = ("exec", "deployment/router", "--", "/opt/linnet/bin/python", "-m")
    kubectl(*python, "router", "check-store")
    return kubectl(*python, "deploy.slots", "check").strip().replace("\n", "; ")


def primaries() -> list[str]:
    """Return the pods of the primaries that answer."""
    found = []
    for pod in objects("pods", "valkey"):
        name = pod["metadata"]["name"]
        with suppress(Failed):
            if "role:master" in kubectl("exec", name, "--", "valkey-cli", "info", "replication"):
                found.append(name)
    return found


def check_cluster_failover() -> str:
    """Let a primary crash until its replica has taken over: Kubernetes restarts it at once, but not a second time."""
    require_two_nodes()
    crashed = primaries()[0]
    shard = crashed.rpartition("-")[0]

    def crash() -> None:
        for _ in range(DEADLINE_S):
            if any(name != crashed and name.startswith(shard) for name in primaries()):
                break
            with suppress(Failed):  # the server ends before it answers
                kubectl("exec", crashed, "--", "valkey-cli", "shutdown", "nosave", "now", "force")
        else:
            raise Failed(f"the replica of {crashed} was not promoted")
        rolled_out(f"statefulset/{shard}")

    return f"{crashed} crashed; {unharmed(crash)}"


def check_cluster_rollout() -> str:
    """Roll all shards at once: each primary hands over before it ends."""
    require_two_nodes()

    def restart() -> None:
        sets = [f"statefulset/{name}" for name in SHARDS]
        kubectl("rollout", "restart", *sets)
        rolled_out(*sets)

    return unharmed(restart)


def check_cluster_addresses() -> str:
    """End all servers at once: they find each other at their new addresses."""
    require_two_nodes()

    def addresses() -> set[str]:
        return {pod["status"]["podIP"] for pod in objects("pods", "valkey")}

    before = addresses()

    def end() -> None:
        kubectl("delete", "pods", "--selector", "app.kubernetes.io/component=valkey", f"--timeout={DEADLINE_S}s")
        rolled_out(*(f"statefulset/{name}" for name in SHARDS))

    found = unharmed(end)
    return f"{len(addresses() - before)} of {len(before)} servers have a new address; {found}"


def check_removed() -> str:
    tool("kubectl", "delete", "namespace", NAMESPACE, f"--timeout={DEADLINE_S}s")
    return f"no namespace {NAMESPACE} is left"


CHECKS = {
    "deployed": check_deployed,
    "network": check_network,
    "rollout": check_rollout,
    "scaling": check_scaling,
    "eviction": check_eviction,
    "cluster": check_cluster_deployed,
    "failover": check_cluster_failover,
    "its rollout": check_cluster_rollout,
    "addresses": check_cluster_addresses,
}


def passed(name: str, check: Callable[[], str]) -> bool:
    try:
        print(f"{name:11} ok       {check()}", flush=True)
    except Skipped as why:
        print(f"{name:11} skipped  {why}", flush=True)
    except Failed as failed:
        print(f"{name:11} FAILED   {failed}", flush=True)
        return False
    return True


def main() -> int:
    if not os.environ.get("KUBECONFIG"):
        print("k8s-check   skipped  KUBECONFIG names no cluster")
        return 0
    try:
        if "NotFound" not in _namespace():
            print(f"k8s-check   skipped  the cluster has a namespace {NAMESPACE}, which may be in use")
            return 0
        tool("kubectl", "create", "namespace", NAMESPACE)
    except (Failed, Skipped) as why:
        print(f"k8s-check   FAILED   {why}")
        return 1
    try:
        return 0 if passed("dry run", check_dry_run) and all(passed(*one) for one in CHECKS.items()) else 1
    finally:
        passed("removed", check_removed)


def _namespace() -> str:
    """Return the cluster's description of the namespace."""
    try:
        return tool("kubectl", "get", "namespace", NAMESPACE)
    except Failed as why:
        if "NotFound" not in str(why):
            raise
        return str(why)


if __name__ == "__main__":
    sys.exit(main())
