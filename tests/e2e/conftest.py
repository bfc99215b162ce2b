"""The whole service: the API on a port, a real Valkey, and workers in processes of their own.

All bounds of time in these tests are generous, because the machine may be busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_py

from app.main import create_app
from app.settings import ApiSettings
from tests.support.folders import write_model
from tests.support.processes import WorkerProcess, eventually
from tests.support.server import serve
from tests.support.valkey import valkey_server


@dataclass
class Service:
    """A running service, and what a test may do to it.

    Attributes:
        http: A client of its API.
        redis: A client of its store.
        workers: Its worker processes.
        redis_url: Where its store is.
        models_dir: Folder of its models.
        logs: Folder of its workers' logs.
        models: Names of the models that new workers serve.
    """

    http: httpx.Client
    redis: redis_py.Redis
    workers: list[WorkerProcess]
    redis_url: str
    models_dir: Path
    logs: Path
    models: str = "tiny"

    def post(self, **request: Any) -> dict[str, Any]:
        """Post a job of the tiny model, unless another is named."""
        response = self.http.post("/v1/jobs", json={"model": "tiny", **request})
        assert response.status_code == 202, response.text
        return response.json()

    def job(self, job: str) -> dict[str, Any]:
        """Read a job."""
        return self.http.get(f"/v1/jobs/{job}").json()

    def finished(self, job: str, within_s: float = 120) -> dict[str, Any]:
        """Wait until the job has finished, and return it."""
        eventually(
            lambda: self.job(job)["state"] not in ("queued", "running"),
            within_s,
            f"job {job} has ended",
        )
        ended = self.job(job)
        assert ended["state"] == "finished", ended
        return ended

    def pngs(self, job: str) -> dict[int, bytes]:
        """Wait until the job has finished, and return its PNGs by index."""
        images = self.finished(job)["images"]
        return {image["index"]: self.http.get(image["url"]).content for image in images}

    def add_worker(self, module: str = "cli", **more: str) -> WorkerProcess:
        """Start another worker, which is ready when this returns.

        `more` are settings of it, without the prefix of their names.
        """
        log = self.logs / f"worker-{len(self.workers)}.log"
        settings = {"redis_url": self.redis_url, "device": "cpu", "models": self.models} | more
        self.workers.append(WorkerProcess(log, module, models_dir=str(self.models_dir), **settings))
        return self.workers[-1]

    def holder(self, job: str) -> WorkerProcess:
        """Return the worker that has the job's first shard."""
        name = self.redis.hget(f"rq:job:{job}-0", "worker_name").decode()
        return next(worker for worker in self.workers if name in worker.log.read_text())

    def key_names(self) -> set[str]:
        """Return the names of all keys of the store."""
        return {key.decode() for key in self.redis.keys("*")}


@contextmanager
def serving(root: Path) -> Iterator[Service]:
    """Start a store and an API, and no worker yet."""
    write_model(root / "models", "tiny")
    with valkey_server(root / "valkey", save="", appendonly="no") as server:
        redis_url = f"{server.connection_url}/0"
        settings = ApiSettings(redis_url=redis_url, models_dir=root / "models")
        with (
            serve(create_app(settings)) as url,
            httpx.Client(base_url=url, timeout=30) as http,
            redis_py.Redis.from_url(redis_url) as client,
        ):
            running = Service(http, client, [], redis_url, root / "models", root)
            try:
                yield running
            finally:
                for worker in running.workers:
                    worker.request_stop()
                for worker in running.workers:
                    worker.stop(within_s=60)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two workers, which the tests of a module share."""
    root = tmp_path_factory.mktemp("service")
    write_model(root / "models", "blows-up", blow_up=True)
    with serving(root) as running:
        running.models = "tiny,blows-up"
        running.add_worker()
        running.add_worker()
        yield running


@pytest.fixture
def calm(tmp_path: Path) -> Iterator[Service]:
    """A service without workers for one test, which may stop or kill its store."""
    with serving(tmp_path) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the end of the workers' logs to a failure."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Service):
                logs = [worker.log for worker in value.workers]
                report.sections += [(log.name, log.read_text()[-4000:]) for log in logs]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start a store."""
    for item in items:
        if {"service", "calm"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.redis)
