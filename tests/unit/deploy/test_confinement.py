"""What the pods may do, what they may use, and who reaches them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.kubernetes import (
    COMPONENT,
    NAME,
    Manifest,
    container,
    named,
    of_kind,
    pod,
    secret_references,
    workloads,
)

PER_COMPONENT = pytest.mark.parametrize("component", ["store", "api", "worker"])
# Of the images: the Dockerfile's users.
USERS = {"store": 999, "api": 10001, "worker": 10001}
UNITS = {"Mi": 2**20, "Gi": 2**30, "mb": 2**20, "gb": 2**30}


def size_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()
    return int(number) * UNITS[unit]


@PER_COMPONENT
def test_a_pod_runs_as_the_images_user_with_a_read_only_root(
    manifests: list[Manifest], component: str
) -> None:
    workload = workloads(manifests)[component]
    allowed = pod(workload)["securityContext"]
    assert allowed["runAsNonRoot"]
    assert allowed["runAsUser"] == allowed["runAsGroup"] == USERS[component]
    assert allowed["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@PER_COMPONENT
def test_a_pod_has_nothing_of_the_cluster_and_no_variables_of_its_services(
    manifests: list[Manifest], component: str
) -> None:
    spec = pod(workloads(manifests)[component])
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert all("emptyDir" in volume for volume in spec.get("volumes", []))


@PER_COMPONENT
def test_a_container_has_requests_limits_and_probes(
    manifests: list[Manifest], component: str
) -> None:
    found = container(workloads(manifests)[component])
    for bound in ("requests", "limits"):
        assert {"cpu", "memory"} <= found["resources"][bound].keys()
    assert found["resources"]["requests"]["memory"] == found["resources"]["limits"]["memory"]
    assert {"startupProbe", "readinessProbe"} <= found.keys()


def test_the_outage_of_the_job_store_restarts_no_api_and_no_worker(
    manifests: list[Manifest],
) -> None:
    found = {name: container(workload) for name, workload in workloads(manifests).items()}
    assert found["api"]["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert "livenessProbe" not in found["worker"]


def test_the_namespace_refuses_pods_that_are_not_confined(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_job_store_leaves_a_quarter_of_its_memory_free(manifests: list[Manifest]) -> None:
    found = container(workloads(manifests)["store"])
    maxmemory = size_bytes(found["args"][found["args"].index("--maxmemory") + 1])
    assert maxmemory * 1.25 <= size_bytes(found["resources"]["limits"]["memory"])


def test_only_secrets_hold_passwords_and_keys(manifests: list[Manifest]) -> None:
    assert of_kind(manifests, "Secret") == []
    assert {(found["name"], found["key"]) for found in secret_references(manifests)} == {
        ("ddpm", "redis-password"),
        ("ddpm", "api-keys"),
        ("ddpm", "webhook-secret"),
        ("ddpm", "link-secret"),
        ("ddpm-keda", "token"),
    }
    for workload in workloads(manifests).values():
        for variable in container(workload).get("env", []):
            secret = re.search("KEYS|SECRET|PASSWORD|AUTH", variable["name"])
            assert not (secret and "value" in variable), variable["name"]


def test_nothing_is_published_outside_the_cluster(manifests: list[Manifest]) -> None:
    for service in of_kind(manifests, "Service"):
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert of_kind(manifests, "Ingress") == []


def selects(policy: Manifest) -> set[str]:
    """Return the components whose pods it is about."""
    selector: dict[str, Any] = policy["spec"]["podSelector"]
    assert selector["matchLabels"][NAME] == "ddpm"
    if COMPONENT in selector["matchLabels"]:
        return {selector["matchLabels"][COMPONENT]}
    values = [found["values"] for found in selector.get("matchExpressions", [])]
    return set(values[0]) if values else {"store", "api", "worker"}


def test_every_pod_is_closed_in_both_directions_by_default(manifests: list[Manifest]) -> None:
    policy = named(manifests, "NetworkPolicy", "ddpm-default-deny")
    assert selects(policy) == {"store", "api", "worker"}
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & policy["spec"].keys()


def test_only_the_api_and_the_workers_reach_the_job_store(manifests: list[Manifest]) -> None:
    opening = [p for p in of_kind(manifests, "NetworkPolicy") if p["spec"].get("ingress")]
    (policy,) = (p for p in opening if "store" in selects(p))
    (rule,) = policy["spec"]["ingress"]
    (source,) = rule["from"]
    assert source.keys() == {"podSelector"}
    assert selects({"spec": source}) == {"api", "worker"}
    assert [port["port"] for port in rule["ports"]] == [6379]


def test_the_api_is_reached_by_keda_and_by_labelled_namespaces_and_workers_by_nobody(
    manifests: list[Manifest],
) -> None:
    opening = [p for p in of_kind(manifests, "NetworkPolicy") if p["spec"].get("ingress")]
    assert set.union(*map(selects, opening)) == {"store", "api"}
    (rule,) = named(manifests, "NetworkPolicy", "ddpm-api")["spec"]["ingress"]
    assert [source["namespaceSelector"]["matchLabels"] for source in rule["from"]] == [
        {"ddpm-client": "allowed"},
        {"kubernetes.io/metadata.name": "keda"},
    ]


def test_api_and_workers_reach_store_dns_and_public_addresses_and_the_store_nobody(
    manifests: list[Manifest],
) -> None:
    opening = [p for p in of_kind(manifests, "NetworkPolicy") if p["spec"].get("egress")]
    (policy,) = opening
    assert selects(policy) == {"api", "worker"}
    store, dns, public = policy["spec"]["egress"]
    assert selects({"spec": store["to"][0]}) == {"store"}
    assert {(port["protocol"], port["port"]) for port in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    (ipv4, ipv6) = (to["ipBlock"] for to in public["to"])
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(
        ipv4["except"]
    )
    assert {"fc00::/7", "fe80::/10"} <= set(ipv6["except"])
