"""The Kubernetes manifests, rendered as a cluster receives them: their sums, and whether they agree with each other and
with the code. `make deploy-check` checks schemas and policies."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy import manifests
from deploy.embedded import binary, tied
from deploy.kubernetes.__main__ import CLI
from deploy.manifests import Manifest, documents, pod_specs
from gateway.drain import FINISH_S
from loadtest.__main__ import parser
from router.__main__ import STOP_S
from router.contract.settings import VERSION, Settings, host_port, load
from router.store.presence import LEASE_S
from router.store.redis.cluster_client import ADVISED
from tests.deploy.netpol import Peer, allowed, selects
from tests.support import eventually, free_ports

pytestmark = pytest.mark.processes  # kubectl renders the manifests

CLUSTER = manifests.ROOT / "k8s/components/cluster"
MARGIN_S = 5
MOUNT = "/run/secrets/linnet"
SECRET_KEYS = {"redis-url", "jwt-secret", "server-key", "webhook-secret"}
DEPLOYMENTS = ("base", "dev", "dev-cluster", "prod")


@functools.cache
def rendered() -> Mapping[str, list[Manifest]]:
    return {name: documents(text) for name, text in manifests.render_all().items()}


def every(*kinds: str) -> Iterator[tuple[str, Manifest]]:
    """Return all objects of these kinds in all renderings."""
    for name, objects in rendered().items():
        yield from ((name, one) for one in objects if one["kind"] in kinds)


def one(name: str, kind: str, of: str) -> Manifest:
    (found,) = (item for item in rendered()[name] if (item["kind"], item["metadata"]["name"]) == (kind, of))
    return found


def pod_of(name: str, component: str) -> Manifest:
    template: Manifest = one(name, "Deployment", component)["spec"]["template"]
    return template


def container(template: Manifest) -> Manifest:
    (only,) = template["spec"]["containers"]
    return dict(only)


def environ(name: str, component: str) -> dict[str, str]:
    """Return the variables of a pod's container, from the ConfigMap and its own."""
    its = container(pod_of(name, component))
    found: dict[str, str] = {}
    for source in its["envFrom"]:
        found |= one(name, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found | {entry["name"]: entry["value"] for entry in its.get("env", [])}


def settings(name: str, component: str, folder: Path) -> Settings:
    """Return the settings that the process of a pod reads, from variables and mounted secret files."""
    template = pod_of(name, component)
    (volume,) = template["spec"]["volumes"]
    for item in volume["secret"]["items"]:
        assert item["key"] in SECRET_KEYS
        is_url, is_cluster = item["key"] == "redis-url", name == "dev-cluster"
        url = "redis+cluster://redis.example.com:6379" if is_cluster else "redis://redis.example.com:6379/0"
        (folder / item["path"]).write_text(url if is_url else "s" * 32)
    return load({key: value.replace(MOUNT, str(folder)) for key, value in environ(name, component).items()})


# -- settings


@pytest.mark.parametrize("component", ["gateway", "router"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_each_process_starts_with_these_settings(name: str, component: str, tmp_path: Path) -> None:
    """The code knows every variable, every value is valid, every file is mounted; no secret is in a ConfigMap."""
    found = settings(name, component, tmp_path)
    assert found.jwt_secret == "s" * 32
    assert "://redis.example.com:6379" in found.redis_url
    assert bool(found.server_key) == (component == "router")
    assert not re.search("secret=|key=", " ".join(environ(name, component)).lower())


@pytest.mark.parametrize("component", ["gateway", "router"])
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_ports_are_those_the_process_listens_on(name: str, component: str, tmp_path: Path) -> None:
    found = settings(name, component, tmp_path)
    (public, public_port), (private, admin_port) = host_port(found.listen), host_port(found.admin_listen)
    assert public == private == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container(pod_of(name, component))["ports"]}
    assert ports == {"ws" if component == "gateway" else "http": public_port, "admin": admin_port}


# -- the sums


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_gateway_has_time_to_drain(name: str, tmp_path: Path) -> None:
    """Accepting, the window, commands under way and a margin end before the kill."""
    its = settings(name, "gateway", tmp_path)
    template = pod_of(name, "gateway")
    assert "lifecycle" not in container(template), "a sleep before SIGTERM hides the drain from the successor"
    needed = its.drain_accept_s + its.drain_window_s + FINISH_S + MARGIN_S
    assert needed <= template["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_router_has_time_to_stop(name: str) -> None:
    template = pod_of(name, "router")
    pre_stop = container(template)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pre_stop + STOP_S + MARGIN_S <= template["spec"]["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_rollout_waits_for_the_clients_of_the_last_pod(name: str, tmp_path: Path) -> None:
    """A successor is ready when no other gateway drains; its probe allows for a start and a whole drain."""
    its = settings(name, "gateway", tmp_path)
    spec = one(name, "Deployment", "gateway")["spec"]
    probe = container(spec["template"])["startupProbe"]
    assert probe["httpGet"] == {"path": "/joinz", "port": "admin"}
    hold_s = its.drain_accept_s + its.drain_window_s + FINISH_S + LEASE_S
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 30 + hold_s
    assert spec["minReadySeconds"] + 30 + hold_s < spec["progressDeadlineSeconds"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_scaling_out_begins_before_a_gateway_is_full(tmp_path: Path) -> None:
    """With one gateway fewer than the minimum, the others still have room for its clients."""
    for name, least, target in (
        ("base", one("base", "HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"], hpa_target("base")),
        ("prod", one("prod", "HorizontalPodAutoscaler", "gateway")["spec"]["minReplicas"], hpa_target("prod")),
        ("prod", scaled_object()["minReplicaCount"], int(scaled_object()["triggers"][0]["metadata"]["threshold"])),
    ):
        limit = settings(name, "gateway", tmp_path).max_connections
        assert target <= 0.7 * limit
        assert least >= 2


def hpa_target(name: str) -> int:
    metric = one(name, "HorizontalPodAutoscaler", "gateway")["spec"]["metrics"][0]["pods"]
    assert metric["metric"]["name"] == "linnet_gateway_connections"
    return int(metric["target"]["averageValue"])


def scaled_object() -> Manifest:
    spec: Manifest = one("base-with-keda", "ScaledObject", "gateway")["spec"]
    return spec


def test_scaling_in_is_slow_however_it_is_done() -> None:
    """One pod in five minutes, after ten quiet minutes, because each scale-in moves all clients of a pod."""
    behaviors = [spec["spec"]["behavior"] for _, spec in every("HorizontalPodAutoscaler") if "gateway" in str(spec)]
    behaviors.append(scaled_object()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"])
    for behavior in behaviors:
        down = behavior["scaleDown"]
        assert down["stabilizationWindowSeconds"] == 600
        assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]


def test_keda_replaces_the_autoscaler() -> None:
    """Two scalers of the same Deployment would conflict."""
    kinds = ("HorizontalPodAutoscaler", "ScaledObject")
    objects = [item for item in rendered()["base-with-keda"] if item["kind"] in kinds]
    assert sorted(item["spec"]["scaleTargetRef"]["name"] for item in objects) == ["gateway", "router"]


# -- pods


def test_pods_are_restricted_as_far_as_possible() -> None:
    """No root, token, capability or writable path, no variables but ours, and no volume that a node drain refuses."""
    for name, workload in every("Deployment", "StatefulSet", "Job"):
        spec = workload["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["serviceAccountName"] == workload["metadata"]["name"]
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container({"spec": spec})["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not any("emptyDir" in volume or "hostPath" in volume for volume in spec.get("volumes", []))


def test_pods_request_what_they_use() -> None:
    """Requests for CPU and memory, a limit for memory only, equal to the request."""
    for _, workload in every("Deployment", "StatefulSet", "Job"):
        resources = container(workload["spec"]["template"])["resources"]
        assert set(resources["requests"]) == {"cpu", "memory"}
        assert resources["limits"] == {"memory": resources["requests"]["memory"]}


def test_every_pod_of_a_trial_fits_on_a_small_node() -> None:
    """The requests of `overlays/dev`, the canary and the load test together fit into one core."""
    pods = [*pod_specs(rendered()["dev"]), *pod_specs(rendered()["loadtest"])]
    replicas = {"gateway": 2}
    asked = sum(
        replicas.get(workload["metadata"]["name"], 1) * cores(container(template)["resources"]["requests"]["cpu"])
        for workload, template in pods
    )
    assert asked <= 1


def cores(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def test_images_are_of_this_version() -> None:
    for name, workload in every("Deployment", "Job"):
        if workload["metadata"]["name"] == "valkey-form":
            continue  # it is a script for the servers' own client
        image = container(workload["spec"]["template"])["image"]
        assert image.rpartition("/")[2] == f"linnet:{VERSION}", name


def test_probes_ask_the_admin_port() -> None:
    """Liveness checks only the event loop; readiness and a gateway's startup may fail for other reasons."""
    for component in ("gateway", "router"):
        its = container(pod_of("prod", component))
        live = {"path": "/livez", "port": "admin"}
        if component == "router":
            assert its["startupProbe"] == {"httpGet": live, "periodSeconds": 1, "failureThreshold": 30}
        ready = {"path": "/readyz", "port": "admin"}
        assert its["readinessProbe"] == {"httpGet": ready, "periodSeconds": 5, "failureThreshold": 2}
        assert its["livenessProbe"] == {
            "httpGet": live,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        }


def test_pods_spread_over_zones_and_hosts() -> None:
    for component in ("gateway", "router"):
        template = pod_of("prod", component)
        spread = template["spec"]["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        assert all(selects(each["labelSelector"], template["metadata"]["labels"]) for each in spread)


def test_evictions_go_one_at_a_time_and_never_wait_for_unready_pods() -> None:
    for component in ("gateway", "router"):
        spec = one("prod", "PodDisruptionBudget", component)["spec"]
        assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_namespace_is_restricted() -> None:
    labels = one("prod", "Namespace", "linnet")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert all(
        each["metadata"].get("namespace") == "linnet" for each in rendered()["prod"] if each["kind"] != "Namespace"
    )


# -- names and labels agree


def pods(name: str) -> list[Peer]:
    """Return the pods of a rendering, with labels and named ports."""
    return [
        Peer(
            labels=template["metadata"]["labels"],
            ports={port["name"]: port["containerPort"] for port in container(template).get("ports", [])},
        )
        for _, template in pod_specs(rendered()[name])
    ]


def test_every_selector_selects_pods() -> None:
    """Services find their named port in each selected pod; budgets and workloads find their pods."""
    for name, service in every("Service"):
        found = [pod for pod in pods(name) if service["spec"]["selector"].items() <= pod.labels.items()]
        assert found, service["metadata"]
        assert all(port["targetPort"] in pod.ports for port in service["spec"]["ports"] for pod in found)
    for name, object_ in every("PodDisruptionBudget", "Deployment", "StatefulSet"):
        assert [pod for pod in pods(name) if selects(object_["spec"]["selector"], pod.labels)], object_["metadata"]
    for name, object_ in every("HorizontalPodAutoscaler", "ScaledObject"):
        assert one(name, "Deployment", object_["spec"]["scaleTargetRef"]["name"])


def test_every_pod_is_scraped() -> None:
    """The PodMonitor finds every pod with an admin port, and every pod that it finds has one."""
    (monitor,) = (each for each in rendered()["prod"] if each["kind"] == "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["path"] == "/metrics"
    for pod in pods("prod"):
        assert selects(monitor["spec"]["selector"], pod.labels) == (endpoint["port"] in pod.ports), pod


def test_every_dashboard_is_in_a_config_map() -> None:
    """Byte for byte, in a ConfigMap with the label of Grafana's sidecar, small enough for an apply."""
    maps = [item for item in rendered()["prod"] if item["kind"] == "ConfigMap" and "labels" in item["metadata"]]
    assert all(item["metadata"]["labels"] == {"grafana_dashboard": "1"} for item in maps)
    files = {path.name: path.read_text() for path in (manifests.ROOT / "deploy/grafana").glob("*.json")}
    assert {name: text for item in maps for name, text in item["data"].items()} == files
    assert all(len(text) < 200_000 for text in files.values())


def test_routes_lead_to_services() -> None:
    """Public access leads to the two public ports and to no other. Files have no time after which a route cuts them."""
    (route,) = (each for each in rendered()["prod"] if each["kind"] == "HTTPRoute")
    (ingress,) = (each for each in rendered()["base-with-ingress"] if each["kind"] == "Ingress")
    by_route = {
        (match["path"]["value"], backend["name"], backend["port"])
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
        for backend in rule["backendRefs"]
    }
    (host,) = ingress["spec"]["rules"]
    by_ingress = {
        (path["path"], path["backend"]["service"]["name"], port_number(path["backend"]["service"]))
        for path in host["http"]["paths"]
    }
    web = ("/", "/web", "/sw.js", "/manifest.webmanifest")
    to_gateway, to_router = ("/ws", "/schema.json"), ("/v1", *web)
    files = {("/v1/uploads", "router", 8000), ("/v1/files", "router", 8000)}
    (timed,) = (each for each in route["spec"]["rules"] if each["matches"][0]["path"]["value"] == "/v1/uploads")
    assert timed["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert by_route == by_ingress | files
    assert by_ingress == {
        *((path, "gateway", 8000) for path in to_gateway),
        *((path, "router", 8000) for path in to_router),
    }


def port_number(service: Manifest) -> int:
    ports = one("base-with-ingress", "Service", service["name"])["spec"]["ports"]
    (number,) = (port["port"] for port in ports if port["name"] == service["port"]["name"])
    return int(number)


# -- the network


KUBE_SYSTEM = {"kubernetes.io/metadata.name": "kube-system"}
DNS = Peer({"k8s-app": "kube-dns"}, KUBE_SYSTEM)
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
PROXY = Peer({}, {"kubernetes.io/metadata.name": "proxies", "linnet/proxy": "true"})
BACKEND = Peer({}, {"kubernetes.io/metadata.name": "backends", "linnet/backend": "true"})
STRANGER = Peer({}, {"kubernetes.io/metadata.name": "default"})
REDIS = Peer(address="10.1.2.3")
WEB = Peer(address="198.51.100.7")
METADATA = Peer(address="169.254.169.254")


def network(name: str) -> tuple[list[Manifest], dict[str, Peer]]:
    """Return the policies of a rendering, and its pods by component."""
    policies = [each for each in rendered()[name] if each["kind"] == "NetworkPolicy"]
    return policies, {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(name)}


def test_network_allows_needed_connections() -> None:
    policies, pod = network("prod")
    gateway, router, canary = pod["gateway"], pod["router"], pod["canary"]
    for source, target, port, protocol in (
        *((each, DNS, 53, "UDP") for each in pod.values()),
        (gateway, REDIS, 6379, "TCP"),
        (router, REDIS, 6379, "TCP"),
        (gateway, WEB, 443, "TCP"),
        (router, WEB, 443, "TCP"),
        (canary, gateway, 8000, "TCP"),
        (canary, router, 8000, "TCP"),
        (PROXY, gateway, 8000, "TCP"),
        (PROXY, router, 8000, "TCP"),
        (BACKEND, router, 8000, "TCP"),
        *((PROMETHEUS, each, 9000, "TCP") for each in pod.values()),
    ):
        assert allowed(policies, source, target, port, protocol), (source, target, port)


def test_network_refuses_all_other_connections() -> None:
    policies, pod = network("prod")
    gateway, router, canary = pod["gateway"], pod["router"], pod["canary"]
    for source, target, port in (
        (STRANGER, gateway, 8000),
        (STRANGER, router, 8000),
        (BACKEND, gateway, 8000),
        (WEB, gateway, 8000),
        (PROXY, gateway, 9000),
        (STRANGER, gateway, 9000),
        (gateway, router, 8000),
        (router, gateway, 8000),
        (canary, REDIS, 6379),
        (canary, WEB, 443),
        (gateway, METADATA, 80),
        (gateway, METADATA, 443),
        (gateway, REDIS, 443),
        (gateway, WEB, 80),
    ):
        assert not allowed(policies, source, target, port), (source, target, port)


def test_network_of_the_small_deployment_and_of_the_load_test() -> None:
    policies, pod = network("dev")
    for component in ("gateway", "router"):
        assert allowed(policies, pod[component], pod["valkey"], 6379)
    assert not allowed(policies, PROXY, pod["valkey"], 6379)
    assert not allowed(policies, pod["valkey"], WEB, 443)
    extra, job = network("loadtest")
    both = [*policies, *extra]
    assert allowed(both, job["loadtest"], pod["gateway"], 8000)
    assert allowed(both, job["loadtest"], pod["router"], 8000)
    assert not allowed(both, job["loadtest"], pod["valkey"], 6379)


def test_network_of_a_cluster() -> None:
    """Only servers reach the bus of a server, and only gateways, routers and the forming of the cluster its port."""
    policies, pod = network("base-with-cluster")
    valkey, form = pod["valkey"], pod["valkey-form"]
    for source in (pod["gateway"], pod["router"], valkey, form):
        assert allowed(policies, source, valkey, 6379)
        assert allowed(policies, source, valkey, 16379) == (source is valkey)
        assert allowed(policies, source, DNS, 53, "UDP")
    for stranger in (PROXY, BACKEND, STRANGER, PROMETHEUS):
        assert not allowed(policies, stranger, valkey, 6379)
    assert not allowed(policies, valkey, WEB, 443)


def test_servers_of_a_shard_are_apart() -> None:
    """Each shard has its own budget, and never both servers on one node; the next is not replaced at once."""
    shards = [item for item in rendered()["base-with-cluster"] if item["kind"] == "StatefulSet"]
    budgets = [item["spec"] for item in rendered()["base-with-cluster"] if item["kind"] == "PodDisruptionBudget"]
    assert len(shards) == 3
    for shard in shards:
        spec, labels = shard["spec"], shard["spec"]["template"]["metadata"]["labels"]
        others = [one["spec"]["template"]["metadata"]["labels"] for one in shards if one is not shard]
        affinity = spec["template"]["spec"]["affinity"]["podAntiAffinity"]
        (apart,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
        assert apart["topologyKey"] == "kubernetes.io/hostname"
        (budget,) = (one for one in budgets if selects(one["selector"], labels))
        assert budget["maxUnavailable"] == 1
        for selector in (apart["labelSelector"], budget["selector"], spec["selector"]):
            assert selects(selector, labels)
            assert not any(selects(selector, other) for other in others)
        environment = {one["name"]: one.get("value") for one in container(spec["template"])["env"]}
        assert environment["SERVICE"] == spec["serviceName"] == shard["metadata"]["name"]
        assert spec["minReadySeconds"] > 0


def test_servers_of_all_shards_have_one_name() -> None:
    """They meet by it before they are ready, and a new shard changes no pod of the others."""
    services = [item for item in rendered()["base-with-cluster"] if item["kind"] == "Service"]
    (shared,) = (item["spec"] for item in services if item["metadata"]["name"] == "valkey")
    shards = [item for item in rendered()["base-with-cluster"] if item["kind"] == "StatefulSet"]
    assert shared["clusterIP"] == "None"
    assert shared["publishNotReadyAddresses"]
    assert all(
        selects({"matchLabels": shared["selector"]}, one["spec"]["template"]["metadata"]["labels"]) for one in shards
    )
    assert "getent ahosts valkey" in (CLUSTER / "start.sh").read_text()


def test_small_cluster_is_found_by_its_servers() -> None:
    """The URL in the Secret names a server of each shard."""
    secret = one("dev-cluster", "Secret", "linnet")["data"]
    url = b64decode(secret["redis-url"]).decode()
    shards = [item["metadata"]["name"] for item in rendered()["dev-cluster"] if item["kind"] == "StatefulSet"]
    assert url == "redis+cluster://" + ",".join(f"{name}-0.{name}:6379" for name in shards)


def test_cluster_can_be_applied_again() -> None:
    """A Job that exists cannot be changed, so a changed configuration would be refused: it must not stay."""
    job = one("base-with-cluster", "Job", "valkey-form")
    assert job["spec"]["ttlSecondsAfterFinished"] <= 60


def test_scripts_of_the_cluster_are_mounted() -> None:
    configs = [item for item in rendered()["base-with-cluster"] if item["kind"] == "ConfigMap"]
    (files,) = (item["data"] for item in configs if item["metadata"]["name"].startswith("valkey"))
    for workload, pod in pod_specs(rendered()["base-with-cluster"]):
        if workload["metadata"]["name"].startswith("valkey"):
            used = set(re.findall(r"/etc/valkey/([\w.]+)", json.dumps(pod)))
            assert used
            assert used <= set(files)


# The client of `make deploy-check`, which finds each server of this machine by its name.
SHIM = (
    CLI.replace("/opt/linnet/bin/python", sys.executable)
    .replace("import socket", "import json, os, socket")
    .replace("(host, 6379)", '("127.0.0.1", json.loads(os.environ["PORTS"])[host])')
)


async def test_cluster_is_formed_and_hands_over_by_its_scripts(tmp_path: Path) -> None:
    """Six real servers with the component's configuration: three shards afterwards, and no change by a second run.

    All primaries that are told to end at once are replaced by their replicas first. A server without its disk becomes a
    replica. A replica without a primary is not ready."""
    config = (CLUSTER / "valkey.conf").read_text()
    ports = free_ports(12)
    names = [f"valkey-{shard}-{i}.valkey-{shard}" for shard in range(3) for i in range(2)]
    servers = []

    def start(name: str) -> subprocess.Popen[bytes]:
        command = tied(binary(), tmp_path / name / "valkey.conf", "--cluster-announce-hostname", name)
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    for name, port, bus in zip(names, ports[:6], ports[6:], strict=True):
        folder = tmp_path / name
        folder.mkdir()
        text = config.replace("/data", str(folder)).replace("port 6379", f"port {port}\ncluster-port {bus}")
        (folder / "valkey.conf").write_text(text)
        servers.append(start(name))
    clients: list[Any] = [redis.Redis(port=port, decode_responses=True) for port in ports[:6]]
    shim = tmp_path / "valkey-cli"
    shim.write_text(SHIM)
    shim.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SHARDS": "0 1 2",
    }

    def answer() -> bool:
        try:
            return all(client.ping() for client in clients)
        except redis.ConnectionError:
            return False

    async def run(name: str, own: int = 0) -> int:
        """The exit code of a script, run beside the server with this port."""
        beside = environment | {"PORTS": json.dumps(dict(zip(names, ports[:6], strict=True)) | {"127.0.0.1": own})}
        script = await asyncio.create_subprocess_exec(*tied("/bin/sh", str(CLUSTER / name)), env=beside)
        try:
            return await asyncio.wait_for(script.wait(), 120)
        finally:
            if script.returncode is None:
                script.kill()

    async def formed() -> list[list[str]]:
        assert await run("form.sh") == 0
        await eventually(lambda: all(_replicas(client) == [1, 1, 1] for client in clients), 60)
        return [[str(row[0]), str(row[1]), row[2][0]] for row in clients[0].execute_command("CLUSTER", "SLOTS")]

    try:
        await eventually(answer, 60)
        for port, bus in zip(ports[1:6], ports[7:], strict=True):
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
        first = await formed()
        assert len(first) == 3
        assert await formed() == first
        assert [row[2] for row in sorted(first, key=lambda row: int(row[0]))] == names[::2]
        wanted = {"appendonly": "yes", "maxmemory-policy": "noeviction", "shutdown-on-sigterm": "failover", **ADVISED}
        assert clients[0].config_get(*wanted) == wanted
        await eventually(lambda: all(_link(client) == "up" for client in clients[1::2]), 60)
        assert await asyncio.gather(*(run("ready.sh", port) for port in ports[:2])) == [0, 0]
        assert await asyncio.gather(*(run("stop.sh", port) for port in ports[:6:2])) == [0] * 3
        assert [client.info("replication")["role"] for client in clients] == ["slave", "master"] * 3
        servers[0].kill()
        servers[0].wait()
        for lost in ("nodes.conf", "appendonlydir"):
            subprocess.run(["rm", "-r", tmp_path / names[0] / lost], check=True)
        servers[0] = start(names[0])
        await eventually(answer, 60)
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", ports[1], ports[7])
        assert await run("form.sh") == 0
        await eventually(lambda: _link(clients[0]) == "up", 60)
        for server in servers[1::2]:
            server.kill()
        await eventually(lambda: _link(clients[0]) == "down", 60)
        assert await run("ready.sh", ports[0]) == 1
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _link(client: Any) -> str:
    """Whether a replica has a connection to its primary."""
    return str(client.info("replication").get("master_link_status"))


def _replicas(client: Any) -> list[int]:
    """How many replicas each range of slots has, as one server knows it."""
    return [len(row) - 3 for row in client.execute_command("CLUSTER", "SLOTS")]


async def test_small_valkey_keeps_acknowledged_writes(tmp_path: Path) -> None:
    """Its command line, really run: every write is on disk before its answer, nothing is evicted, and memory is
    bounded."""
    its = container(one("dev", "StatefulSet", "valkey")["spec"]["template"])
    program, *options = (str(each).replace("/data", str(tmp_path)) for each in its["command"])
    assert program == "valkey-server"
    socket = tmp_path / "valkey.sock"
    server = subprocess.Popen(tied(binary(), *options, "--port 0", f"--unixsocket {socket}"), stdout=subprocess.DEVNULL)
    try:
        await eventually(socket.exists)
        with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
            found = client.config_get("dir", "save", "appendonly", "appendfsync", "maxmemory*")
    finally:
        server.kill()
        server.wait()
    assert found["dir"] == str(tmp_path)
    assert (found["save"], found["appendonly"], found["appendfsync"]) == ("", "yes", "always")
    assert found["maxmemory-policy"] == "noeviction"
    limit = int(its["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert 0 < int(found["maxmemory"]) <= 0.8 * limit


def arguments(workload: Manifest) -> list[str]:
    return [str(each) for each in container(workload["spec"]["template"])["args"]]


def test_load_test_knows_its_arguments() -> None:
    """The program accepts the arguments of the Job."""
    module, *rest = arguments(one("loadtest", "Job", "loadtest"))
    assert module == "loadtest"
    assert parser().parse_args(rest).target == ["ws://gateway:8000/ws"]


def test_canary_knows_its_arguments() -> None:
    """It reaches every gateway directly, and exports metrics where probes and Prometheus look."""
    module, *rest = arguments(one("prod", "Deployment", "canary"))
    assert module == "loadtest"
    assert parser().parse_args(rest).target == ["ws://gateways:8000/ws"]
