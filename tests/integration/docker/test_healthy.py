"""The health checks of the containers, as they run there.

Each is a process that exits with 0, or says why not.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from redis import Redis

from tests.support.processes import ROOT
from tests.support.worker import IdleWorker


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
    ("host", "lives_s", "expected"),
    [
        (socket.gethostname(), 60, ""),
        ("elsewhere", 60, "not heard of"),
        (socket.gethostname(), -1, "not heard of"),
    ],
    ids=["here", "elsewhere", "gone"],
)
def test_a_worker_is_healthy_if_it_runs_here_and_has_been_heard_of(
    redis: Redis, valkey_url: str, worker: IdleWorker, host: str, lives_s: float, expected: str
) -> None:
    worker.announce(lives_s=lives_s)
    redis.hset("rq:worker:worker-1", "hostname", host)
    assert complaint("worker", DDPM_REDIS_URL=valkey_url) == expected
