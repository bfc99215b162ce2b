"""What docs/how-to/run-on-kubernetes.md has its reader write, rendered."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from tests.support.kubernetes import (
    ROOT,
    Manifest,
    container,
    environment,
    named,
    of_kind,
    render,
    secret_references,
    workloads,
)
from tests.support.pages import commands
from tests.unit.deploy.test_schemas import KEDA, PAGE, VERSIONS

TEXT = PAGE.read_text()
_FENCE = re.compile(r"^( *)```yaml\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
BLOCKS: list[dict[str, Any]] = [yaml.safe_load(fence[2]) for fence in _FENCE.finditer(TEXT)]
(FIRST,) = (block for block in BLOCKS if block.get("kind") == "Kustomization")
ADDITIONS = [block for block in BLOCKS if "kind" not in block]


def rendered(folder: Path, *additions: dict[str, Any]) -> list[Manifest]:
    """Return what the page's first kustomization.yaml gives, with other blocks added."""
    file = FIRST.copy()
    for addition in additions:
        for name, value in addition.items():
            file[name] = [*file.get(name, []), *value]
    text = yaml.safe_dump(file).replace("../ddpm-service", os.path.relpath(ROOT, folder))
    (folder / "kustomization.yaml").write_text(text)
    return render(folder)


def addition(text: str) -> dict[str, Any]:
    """Return the only one that holds the text."""
    (found,) = (block for block in ADDITIONS if text in str(block))
    return found


@pytest.mark.parametrize("number", range(-1, len(ADDITIONS)))
def test_every_block_gives_manifests_that_a_cluster_would_take(tmp_path: Path, number: int) -> None:
    manifests = rendered(tmp_path, *([ADDITIONS[number]] if number >= 0 else []))
    for manifest in manifests:
        if manifest["kind"] in KEDA:
            jsonschema_rs.validate(KEDA[manifest["kind"]], manifest["spec"])
        else:
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_the_page_has_a_block_for_each_thing_that_is_tested_here() -> None:
    assert len(ADDITIONS) == 5


def test_the_images_are_the_readers(tmp_path: Path) -> None:
    found = workloads(rendered(tmp_path))
    assert container(found["api"])["image"] == "registry.example.com/ddpm:1"
    assert container(found["worker"])["image"] == "registry.example.com/ddpm:1"


def test_settings_reach_the_processes(tmp_path: Path) -> None:
    manifests = rendered(tmp_path, addition("DDPM_RESULTS_TTL_S"))
    secrets = {"redis-password": "x", "api-keys": "x"}
    api, worker = (
        environment(manifests, workloads(manifests)[component], secrets)
        for component in ("api", "worker")
    )
    assert api["DDPM_RESULTS_TTL_S"] == "3600"
    assert api["DDPM_RESULTS_URL"] == worker["DDPM_RESULTS_URL"]
    assert worker["DDPM_DEVICE"] == "cpu", "the overlay's is kept"


def test_the_ingress_has_the_readers_host(tmp_path: Path) -> None:
    (ingress,) = of_kind(rendered(tmp_path, addition("components/ingress")), "Ingress")
    host = ingress["spec"]["rules"][0]["host"]
    assert [entry["hosts"] for entry in ingress["spec"]["tls"]] == [[host]]
    service = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert service == {"name": "ddpm-api", "port": {"name": "http"}}


def test_the_autoscaler_has_the_readers_bounds(tmp_path: Path) -> None:
    (scaled,) = of_kind(rendered(tmp_path, addition("maxReplicaCount")), "ScaledObject")
    assert scaled["spec"]["maxReplicaCount"] == 10
    assert scaled["spec"]["triggers"][0]["metadata"]["targetValue"] == "120"


def test_the_formula_adds_up_every_trigger(tmp_path: Path) -> None:
    (scaled,) = of_kind(rendered(tmp_path, addition("scalingModifiers")), "ScaledObject")
    first, second = scaled["spec"]["triggers"]
    formula = scaled["spec"]["advanced"]["scalingModifiers"]["formula"]
    assert formula == f"{first['name']} + {second['name']}"
    for other in ("metadata", "authenticationRef"):
        assert first[other].keys() == second[other].keys()
    assert first["metadata"]["url"] == second["metadata"]["url"]


def test_without_keda_nothing_of_it_is_left(tmp_path: Path) -> None:
    before, after = rendered(tmp_path), rendered(tmp_path, addition("$patch: delete"))
    gone = [manifest for manifest in before if manifest not in after]
    assert {manifest["apiVersion"] for manifest in gone} == {"keda.sh/v1alpha1"}
    assert len(after) == len(before) - len(gone)


def test_the_reader_makes_every_secret_that_is_needed(tmp_path: Path) -> None:
    made = {
        (words[words.index("generic") + 1], word.removeprefix("--from-literal=").partition("=")[0])
        for words in commands(TEXT)
        if words[0] == "kubectl" and "secret" in words
        for word in words
        if word.startswith("--from-literal=")
    }
    needed = {
        (reference["name"], reference["key"])
        for reference in secret_references(rendered(tmp_path))
        if not reference.get("optional")
    }
    assert made == needed


def test_the_page_backs_up_the_claim_of_the_job_store(tmp_path: Path) -> None:
    store = workloads(rendered(tmp_path))["store"]
    (claim,) = store["spec"]["volumeClaimTemplates"]
    name = f"{claim['metadata']['name']}-{store['metadata']['name']}-0"
    (snapshot,) = (block for block in BLOCKS if block.get("kind") == "VolumeSnapshot")
    assert snapshot["spec"]["source"]["persistentVolumeClaimName"] == name


def test_the_page_says_what_the_autoscaler_does(tmp_path: Path) -> None:
    spec = named(rendered(tmp_path), "ScaledObject", "ddpm-worker")["spec"]
    values = {**spec, **spec["triggers"][0]["metadata"]}
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 5
    assert {name: str(values[name]) for name, _ in rows} == dict(rows)
