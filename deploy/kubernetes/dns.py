"""A DNS server for a cluster whose pods connect to Services: `python3 dns.py KUBECONFIG ADDRESS`, UDP port 53.

NAME.NAMESPACE.svc.cluster.local answers with the Service's address, or with its ready endpoints if it has none;
POD.NAME.NAMESPACE.svc.cluster.local with the pod of that name behind a Service without an address, as a StatefulSet has
them. IPv4 only; any other name does not exist. It only uses the standard library, because it runs outside of the .venv.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = re.compile(r"(?:([a-z0-9-]+)\.)?([a-z0-9-]+)\.([a-z0-9-]+)\.svc\.cluster\.local")
NO_SUCH_NAME = 3

Get = Callable[[str], Any]


def api(kubeconfig: str) -> Get:
    """The function that requests a path from the API server of a kubeconfig of `up`."""
    text = Path(kubeconfig).read_text()
    named = dict(re.findall(r'([a-z-]+): "([^"]+)"', text))
    tls = ssl.create_default_context(cafile=named["certificate-authority"])
    tls.load_cert_chain(named["client-certificate"], named["client-key"])

    def get(path: str) -> Any:
        with urllib.request.urlopen(named["server"] + path, context=tls, timeout=3) as answer:  # noqa: S310 - from the kubeconfig
            return json.load(answer)

    return get


def addresses(get: Get, name: str) -> list[str] | None:
    """The addresses behind a name; None if there is no such name."""
    found = NAME.fullmatch(name.lower())
    if not found:
        return None
    pod, service, namespace = found.groups()
    try:
        address = get(f"/api/v1/namespaces/{namespace}/services/{service}")["spec"]["clusterIP"]
    except urllib.error.HTTPError:
        return None
    if address != "None":
        return [address] if pod is None else None
    query = f"?labelSelector=kubernetes.io/service-name%3D{service}"
    slices = get(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices{query}")["items"]
    ends = [end for one in slices for end in one.get("endpoints") or () if end.get("conditions", {}).get("ready")]
    if pod is not None:
        ends = [end for end in ends if end.get("hostname") == pod]
    return [address for end in ends for address in end["addresses"]] if ends or pod is None else None


def answer(get: Get, query: bytes) -> bytes:
    """The response to one DNS query."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    question = query[12 : at + 5]
    found = addresses(get, ".".join(labels))
    kind = struct.unpack("!H", question[-4:-2])[0]
    records = (found or []) if kind == 1 else []
    flags = 0x8580 | (NO_SUCH_NAME if found is None else 0)
    head = query[:2] + struct.pack("!5H", flags, 1, len(records), 0, 0)
    return (
        head + question + b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(one) for one in records)
    )


def main(kubeconfig: str, address: str) -> None:
    get = api(kubeconfig)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, 53))
        while True:
            query, client = server.recvfrom(4096)
            try:
                server.sendto(answer(get, query), client)
            except Exception as error:  # noqa: BLE001 - a malformed query, or an API server that is away: the next one
                print(f"{client}: {error!r}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
