"""The Kubernetes manifests as a cluster receives them: every kustomization of k8s/, rendered.

tests/deploy/test_k8s.py checks the sums of the result, check.py its schemas and policies.

One file is generated here: `make k8s` puts Prometheus' rules (deploy/prometheus) into the operator's format, in
k8s/components/monitoring/rules.yaml, because Kustomize cannot do that. A test compares both.

Invariant: rendering writes nothing into the checkout. A component cannot be rendered by itself, so each is applied to
the base in a temporary copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
LOCKED_KUBECTL = Path(sys.executable).parent / "kubectl"

Manifest = dict[str, Any]

OVERLAY = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: linnet
resources: [../{base}]
components: [../components/{component}]
"""


class RenderError(Exception):
    """kubectl failed; the text is its output."""


def kubectl() -> str | None:
    """Return the kubectl of the lock, or that of this machine."""
    return str(LOCKED_KUBECTL) if LOCKED_KUBECTL.exists() else shutil.which("kubectl")


def render(folder: Path) -> str:
    program = kubectl()
    if program is None:
        raise RenderError("no kubectl on this machine")
    done = subprocess.run([program, "kustomize", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(f"{folder.name}: {done.stderr.strip()}")
    return done.stdout


def render_all() -> Mapping[str, str]:
    """Return the YAML of the base, the overlays, the load test, and the base with each component, by name."""
    k8s = ROOT / "k8s"
    found = {folder.name: render(folder) for folder in (k8s / "base", *overlays(), k8s / "loadtest")}
    found |= {f"base-with-{each.name}": render_with("base", each.name) for each in components()}
    return found


def render_with(base: str, component: str) -> str:
    """An overlay or the base with a component on it."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "k8s"
        shutil.copytree(ROOT / "k8s", copy)
        shutil.copytree(ROOT / "deploy/grafana", Path(scratch) / "deploy/grafana")
        folder = copy / "check"
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(OVERLAY.format(base=base, component=component))
        return render(folder)


def overlays() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))


def components() -> list[Path]:
    return sorted(path.parent for path in (ROOT / "k8s/components").glob("*/kustomization.yaml"))


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def pod_specs(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each workload with its pod."""
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield manifest, manifest["spec"]["template"]


class _Block(yaml.SafeDumper):
    """Write strings of several lines as blocks, so that expressions are readable."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Block.add_representer(str, _text)

RULES = ROOT / "k8s/components/monitoring/rules.yaml"


def prometheus_rules() -> str:
    """Return the text of rules.yaml: each rule file as a PrometheusRule."""
    wrapped = []
    for path in sorted((ROOT / "deploy/prometheus").glob("rules-*.yaml")):
        name = path.stem.replace("rules-", "linnet-")
        head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": name}}
        wrapped.append({**head, "spec": yaml.safe_load(path.read_text())})
    text = yaml.dump_all(wrapped, Dumper=_Block, sort_keys=False, width=120, allow_unicode=True)
    return f"# Made from deploy/prometheus by `make k8s`; change it there.\n{text}"


if __name__ == "__main__":
    RULES.write_text(prometheus_rules())
