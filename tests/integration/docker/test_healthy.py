"""The health checks of the containers, as they run there.

Each is a process that exits with 0, or says why not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from worker.jobs.shard_queue import LEASE_S


def complaint(process: str, **settings: str) -> str:
    """Check the API or a worker; return what is wrong, or nothing if all is well."""
    environment = {**os.environ, **settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'docker'}"}
    done = subprocess.run(
        [sys.executable, "-m", "healthy", process], env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr.strip()


def test_an_api_that_answers_is_healthy(url: str) -> None:
    assert complaint("api", DDPM_PORT=url.rpartition(":")[2]) == ""
    assert "refused" in complaint("api", DDPM_PORT="9")


def test_an_api_is_asked_without_the_proxy_that_docker_hands_to_containers(url: str) -> None:
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    assert complaint("api", DDPM_PORT=url.rpartition(":")[2], **proxy) == ""


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [(0, ""), (LEASE_S - 5, ""), (LEASE_S + 0.1, "not heard of"), (-3600, "not heard of")],
    ids=["now", "within its lease", "gone", "clock set back"],
)
def test_a_worker_is_healthy_for_a_lease_after_its_last_heartbeat(
    tmp_path: Path, age_s: float, expected: str
) -> None:
    file = tmp_path / "heartbeat"
    file.touch()
    at = time.time() - age_s
    os.utime(file, (at, at))
    assert complaint("worker", DDPM_HEARTBEAT_FILE=str(file)) == expected


def test_a_worker_is_not_healthy_before_its_first_heartbeat(tmp_path: Path) -> None:
    missing = str(tmp_path / "heartbeat")
    assert complaint("worker", DDPM_HEARTBEAT_FILE=missing).startswith("FileNotFoundError")


def test_a_workers_check_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """It runs every ten seconds; redis and pydantic cost a second of processor each time."""
    file = tmp_path / "heartbeat"
    file.touch()
    command = [sys.executable, "-I", "-S", str(ROOT / "docker" / "healthy.py"), "worker"]
    environment = {"DDPM_HEARTBEAT_FILE": str(file)}
    assert subprocess.run(command, env=environment).returncode == 0
