"""`?wait=`: a client that waits is answered in time, and costs next to nothing."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from app.main import create_app
from app.operation import redis_client
from app.records.notifier import Notifier, set_within
from app.settings import ApiSettings
from tests.support.processes import ROOT, eventually, later
from tests.support.server import serve
from tests.support.worker import IdleWorker
from worker.jobs.keys import CHANGES, job_key

Post = Callable[..., dict[str, Any]]


@pytest.fixture
def served(settings: ApiSettings) -> Iterator[tuple[httpx.Client, Notifier]]:
    """A client that waits for as long as a busy machine may take, and the API's notifier."""
    app = create_app(settings)
    with serve(app) as url, httpx.Client(base_url=url, timeout=90) as client:
        yield client, app.state.notifier


async def test_a_message_wakes_without_a_poll(valkey_url: str, redis: Redis) -> None:
    client = redis_client.connect(valkey_url)
    notifier = Notifier(client, poll_every_s=3600.0)
    async with notifier.running(), asyncio.timeout(60):
        with notifier.listen("a") as changed:
            # Again and again, since nobody knows when the subscription begins.
            while not changed.is_set():
                redis.publish(CHANGES, "a running")
                await asyncio.sleep(0.01)
    await client.aclose()


async def test_a_poll_wakes_without_a_message(valkey_url: str, redis: Redis) -> None:
    client = redis_client.connect(valkey_url)
    notifier = Notifier(client, poll_every_s=0.05)
    async with notifier.running():
        with notifier.listen("a") as changed:
            for state in ("queued", "running"):
                redis.hset(job_key("a"), "state", state)
                assert await set_within(changed, 60), state
                changed.clear()
    await client.aclose()


def test_waiting_ends_with_the_next_change_of_state(
    served: tuple[httpx.Client, Notifier], worker: IdleWorker, post: Post
) -> None:
    api, _ = served
    job = post()["id"]
    began = time.monotonic()
    with later(0.1, worker.start, job):
        assert api.get(f"/v1/jobs/{job}", params={"wait": 60}).json()["state"] == "running"
    assert time.monotonic() - began >= 0.1


def test_waiting_ends_when_the_time_is_up(
    served: tuple[httpx.Client, Notifier], post: Post
) -> None:
    api, _ = served
    job = post()["id"]
    began = time.monotonic()
    assert api.get(f"/v1/jobs/{job}", params={"wait": 0.3}).json()["state"] == "queued"
    assert time.monotonic() - began >= 0.3


def test_waiting_for_a_job_that_has_ended_ends_at_once(
    served: tuple[httpx.Client, Notifier], post: Post
) -> None:
    api, _ = served
    job = post()["id"]
    api.post(f"/v1/jobs/{job}/cancel")
    answer = api.get(f"/v1/jobs/{job}", params={"wait": 60}, timeout=50)
    assert answer.json()["state"] == "cancelled"


def test_waiting_survives_a_lost_subscription(
    served: tuple[httpx.Client, Notifier], redis: Redis, worker: IdleWorker, post: Post
) -> None:
    api, _ = served
    job = post()["id"]
    redis.client_kill_filter(_type="pubsub")
    with later(0.2, worker.start, job):
        assert api.get(f"/v1/jobs/{job}", params={"wait": 60}).json()["state"] == "running"


def count_calls(redis: Redis, command: str) -> int:
    return redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_a_client_that_has_gone_costs_redis_nothing(
    served: tuple[httpx.Client, Notifier], redis: Redis, post: Post
) -> None:
    api, notifier = served
    notifier.poll_every_s = 0.05
    job = post()["id"]

    def polls_in_a_while() -> int:
        before = count_calls(redis, "hget")
        time.sleep(0.5)
        return count_calls(redis, "hget") - before

    with pytest.raises(httpx.ReadTimeout):
        api.get(f"/v1/jobs/{job}", params={"wait": 60}, timeout=0.5)
    eventually(lambda: len(notifier) == 0, 50, "the client is known to have gone")
    eventually(lambda: not polls_in_a_while(), 60, "nothing is read for it")


@contextmanager
def served_apart(settings: ApiSettings) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve the API in a process of its own, whose memory is its own too.

    It listens before the process runs, so that early requests wait for it.
    """
    env = {
        **os.environ,
        "DDPM_REDIS_URL": str(settings.redis_url),
        "DDPM_MODELS_DIR": str(settings.models_dir),
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        uvicorn = ["uvicorn", "app.main:create_app", "--factory", "--fd", str(fd)]
        command = [sys.executable, "-m", *uvicorn]
        with subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=[fd]) as process:
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}", process
            finally:
                process.terminate()


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    """Read the most memory that the process ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


async def all_wait(url: str, waiters: int, seconds: float) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        return await asyncio.gather(
            *(client.get(url, params={"wait": seconds}) for _ in range(waiters))
        )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_150_clients_that_wait_for_1024_images_cost_little_memory(
    settings: ApiSettings, post: Post
) -> None:
    path = f"/v1/jobs/{post(count=1024)['id']}"
    with served_apart(settings) as (url, process):
        asyncio.run(all_wait(url + path, 1, 0.1))
        before = resident_mb(process)
        answers = asyncio.run(all_wait(url + path, 150, 5))
        assert [answer.status_code for answer in answers] == [200] * 150
        assert resident_mb(process) - before < 25
