"""Every manifest against the schemas of the Kubernetes API, and of KEDA."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import jsonschema_rs
import kubernetes_validate
import pytest

from tests.support.kubernetes import KUBERNETES, Manifest, of_kind, render

# The oldest that the page names, the newest that there is, and one between.
VERSIONS = ["1.29", "1.33", "1.37"]
PAGE = KUBERNETES.parents[1] / "docs" / "how-to" / "run-on-kubernetes.md"
KEDA = json.loads((Path(__file__).parent / "keda.json").read_text())
OF_KEDA = ("ScaledObject", "TriggerAuthentication")


def validate(manifest: Manifest, version: str) -> None:
    """Raises ValidationError for a field that is wrong, and for one that does not exist."""
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_the_page_names_the_oldest_version_that_is_checked() -> None:
    assert f"Kubernetes {VERSIONS[0]} or newer" in PAGE.read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_one_of_the_api(manifests: list[Manifest], version: str) -> None:
    checked = [manifest for manifest in manifests if manifest["kind"] not in OF_KEDA]
    assert len(checked) > 10
    for manifest in checked:
        validate(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_ingress_is_one_of_the_api(tmp_path: Path, version: str) -> None:
    component = os.path.relpath(KUBERNETES / "components" / "ingress", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(f"components: [{component}]\n")
    (ingress,) = render(tmp_path)
    validate(ingress, version)


def test_a_field_that_does_not_exist_is_found(manifests: list[Manifest]) -> None:
    wrong = copy.deepcopy(of_kind(manifests, "Deployment")[0])
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        validate(wrong, VERSIONS[-1])


def test_the_autoscaler_is_as_keda_wants_it(manifests: list[Manifest]) -> None:
    checked = of_kind(manifests, *OF_KEDA)
    assert sorted(manifest["kind"] for manifest in checked) == sorted(OF_KEDA)
    for manifest in checked:
        assert manifest["apiVersion"] == "keda.sh/v1alpha1"
        jsonschema_rs.validate(KEDA[manifest["kind"]], manifest["spec"])


def test_a_field_that_keda_does_not_know_is_found(manifests: list[Manifest]) -> None:
    wrong = copy.deepcopy(of_kind(manifests, "ScaledObject")[0])
    wrong["spec"]["minReplicas"] = 0
    with pytest.raises(jsonschema_rs.ValidationError, match="minReplicas"):
        jsonschema_rs.validate(KEDA["ScaledObject"], wrong["spec"])
