"""A service of any checkout: its job store, its API, and workers whose networks only wait.

Jobs come over HTTP. What is measured is read from the job store, because the names of its keys are
a contract: the same code measures the service of another commit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

import httpx
from redis import Redis

from bench.fleet import backlog
from bench.fleet.stub_worker import COUNTS
from bench.lib.model import DEFAULT
from bench.systems.api import Api, start_api
from worker.jobs.domain import Priority
from worker.jobs.keys import QUEUES, SHARD_PREFIX, job_key, open_key

ROOT = Path(__file__).parents[2]
OWNERS = ("anna", "ben")
MODELS = ("first", "second")
_NO_BOUND = str(10**12)
_POSTS_AT_ONCE = 8
# So many jobs are posted without HTTP.
_MANY = 1000
_WITHIN_S = 1800.0
_POLL_S = 0.02
_HOLDER = ("status", "worker_name")
_READ_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class PostedJob:
    """A job to post."""

    count: int = 1
    steps: int = 4
    owner: str = OWNERS[0]
    model: str = MODELS[0]
    priority: Literal["interactive", "bulk"] = "interactive"

    @property
    def image_steps(self) -> int:
        """Image-steps of all its images."""
        return self.count * self.steps


@dataclass(frozen=True, slots=True)
class JobTimes:
    """Times in the life of a job, in seconds since the epoch; infinity for what did not happen."""

    created_at: float
    started_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class StubPace:
    """Speed of a stub network.

    Attributes:
        image_steps_per_s: Image-steps a second; 0 for a network that costs nothing.
        least_s: Seconds of the smallest batch.
    """

    image_steps_per_s: float = 0.0
    least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StubWorkers:
    """Worker processes, each with a file of what it has counted."""

    counters: Sequence[Path]

    def image_steps(self) -> list[int]:
        """Return the image-steps that each worker has computed."""
        return [int(COUNTS.unpack(file.read_bytes())[0]) for file in self.counters]

    def stepping_since(self) -> float:
        """Return when the first worker's first step after its last rest began."""
        return float(COUNTS.unpack(self.counters[0].read_bytes())[1])


@dataclass
class StubService:
    """A running service.

    Attributes:
        api: Its API.
        redis: A client of its job store.
        http: A client of the API, for all threads.
        folder: Folder of its models, its log and its workers' counts.
        checkout: Whose code it runs.
        settings: Settings of its API.
        host: Starts its workers.
        polls: Round trips of this client, which are no part of what is measured.
    """

    api: Api
    redis: Redis
    http: httpx.Client
    folder: Path
    checkout: Path
    settings: Mapping[str, str]
    host: WorkerHost
    polls: int = 0
    _numbers: Iterator[int] = field(default_factory=count)

    def post(self, jobs: Iterable[PostedJob]) -> list[str]:
        """Post jobs, several at a time, and return their ids in the same order.

        Many jobs for a service of this checkout are posted by its own code, without HTTP.

        Raises:
            RuntimeError: The API refused one.
        """
        jobs = list(jobs)
        if len(jobs) >= _MANY and self.checkout == ROOT:
            bodies = [asdict(job) for job in jobs]
            return backlog.post([(body.pop("owner"), body) for body in bodies], self.settings)
        with ThreadPoolExecutor(_POSTS_AT_ONCE) as threads:
            return list(threads.map(self._post, jobs))

    def call(self, method: str, path: str, owner: str = OWNERS[0], body: Any = None) -> Any:
        """Send a request, and return the answer.

        Raises:
            RuntimeError: The answer is an error.
        """
        headers = {"Authorization": f"Bearer {owner}"}
        answer = self.http.request(method, path, json=body, headers=headers)
        if answer.is_error:
            raise RuntimeError(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer.json()

    @contextmanager
    def workers(self, paces: Sequence[StubPace]) -> Iterator[StubWorkers]:
        """Run a worker of each pace for the block. All have begun to look for shards.

        Workers of one pace share a calibration, which the first one makes by itself.

        Args:
            paces: Of the workers.
        """
        counters: list[Path] = []
        pids: list[int] = []
        before = self._signed_on()
        try:
            for pace in dict.fromkeys(paces):
                for _ in range(paces.count(pace)):
                    counters.append(self.folder / f"worker-{next(self._numbers)}")
                    pids.append(self.host.start(pace, counters[-1], self.folder))
                there = before + len(pids)
                wait_until(partial(self._are_there, there), f"{there} workers run")
            yield StubWorkers(counters)
        finally:
            for pid in pids:
                self.host.stop(pid)

    def open_jobs(self) -> int:
        """Count the jobs that have not ended."""
        with self.redis.pipeline(transaction=False) as pipe:
            for priority in Priority:
                pipe.zcard(open_key(priority))
            self.polls += 1
            return sum(pipe.execute())

    def until_idle(self) -> None:
        """Wait until every job has ended."""
        wait_until(lambda: not self.open_jobs(), "all jobs have ended")

    def until_ended(self, job: str) -> None:
        """Wait until a job has ended."""
        wait_until(lambda: self.times([job])[0].finished_at < float("inf"), f"{job} has ended")

    def times(self, jobs: Sequence[str]) -> list[JobTimes]:
        """Return the times of the jobs."""
        names = ("created_at", "started_at", "finished_at")
        found: list[JobTimes] = []
        for first in range(0, len(jobs), _READ_AT_ONCE):
            with self.redis.pipeline(transaction=False) as pipe:
                for job in jobs[first : first + _READ_AT_ONCE]:
                    pipe.hmget(job_key(job), names)
                found += [JobTimes(*(float(t or "inf") for t in times)) for times in pipe.execute()]
            self.polls += 1
        return found

    def clear(self) -> None:
        """Remove all jobs. No worker may run."""
        self.redis.flushall()

    def waiting_shards(self) -> int:
        """Count the shards in all queues."""
        queues = [key.decode() for key in cast("set[bytes]", self.redis.smembers(QUEUES))]
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(queue)
            return sum(pipe.execute())

    def shards_held(self) -> dict[str, int]:
        """Count the shards that each worker holds, by its name; "" has those that wait."""
        held: dict[str, int] = {}
        for key in self.redis.scan_iter(match=f"{SHARD_PREFIX}*", count=1000):
            status, worker = cast("list[bytes | None]", self.redis.hmget(key, _HOLDER))
            name = worker.decode() if worker and status == b"started" else ""
            held[name] = held.get(name, 0) + 1
        return held

    def _post(self, job: PostedJob) -> str:
        body = asdict(job)
        posted = self.call("POST", "/v1/jobs", body.pop("owner"), body)
        return cast("str", posted["id"])

    def _signed_on(self) -> int:
        return int(self.redis.scard("rq:workers"))

    def _are_there(self, workers: int) -> bool:
        """Tell whether so many workers have signed on.

        Raises:
            RuntimeError: One of them has ended.
        """
        if self.host.running() < workers:
            raise RuntimeError(self.host.log)
        return self._signed_on() >= workers


class WorkerHost:
    """The process that workers are forked from (bench/fleet/stub_worker.py)."""

    def __init__(self, folder: Path, checkout: Path, redis_url: str) -> None:
        """Start it.

        Args:
            folder: Folder of the models, and of the log.
            checkout: Whose code the workers run.
            redis_url: Their job store.
        """
        self._log = folder / "workers.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DDPM_")}
        env = inherited | {
            "PYTHONPATH": str(checkout),
            "DDPM_REDIS_URL": redis_url,
            "DDPM_MODELS_DIR": str(folder / "models"),
            "DDPM_MODELS": ",".join(MODELS),
            "DDPM_DEVICE": "cpu",
            "DDPM_PRECISION": "fp32",
        }
        command = [sys.executable, "-P", str(ROOT / "bench" / "fleet" / "stub_worker.py")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=checkout,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self, pace: StubPace, counter: Path, folder: Path) -> int:
        """Start a worker, and return its process id."""
        cache = folder / f"cache-{pace.image_steps_per_s:g}-{pace.least_s:g}"
        order = {
            "counter": str(counter),
            "pace": pace.image_steps_per_s,
            "least_s": pace.least_s,
            "env": {"DDPM_CACHE_DIR": str(cache)},
        }
        return self._order(f"start {json.dumps(order)}")

    def stop(self, pid: int) -> None:
        """Stop a worker in good order."""
        self._order(f"stop {pid}")

    def running(self) -> int:
        """Count the workers that run."""
        return self._order("count")

    @property
    def log(self) -> str:
        """The end of what the workers have written."""
        return self._log.read_text()[-2000:]

    def close(self) -> None:
        """End all workers, and the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def _order(self, order: str) -> int:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{order}\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except (OSError, ValueError):
            raise RuntimeError(self.log) from None


@contextmanager
def stub_service(out: Path, checkout: Path = ROOT) -> Iterator[StubService]:
    """Run a service for the block.

    It has two owners and two models, which are the shipped one with other names.

    Args:
        out: Folder of results. The service's data lies in a folder in it, which goes at the end.
        checkout: Whose code it runs.
    """
    folder = out / f"stub-{os.getpid()}-{checkout.resolve().name}"
    for name in MODELS:
        _copy_model(folder / "models" / name)
    keys = ",".join(f"{owner}:{sha256(owner.encode()).hexdigest()}" for owner in OWNERS)
    settings = {
        "models_dir": str((folder / "models").resolve()),
        "api_keys": keys,
        "key_requests_per_s": "0",
        "max_open_image_steps": _NO_BOUND,
        "max_open_image_steps_per_key": _NO_BOUND,
        "max_open_jobs_per_key": _NO_BOUND,
        "max_kept_jobs_per_key": _NO_BOUND,
        "max_kept_bytes_per_key": str(2**53),
    }
    try:
        with (
            start_api(out, checkout, **settings) as api,
            Redis.from_url(api.redis_url) as redis,
            httpx.Client(base_url=api.url, timeout=60, trust_env=False) as http,
        ):
            settings["redis_url"] = api.redis_url
            here, there = folder.resolve(), checkout.resolve()
            host = WorkerHost(here, there, api.redis_url)
            try:
                yield StubService(api, redis, http, here, there, settings, host)
            finally:
                host.close()
    finally:
        shutil.rmtree(folder)


def wait_until(condition: Callable[[], bool], what: str, within_s: float = _WITHIN_S) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It was not met in time.
    """
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"after {within_s:g} s still not: {what}")
        time.sleep(_POLL_S)


def _copy_model(folder: Path) -> None:
    shutil.copytree(DEFAULT, folder)
    card = folder / "card.json"
    card.write_text(
        json.dumps(json.loads(card.read_text()) | {"name": folder.name, "default": False})
    )
