"""A model of NetworkPolicies, as the API defines them: policies that select a pod isolate it in their direction, and a
connection is allowed if one of them allows it. It covers what our manifests use: labels, address blocks, ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Labels = Mapping[str, str]
HERE: Labels = {"kubernetes.io/metadata.name": "linnet"}


@dataclass(frozen=True)
class Peer:
    """A pod (its labels, those of its namespace, its named ports) or, with an address, a host outside of the
    cluster."""

    labels: Labels = field(default_factory=dict)
    namespace: Labels = field(default_factory=lambda: HERE)
    ports: Mapping[str, int] = field(default_factory=dict)
    address: str = ""


def selects(selector: Mapping[str, Any], labels: Labels) -> bool:
    wanted: Labels = selector.get("matchLabels", {})
    one_of = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in one_of), "only In is understood here"
    return wanted.items() <= labels.items() and all(labels.get(term["key"]) in term["values"] for term in one_of)


def allowed(
    policies: Iterable[Mapping[str, Any]], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Return whether a connection can be opened: the policies of both ends must allow it."""
    specs = [policy["spec"] for policy in policies]
    return _passes(specs, source, "Egress", target, target, port, protocol) and _passes(
        specs, target, "Ingress", source, target, port, protocol
    )


def _passes(specs: list[Any], pod: Peer, direction: str, other: Peer, target: Peer, port: int, protocol: str) -> bool:
    if pod.address or pod.namespace != HERE:
        return True  # not ours to isolate
    mine = [one for one in specs if direction in one["policyTypes"] and selects(one["podSelector"], pod.labels)]
    side = "to" if direction == "Egress" else "from"
    return not mine or any(
        (side not in rule or any(_is(peer, other) for peer in rule[side]))
        and ("ports" not in rule or any(_opens(entry, target, port, protocol) for entry in rule["ports"]))
        for one in mine
        for rule in one.get(direction.lower(), [])
    )


def _is(peer: Mapping[str, Any], other: Peer) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(other.address) if other.address else None
        inside = address is not None and address in ipaddress.ip_network(peer["ipBlock"]["cidr"])
        return inside and not any(
            address in ipaddress.ip_network(network) for network in peer["ipBlock"].get("except", [])
        )
    if other.address:
        return False
    in_namespace = (
        selects(peer["namespaceSelector"], other.namespace) if "namespaceSelector" in peer else other.namespace == HERE
    )
    return in_namespace and selects(peer.get("podSelector", {}), other.labels)


def _opens(entry: Mapping[str, Any], target: Peer, port: int, protocol: str) -> bool:
    number = entry["port"] if isinstance(entry["port"], int) else target.ports.get(entry["port"])
    return number == port and entry.get("protocol", "TCP") == protocol
