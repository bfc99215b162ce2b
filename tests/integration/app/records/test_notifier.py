"""`?wait=`: who waits is answered in time, and costs next to nothing."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.settings import ApiSettings
from tests.support.processes import ROOT, later
from tests.support.worker import IdleWorker

Post = Callable[..., dict[str, Any]]


def test_waiting_ends_with_the_next_change_of_state(
    api: httpx.Client, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    began = time.monotonic()
    with later(0.1, worker.start, job):
        assert api.get(f"/v1/jobs/{job}", params={"wait": 5}).json()["state"] == "running"
    assert 0.1 <= time.monotonic() - began < 1, "woken by the clock, not by the change"


def test_waiting_ends_when_the_time_is_up(api: httpx.Client, post: Post) -> None:
    job = post()["id"]
    began = time.monotonic()
    assert api.get(f"/v1/jobs/{job}", params={"wait": 0.3}).json()["state"] == "queued"
    assert 0.3 <= time.monotonic() - began < 1


def test_nobody_waits_for_a_job_that_has_ended(api: httpx.Client, post: Post) -> None:
    job = post()["id"]
    api.post(f"/v1/jobs/{job}/cancel")
    began = time.monotonic()
    assert api.get(f"/v1/jobs/{job}", params={"wait": 30}).json()["state"] == "cancelled"
    assert time.monotonic() - began < 1


def test_waiting_survives_a_lost_subscription(
    api: httpx.Client, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    redis.client_kill_filter(_type="pubsub")
    with later(0.2, worker.start, job):
        assert api.get(f"/v1/jobs/{job}", params={"wait": 5}).json()["state"] == "running"


def calls(redis: Redis) -> Counter[str]:
    return Counter(
        {
            name.removeprefix("cmdstat_"): about["calls"]
            for name, about in redis.info("commandstats").items()
        }
    )


def test_nothing_is_asked_for_a_client_that_has_gone(
    api: httpx.Client, url: str, redis: Redis, post: Post
) -> None:
    job = post()["id"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/v1/jobs/{job}", params={"wait": 60}, timeout=0.5)
    time.sleep(2.5)
    before = calls(redis)
    time.sleep(2)
    assert "hget" not in calls(redis) - before


@contextmanager
def served_apart(settings: ApiSettings) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The API in a process of its own, whose memory is its own too. Listens before it runs: early requests wait for it."""
    env = {
        **os.environ,
        "DDPM_REDIS_URL": str(settings.redis_url),
        "DDPM_MODELS_DIR": str(settings.models_dir),
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [
            sys.executable,
            "-m",
            "uvicorn",
            "app.main:create_app",
            "--factory",
            "--fd",
            str(listening.fileno()),
        ]
        with subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=[listening.fileno()]) as process:
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}", process
            finally:
                process.terminate()


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """The most that it ever was."""
    return (
        int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[0])
        / 1024
    )


async def all_wait(url: str, waiters: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        return await asyncio.gather(*(client.get(url, params={"wait": 5}) for _ in range(waiters)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_150_who_wait_for_1024_images_cost_little_memory(settings: ApiSettings, post: Post) -> None:
    path = f"/v1/jobs/{post(count=1024)['id']}"
    with served_apart(settings) as (url, process):
        asyncio.run(all_wait(url + path, 1))
        before = resident_mb(process)
        answers = asyncio.run(all_wait(url + path, 150))
        assert [answer.status_code for answer in answers] == [200] * 150
        assert resident_mb(process) - before < 25
