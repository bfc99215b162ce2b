"""The two Compose files as files. Tests that need an engine are in tests/integration/docker."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import ApiSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
GPU = "docker-compose.yml"
CPU = "docker-compose.cpu.yml"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_gpu_file_is_the_cpu_file_and_the_gpu() -> None:
    without = copy.deepcopy(read(GPU))
    deploy = without["services"]["worker"].pop("deploy")
    assert without == read(CPU)
    device = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert deploy == {"resources": {"reservations": {"devices": [device]}}}


@pytest.mark.parametrize("name", [GPU, CPU])
def test_the_api_alone_is_published_and_on_loopback_unless_set_otherwise(name: str) -> None:
    services = read(name)["services"]
    ports = {service: body["ports"] for service, body in services.items() if "ports" in body}
    assert ports == {
        "api": ["${DDPM_PUBLISH:-127.0.0.1:8000}:8000"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


@pytest.mark.parametrize("name", [GPU, CPU])
def test_monitoring_starts_only_where_it_is_asked_for_and_its_files_are_there(name: str) -> None:
    services = read(name)["services"]
    asked_for = {service for service, body in services.items() if body.get("profiles")}
    assert asked_for == {"prometheus", "grafana"}
    mounts = [mount for service in asked_for for mount in services[service]["volumes"]]
    files = [re.sub(r"\$\{\w+:-(.+?)\}", r"\1", mount).split(":")[0] for mount in mounts]
    assert [file for file in files if file.startswith(".") and not (ROOT / file).exists()] == []


@pytest.mark.parametrize("name", [GPU, CPU])
def test_an_api_without_keys_answers_as_localhost_only(name: str) -> None:
    environment = read(name)["services"]["api"]["environment"]
    assert environment["DDPM_ANONYMOUS_HOSTS"] == "${DDPM_ANONYMOUS_HOSTS:-localhost}"
    assert environment["DDPM_API_KEYS"] is None, "the host's, where it has some"
    # The API needs it to refuse an address that everybody reaches.
    assert environment["DDPM_PUBLISH"] == "${DDPM_PUBLISH:-127.0.0.1:8000}"


@pytest.mark.parametrize("name", [GPU, CPU])
def test_every_service_is_confined(name: str) -> None:
    for service, body in read(name)["services"].items():
        assert body["read_only"], service
        assert body["cap_drop"] == ["ALL"], service
        assert body["security_opt"] == ["no-new-privileges:true"], service
        assert not body.get("privileged"), service


def test_every_setting_in_the_compose_files_exists() -> None:
    services = read(CPU)["services"]
    for service, settings in (("api", ApiSettings), ("worker", WorkerSettings)):
        known = {f"DDPM_{field}".upper() for field in settings.model_fields}
        others = set(services[service]["environment"]) - known
        # Boto's, for a results store, and OpenTelemetry's, for traces.
        assert {name for name in others if not name.startswith(("AWS_", "OTEL_"))} == set()


@pytest.mark.parametrize("name", [GPU, CPU])
def test_every_container_has_a_limit_of_memory(name: str) -> None:
    limits = {service: body["mem_limit"] for service, body in read(name)["services"].items()}
    assert limits == {
        "redis": "${DDPM_REDIS_MEMORY:-6g}",
        "api": "${DDPM_API_MEMORY:-1g}",
        "worker": "${DDPM_WORKER_MEMORY:-8g}",
        "prometheus": "1g",
        "grafana": "1g",
    }


def test_credentials_of_a_results_store_reach_those_who_open_it() -> None:
    services = read(CPU)["services"]
    for service in ("api", "worker"):
        environment = services[service]["environment"]
        assert environment["DDPM_RESULTS_URL"] is None
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
            assert environment[name] is None, "the host's, where it has one"


def test_variables_of_opentelemetry_reach_whoever_makes_spans_and_the_image_sends() -> None:
    api, worker = (read(CPU)["services"][name]["environment"] for name in ("api", "worker"))
    passed = {name: value for name, value in api.items() if name.startswith("OTEL_")}
    assert passed == {name: value for name, value in worker.items() if name.startswith("OTEL_")}
    assert set(passed.values()) == {None}, "the host's, where it has one"
    assert {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"} <= {*passed}
    dockerfile = (ROOT / "Dockerfile").read_text()
    extras = re.findall(r"\['optional-dependencies'\]\['(\w+)'\]", dockerfile)
    assert extras == ["s3", "otel"]


@pytest.mark.parametrize("name", [GPU, CPU])
def test_a_worker_writes_its_heartbeat_where_its_health_check_reads_it(name: str) -> None:
    worker = read(name)["services"]["worker"]
    (file,) = re.findall(r"DDPM_HEARTBEAT_FILE=(\S+)", (ROOT / "Dockerfile").read_text())
    assert worker["healthcheck"]["test"] == ["CMD", "python", "-m", "healthy", "worker"]
    assert file.startswith("/tmp/"), "the one folder of a container that can be written"
    assert worker["tmpfs"] == ["/tmp:size=64m,mode=1777"]
    assert "DDPM_HEARTBEAT_FILE" not in worker["environment"]


def test_the_page_on_containers_names_every_variable_that_compose_reads() -> None:
    text = (ROOT / CPU).read_text()
    passed_on = {
        name
        for body in read(CPU)["services"].values()
        for name, value in body.get("environment", {}).items()
        if value is None
    }
    read_by_compose = set(re.findall(r"\$\{(\w+)", text)) | passed_on
    page = (ROOT / "docs" / "how-to" / "run-with-docker.md").read_text()
    assert {name for name in read_by_compose if f"`{name}`" not in page} == set()
