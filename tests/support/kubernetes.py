"""The Kubernetes manifests, as `kubectl apply --kustomize` would send them to a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = {name: KUBERNETES / "overlays" / name for name in ("cpu", "gpu")}
NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """Return what kustomize makes of a folder. Without a kubectl, the test is skipped."""
    beside_python = Path(sys.executable).parent
    kubectl = shutil.which("kubectl", path=f"{beside_python}{os.pathsep}{os.environ['PATH']}")
    if kubectl is None:
        pytest.skip("there is no kubectl; `make test` installs one on Linux")
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(manifests: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """Return the only one of this kind and name."""
    (found,) = (m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name)
    return found


def workloads(manifests: Iterable[Manifest]) -> dict[str, Manifest]:
    """Return what runs pods, by component: store, api, worker."""
    found = of_kind(manifests, "Deployment", "StatefulSet")
    return {manifest["metadata"]["labels"][COMPONENT]: manifest for manifest in found}


def pod(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]["spec"]


def container(workload: Manifest) -> Manifest:
    """Return the only container of its pods."""
    (found,) = pod(workload)["containers"]
    assert "initContainers" not in pod(workload)
    return found


def environment(
    manifests: Iterable[Manifest], workload: Manifest, secrets: dict[str, str]
) -> dict[str, str]:
    """Return the variables of a container, as the kubelet makes them.

    Args:
        manifests: All of them, since a container takes variables from ConfigMaps.
        workload: Whose pods the container is in.
        secrets: Values by key. Only optional keys may be absent.
    """
    found: dict[str, str] = {}
    manifests = list(manifests)
    for source in container(workload).get("envFrom", []):
        if "configMapRef" in source:
            settings = named(manifests, "ConfigMap", source["configMapRef"]["name"])
            found |= settings.get("data", {})
        else:
            assert source["secretRef"]["optional"], source
    for variable in container(workload).get("env", []):
        if "value" in variable:
            found[variable["name"]] = expand(variable["value"], found)
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference["key"] in secrets:
                found[variable["name"]] = secrets[reference["key"]]
            else:
                assert reference.get("optional"), reference
    return found


def expand(text: str, variables: dict[str, str]) -> str:
    """Fill in `$(NAME)`, of those that are set."""
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    return text


def secret_references(manifest: Any) -> Iterator[dict[str, str]]:
    """Return every reference to a key of a Secret, at any depth."""
    if isinstance(manifest, dict):
        if "secretKeyRef" in manifest:
            yield manifest["secretKeyRef"]
        yield from manifest.get("secretTargetRef", [])
        for value in manifest.values():
            yield from secret_references(value)
    elif isinstance(manifest, list):
        for value in manifest:
            yield from secret_references(value)
