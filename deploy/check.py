"""`make deploy-check`: checks the Dockerfile and all rendered manifests with real tools; with names, only these checks.

The tools have the schemas and policies. Linnet's own rules are in tests/deploy, and image.py builds the image.

Invariants:
- a check passes, fails, or is skipped with its reason; no check is left out silently, and only a failure exits 1;
- the tools are those of the lock (.venv/check), never those of the machine, except node and npm.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from deploy import manifests
from deploy.manifests import ROOT, documents

TOOLS = ROOT / ".venv/check/bin"
MODELS = ROOT / ".venv/crds"
KUBERNETES = ("1.33", "1.37")  # the oldest supported version, and the newest with schemas
CUSTOM = ("gateway.networking.k8s.io/", "keda.sh/", "monitoring.coreos.com/")

# Policies that the manifests do not follow, with reasons. They follow all others.
CHECKOV_SKIPS = {
    "CKV_K8S_11": "a limit on CPU adds latency, and pods with requests do not need that protection",
    "CKV_K8S_15": "the image is named by digest: pulling it again at every start would only tie starts to the registry",
    "CKV_K8S_35": "the load test's Job has its key for half an hour, as a variable; all that stays has files",
    "CKV_K8S_43": "the digest is known after the build of the image, and is set in the overlay",
}


TOOL_S = 900


class Failed(Exception):
    """A check failed; the text is the output of the tool."""


class Skipped(Exception):
    """A check cannot run here; the text is the reason."""


def tool(name: str, *arguments: object, stdin: str = "", cwd: Path = ROOT) -> str:
    """Run a tool; return its output, or raise `Failed` with it."""
    path = TOOLS / name if (TOOLS / name).exists() else shutil.which(name)
    if path is None:
        raise Skipped(f"{name} is not installed here")
    environ = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", "NO_COLOR": "1"}
    command = [path, *map(str, arguments)]
    try:
        done = subprocess.run(
            command, input=stdin, cwd=cwd, env=environ, capture_output=True, text=True, timeout=TOOL_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{name} did not end within {TOOL_S} s") from None
    if done.returncode:
        raise Failed((done.stdout + done.stderr).strip())
    return done.stdout


@cache
def rendered() -> dict[str, str]:
    if manifests.kubectl() is None:
        raise Skipped("no kubectl here")
    try:
        return dict(manifests.render_all())
    except manifests.RenderError as error:
        raise Failed(str(error)) from None


def check_dockerfile() -> str:
    tool("hadolint", "deploy/Dockerfile")
    return "hadolint has no complaint"


def check_kustomize() -> str:
    return f"{len(rendered())} rendered: {', '.join(rendered())}"


def check_schema() -> str:
    """Check Kubernetes' own objects, strictly: unknown fields are refused."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.yaml" for name in rendered()]
        for file, text in zip(files, rendered().values(), strict=True):
            own = [one for one in documents(text) if not one["apiVersion"].startswith(CUSTOM)]
            count += len(own)
            file.write_text("\n---\n".join(json.dumps(one) for one in own))
        for version in KUBERNETES:
            tool("kubernetes-validate", "--kubernetes-version", version, "--strict", "--quiet", *files)
    return f"{count} objects, strictly, against {' and '.join(KUBERNETES)}"


def check_crds() -> str:
    """Check custom resources. The models check types, patterns and required fields, but accept unknown fields."""
    for needed in ("node", "npm"):
        if shutil.which(needed) is None:
            raise Skipped(f"{needed} is not installed here, and the models of CRDs come from npm")
    source = ROOT / "deploy/crds"
    lock = (source / "package-lock.json").read_text()
    if not (MODELS / "installed").exists() or (MODELS / "installed").read_text() != lock:
        shutil.rmtree(MODELS, ignore_errors=True)
        shutil.copytree(source, MODELS)
        tool("npm", "ci", "--silent", "--ignore-scripts", cwd=MODELS)
        (MODELS / "installed").write_text(lock)
    shutil.copy(source / "validate.mjs", MODELS)
    objects = [one for text in rendered().values() for one in documents(text) if one["apiVersion"].startswith(CUSTOM)]
    tool("node", "validate.mjs", stdin=json.dumps(objects), cwd=MODELS)
    return f"{len(objects)}: {', '.join(sorted({one['kind'] for one in objects}))}"


def check_policy() -> str:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in rendered().items():
            (Path(folder) / f"{name}.yaml").write_text(text)
        options = ("--framework", "kubernetes", "--compact", "--quiet", "--skip-download", "--output", "json")
        skips = ",".join(CHECKOV_SKIPS)
        answer = tool("checkov", "--directory", folder, "--skip-check", skips, *options, cwd=Path(folder))
    summary = json.loads(answer)["summary"]
    return (
        f"checkov: {summary['passed']} passed, and {len(CHECKOV_SKIPS)} rules not followed for the reasons in check.py"
    )


CHECKS: dict[str, Callable[[], str]] = {
    "dockerfile": check_dockerfile,
    "kustomize": check_kustomize,
    "schema": check_schema,
    "crds": check_crds,
    "policy": check_policy,
}


def report(checks: Mapping[str, Callable[[], str]], names: Sequence[str]) -> int:
    """Run these checks, or all; print a line for each and return the exit code."""
    failures = 0
    for name in names or checks:
        began = time.monotonic()
        try:
            outcome, detail = "ok", checks[name]()
        except Skipped as skipped:
            outcome, detail = "skipped", str(skipped)
        except Failed as failed:
            outcome, detail = "FAILED", str(failed)
            failures += 1
        print(f"{name:11} {outcome:8} {detail} ({time.monotonic() - began:.1f} s)", flush=True)
    return 1 if failures else 0


def main(names: Sequence[str]) -> int:
    return report(CHECKS, names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
