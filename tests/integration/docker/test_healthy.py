"""The health checks of the containers, as they run there: a process that exits with 0, or says why not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from redis import Redis

from tests.support.processes import ROOT
from tests.support.worker import IdleWorker


def healthy(what: str, **settings: str) -> str:
    """What it said; nothing where all is well."""
    environment = {**os.environ, **settings, "PYTHONPATH": f"{ROOT}:{ROOT / 'docker'}"}
    done = subprocess.run(
        [sys.executable, "-m", "healthy", what], env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr.strip()


def test_an_api_is_healthy_that_answers(url: str) -> None:
    assert healthy("api", DDPM_PORT=url.rpartition(":")[2]) == ""
    assert "refused" in healthy("api", DDPM_PORT="9")


def test_an_api_is_asked_without_the_proxy_that_docker_hands_to_containers(url: str) -> None:
    assert (
        healthy(
            "api", DDPM_PORT=url.rpartition(":")[2], http_proxy="http://127.0.0.1:9", no_proxy=""
        )
        == ""
    )


@pytest.mark.parametrize(
    ("host", "lives_s", "said"),
    [
        (socket.gethostname(), 60, ""),
        ("elsewhere", 60, "not heard of"),
        (socket.gethostname(), -1, "not heard of"),
    ],
    ids=["here", "elsewhere", "gone"],
)
def test_a_worker_is_healthy_that_runs_here_and_has_been_heard_of(
    redis: Redis, valkey_url: str, worker: IdleWorker, host: str, lives_s: float, said: str
) -> None:
    worker.announce(lives_s=lives_s)
    redis.hset("rq:worker:worker-1", "hostname", host)
    assert healthy("worker", DDPM_REDIS_URL=valkey_url) == said
