"""What the manifests say of each other, and of the program."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from pydantic_settings import BaseSettings

from app.access.api_keys import new_key
from app.access.public_paths import open_paths
from app.main import create_app
from app.settings import ApiSettings
from cli.settings import check_access, keys_of
from models.checkpoints.catalog import SHIPPED, Catalog
from tests.support.kubernetes import (
    COMPONENT,
    ROOT,
    Manifest,
    container,
    environment,
    named,
    of_kind,
    pod,
    workloads,
)
from worker.settings import WorkerSettings

SETTINGS: dict[str, type[BaseSettings]] = {"api": ApiSettings, "worker": WorkerSettings}
SECRETS = {"redis-password": "p4ss", "api-keys": new_key("ann")[1]}
DRAIN_S, PRE_STOP_S, GRACEFUL_S = 10, 5, 3


def read(
    manifests: list[Manifest], component: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, str], Any]:
    """Return a container's variables, and the settings that its process would read from them."""
    found = environment(manifests, workloads(manifests)[component], SECRETS)
    with monkeypatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        return found, SETTINGS[component]()


@pytest.mark.parametrize("component", SETTINGS)
def test_a_setting_that_a_container_is_handed_exists(
    manifests: list[Manifest], component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, settings = read(manifests, component, monkeypatch)
    fields = {f"DDPM_{name}".upper() for name in type(settings).model_fields}
    assert found.keys() - fields == {"REDIS_PASSWORD"}
    assert str(settings.redis_url) == "redis://:p4ss@ddpm-store:6379/0"


def test_the_api_would_start_on_every_address_since_it_has_keys(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = read(manifests, "api", monkeypatch)
    assert settings.host == "0.0.0.0"
    assert settings.anonymous_hosts == ""
    check_access(settings, settings.host)


def test_every_worker_has_the_overlays_device_and_one_precision(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = read(manifests, "worker", monkeypatch)
    gpus = container(workloads(manifests)["worker"])["resources"]["limits"].get("nvidia.com/gpu")
    assert (settings.device, settings.precision, gpus) in [
        ("cpu", "fp32", None),
        ("cuda", "bf16", "1"),
    ]
    assert str(settings.cache_dir) == "/cache"


def test_folders_that_are_written_to_are_volumes(manifests: list[Manifest]) -> None:
    mounts = {
        name: {mount["mountPath"] for mount in container(workload)["volumeMounts"]}
        for name, workload in workloads(manifests).items()
    }
    assert mounts == {"store": {"/var/lib/ddpm"}, "api": {"/tmp"}, "worker": {"/tmp", "/cache"}}


@pytest.mark.parametrize("component", ["store", "api"])
def test_services_policies_and_containers_agree_on_the_port(
    manifests: list[Manifest], component: str
) -> None:
    workload = workloads(manifests)[component]
    (port,) = container(workload)["ports"]
    service = named(manifests, "Service", f"ddpm-{component}")["spec"]
    assert [(p["port"], p["targetPort"]) for p in service["ports"]] == [
        (port["containerPort"], port["name"])
    ]
    assert service["selector"] == workload["spec"]["template"]["metadata"]["labels"]
    (rule,) = named(manifests, "NetworkPolicy", f"ddpm-{component}")["spec"]["ingress"]
    assert [p["port"] for p in rule["ports"]] == [port["containerPort"]]


def test_the_api_listens_on_its_port(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = read(manifests, "api", monkeypatch)
    (port,) = container(workloads(manifests)["api"])["ports"]
    assert settings.port == port["containerPort"]


def test_every_workload_selects_its_own_pods(manifests: list[Manifest]) -> None:
    for component, workload in workloads(manifests).items():
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
        assert labels[COMPONENT] == component


def test_every_budget_is_of_pods_that_there_are_and_lets_a_node_be_drained(
    manifests: list[Manifest],
) -> None:
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in workloads(manifests).values()]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"] in labels
        assert budget["spec"].get("maxUnavailable") == 1 or budget["spec"]["minAvailable"] == 1
    assert workloads(manifests)["api"]["spec"]["replicas"] == 2


def test_probes_ask_paths_that_the_api_answers_without_a_key(manifests: list[Manifest]) -> None:
    api = container(workloads(manifests)["api"])
    asked = {
        probe: api[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert set(asked.values()) <= open_paths(
        bool(keys_of(ApiSettings(api_keys=SECRETS["api-keys"])))
    )
    assert set(asked.values()) <= set(create_app(ApiSettings()).openapi()["paths"])
    assert asked["readinessProbe"] == "/readyz/api", "with no worker alive, jobs must still come in"


def test_workers_are_probed_by_a_module_of_the_image(manifests: list[Manifest]) -> None:
    worker = container(workloads(manifests)["worker"])
    for probe in ("startupProbe", "readinessProbe"):
        assert worker[probe]["exec"]["command"] == ["python", "-m", "healthy", "worker"]
    assert "COPY docker/healthy.py" in (ROOT / "Dockerfile").read_text()


def test_processes_have_the_time_that_they_take_to_stop(manifests: list[Manifest]) -> None:
    found = workloads(manifests)
    settings = {each["name"]: each.get("value") for each in container(found["api"])["env"]}
    assert settings["DDPM_STOP_PAUSE_S"] == str(PRE_STOP_S)
    assert pod(found["api"])["terminationGracePeriodSeconds"] > PRE_STOP_S + GRACEFUL_S
    assert pod(found["worker"])["terminationGracePeriodSeconds"] > DRAIN_S


def test_the_job_store_has_the_options_of_compose_and_a_folder(manifests: list[Manifest]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["redis"]
    store = container(workloads(manifests)["store"])
    here = dict(zip(store["args"][::2], store["args"][1::2], strict=True))
    there = dict(zip(compose["command"][1::2], compose["command"][2::2], strict=True))
    assert store["command"] == compose["command"][:1]
    assert here.pop("--dir") == compose["volumes"][0].partition(":")[2]
    assert here.keys() == there.keys()
    for option in here.keys() - {"--maxmemory", "--requirepass"}:
        assert here[option] == there[option]


def test_everything_lies_in_the_namespace(manifests: list[Manifest]) -> None:
    (namespace,) = of_kind(manifests, "Namespace")
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == namespace["metadata"]["name"], manifest


def test_the_autoscaler_scales_the_workers_from_none_by_the_shipped_models_metric(
    manifests: list[Manifest],
) -> None:
    spec = of_kind(manifests, "ScaledObject")[0]["spec"]
    assert spec["scaleTargetRef"] == {"name": "ddpm-worker"}
    assert spec["minReplicaCount"] == 0
    assert "replicas" not in workloads(manifests)["worker"]["spec"], "the autoscaler's"
    (trigger,) = spec["triggers"]
    assert trigger["name"].isidentifier(), "a formula may name it"
    model = re.search(r'model="([^"]+)"', trigger["metadata"]["valueLocation"])[1]
    assert model in Catalog.read(SHIPPED)
    authentication = named(manifests, "TriggerAuthentication", trigger["authenticationRef"]["name"])
    assert [found["parameter"] for found in authentication["spec"]["secretTargetRef"]] == ["token"]


def test_the_autoscaler_asks_the_apis_service(manifests: list[Manifest]) -> None:
    (trigger,) = of_kind(manifests, "ScaledObject")[0]["spec"]["triggers"]
    url = urlsplit(trigger["metadata"]["url"])
    service = named(manifests, "Service", url.hostname.split(".")[0])
    assert url.hostname == f"ddpm-api.{service['metadata']['namespace']}.svc"
    assert url.port == service["spec"]["ports"][0]["port"]
    assert url.path == "/metrics"
