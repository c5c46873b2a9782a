"""The parts of deploy/kubernetes that need no cluster. `make deploy-check` runs the others."""

from __future__ import annotations

import socket
import struct
import subprocess
import urllib.error
from email.message import Message
from typing import Any

import pytest

from deploy import cluster
from deploy.kubernetes import __main__ as kubernetes
from deploy.kubernetes import dns
from deploy.manifests import ROOT, documents, pod_specs, render, render_with

SERVICES = {"gateway": "10.96.0.7", "gateways": "None"}
ENDS = [
    {"addresses": ["10.244.0.12"], "conditions": {"ready": True}},
    {"addresses": ["10.244.0.13"], "conditions": {"ready": False}},
    {"addresses": ["10.244.0.14"], "conditions": {"ready": True}, "hostname": "gateway-1"},
]


def get(path: str) -> Any:
    """An API server with a Service, a headless one, and three pods behind it."""
    if "endpointslices" in path:
        return {"items": [{"endpoints": ENDS}, {"endpoints": None}]}
    service = path.rpartition("/")[2]
    if service not in SERVICES:
        raise urllib.error.HTTPError(path, 404, "Not Found", Message(), None)
    return {"spec": {"clusterIP": SERVICES[service]}}


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def asked(name: str, kind: int = 1) -> tuple[int, list[str]]:
    """Return the response code and the addresses of an answer."""
    question = query(name, kind)
    answer = dns.answer(get, question)
    number, flags, questions, count, *_ = struct.unpack("!6H", answer[:12])
    assert (number, questions) == (77, 1)
    records = answer[len(question) :]
    assert len(records) == 16 * count
    return flags & 0xF, [socket.inet_ntoa(records[i + 12 : i + 16]) for i in range(0, len(records), 16)]


def test_services_have_their_address_and_headless_ones_their_ready_pods() -> None:
    assert asked("gateway.linnet.svc.cluster.local") == (0, ["10.96.0.7"])
    assert asked("Gateways.linnet.svc.cluster.local") == (0, ["10.244.0.12", "10.244.0.14"])


def test_pods_of_a_headless_service_have_names_of_their_own() -> None:
    """The servers of components/cluster find each other by them."""
    assert asked("gateway-1.gateways.linnet.svc.cluster.local") == (0, ["10.244.0.14"])
    assert asked("gateway-2.gateways.linnet.svc.cluster.local") == (dns.NO_SUCH_NAME, [])
    assert asked("gateway-1.gateway.linnet.svc.cluster.local") == (dns.NO_SUCH_NAME, [])


def test_names_that_are_no_service_do_not_exist() -> None:
    """An IPv6 query for an existing name has no records, else resolvers would take the name for missing."""
    assert asked("nobody.linnet.svc.cluster.local") == (dns.NO_SUCH_NAME, [])
    assert asked("gateway.linnet.svc.cluster.local.linnet.svc.cluster.local") == (dns.NO_SUCH_NAME, [])
    assert asked("gateway.linnet.svc.cluster.local", kind=28) == (0, [])


@pytest.mark.processes
def test_script_parses() -> None:
    subprocess.run(["bash", "-n", kubernetes.UP], check=True)


def test_machine_without_the_tools_skips_and_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert kubernetes.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("kubernetes  skipped  not installed here: go, etcd, containerd")


@pytest.mark.processes
def test_images_that_are_exchanged_are_those_of_the_manifests() -> None:
    """A renamed image would be requested from a registry that the cluster cannot reach."""
    for text, valkey in (
        (render_with("overlays/dev", "canary"), cluster.VALKEY),
        (render(ROOT / "k8s/overlays/dev-cluster"), cluster.VALKEY_9),
    ):
        pods = pod_specs(documents(text))
        images = {container["image"] for _, template in pods for container in template["spec"]["containers"]}
        assert images == {cluster.IMAGE, valkey}
